//! Reconciles: slices in step are compared with the present documents beside what they apply (design section 4).
//!
//! A session of its own kind lists the present documents. What differs from them is staged, and applied when the chain says so:
//! by then the chain has brought everything that was written before the list was complete. A slice that meets that place without
//! having staged falls out, and is compared in a session.

use super::{Action, Batch, BucketCore, Slice, Steps, walks::Walk};
use highwater_schemas::{
    state::{NAMED_BESIDE, SliceName},
    wire::Removal,
};
use std::sync::Arc;

/// Messages of the session's topic that are given back together.
const PURGED: u64 = 32;

/// How far a slice has compared with a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staging {
    pub session: u64,
    reconcile: u64,
    vbs: Vec<StagingVb>,
    /// More differs than is staged.
    overfull: bool,
    /// Sequence in the catchup topic of the last batch taken.
    topic: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StagingVb {
    /// Where the slice stood when it took the session up: a list that ends below may name what was removed before that.
    position: u64,
    read: u64,
    done: bool,
}

impl Slice {
    /// What it has staged, or began to, counts no more.
    pub(super) fn unstage(&mut self) {
        self.staging = None;
        self.walks.forget_stage();
        (self.staged, self.prepared) = (0, 0);
    }

    /// Every list has ended, and what it did not name was looked for: the reconcile may be applied.
    pub(super) fn complete_stage(&mut self, out: &mut Vec<Action>) {
        let Some(staging) = &self.staging else { return };
        if staging.vbs.iter().all(|at| at.done) && !self.walks.has(Walk::EndStage) {
            let prepared = if staging.overfull { 0 } else { staging.reconcile };
            (self.staged, self.prepared) = (staging.reconcile, prepared);
            self.staging = None;
            out.push(Action::Report);
        }
    }
}

impl BucketCore {
    /// Slices in step take up the session of a reconcile; what belongs to one that is over is dropped.
    pub(super) fn take_up_reconciles(&mut self, out: &mut Vec<Action>) {
        for slice in self.slices.values_mut() {
            if slice.staging.as_ref().is_some_and(|staging| !self.view.sessions.contains_key(&staging.session)) {
                slice.staging = None;
                slice.walks.forget_stage();
                out.push(Action::DropStage { slice: slice.name });
            }
            // What is staged is applied first, unless it never got into the chain.
            let waits = self.heard.as_ref().is_some_and(|st| {
                let mut vbs = slice.vbs.iter().zip(&st.vbs);
                vbs.any(|(vb, heard)| vb.reconciled < slice.prepared && heard.reconciled >= slice.prepared)
            });
            if !slice.in_step() || slice.staging.is_some() || waits {
                continue;
            }
            let open = self.view.sessions.iter().rev().find_map(|(id, session)| {
                let reconcile = session.stages.filter(|reconcile| slice.staged < *reconcile)?;
                (slice.unstaged < *id && session.slices.contains(&slice.name)).then_some((*id, reconcile))
            });
            if let Some((session, reconcile)) = open {
                // A round beside this reconcile that it has applied since the session was opened may know better than the list.
                let known = self.view.sessions.get(&session).map(|open| open.reconciled.as_slice()).unwrap_or_default();
                let before = reconcile.saturating_sub(1 + NAMED_BESIDE);
                if slice.vbs.iter().zip(known).any(|(vb, known)| vb.reconciled > before.max(*known)) {
                    slice.unstaged = session;
                    out.push(Action::Report);
                    continue;
                }
                let vb = |vb: &crate::store::SliceVb| StagingVb { position: vb.position.seqno, read: 0, done: false };
                let vbs: Vec<StagingVb> = slice.vbs.iter().map(vb).collect();
                out.push(Action::BeginStage { slice: slice.name, reconcile, vbs: vbs.len() as u16 });
                slice.staging = Some(Staging { session, reconcile, vbs, overfull: false, topic: 0 });
                (slice.staged, slice.prepared) = (0, 0);
            }
        }
    }

    /// A batch of a reconcile's session; false: of another kind of session.
    pub(super) fn staging_batch(
        &mut self,
        session: u64,
        topic: u64,
        batch: &Arc<Batch>,
        out: &mut Vec<Action>,
    ) -> bool {
        if self.view.sessions.get(&session).is_none_or(|open| open.stages.is_none()) {
            return false;
        }
        let vb = usize::from(batch.vb);
        for slice in self.slices.values_mut() {
            let Some(staging) = slice.staging.as_mut().filter(|s| s.session == session) else { continue };
            let on_branch = slice.vbs.get(vb).is_some_and(|s| s.vbuuid == batch.vbuuid);
            let Some(at) = staging.vbs.get_mut(vb).filter(|at| on_branch && !at.done) else { continue };
            staging.topic = topic;
            if !batch.is_for(slice.name.index) {
                continue;
            }
            let holds = match batch.removal {
                _ if batch.from.seqno > at.read => false,
                Some(Removal::Listed { upto, .. }) => {
                    at.done = true;
                    let walk = slice.walks.begin(&mut self.walks, Walk::EndStage);
                    out.push(Action::EndStage { slice: slice.name, vb: batch.vb, upto, walk });
                    upto >= at.position
                }
                _ => {
                    if batch.to.seqno > at.read {
                        out.push(Action::Stage { slice: slice.name, batch: Arc::clone(batch), after: at.read });
                        at.read = batch.to.seqno;
                    }
                    true
                }
            };
            if !holds {
                // Another session brings another list.
                slice.unstaged = session;
                slice.unstage();
                out.extend([Action::DropStage { slice: slice.name }, Action::Report]);
            }
        }
        let taken = self.slices.values().filter_map(|s| s.staging.as_ref().filter(|s| s.session == session));
        let below = taken.map(|staging| staging.topic).min().unwrap_or(topic);
        let purged = self.purged.entry(session).or_default();
        if below >= *purged + PURGED {
            *purged = below;
            out.push(Action::Purge { session, below: below + 1 });
        }
        true
    }

    /// More differs than is staged: the slice is compared in a session when the chain says that the reconcile is to be applied.
    pub fn unprepared(&mut self, name: SliceName) {
        if let Some(slice) = self.slices.get_mut(&name) {
            slice.prepared = 0;
            // Also where the lists of other vbuckets are yet to end.
            if let Some(staging) = &mut slice.staging {
                staging.overfull = true;
            }
        }
    }

    /// Whether the steps apply a reconcile that a slice has not staged.
    pub(super) fn lacks_stage(slice: &Slice, steps: &Steps) -> bool {
        steps.iter().any(|(vb, step)| match step.batch.removal {
            Some(Removal::Listed { session, .. }) => {
                slice.vbs[usize::from(*vb)].reconciled < session && slice.prepared != session
            }
            _ => false,
        })
    }

    /// A slice holds more than it should, and only a list tells what.
    pub fn compare_again(&mut self, name: SliceName) -> Vec<Action> {
        let Some(slice) = self.slices.get_mut(&name) else { return Vec::new() };
        slice.fall_out_to_compare();
        (slice.persisting, slice.owed) = (false, false);
        let mut out = vec![Action::DropStage { slice: name }, Action::Report];
        self.attach_sessions(&mut out);
        out
    }
}
