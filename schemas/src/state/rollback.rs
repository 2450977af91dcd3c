//! Branches of a vbucket's history, and the rollback of a bucket that each new one begins (design section 13).
//!
//! | phase | what is waited for |
//! |---|---|
//! | started | every live indexer goes back to its newest snapshot at or below the rollback timestamp, or to nothing |
//! | restart | the vbuckets are read again under new generations, and every slice is compared with the source and merged |
//! | resumed | nothing: scans are answered again |

use super::bucket::{Bucket, Failover, IndexState, Vbucket};
use crate::timestamp::Dropped;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Past rollbacks kept per bucket.
const ROLLBACKS_KEPT: usize = 16;
/// Branches kept per vbucket; what is on an older one is built again.
const BRANCHES_KEPT: usize = 32;

/// How far a rollback is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RollbackPhase {
    Started,
    Restart,
    Resumed,
}

/// A rollback of a bucket: of one vbucket or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// The version of the record that began it, or joined it last.
    pub version: u64,
    pub phase: RollbackPhase,
    /// The vbuckets with a new branch.
    pub vbs: Vec<u16>,
    /// Something that was indexed is certainly not the source's any more.
    pub broken: bool,
    /// When it began and, if it is over, ended, milliseconds since the epoch.
    pub began: u64,
    #[serde(default)]
    pub ended: u64,
    /// Why.
    pub reason: String,
}

impl Failover {
    /// The branch that a vbucket begins with.
    pub(super) fn first(vbuuid: u64, at: u64) -> Self {
        Self { vbuuid, start: 0, broken: false, at, reason: String::new() }
    }
}

impl Vbucket {
    /// A new branch: the live chain goes on at `last`. So many of the newest branches say why they began.
    pub(super) fn branch(&mut self, branch: Failover, last: u64, reasons: usize) {
        self.restart = last;
        self.held = branch.start;
        self.dropped = Dropped::default();
        self.bookmarks.retain(|b| b.seqno <= branch.start);
        // Generations go on counting, but only those of the branch in force have a share in its chain.
        self.starts.clear();
        self.failover.insert(0, branch);
        self.failover.truncate(BRANCHES_KEPT);
        self.failover.iter_mut().skip(reasons).for_each(|old| old.reason = String::new());
    }
}

impl Bucket {
    pub(super) fn begin_rollback(&mut self, version: u64, vb: u16) {
        let branch = &self.vbuckets[usize::from(vb)].failover[0];
        let (start, broken, at, reason) = (branch.start, branch.broken, branch.at, branch.reason.clone());
        // Those beyond the branch's start are no points to go back to.
        let vbucket = &self.vbuckets[usize::from(vb)];
        self.history.retain(|st| {
            let held = st.vbs.get(usize::from(vb));
            held.is_some_and(|h| vbucket.common(h.vbuuid).is_some_and(|common| h.position.seqno <= common))
        });
        self.sessions.clear();
        // Every slice is compared, or is of the branch that goes on: then whoever asked asks again.
        (self.reconcile, self.naming) = (None, None);
        let fresh = Rollback {
            version,
            phase: RollbackPhase::Started,
            vbs: Vec::new(),
            broken: false,
            began: at,
            ended: 0,
            reason: reason.clone(),
        };
        let rollback = self.rollback.get_or_insert(fresh);
        rollback.version = version;
        rollback.phase = RollbackPhase::Started;
        rollback.broken |= broken;
        rollback.reason = reason;
        if !rollback.vbs.contains(&vb) {
            rollback.vbs.push(vb);
        }
        if start == 0 && broken {
            // Nothing is left to go back to.
            for index in self.indexes.values_mut().filter(|i| i.state == IndexState::Active) {
                index.state = IndexState::Building;
            }
        }
    }

    pub(super) fn end_rollback(&mut self, at: u64) {
        if let Some(rollback) = self.rollback.take() {
            self.rollbacks.push(Rollback { phase: RollbackPhase::Resumed, ended: at, ..rollback });
            if self.rollbacks.len() > ROLLBACKS_KEPT {
                self.rollbacks.remove(0);
            }
        }
    }
}
