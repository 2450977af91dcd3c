//! A source whose history is not what was indexed: a new branch, and the rollback of its bucket (design section 13).
//!
//! The StateContext says how far it is, so that whoever coordinates goes on with it.

use super::{Action, Core, ddl::mix};
use highwater_schemas::{
    api::{
        Branch, BucketHistoryReply, NodeKind, ReconcileSummary, RollbackSummary, SliceReport, SliceState, StreamHistory,
    },
    state::{
        Bucket, Change, Failover, IndexState, Reconcile, Rollback, RollbackPhase, SliceName, in_short, vbuuid_text,
    },
    timestamp::Bookmark,
};
use std::collections::BTreeSet;

impl Core {
    /// What projectors found begins a new branch.
    pub(super) fn start_branches(&mut self, random: u64, out: &mut Vec<Action>) {
        let mut begun = BTreeSet::new();
        for suspicion in self.members.suspicions() {
            let vbucket =
                self.context.buckets.get(&suspicion.bucket).and_then(|b| b.vbuckets.get(usize::from(suspicion.vb)));
            // Said until the log shows the branch, perhaps by two.
            if vbucket.is_some_and(|v| v.vbuuid() == suspicion.vbuuid)
                && begun.insert((&suspicion.bucket, suspicion.vb))
            {
                out.push(Action::Append(Change::BranchStarted {
                    bucket: suspicion.bucket.clone(),
                    vb: suspicion.vb,
                    vbuuid: mix(random, u64::from(suspicion.vb)),
                    start: suspicion.intact,
                    last: suspicion.last,
                    broken: suspicion.broken,
                    bookmarks: suspicion.bookmarks.iter().cloned().map(Bookmark::in_short).collect(),
                    reason: in_short(&suspicion.reason),
                }));
            }
        }
    }

    /// Takes rollbacks to their next phase.
    pub(super) fn check_rollbacks(&mut self, out: &mut Vec<Action>) {
        for (name, bucket) in &self.context.buckets {
            let Some(rollback) = &bucket.rollback else { continue };
            let bucket_name = name.clone();
            match rollback.phase {
                RollbackPhase::Started if self.all_slices(name, bucket, |_, _| true) => {
                    out.push(Action::Append(Change::RollbackPrepared { bucket: bucket_name }));
                }
                RollbackPhase::Restart if self.all_slices(name, bucket, resumed) => {
                    out.push(Action::Append(Change::RollbackDone { bucket: bucket_name }));
                }
                _ => {}
            }
        }
    }

    /// Whether every slice of every live indexer is on the present branches, and good.
    fn all_slices(&self, name: &str, bucket: &Bucket, good: impl Fn(&IndexState, &SliceReport) -> bool) -> bool {
        let branch = bucket.branch();
        let alive = |node: &str| {
            let entry = self.context.nodes.get(&(NodeKind::Indexer, node.to_owned()));
            entry.is_some_and(|e| !e.gone)
        };
        bucket.live_indexes().all(|(number, index)| {
            index.placed.hosts.iter().enumerate().filter(|(_, host)| alive(host)).all(|(partition, host)| {
                let slice = SliceName { index: number, partition: partition as u32 };
                self.members.report(host, name, slice).is_some_and(|report| {
                    report.state == SliceState::Error || (report.branch == branch && good(&index.state, report))
                })
            })
        })
    }
}

/// The branches of a bucket's sources, and its rollbacks, as people see them.
pub(super) fn history(bucket: &Bucket) -> BucketHistoryReply {
    let names: Vec<String> = bucket.definition.vbuckets().into_iter().map(|s| s.name).collect();
    let branch = |f: &Failover| Branch {
        vbuuid: vbuuid_text(f.vbuuid),
        start: f.start,
        broken: f.broken,
        at: f.at,
        reason: f.reason.clone(),
    };
    let streams = names.iter().zip(&bucket.vbuckets).map(|(stream, vbucket)| StreamHistory {
        stream: stream.clone(),
        failover: vbucket.failover.iter().map(branch).collect(),
    });
    let rollbacks = bucket.rollbacks.iter().chain(&bucket.rollback).map(|r| summary(bucket, r));
    let reconciled = |r: &Reconcile| ReconcileSummary { id: r.id, began: r.began, ended: r.ended };
    BucketHistoryReply {
        streams: streams.collect(),
        rollbacks: rollbacks.collect(),
        reconcile: bucket.reconcile.as_ref().map(reconciled),
        reconciled: bucket.reconciled.as_ref().map(reconciled),
    }
}

/// A rollback as people see it.
pub(super) fn summary(bucket: &Bucket, rollback: &Rollback) -> RollbackSummary {
    let streams = bucket.definition.vbuckets().into_iter().enumerate();
    let rolled_back = streams.filter(|(vb, _)| rollback.vbs.iter().any(|r| usize::from(*r) == *vb));
    RollbackSummary {
        phase: rollback.phase,
        streams: rolled_back.map(|(_, stream)| stream.name).collect(),
        broken: rollback.broken,
        began: rollback.began,
        ended: rollback.ended,
        reason: rollback.reason.clone(),
    }
}

/// One that is filled from nothing holds up nobody.
fn resumed(index: &IndexState, report: &SliceReport) -> bool {
    report.state == SliceState::Active || *index != IndexState::Active
}
