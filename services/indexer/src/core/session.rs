//! Sessions: building an empty slice, or bringing one up whose chain had a gap, and merging it into the live chain
//! (design section 9).

use super::{
    Action, Batch, BucketCore, Join, Mode, Why,
    slice::{FollowedVb, Following},
    walks::Walk,
};
use highwater_schemas::{Position, state::SliceName, wire::Removal};
use std::sync::Arc;

/// A flush that failed is tried again after this, milliseconds.
const FLUSH_RETRY: u64 = 1_000;

impl BucketCore {
    /// Newest ST that every slice in step has made durable.
    pub fn durable(&self) -> u64 {
        self.slices.values().filter(|s| s.in_step() && s.readable).map(|s| s.durable).min().unwrap_or(0)
    }

    /// Slices that wait take up the session that was opened for them; those whose session is over wait again.
    pub(super) fn attach_sessions(&mut self, out: &mut Vec<Action>) {
        for slice in self.slices.values_mut() {
            if slice.following.as_ref().is_some_and(|f| !self.view.sessions.contains_key(&f.id)) {
                slice.fall_out();
                out.push(Action::Report);
            }
            if slice.mode != Mode::Waiting || slice.ending {
                continue;
            }
            let open = self.view.sessions.iter().rev().find(|(id, s)| {
                // What is filled from nothing has nothing to compare.
                let kind = if slice.compare { s.lists } else { !(s.lists && slice.building) };
                // One that was opened for what the slice was before may begin above what it is now.
                let joins_on = s.lists || slice.resume().iter().zip(&s.from).all(|(own, from)| from <= own);
                let fits = s.stages.is_none() && kind && joins_on;
                **id > slice.done_with && s.slices.contains(&slice.name) && fits
            });
            if let Some((id, session)) = open {
                if session.lists {
                    slice.compare_all();
                }
                for (vb, reconciled) in slice.vbs.iter_mut().zip(&session.reconciled) {
                    // What was found to be gone before is not read by it.
                    if session.lists || vb.content == 0 {
                        vb.reconciled = vb.reconciled.max(*reconciled);
                    }
                }
                // What lies above the session's start and below the slice's own is read twice and changes nothing.
                let vbs = slice.resume().into_iter().zip(&session.from).map(|(own, from)| {
                    let at = if session.lists { 0 } else { own.max(*from) };
                    FollowedVb { read: at, covered: at, listing: session.lists, listed: 0 }
                });
                slice.following = Some(Following { id: *id, vbs: vbs.collect(), topic: 0 });
                slice.mode = Mode::Session;
                out.push(Action::Report);
            }
        }
        self.purged.retain(|id, _| self.view.sessions.contains_key(id));
        self.take_up_reconciles(out);
    }

    /// A batch of a catchup topic.
    pub fn session_batch(&mut self, session: u64, topic: u64, batch: &Arc<Batch>) -> Vec<Action> {
        let mut out = Vec::new();
        if self.staging_batch(session, topic, batch, &mut out) {
            return out;
        }
        let vb = usize::from(batch.vb);
        for slice in self.slices.values_mut() {
            let bulk = slice.bulk;
            let Some(following) = slice.following.as_mut().filter(|f| f.id == session) else { continue };
            if slice.mode != Mode::Session {
                continue;
            }
            let on_branch = slice.vbs.get(vb).is_some_and(|s| s.vbuuid == batch.vbuuid);
            let Some(at) = following.vbs.get_mut(vb).filter(|_| on_branch && batch.session == session) else {
                self.void += 1;
                continue;
            };
            if !batch.is_for(slice.name.index) {
                following.topic = topic;
                continue;
            }
            // While it lists, nothing is covered.
            let list_without_end = at.listing && batch.covered > 0 && batch.removal.is_none();
            if batch.from.seqno > at.read || list_without_end {
                // The session itself has a hole: another one from what is covered.
                tracing::warn!(session, vb, from = batch.from.seqno, at = at.read, "a session skipped a batch");
                slice.fall_out();
                out.push(Action::Report);
                continue;
            }
            following.topic = topic;
            let (name, after) = (slice.name, at.read);
            at.read = at.read.max(batch.to.seqno);
            let state = &mut slice.vbs[vb];
            state.content = state.content.max(at.read);
            slice.docs_done += batch.docs as u64;
            if at.listing {
                match batch.removal {
                    Some(Removal::Listed { upto, .. }) => {
                        (at.listing, at.covered, at.listed) = (false, 0, upto);
                        // What it held above, on an abandoned branch, is gone.
                        state.content = at.read;
                        let walk = slice.walks.begin(&mut self.walks, Walk::Sweep);
                        out.push(Action::Sweep { slice: name, session, vb: batch.vb, walk });
                    }
                    _ if batch.to.seqno > after => {
                        let proven = state.proven;
                        out.push(Action::Compare { slice: name, session, batch: Arc::clone(batch), after, proven });
                        continue;
                    }
                    _ => continue,
                }
            } else if batch.to.seqno > after {
                out.push(Action::Collect { slice: name, batch: Arc::clone(batch), after, bulk });
            }
            at.covered = at.covered.max(batch.covered);
            state.position = Position::new(at.read, state.position.round.max(batch.to.round));
            state.covered = at.covered;
        }
        self.merge_sessions(&mut out);
        out
    }

    /// A slice has collected much: make it durable, so that the build can go on from there.
    pub fn persist_session(&mut self, name: SliceName) -> Vec<Action> {
        let Some(slice) = self.slices.get_mut(&name).filter(|s| s.mode == Mode::Session && !s.persisting) else {
            return Vec::new();
        };
        slice.persisting = true;
        let topic = slice.following.as_ref().map_or(0, |f| f.topic);
        let why = Why::Interim;
        self.mark(name).map(|mark| Action::Persist { slice: name, mark, topic, why }).into_iter().collect()
    }

    /// Slices that have read far enough to join the live chain.
    pub(super) fn merge_sessions(&mut self, out: &mut Vec<Action>) {
        let ready: Vec<SliceName> = self
            .slices
            .values()
            .filter(|s| s.mode == Mode::Session && self.joins(s.name).is_some())
            .map(|s| s.name)
            .collect();
        for name in ready {
            let Some(slice) = self.slices.get_mut(&name) else { continue };
            if slice.bulk {
                // What was collected in bulk becomes durable first: then it can be looked up.
                slice.mode = Mode::Flushing;
                if !slice.persisting {
                    self.flush(name, out);
                }
            } else {
                self.join(name, out);
            }
        }
    }

    fn flush(&mut self, name: SliceName, out: &mut Vec<Action>) {
        let mark = self.mark(name);
        if let (Some(slice), Some(mark)) = (self.slices.get_mut(&name), mark) {
            slice.persisting = true;
            slice.ending = true;
            slice.retry_flush = None;
            let topic = slice.following.as_ref().map_or(0, |f| f.topic);
            out.push(Action::Persist { slice: name, mark, topic, why: Why::Built });
        }
    }

    /// Tries flushes again that failed a while ago.
    pub(super) fn retry_flushes(&mut self, now: u64, out: &mut Vec<Action>) {
        let mut due = Vec::new();
        for slice in self.slices.values_mut().filter(|s| s.mode == Mode::Flushing && !s.persisting) {
            match slice.retry_flush {
                Some(0) => slice.retry_flush = Some(now + FLUSH_RETRY),
                Some(at) if now >= at => due.push(slice.name),
                _ => {}
            }
        }
        for name in due {
            self.flush(name, out);
        }
    }

    /// True while batches of this session must wait: a slice of it is being flushed, or will follow it once it has been, or is
    /// being swept; what the session brings next counts on that.
    pub fn session_paused(&self, session: u64) -> bool {
        let named = |name| self.view.sessions.get(&session).is_some_and(|s| s.slices.contains(&name));
        self.slices.values().any(|s| match &s.following {
            Some(following) => (s.mode == Mode::Flushing || s.walks.has(Walk::Sweep)) && following.id == session,
            None => s.ending && session > s.done_with && named(s.name),
        })
    }

    /// A persist of a slice that waits to be flushed has ended.
    ///
    /// `ended`: it held everything that was collected.
    pub(super) fn finish_flush(&mut self, name: SliceName, good: bool, ended: bool, out: &mut Vec<Action>) {
        let Some(slice) = self.slices.get_mut(&name).filter(|s| s.mode == Mode::Flushing) else { return };
        if !good {
            slice.retry_flush = Some(0);
        } else if !ended {
            self.flush(name, out);
        } else {
            // Unless the place to join has moved on meanwhile, it joins at once.
            slice.mode = Mode::Session;
            if self.joins(name).is_some() {
                self.join(name, out);
            }
        }
    }

    /// Where a slice may join in every vbucket, if its session has covered that much.
    fn joins(&self, name: SliceName) -> Option<Vec<Join>> {
        let slice = self.slices.get(&name).filter(|slice| !slice.walks.has(Walk::Sweep))?;
        let following = slice.following.as_ref()?;
        following
            .vbs
            .iter()
            .enumerate()
            .map(|(vb, at)| {
                let join = self.chains[vb].join_at(&self.view.shares[vb], slice.chain())?;
                (!at.listing && at.covered >= join.at.seqno.max(at.listed)).then_some(join)
            })
            .collect()
    }

    fn join(&mut self, name: SliceName, out: &mut Vec<Action>) {
        let Some(joins) = self.joins(name) else { return };
        let Some(slice) = self.slices.get_mut(&name) else { return };
        if slice.vbs.iter().zip(&joins).any(|(vb, join)| join.reconciled > vb.reconciled) {
            // What was found to be gone meanwhile may be among what it holds.
            slice.fall_out_to_compare();
            out.push(Action::Report);
            return;
        }
        let Some(following) = slice.following.take() else { return };
        slice.read = slice.vbs.iter().map(|vb| vb.covered).collect();
        for (n, (vb, join)) in slice.vbs.iter_mut().zip(joins).enumerate() {
            if vb.covered < vb.content && !slice.compare {
                // What the chain brings of the rest may have been found to be gone.
                vb.reconciled = join.reconciled;
            }
            vb.position = join.at;
            vb.covered = vb.covered.min(join.at.seqno);
            if join.floor > 0 {
                let walk = slice.walks.begin(&mut self.walks, Walk::Floor);
                out.push(Action::Floor { slice: name, vb: n as u16, floor: join.floor, walk });
            }
        }
        slice.readable_from = slice.vbs.iter().map(|vb| vb.content).collect();
        slice.done_with = slice.done_with.max(following.id);
        // A list that was begun while it was out of step is not taken up in the middle.
        let begun = self.view.sessions.iter().filter(|(_, s)| s.stages.is_some()).map(|(id, _)| *id);
        slice.unstaged = slice.unstaged.max(begun.max().unwrap_or(0));
        slice.applied = 0;
        (slice.compare, slice.late) = (false, false);
        slice.mode = Mode::InStep;
        slice.readable = false;
        out.push(Action::Report);
        // Where nothing is written no other one comes soon.
        if let Some(st) = &self.heard {
            self.pending.entry(st.number).or_insert_with(|| Arc::clone(st));
        }
    }

    /// Makes room in the catchup topic below what every slice of the session has made durable.
    pub(super) fn collected_durably(&mut self, name: SliceName, session: u64, topic: u64, out: &mut Vec<Action>) {
        if let Some(slice) = self.slices.get_mut(&name) {
            slice.session_durable = topic;
        }
        let below = self
            .slices
            .values()
            .filter(|s| s.following.as_ref().is_some_and(|f| f.id == session))
            .map(|s| s.session_durable)
            .min()
            .unwrap_or(0);
        let purged = self.purged.entry(session).or_default();
        if below > *purged {
            *purged = below;
            out.push(Action::Purge { session, below: below + 1 });
        }
    }
}
