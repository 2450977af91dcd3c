//! What the replicated log tells about work that was begun: builds, catchups, and which slice was compared with every present
//! document, and why.

use crate::{client::Client, history::changes};
use anyhow::Result;
use highwater_schemas::{
    api::NodeKind,
    state::{Change, SessionKind, SliceName},
};
use std::collections::{BTreeMap, BTreeSet};

/// Work that was begun since the log began.
#[derive(Debug, Default)]
pub struct Sessions {
    /// Builds and catchups that read a stream of documents from its beginning.
    pub from_zero: u32,
    /// Other catchups.
    pub resumed: u32,
    /// Sessions of reconciles: they compare with what is present, beside the use of the indexes.
    pub reconciles: u32,
    /// Slices that were compared out of step, each time, in that order.
    pub compared: Vec<Compared>,
    /// Vbuckets given to a projector at a later generation, from zero again.
    pub lost_place: u32,
    pub assigned: u32,
    /// Times that a source was found to be rewritten.
    pub branches: u32,
}

/// A slice was compared with every present document before it followed its chain again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    pub bucket: String,
    pub slice: SliceName,
    pub node: String,
    pub session: u64,
    /// None: the log shows no reason, other than a rollback.
    pub why: Option<Why>,
}

/// Why a slice had to be compared. A reconcile is the reason for one comparison of a slice at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its node began anew after this reconcile did, and had not made that durable: what the slice had staged was gone.
    NodeRestarted { reconcile: u64 },
    /// It was out of step, in this session, while this reconcile was under way. A reconcile is done once every slice in step has
    /// taken part in it; one that is out of step does not.
    OutOfStep { reconcile: u64, session: u64 },
    /// It was being compared in this session when a projector began anew, or its node did or was given up.
    ComparisonCutShort { session: u64 },
    /// It was being brought up in this session, which was closed though no projector and no node began anew, and the comparison
    /// was opened at once: a projector could not go on with that session, and what the slice missed may be gone from the source.
    /// The log does not say so itself; but a session that is over as it should be is not followed by a comparison at once.
    RecoveryCutShort { session: u64 },
}

impl Sessions {
    pub async fn of(client: &Client) -> Result<Self> {
        Ok(Self::told(&changes(client).await?))
    }

    /// What these changes tell, the oldest first.
    fn told(changes: &[Change]) -> Self {
        let (mut seen, mut log) = (Self::default(), Log::default());
        for (at, change) in changes.iter().enumerate() {
            match change {
                Change::SessionOpened { bucket, session, node, slices, vbs, kind, .. } => {
                    match kind {
                        SessionKind::Reconcile => seen.reconciles += 1,
                        SessionKind::Comparison => {
                            for slice in slices {
                                let why = log.why(bucket, node, *slice);
                                let (bucket, node, slice) = (bucket.clone(), node.clone(), *slice);
                                seen.compared.push(Compared { bucket, slice, node, session: *session, why });
                            }
                        }
                        _ if vbs.iter().any(|vb| vb.from == 0) => seen.from_zero += 1,
                        _ => seen.resumed += 1,
                    }
                    log.sessions.push(Session {
                        id: *session,
                        bucket: bucket.clone(),
                        node: node.clone(),
                        kind: *kind,
                        slices: slices.clone(),
                        generations: vbs.iter().map(|vb| vb.generation).collect(),
                        opened: at,
                        closed: usize::MAX,
                        cut: false,
                    });
                }
                Change::VbucketAssigned { bucket, vb, generation, restart, .. } => {
                    seen.assigned += 1;
                    seen.lost_place += u32::from(*generation > 1 && *restart == 0);
                    log.generations.insert((bucket.clone(), usize::from(*vb)), *generation);
                }
                Change::BranchStarted { .. } => seen.branches += 1,
                change => log.note(at, change),
            }
            log.passed(at, change);
        }
        seen
    }
}

#[derive(Debug)]
struct Session {
    id: u64,
    bucket: String,
    node: String,
    kind: SessionKind,
    slices: Vec<SliceName>,
    /// The generation of each vbucket that it was opened for.
    generations: Vec<u64>,
    /// Places in the log.
    opened: usize,
    closed: usize,
    /// It was closed because a projector began anew, or its node did or was given up.
    cut: bool,
}

#[derive(Debug)]
struct Reconcile {
    id: u64,
    bucket: String,
    began: usize,
    ended: usize,
}

/// When a node was there again last.
#[derive(Debug)]
struct Joined {
    at: usize,
    /// By bucket, the newest reconcile that had been made durable while it was there before.
    durable: BTreeMap<String, u64>,
}

/// What explains comparisons, as far as the log was read.
#[derive(Debug, Default)]
struct Log {
    sessions: Vec<Session>,
    reconciles: Vec<Reconcile>,
    /// By indexer.
    joined: BTreeMap<String, Joined>,
    /// By indexer that is gone, what was durable when it went.
    left: BTreeMap<String, BTreeMap<String, u64>>,
    /// By bucket and vbucket, the newest generation.
    generations: BTreeMap<(String, usize), u64>,
    /// Place after the newest record that is no `SessionClosed`.
    closings_from: usize,
    /// Place after the newest record that neither opens nor closes a session.
    sessions_from: usize,
    /// By bucket, the newest reconcile that every indexer which was there has made durable.
    durable: BTreeMap<String, u64>,
    /// Reconciles that have explained a comparison.
    explained: BTreeSet<(String, SliceName, u64)>,
}

impl Log {
    fn note(&mut self, at: usize, change: &Change) {
        match change {
            Change::SessionClosed { session, .. } => {
                for open in self.sessions.iter_mut().filter(|open| open.id == *session) {
                    open.closed = at;
                    let mut opened_for = open.generations.iter().enumerate();
                    open.cut = opened_for.any(|(vb, generation)| {
                        let newest = self.generations.get(&(open.bucket.clone(), vb));
                        newest.is_some_and(|newest| newest > generation)
                    });
                }
            }
            Change::ReconcileStarted { bucket, id, named: false } => {
                self.reconciles.push(Reconcile { id: *id, bucket: bucket.clone(), began: at, ended: usize::MAX });
            }
            Change::ReconcileDone { bucket, named: false } => {
                if let Some(newest) = self.reconciles.iter_mut().rev().find(|reconcile| reconcile.bucket == *bucket) {
                    newest.ended = at;
                }
            }
            Change::Persisted { bucket, st } => {
                let reconciled = st.vbs.iter().map(|vb| vb.reconciled).min().unwrap_or(0);
                self.durable.insert(bucket.clone(), reconciled);
            }
            Change::NodeJoined { node, kind: NodeKind::Indexer, .. } => {
                self.cut_sessions_of(node);
                let durable = self.left.remove(node).unwrap_or_else(|| self.durable.clone());
                self.joined.insert(node.clone(), Joined { at, durable });
            }
            Change::NodeLeft { node, kind: NodeKind::Indexer } => {
                self.cut_sessions_of(node);
                self.left.insert(node.clone(), self.durable.clone());
            }
            _ => {}
        }
    }

    /// A node began anew, or was given up: the sessions that it still had were closed in the records directly before.
    fn cut_sessions_of(&mut self, node: &str) {
        let closed = self.closings_from..usize::MAX;
        for session in self.sessions.iter_mut().filter(|s| s.node == node && closed.contains(&s.closed)) {
            session.cut = true;
        }
    }

    /// A record was read.
    fn passed(&mut self, at: usize, change: &Change) {
        if !matches!(change, Change::SessionClosed { .. }) {
            self.closings_from = at + 1;
        }
        if !matches!(change, Change::SessionOpened { .. } | Change::SessionClosed { .. }) {
            self.sessions_from = at + 1;
        }
    }

    /// Why a slice is compared now.
    fn why(&mut self, bucket: &str, node: &str, slice: SliceName) -> Option<Why> {
        let is_of = |s: &&Session| s.bucket == bucket && s.kind != SessionKind::Reconcile && s.slices.contains(&slice);
        let before: Vec<&Session> = self.sessions.iter().filter(is_of).collect();
        let last = before.last();
        if let Some(last) = last.filter(|last| last.kind == SessionKind::Comparison && last.cut) {
            return Some(Why::ComparisonCutShort { session: last.id });
        }
        let closed_just_now = self.sessions_from..usize::MAX;
        let cut_short = last.filter(|last| last.kind == SessionKind::Recovery && !last.cut);
        let cut_short = cut_short.filter(|last| closed_just_now.contains(&last.closed));
        let cut_short = cut_short.map(|last| Why::RecoveryCutShort { session: last.id });
        let joined = self.joined.get(node);
        let is_unused = |id: u64| !self.explained.contains(&(bucket.to_owned(), slice, id));
        let unused = self.reconciles.iter().rev().filter(|r| r.bucket == bucket && is_unused(r.id));
        let unused: Vec<&Reconcile> = unused.collect();
        let missed = joined.and_then(|joined| {
            let durable = joined.durable.get(bucket).copied().unwrap_or(0);
            let reconcile = unused.iter().find(|r| r.began < joined.at && r.id > durable)?.id;
            Some((reconcile, Why::NodeRestarted { reconcile }))
        });
        let out_of_step = || {
            before.iter().rev().find_map(|session| {
                let meanwhile = unused.iter().find(|r| r.began < session.closed && session.opened < r.ended)?;
                Some((meanwhile.id, Why::OutOfStep { reconcile: meanwhile.id, session: session.id }))
            })
        };
        let Some((reconcile, why)) = missed.or_else(out_of_step) else { return cut_short };
        self.explained.insert((bucket.to_owned(), slice, reconcile));
        Some(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{
        StVb, StabilityTimestamp,
        state::SessionVb,
        timestamp::{Dropped, Position},
    };

    const SLICE: SliceName = SliceName { index: 1, partition: 0 };

    fn opened(session: u64, kind: SessionKind, from: u64) -> Change {
        let vbs = vec![SessionVb { generation: 1, from, reconciled: 0 }];
        let (bucket, node) = ("b".into(), "indexer-1".into());
        Change::SessionOpened { bucket, session, node, incarnation: 1, slices: vec![SLICE], vbs, kind }
    }

    fn closed(session: u64) -> Change {
        Change::SessionClosed { bucket: "b".into(), session }
    }

    fn began(id: u64) -> Change {
        Change::ReconcileStarted { bucket: "b".into(), id, named: false }
    }

    fn done() -> Change {
        Change::ReconcileDone { bucket: "b".into(), named: false }
    }

    fn joined(incarnation: u64) -> Change {
        Change::NodeJoined { node: "indexer-1".into(), kind: NodeKind::Indexer, incarnation }
    }

    fn left() -> Change {
        Change::NodeLeft { node: "indexer-1".into(), kind: NodeKind::Indexer }
    }

    fn durable(reconciled: u64) -> Change {
        let vbs = vec![StVb { reconciled, ..StVb::default() }];
        Change::Persisted { bucket: "b".into(), st: StabilityTimestamp { vbs, ..StabilityTimestamp::default() } }
    }

    fn assigned(generation: u64, restart: u64) -> Change {
        let (bucket, projector) = ("b".into(), "projector-1".into());
        let (x, dropped) = (Position::ZERO, Dropped::default());
        Change::VbucketAssigned { bucket, vb: 0, generation, projector, incarnation: 1, x, restart, held: 0, dropped }
    }

    fn reasons(changes: &[Change]) -> Vec<Option<Why>> {
        Sessions::told(changes).compared.iter().map(|compared| compared.why).collect()
    }

    #[test]
    fn work_is_counted_by_what_it_is() {
        let (build, recovery) = (SessionKind::Build, SessionKind::Recovery);
        let changes = [
            assigned(1, 0),
            opened(1, build, 0),
            closed(1),
            opened(2, recovery, 7),
            opened(3, recovery, 0),
            began(4),
            opened(5, SessionKind::Reconcile, 0),
            assigned(2, 9),
            assigned(3, 0),
        ];
        let seen = Sessions::told(&changes);
        assert_eq!((seen.from_zero, seen.resumed, seen.reconciles, seen.compared), (2, 1, 1, Vec::new()));
        assert_eq!((seen.assigned, seen.lost_place, seen.branches), (3, 1, 0));
    }

    #[test]
    fn a_slice_whose_node_began_anew_misses_each_reconcile_once() {
        let compared = |id| opened(id, SessionKind::Comparison, 0);
        let anew = [joined(1), began(1), joined(2), compared(2), closed(2), compared(3)];
        assert_eq!(reasons(&anew), [Some(Why::NodeRestarted { reconcile: 1 }), None]);
        assert_eq!(reasons(&[joined(1), began(1), compared(2)]), [None], "it was there all the time");
        assert_eq!(reasons(&[joined(1), joined(2), began(1), compared(2)]), [None], "and here");
        let held = [joined(1), began(1), done(), durable(1), left(), joined(2), compared(2)];
        assert_eq!(reasons(&held), [None], "it had made that durable");
        let away = [joined(1), began(1), left(), done(), durable(1), joined(2), compared(2)];
        assert_eq!(reasons(&away), [Some(Why::NodeRestarted { reconcile: 1 })], "others made that durable");
    }

    #[test]
    fn a_slice_that_is_out_of_step_meanwhile_misses_a_reconcile() {
        let (recovery, compared) = (opened(1, SessionKind::Recovery, 5), opened(3, SessionKind::Comparison, 0));
        let missed = [Some(Why::OutOfStep { reconcile: 2, session: 1 })];
        assert_eq!(reasons(&[recovery.clone(), began(2), done(), closed(1), compared.clone()]), missed);
        assert_eq!(reasons(&[began(2), recovery.clone(), done(), compared.clone()]), missed);
        assert_eq!(reasons(&[recovery.clone(), closed(1), began(2), done(), compared.clone()]), [None]);
        assert_eq!(reasons(&[began(2), done(), recovery, closed(1), durable(2), compared]), [None]);
    }

    #[test]
    fn a_comparison_that_is_cut_short_is_begun_again() {
        let compared = |id| opened(id, SessionKind::Comparison, 0);
        let after = |meanwhile: &[Change]| {
            let changes = [&[joined(1), began(1), joined(2), compared(2)][..], meanwhile, &[compared(3)]].concat();
            reasons(&changes)[1]
        };
        let cut = Some(Why::ComparisonCutShort { session: 2 });
        // The coordinator enters first that a projector has a vbucket, and then closes the sessions of the generation before.
        assert_eq!(after(&[assigned(2, 9), closed(2)]), cut);
        assert_eq!(after(&[closed(2), assigned(2, 9)]), None, "it was over before");
        // It closes the sessions of a node first, and then enters what became of the node.
        assert_eq!(after(&[closed(2), joined(3)]), cut);
        assert_eq!(after(&[closed(2), left(), joined(3)]), cut);
        assert_eq!(after(&[closed(2), durable(1), left(), joined(3)]), None, "it was over before");
        let another = Change::NodeJoined { node: "indexer-2".into(), kind: NodeKind::Indexer, incarnation: 2 };
        assert_eq!(after(&[closed(2), another]), None, "its node was there all the time");
        // A session that is opened in the step in which a projector gets the vbucket is of the generation before.
        let changes =
            [assigned(1, 0), joined(1), began(1), joined(2), assigned(2, 9), compared(2), closed(2), compared(3)];
        assert_eq!(reasons(&changes)[1], cut);
    }

    #[test]
    fn a_recovery_with_which_a_projector_could_not_go_on_leads_to_a_comparison() {
        let recovery = opened(1, SessionKind::Recovery, 5);
        let compared = |after: &[Change]| {
            let comparison = opened(9, SessionKind::Comparison, 0);
            reasons(&[&[assigned(1, 0), recovery.clone()][..], after, &[comparison]].concat())
        };
        let cut_short = [Some(Why::RecoveryCutShort { session: 1 })];
        // The coordinator closes the session, and opens the comparison in its next step.
        assert_eq!(compared(&[closed(1)]), cut_short);
        // Other sessions may end in the same step.
        assert_eq!(compared(&[closed(7), closed(1), closed(8)]), cut_short);
        assert_eq!(compared(&[closed(1), durable(0)]), [None], "it was over before");
        assert_eq!(compared(&[assigned(2, 9), closed(1)]), [None], "it would be brought up again");
        assert_eq!(compared(&[closed(1), joined(2)]), [None], "and here");
        assert_eq!(compared(&[]), [None], "it is being brought up");
        let build = [opened(1, SessionKind::Build, 0), closed(1), opened(2, SessionKind::Comparison, 0)];
        assert_eq!(reasons(&build), [None], "a build is begun anew");
    }
}
