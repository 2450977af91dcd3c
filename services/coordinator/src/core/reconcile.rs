//! Reconciles: what vanished from a bucket's sources without a message (design section 4).
//!
//! Sessions bring every slice in step the present documents; the slices stage what differs and say so; then the projectors put
//! it into the chain as a round. A slice that has not staged when it meets that round is compared in a session of its own.
//!
//! A reconcile of *named* documents covers only those that a projector knows to have vanished: the round itself says what they are,
//! and no slice reads or stages anything. It may begin while slices stage one of all documents, which has the higher number and
//! comes after it in the chain.

use super::{Action, Core, ddl::json, sessions::serving, stability::BucketStability};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{BucketReconcile, NodeKind, ReconcileReply, SliceReport, SliceState},
    state::{Bucket, Change, NAMED_BESIDE, RollbackPhase, Session, SessionKind, SliceName},
};
use serde_json::Value;
use std::collections::BTreeSet;

/// Reconciles under way at once; each reads every document of its bucket.
const MOST_AT_ONCE: usize = 4;

/// A bucket is reconciled for a projector this often at most, milliseconds, and for a twentieth of the time at most.
const REST: u64 = 5_000;
const REST_TIMES: u64 = 20;
/// But for so many that may follow each other at once after a time without.
pub(super) const AT_ONCE: u64 = 3;
/// Named documents are put into the chains this often at most, milliseconds.
const NAMED_REST: u64 = 2_000;
/// They wait so long for slices that are not in step, milliseconds: of those, the ones that have lost their place in the chain are
/// compared again after a round.
pub(super) const NAMED_WAITS: u64 = 3_000;
/// Each such round doubles that for the next one, so often at most: a slice may need longer between two to get in step.
const MOST_IMPATIENT: u32 = 10;

/// When reconciles of a bucket are due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// The next one that nobody asks for.
    at: u64,
    /// An administrator wants one with a higher number than this.
    asked_after: Option<u64>,
    /// Since when one is wanted.
    wanted: Option<u64>,
    /// The number of the newest one, and since when this coordinator sees it.
    newest: u64,
    began: u64,
    rest: Rest,
    /// Since when documents wait to be named, and when they were last.
    to_name: Option<u64>,
    named_at: Option<u64>,
    /// Rounds of named documents that did not wait for slices out of step, since the last one that every slice was in step for.
    impatient: u32,
}

/// How much of the time a bucket is reconciled for its projectors.
#[derive(Debug, Default, Clone, Copy)]
struct Rest {
    /// When it has rested enough for all that were done.
    rested_at: u64,
    /// How long it rests after one like the last.
    each: u64,
}

impl Rest {
    fn done(self, now: u64, took: u64) -> Self {
        let each = REST.max(REST_TIMES * took);
        Self { rested_at: self.rested_at.max(now) + each, each }
    }

    fn is_over(self, now: u64) -> bool {
        now + (AT_ONCE - 1) * self.each >= self.rested_at
    }
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
            let issued = self.stability.get(name).and_then(BucketStability::last);
            let in_chains = |id: u64| issued.is_some_and(|st| st.vbs.iter().all(|vb| vb.reconciled >= id));
            let done = |named| Action::Append(Change::ReconcileDone { bucket: name.clone(), named });
            if bucket.naming.is_some_and(in_chains) {
                out.push(done(true));
            }
            // An administrator, or another coordinator, may have begun it.
            if let Some(reconcile) = bucket.reconcile.as_ref().filter(|reconcile| reconcile.id != due.newest) {
                (due.newest, due.began) = (reconcile.id, now);
            }
            match &bucket.reconcile {
                None => {
                    if self.may_reconcile(now, name, bucket, due) {
                        ready.push((*due.wanted.get_or_insert(now), name));
                    }
                }
                Some(reconcile) if !reconcile.staged => {
                    // Rounds go into the chains one after the other.
                    if bucket.naming.is_none() && self.is_prepared(name, bucket, reconcile.id) {
                        out.push(Action::Append(Change::ReconcileStaged { bucket: name.clone() }));
                        for session in bucket.sessions.values().filter(|s| s.kind == SessionKind::Reconcile) {
                            out.push(Action::PurgeSession { bucket: name.clone(), session: session.id });
                        }
                    }
                }
                Some(reconcile) => {
                    if in_chains(reconcile.id) {
                        due.at = now + interval;
                        due.rest = due.rest.done(now, now.saturating_sub(due.began));
                        out.push(done(false));
                    }
                }
            }
        }
        // Who waits longest comes first.
        ready.sort_unstable();
        let most = MOST_AT_ONCE.saturating_sub(running);
        let begun: BTreeSet<&String> = ready.into_iter().take(most).map(|(_, name)| name).collect();
        for (name, bucket) in self.context.buckets.iter().filter(|(name, _)| !begun.contains(name)) {
            let Some(due) = all.get_mut(name) else { continue };
            if self.may_name(now, name, bucket, due)
                && let Some(id) = bucket.next_named(*next)
            {
                *next = id.max(*next);
                (due.to_name, due.named_at) = (None, Some(now));
                due.impatient = if self.is_in_step(name, bucket) { 0 } else { due.impatient + 1 };
                out.push(Action::Append(Change::ReconcileStarted { bucket: name.clone(), id, named: true }));
            }
        }
        for name in begun {
            *next += 1 + NAMED_BESIDE;
            if let Some(due) = all.get_mut(name) {
                *due = Due { at: now + interval, asked_after: None, wanted: None, ..*due };
            }
            out.push(Action::Append(Change::ReconcileStarted { bucket: name.clone(), id: *next, named: false }));
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
        // What a round that is on its way names was perhaps looked up after a list that begins now.
        if !read || !back || bucket.naming.is_some() || bucket.live_indexes().next().is_none() {
            return false;
        }
        if is_new(due.asked_after) && bucket.rollback.is_none() {
            return true;
        }
        let asked =
            is_new(self.members.reconcile_after(name)) && (due.rest.is_over(now) || self.members.is_urgent(name));
        // Every slice is looked at only when there is a reason to.
        (asked || now >= due.at) && self.is_in_step(name, bucket)
    }

    /// Whether documents are to be named in a round now.
    fn may_name(&self, now: u64, name: &str, bucket: &Bucket, due: &mut Due) -> bool {
        let wanted = self.members.named_after(name).is_some_and(|after| bucket.newest_named <= after);
        let read = bucket.vbuckets.iter().all(|v| v.start_of(v.generation).is_some());
        if !wanted || !read || bucket.rollback.is_some() || bucket.live_indexes().next().is_none() {
            due.to_name = None;
            return false;
        }
        let since = *due.to_name.get_or_insert(now);
        // One of all documents that is about to go into the chains, or goes, comes first.
        let busy = bucket.naming.is_some()
            || bucket.reconcile.as_ref().is_some_and(|r| r.staged || self.is_prepared(name, bucket, r.id));
        let rested = due.named_at.is_none_or(|at| now >= at + NAMED_REST);
        let waits = NAMED_WAITS << due.impatient.min(MOST_IMPATIENT);
        !busy && rested && (now >= since + waits || self.is_in_step(name, bucket))
    }

    /// Whether every slice has staged this reconcile, or is not waited for.
    fn is_prepared(&self, name: &str, bucket: &Bucket, id: u64) -> bool {
        self.hosted(name, bucket).all(|(_, report)| report.is_some_and(|report| is_settled(report, id)))
    }

    /// Whether every slice of a bucket follows the chain. Each round that one out of step meets may have it compared: none is to be
    /// thrown back again and again.
    fn is_in_step(&self, name: &str, bucket: &Bucket) -> bool {
        let branch = bucket.branch();
        let in_step = |r: &SliceReport| {
            r.state == SliceState::Error
                || (r.branch == branch && matches!(r.state, SliceState::Active | SliceState::Merged))
        };
        // A slice that reads a list for a reconcile goes on following the chain.
        bucket.sessions.values().all(|session| session.kind == SessionKind::Reconcile)
            && self.hosted(name, bucket).all(|(_, r)| r.is_some_and(in_step))
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
        if bucket.reconcile.is_none() && bucket.naming.is_none() && bucket.rollback.is_none() {
            let id = self.newest_session() + 1 + NAMED_BESIDE;
            out.push(Action::Append(Change::ReconcileStarted { bucket: request.name.clone(), id, named: false }));
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
