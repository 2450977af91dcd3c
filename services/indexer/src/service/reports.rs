//! What the coordinator is told: everything at each heartbeat and in a new term, between these the buckets with something new.

use super::{Running, Shell};
use crate::report::BucketReport;
use highwater_schemas::{
    StabilityTimestamp,
    api::{Join, NodeKind},
};
use std::time::Duration;
use tokio::sync::watch;

/// Slices that are being opened for the first time hold up what the node says of terms for so long at most: what they have
/// applied before should be known when generations begin, but one large slice must not hold up every bucket.
const OPENING: Duration = Duration::from_secs(2);

impl Running {
    /// Its present report, which counts as told.
    fn tell(&mut self) -> BucketReport {
        let mut report = self.report.borrow().clone();
        self.told = report.notable;
        let newer = |st: &StabilityTimestamp| report.applied.as_ref().is_none_or(|own| own.number < st.number);
        report.applied = self.gate.applied().filter(newer).or(report.applied);
        report
    }

    /// The term that it follows, once it is told that of the log.
    fn term(&self, log: u64) -> u64 {
        let told = self.report.borrow().term;
        let opening = told == 0 && self.began.elapsed() < OPENING;
        if opening || !self.gate.follow(log) { told.min(log) } else { log }
    }
}

impl Shell {
    /// The coordinator of this term was told nothing yet.
    pub(super) fn is_new_term(&self) -> bool {
        self.said != self.term()
    }

    /// The term that every bucket follows: what is reported in it was applied before it, or in it.
    fn term(&self) -> u64 {
        let log = self.state.context().term;
        self.buckets.values().map(|running| running.term(log)).min().unwrap_or(log)
    }

    /// Of all buckets.
    pub(super) fn report(&mut self) -> Join {
        // Before the reports: a bucket that goes on meanwhile says more than it must.
        let term = self.term();
        self.said = term;
        let reports = self.buckets.iter_mut().map(|(name, running)| (name.clone(), running.tell())).collect();
        self.join(term, reports)
    }

    /// Of the buckets that have something new to report, or of all in a new term; none when everything was told.
    pub(super) fn news(&mut self) -> Option<Join> {
        if self.is_new_term() {
            return Some(self.report());
        }
        let new = self.buckets.iter_mut().filter(|(_, running)| running.report.borrow().notable != running.told);
        let reports: Vec<_> = new.map(|(name, running)| (name.clone(), running.tell())).collect();
        if reports.is_empty() {
            return None;
        }
        let only = Some(reports.iter().map(|(name, _)| name.clone()).collect());
        Some(Join { only, ..self.join(self.said, reports) })
    }

    fn join(&self, term: u64, reports: Vec<(String, BucketReport)>) -> Join {
        Join {
            term,
            applied: reports.iter().filter_map(|(n, r)| Some((n.clone(), r.applied.clone()?))).collect(),
            durable: reports.iter().map(|(n, r)| (n.clone(), r.durable)).collect(),
            slices: reports.into_iter().flat_map(|(_, r)| r.slices).collect(),
            ..Join::new(NodeKind::Indexer, &self.config.node, self.config.incarnation)
        }
    }
}

/// Passes on that a bucket has something to report.
pub(super) async fn note(mut reports: watch::Receiver<BucketReport>, notable: watch::Sender<u64>) {
    let mut last = 0;
    while reports.changed().await.is_ok() {
        let now = reports.borrow_and_update().notable;
        if now != last {
            last = now;
            notable.send_modify(|n| *n += 1);
        }
    }
}
