//! What `highwater status` shows of the buckets.

use super::{Core, rollback};
use highwater_schemas::{
    StabilityTimestamp,
    api::{
        BootstrapStep, BucketStatus, MOST_SESSIONS_SHOWN, MOST_SLICES_SHOWN, SessionSlice, SessionStatus, SliceState,
        VbStatus, page,
    },
    state::{Bucket, Session, vbuuid_text},
};
use std::ops::Bound;

impl Core {
    /// Every step of the bootstrap.
    pub fn bootstrap(&self, now: u64) -> Vec<BootstrapStep> {
        self.boot.steps(self.bootstrap_waits_for(now))
    }

    /// The buckets after this one, as many as fit a reply; and whether there are further ones.
    pub fn buckets(&self, after: Option<&str>) -> (Vec<BucketStatus>, bool) {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let further = self.context.buckets.range::<str, _>((after, Bound::Unbounded));
        page(further.map(|(name, bucket)| {
            let entry = self.stability.get(name);
            let last = entry.and_then(|e| e.last());
            let streams = bucket.definition.vbuckets();
            let vbuckets = bucket
                .vbuckets
                .iter()
                .enumerate()
                .map(|(vb, v)| {
                    let read = self.members.reads(&v.projector, name, vb);
                    VbStatus {
                        stream: streams.get(vb).map(|s| s.name.clone()).unwrap_or_default(),
                        vbuuid: vbuuid_text(v.vbuuid()),
                        generation: v.generation,
                        projector: v.projector.clone(),
                        seqno: last.and_then(|l| l.vbs.get(vb)).map_or(0, |l| l.position.seqno),
                        covered: last.and_then(|l| l.vbs.get(vb)).map_or(0, |l| l.covered),
                        source_last: entry.map_or(0, |e| e.source_last(vb)),
                        reads: read.map(|read| read.reads).unwrap_or_default(),
                        unknown_operations: read.map(|read| read.unknown_operations.clone()).unwrap_or_default(),
                    }
                })
                .collect();
            BucketStatus {
                name: name.clone(),
                st: last.map_or(0, |l| l.number),
                exact: last.is_some_and(StabilityTimestamp::exact),
                vbuckets,
                durable: bucket.history.last().map_or(0, |h| h.number),
                sessions: bucket
                    .sessions
                    .values()
                    .take(MOST_SESSIONS_SHOWN)
                    .map(|s| self.session(name, bucket, s))
                    .collect(),
                session_count: bucket.sessions.len() as u64,
                rollback: bucket.rollback.as_ref().map(|r| rollback::summary(bucket, r)),
            }
        }))
    }

    fn session(&self, name: &str, bucket: &Bucket, session: &Session) -> SessionStatus {
        let is_done = |slice: &SessionSlice| {
            matches!(slice.state, Some(SliceState::Active | SliceState::Merged | SliceState::Error))
        };
        let slices = session.slices.iter().map(|slice| {
            let report = self.members.report(&session.node, name, *slice);
            SessionSlice {
                index: bucket.indexes.get(&slice.index).map(|i| i.placed.definition.name.clone()).unwrap_or_default(),
                partition: slice.partition,
                state: report.map(|r| r.state),
                built: report.map_or(0, |r| r.built),
                to_build: report.map_or(0, |r| r.to_build),
            }
        });
        // Those that need it still come first.
        let (done, mut slices): (Vec<SessionSlice>, Vec<SessionSlice>) = slices.partition(is_done);
        slices.extend(done);
        let slice_count = slices.len() as u64;
        slices.truncate(MOST_SLICES_SHOWN);
        let (read, pending) = self.members.reading(name, session.id).fold((0_u64, 0_u64), |(read, pending), r| {
            (read.saturating_add(r.read), pending.saturating_add(r.pending))
        });
        SessionStatus {
            session: session.id,
            kind: session.kind,
            node: session.node.clone(),
            slices,
            slice_count,
            read,
            documents: read.saturating_add(pending),
        }
    }
}
