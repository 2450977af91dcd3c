//! Reconciles: what vanished from a bucket's sources without a message (design section 4).
//!
//! Sessions bring every slice in step the present documents; the slices stage what differs and say so; then the projectors put
//! it into the chains as a round. A slice that has not staged when it meets that round is compared in a session of its own.

use super::{Action, Core, ddl::json, sessions::serving, stability::BucketStability};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{BucketReconcile, NodeKind, ReconcileReply, SliceReport, SliceState},
    state::{Bucket, Change, RollbackPhase, Session, SessionKind, SliceName},
};
use serde_json::Value;

/// Reconciles under way at once; each reads every document of its bucket.
const MOST_AT_ONCE: usize = 4;

/// A bucket is reconciled for a projector this often at most, milliseconds, and for a twentieth of the time at most.
const REST: u64 = 5_000;
const REST_TIMES: u64 = 20;

/// When reconciles of a bucket are due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// The next one that nobody asks for.
    at: u64,
    /// An administrator wants one with a higher number than this.
    asked_after: Option<u64>,
    /// Since when one is wanted.
    wanted: Option<u64>,
    began: u64,
    /// None for a projector before.
    rest_until: u64,
}

impl Core {
    /// Begins, stages and ends reconciles; `next`: the newest number of a session.
    pub(super) fn check_reconciles(&mut self, now: u64, next: &mut u64, out: &mut Vec<Action>) {
        let interval = self.config.reconcile_interval.as_millis() as u64;
        let mut all = std::mem::take(&mut self.reconciles);
        all.retain(|name, _| self.context.buckets.contains_key(name));
        let running = self.context.buckets.values().filter(|bucket| bucket.reconcile.is_some()).count();
        let mut ready: Vec<(u64, &String)> = Vec::new();
        for (name, bucket) in &self.context.buckets {
            let due = all.entry(name.clone()).or_insert(Due { at: now + interval, ..Due::default() });
            match &bucket.reconcile {
                None => {
                    if self.may_reconcile(now, name, bucket, due) {
                        ready.push((*due.wanted.get_or_insert(now), name));
                    }
                }
                Some(reconcile) if !reconcile.staged => {
                    if self.hosted(name, bucket).all(|(_, report)| report.is_some_and(|r| is_settled(r, reconcile.id)))
                    {
                        out.push(Action::Append(Change::ReconcileStaged { bucket: name.clone() }));
                        for session in bucket.sessions.values().filter(|s| s.kind == SessionKind::Reconcile) {
                            out.push(Action::PurgeSession { bucket: name.clone(), session: session.id });
                        }
                    }
                }
                Some(reconcile) => {
                    let issued = self.stability.get(name).and_then(BucketStability::last);
                    if issued.is_some_and(|st| st.vbs.iter().all(|vb| vb.reconciled >= reconcile.id)) {
                        due.at = now + interval;
                        due.rest_until = now + REST.max(REST_TIMES * now.saturating_sub(due.began));
                        out.push(Action::Append(Change::ReconcileDone { bucket: name.clone() }));
                    }
                }
            }
        }
        // Who waits longest comes first.
        ready.sort_unstable();
        for (_, name) in ready.into_iter().take(MOST_AT_ONCE.saturating_sub(running)) {
            *next += 1;
            let rest_until = all.get(name).map_or(0, |due| due.rest_until);
            let begun = Due { at: now + interval, asked_after: None, wanted: None, began: now, rest_until };
            all.insert(name.clone(), begun);
            out.push(Action::Append(Change::ReconcileStarted { bucket: name.clone(), id: *next }));
        }
        self.reconciles = all;
    }

    /// Whether one is wanted, and can begin.
    fn may_reconcile(&self, now: u64, name: &str, bucket: &Bucket, due: &Due) -> bool {
        let newest = bucket.newest_reconcile();
        let is_new = |after: Option<u64>| after.is_some_and(|after| newest <= after);
        let read = bucket.vbuckets.iter().all(|v| v.start_of(v.generation).is_some());
        // While a rollback restarts, what is covered may wait for a reconcile, and its end for what is covered.
        let back = bucket.rollback.as_ref().is_none_or(|r| r.phase == RollbackPhase::Restart);
        if !read || !back || bucket.live_indexes().next().is_none() {
            return false;
        }
        if is_new(due.asked_after) && bucket.rollback.is_none() {
            return true;
        }
        // Each round that a slice out of step meets has it compared: nobody is thrown back again and again.
        let branch = bucket.branch();
        let in_step = |r: &SliceReport| {
            r.state == SliceState::Error
                || (r.branch == branch && matches!(r.state, SliceState::Active | SliceState::Merged))
        };
        let asked =
            is_new(self.members.reconcile_after(name)) && (now >= due.rest_until || self.members.is_urgent(name));
        // Every slice is looked at only when there is a reason to.
        let quiet = || bucket.sessions.is_empty() && self.hosted(name, bucket).all(|(_, r)| r.is_some_and(in_step));
        (asked || now >= due.at) && quiet()
    }

    /// The slices of a bucket on live indexers, with their node, as they were reported.
    fn hosted<'a>(
        &'a self,
        name: &'a str,
        bucket: &'a Bucket,
    ) -> impl Iterator<Item = (&'a str, Option<&'a SliceReport>)> + 'a {
        bucket.live_indexes().flat_map(move |(number, index)| {
            let hosts = index.placed.hosts.iter().enumerate().filter(|(_, host)| {
                let entry = self.context.nodes.get(&(NodeKind::Indexer, (*host).clone()));
                entry.is_some_and(|e| !e.gone)
            });
            hosts.map(move |(partition, host)| {
                let slice = SliceName { index: number, partition: partition as u32 };
                (host.as_str(), self.members.report(host, name, slice))
            })
        })
    }

    /// Per live node the slices that a session of the reconcile is to be opened for.
    pub(super) fn unstaged(&self, name: &str, bucket: &Bucket) -> Vec<(String, u64, Vec<SliceName>)> {
        let Some(reconcile) = bucket.reconcile.as_ref().filter(|r| !r.staged) else { return Vec::new() };
        let mut nodes: Vec<(String, u64, Vec<SliceName>)> = Vec::new();
        let serving = serving(bucket, |kind| kind == SessionKind::Reconcile);
        for (node, report) in self.hosted(name, bucket) {
            let Some(report) = report.filter(|r| !is_settled(r, reconcile.id)) else { continue };
            let slice = SliceName { index: report.index, partition: report.partition };
            let sessions = serving.get(&(node, slice));
            let served = sessions.is_some_and(|sessions| sessions.iter().any(|s| s.id > report.unstaged));
            let Some(entry) = self.context.nodes.get(&(NodeKind::Indexer, node.to_owned())) else { continue };
            // What another life of it reported is yet to be entered.
            let other = self.members.incarnation(node) != Some(entry.incarnation);
            if other || served {
                continue;
            }
            match nodes.iter_mut().find(|(of, ..)| of == node) {
                Some((_, _, slices)) => slices.push(slice),
                None => nodes.push((node.to_owned(), entry.incarnation, vec![slice])),
            }
        }
        nodes
    }

    /// Whether a session of the reconcile under way still serves somebody.
    pub(super) fn reconciles_with(&self, name: &str, bucket: &Bucket, session: &Session) -> bool {
        let Some(reconcile) = &bucket.reconcile else { return false };
        session.slices.iter().any(|slice| {
            let report = self.members.report(&session.node, name, *slice);
            report.is_some_and(|r| !is_settled(r, reconcile.id) && r.unstaged < session.id)
        })
    }

    /// `bucket.reconcile`: one that begins after now.
    pub(super) fn reconcile(&mut self, request: &BucketReconcile, out: &mut Vec<Action>) -> Result<Value, ApiError> {
        let bucket = self.bucket(&request.name)?;
        if bucket.live_indexes().next().is_none() {
            let message = format!("bucket {} has no index to compare with its source", request.name);
            return Err(ApiError::new(ErrorCode::IndexNotFound, message));
        }
        let after = bucket.newest_reconcile();
        if bucket.reconcile.is_none() && bucket.rollback.is_none() {
            let id = self.context.next_session + 1;
            out.push(Action::Append(Change::ReconcileStarted { bucket: request.name.clone(), id }));
            return Ok(json(&ReconcileReply { after }));
        }
        self.reconciles.entry(request.name.clone()).or_default().asked_after = Some(after);
        self.urgent = true;
        Ok(json(&ReconcileReply { after }))
    }
}

/// Nothing is waited for: it has compared, or it is not in step and will be compared when it is to be.
fn is_settled(report: &SliceReport, id: u64) -> bool {
    report.staged >= id || !matches!(report.state, SliceState::Active | SliceState::Merged)
}
