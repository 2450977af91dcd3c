//! What `highwater status` shows of the buckets.

use super::Core;
use highwater_schemas::{
    StabilityTimestamp,
    api::{BootstrapStep, BucketStatus, VbStatus},
    state::vbuuid_text,
};

impl Core {
    /// Every step of the bootstrap.
    pub fn bootstrap(&self, now: u64) -> Vec<BootstrapStep> {
        self.boot.steps(self.bootstrap_waits_for(now))
    }

    /// Every bucket.
    pub fn buckets(&self) -> Vec<BucketStatus> {
        let buckets = self.context.buckets.iter().map(|(name, bucket)| {
            let entry = self.stability.get(name);
            let last = entry.and_then(|e| e.last());
            let streams = bucket.definition.vbuckets();
            let vbuckets = bucket
                .vbuckets
                .iter()
                .enumerate()
                .map(|(vb, v)| VbStatus {
                    stream: streams.get(vb).map(|s| s.name.clone()).unwrap_or_default(),
                    vbuuid: vbuuid_text(v.vbuuid()),
                    generation: v.generation,
                    projector: v.projector.clone(),
                    seqno: last.and_then(|l| l.vbs.get(vb)).map_or(0, |l| l.position.seqno),
                    covered: last.and_then(|l| l.vbs.get(vb)).map_or(0, |l| l.covered),
                    source_last: entry.map_or(0, |e| e.source_last(vb)),
                })
                .collect();
            BucketStatus {
                name: name.clone(),
                st: last.map_or(0, |l| l.number),
                exact: last.is_some_and(StabilityTimestamp::exact),
                vbuckets,
                durable: bucket.history.last().map_or(0, |h| h.number),
                sessions: bucket.sessions.len(),
            }
        });
        buckets.collect()
    }
}
