//! What the coordinator is told: everything in a new term and when it asks, between these what has changed.

use super::{Running, Shell};
use crate::report::BucketReport;
use highwater_bus::fault;
use highwater_schemas::{
    StabilityTimestamp,
    api::{Join, NodeKind, SliceReport},
    report::Item,
};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Everything is told anew this often at most when somebody asks.
const ANEW: Duration = Duration::from_millis(250);
/// Slices that are being opened for the first time hold up what the node says of terms for so long at most: what they have
/// applied before should be known when generations begin, but one large slice must not hold up every bucket.
const OPENING: Duration = Duration::from_secs(2);

impl Running {
    /// Its present report, which counts as told.
    fn tell(&mut self, name: &str) -> Vec<Item> {
        let report = self.report.borrow();
        self.told = report.notable;
        let newer = |st: &StabilityTimestamp| report.applied.as_ref().is_none_or(|own| own.number < st.number);
        let applied = self.gate.applied().filter(newer).or_else(|| report.applied.clone());
        let applied = applied.map(|st| Item::Applied { bucket: name.to_owned(), st: st.without_wants() });
        applied.into_iter().chain(report.slices.iter().map(Item::slice)).collect()
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
        self.reporter.told().edition == 0 || self.reporter.term() != self.term()
    }

    /// The term that every bucket follows: what is reported in it was applied before it, or in it.
    fn term(&self) -> u64 {
        let log = self.state.context().term;
        self.buckets.values().map(|running| running.term(log)).min().unwrap_or(log)
    }

    /// A heartbeat.
    pub(super) fn heartbeat(&self) -> Join {
        let (term, report) = (self.reporter.term(), self.reporter.told());
        Join { term, report, ..Join::new(NodeKind::Indexer, &self.config.node, self.config.incarnation) }
    }

    /// Everything is to be told.
    pub(super) fn report_anew(&mut self) {
        // Before the reports: a bucket that goes on meanwhile says more than it must.
        self.reporter.begin(self.term());
        self.begun = Some(Instant::now());
        self.report(true);
    }

    /// Somebody has not got everything that was told.
    pub(super) fn asked_for_report(&mut self) {
        if self.begun.is_some_and(|begun| begun.elapsed() >= ANEW) {
            self.report_anew();
        }
    }

    /// What has changed is to be told: of `all` buckets, or of those with something that should not wait.
    pub(super) fn report(&mut self, all: bool) {
        if self.is_new_term() {
            self.report_anew();
            return;
        }
        for (name, running) in &mut self.buckets {
            if all || running.report.borrow().notable != running.told {
                let items = running.tell(name);
                self.reporter.set(name, items);
            }
        }
        let buckets = &self.buckets;
        self.reporter.keep(|name| buckets.contains_key(name));
    }
}

/// The slices after this one, in order, of which the JSON takes no more bytes than that, at least one; and whether there are
/// further ones. Only that index and partition, if one is named.
pub(super) fn fitting<'a>(
    reports: impl Iterator<Item = &'a watch::Receiver<BucketReport>>,
    only: Option<(u32, u32)>,
    after: Option<&(String, u32, u32)>,
    most: usize,
) -> (Vec<SliceReport>, bool) {
    let (mut slices, mut size) = (Vec::new(), 0);
    for report in reports {
        for slice in &report.borrow().slices {
            let passed = |(bucket, index, partition): &(String, u32, u32)| {
                (&slice.bucket, slice.index, slice.partition) <= (bucket, *index, *partition)
            };
            let other = |only| (slice.index, slice.partition) != only;
            if after.is_some_and(passed) || only.is_some_and(other) {
                continue;
            }
            size += serde_json::to_vec(slice).map_or(0, |json| json.len() + 1);
            if size > most && !slices.is_empty() {
                return (slices, true);
            }
            slices.push(slice.clone());
        }
    }
    (slices, false)
}

/// Passes on that a bucket has something to report.
pub(super) async fn note(mut reports: watch::Receiver<BucketReport>, notable: watch::Sender<u64>) {
    let mut last = 0;
    while reports.changed().await.is_ok() {
        fault("note", "");
        let now = reports.borrow_and_update().notable;
        if now != last {
            last = now;
            notable.send_modify(|n| *n += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{api::SliceState, state::SliceName};

    #[test]
    fn a_status_of_many_slices_comes_in_several_messages() {
        let of = |bucket: &str, slices: u32| {
            let name = |index| SliceName { index, partition: 3 };
            let slices = (0..slices).map(|n| SliceReport::new(bucket, name(n), SliceState::Active)).collect();
            watch::channel(BucketReport { slices, ..BucketReport::default() }).1
        };
        let reports = [of("a", 50), of("b", 1), of("c", 0), of("d", 20)];
        for most in [1, 2_000, 1 << 20] {
            let (mut all, mut messages, mut after) = (Vec::new(), 0, None);
            loop {
                let (slices, more) = fitting(reports.iter(), None, after.as_ref(), most);
                assert!(slices.len() == 1 || serde_json::to_vec(&slices).unwrap().len() <= most + 2);
                let last = slices.last().unwrap();
                after = Some((last.bucket.clone(), last.index, last.partition));
                all.extend(slices.iter().map(|slice| (slice.bucket.clone(), slice.index)));
                messages += 1;
                if !more {
                    break;
                }
            }
            assert!(all.len() == 71 && all.is_sorted() && (messages == 1) == (most == 1 << 20), "{messages} messages");
        }
    }
}
