//! What a bucket's worker says of itself: the HWT at once, the states of its slices now and then.

use super::Worker;
use crate::{core::Mode, report::BucketReport, store::SliceStore};
use highwater_schemas::{api::SliceReport, state::branch_of, wire::HighWatermark};
use std::time::{Duration, Instant};

/// Reports are renewed this often when nothing notable happens.
const REPORT_EVERY: Duration = Duration::from_millis(100);

impl Worker {
    pub(super) fn publish(&mut self) {
        let mark = HighWatermark {
            bucket: self.outside.bucket.clone(),
            node: self.outside.node.clone(),
            incarnation: self.outside.incarnation,
            hwt: self.core.high_watermark().unwrap_or_default(),
            held: self.held_range(),
            durable: self.core.durable(),
            queued: self.core.queued() as u64,
        };
        self.outside.watermark.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&mark);
            if changed {
                *old = Some(mark);
            }
            changed
        });
        if self.notable > self.outside.report.borrow().notable || self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            let report = self.report();
            self.outside.report.send_replace(report);
        }
    }

    /// The STs that every readable slice of the bucket holds here.
    fn held_range(&self) -> (u64, u64) {
        let ranges = self
            .core
            .slices()
            .filter(|s| s.readable)
            .filter_map(|s| self.open.get(&s.name))
            .filter_map(|o| o.held.range());
        ranges.reduce(|a, b| (a.0.max(b.0), a.1.min(b.1))).unwrap_or((0, 0))
    }

    fn report(&self) -> BucketReport {
        let slices = self
            .core
            .slices()
            // A session is opened for what is reported: only once its place in the live chain cannot be missed.
            .filter(|_| self.core.listens())
            .map(|s| {
                let open = self.open.get(&s.name);
                let mut stats = open.map(|o| o.store.stats()).unwrap_or_default();
                if open.is_some_and(|o| !o.store.in_bulk()) {
                    // The second phase is over.
                    stats.built = (stats.items.max(1), stats.items.max(1));
                }
                SliceReport {
                    bucket: self.outside.bucket.clone(),
                    index: s.name.index,
                    partition: s.name.partition,
                    state: s.state(),
                    session: s.following.as_ref().map_or(0, |f| f.id),
                    done_with: s.done_with,
                    resume: s.resume(),
                    docs_done: s.docs_done,
                    built: stats.built.0,
                    to_build: stats.built.1,
                    items: stats.items,
                    bytes: stats.live_bytes,
                    unindexed: stats.unindexed,
                    error: match &s.mode {
                        Mode::Failed(why) => Some(why.clone()),
                        _ => stats.poisoned,
                    },
                    compare: s.compare,
                    branch: branch_of(s.vbs.iter().map(|vb| vb.vbuuid)),
                    content: s.vbs.iter().map(|vb| vb.content).collect(),
                    staged: s.staged,
                    unstaged: s.unstaged,
                }
            })
            .collect();
        BucketReport {
            notable: self.notable,
            term: self.core.term(),
            slices,
            applied: self.newest.as_deref().cloned(),
            durable: self.core.durable(),
            void: self.core.void,
        }
    }
}
