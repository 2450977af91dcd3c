//! Catchup and build sessions, and the indexes that they make active.

use super::{Action, Core, stability::BucketStability};
use highwater_schemas::{
    api::{NodeKind, SliceReport, SliceState},
    state::{Bucket, Change, IndexState, Session, SessionKind, SessionVb, SliceName, in_short},
};
use std::collections::BTreeMap;

impl Core {
    /// Opens sessions for slices that need one, closes those that nobody needs.
    ///
    /// `next`: the newest number of a session.
    pub(super) fn check_sessions(&mut self, next: &mut u64, out: &mut Vec<Action>) {
        let mut recovering = Vec::new();
        for (name, bucket) in &self.context.buckets {
            // One that needs none may have merged before the session was opened for it: it never takes that one up.
            let done = |session: &Session, slice: &SliceName| {
                let report = self.members.report(&session.node, name, *slice);
                report.is_some_and(|r| r.done_with >= session.id || !needs_session(r))
            };
            for session in bucket.sessions.values() {
                let current = session.vbs.iter().zip(&bucket.vbuckets).all(|(s, v)| s.generation == v.generation);
                let broken = self.members.is_broken(name, session.id);
                let over = match session.kind {
                    SessionKind::Reconcile => !self.reconciles_with(name, bucket, session),
                    _ => session.slices.iter().all(|slice| done(session, slice)),
                };
                if !current || broken || over {
                    close(name, session, out);
                }
                if broken && session.kind == SessionKind::Recovery {
                    let slices = session.slices.iter().map(|slice| (name.clone(), session.node.clone(), *slice));
                    self.interrupted.extend(slices);
                }
            }
            if bucket.vbuckets.iter().any(|v| v.start_of(v.generation).is_none()) {
                continue;
            }
            for (node, kind, incarnation, needing) in self.needing(name, bucket) {
                *next += 1;
                if kind == SessionKind::Recovery {
                    recovering.push(name.clone());
                }
                let from = |vb: usize| match kind {
                    SessionKind::Comparison => 0,
                    _ => needing.iter().map(|s| s.resume.get(vb).copied().unwrap_or(0)).min().unwrap_or(0),
                };
                let vbs = self.session_vbs(name, bucket, from);
                let slices = needing.iter().map(|s| name_of(s)).collect();
                out.push(Action::Append(Change::SessionOpened {
                    bucket: name.clone(),
                    session: *next,
                    node,
                    incarnation,
                    slices,
                    vbs,
                    kind,
                }));
            }
            for (node, incarnation, slices) in self.unstaged(name, bucket) {
                *next += 1;
                let (bucket_name, vbs) = (name.clone(), self.session_vbs(name, bucket, |_| 0));
                let (session, kind) = (*next, SessionKind::Reconcile);
                let opened =
                    Change::SessionOpened { bucket: bucket_name, session, node, incarnation, slices, vbs, kind };
                out.push(Action::Append(opened));
            }
        }
        // Those that have got what they need, or are gone.
        let members = &self.members;
        self.interrupted
            .retain(|(bucket, node, slice)| members.report(node, bucket, *slice).is_some_and(needs_session));
        self.recovering.extend(recovering);
    }

    fn session_vbs(&self, name: &str, bucket: &Bucket, from: impl Fn(usize) -> u64) -> Vec<SessionVb> {
        let issued = self.stability.get(name).and_then(BucketStability::last);
        let vbs = bucket.vbuckets.iter().enumerate().map(|(vb, v)| {
            let issued = issued.and_then(|st| st.vbs.get(vb)).filter(|st| st.vbuuid == v.vbuuid());
            let reconciled = issued.map_or(v.dropped.reconciled, |st| st.reconciled);
            SessionVb { generation: v.generation, from: from(vb), reconciled }
        });
        vbs.collect()
    }

    /// Per live node and kind of session the slices of a bucket that need one and are in none.
    fn needing<'a>(
        &'a self,
        name: &'a str,
        bucket: &'a Bucket,
    ) -> Vec<(String, SessionKind, u64, Vec<&'a SliceReport>)> {
        let mut nodes: BTreeMap<(&str, SessionKind), (u64, Vec<&SliceReport>)> = BTreeMap::new();
        let branch = bucket.branch();
        let serving = serving(bucket, |kind| kind != SessionKind::Reconcile);
        for (node, incarnation, report) in self.members.reports(name) {
            if !needs_session(report) || report.branch != branch {
                continue;
            }
            let alive = self
                .context
                .nodes
                .get(&(NodeKind::Indexer, node.to_owned()))
                .is_some_and(|e| !e.gone && e.incarnation == incarnation);
            let exists = bucket.indexes.get(&report.index).is_some_and(|i| i.topology > 0);
            let served = serving.get(&(node, name_of(report))).is_some_and(|sessions| {
                sessions.iter().any(|session| session.id > report.done_with && takes_up(report, session))
            });
            if alive && exists && !served {
                let kind = match report.state {
                    _ if report.compare => SessionKind::Comparison,
                    SliceState::Building => SessionKind::Build,
                    _ if self.interrupted.contains(&(name.to_owned(), node.to_owned(), name_of(report))) => {
                        SessionKind::Comparison
                    }
                    _ => SessionKind::Recovery,
                };
                nodes.entry((node, kind)).or_insert((incarnation, Vec::new())).1.push(report);
            }
        }
        nodes.into_iter().map(|((node, kind), (i, s))| (node.to_owned(), kind, i, s)).collect()
    }

    pub(super) fn close_sessions(&self, out: &mut Vec<Action>, which: impl Fn(&Session) -> bool) {
        for (name, bucket) in &self.context.buckets {
            for session in bucket.sessions.values().filter(|s| which(s)) {
                close(name, session, out);
            }
        }
    }

    /// An index is active when all its partitions are, and failed when one is.
    pub(super) fn check_indexes(&mut self, out: &mut Vec<Action>) {
        for (name, bucket) in &self.context.buckets {
            let branch = bucket.branch();
            for (number, index) in bucket.live_indexes().filter(|(_, i)| i.state == IndexState::Building) {
                let mut active = 0;
                for (partition, host) in index.placed.hosts.iter().enumerate() {
                    let slice = SliceName { index: number, partition: partition as u32 };
                    let report = self.members.report(host, name, slice);
                    match report {
                        // What was active on the branch before is not on this one.
                        Some(r) if r.state == SliceState::Active && r.branch == branch => active += 1,
                        Some(r) if r.state == SliceState::Error => {
                            let reason = in_short(r.error.as_deref().unwrap_or("unknown"));
                            let bucket = name.clone();
                            out.push(Action::Append(Change::IndexFailed { bucket, index: number, reason }));
                            break;
                        }
                        _ => {}
                    }
                }
                if active == index.placed.hosts.len() {
                    out.push(Action::Append(Change::IndexActive { bucket: name.clone(), index: number }));
                }
            }
        }
    }
}

/// The open sessions of these kinds by node and slice.
pub(super) fn serving(bucket: &Bucket, of: impl Fn(SessionKind) -> bool) -> BTreeMap<(&str, SliceName), Vec<&Session>> {
    let mut all: BTreeMap<(&str, SliceName), Vec<&Session>> = BTreeMap::new();
    for session in bucket.sessions.values().filter(|session| of(session.kind)) {
        for slice in &session.slices {
            all.entry((&session.node, *slice)).or_default().push(session);
        }
    }
    all
}

fn needs_session(report: &SliceReport) -> bool {
    matches!(report.state, SliceState::Building | SliceState::Catchup)
}

/// One that must be compared takes up only what lists, one that is filled from nothing never that.
fn takes_up(report: &SliceReport, session: &Session) -> bool {
    let lists = session.kind.lists();
    let kind = if report.compare { lists } else { !(lists && report.state == SliceState::Building) };
    kind && (lists || session.vbs.iter().zip(&report.resume).all(|(s, own)| s.from <= *own))
}

fn close(bucket: &str, session: &Session, out: &mut Vec<Action>) {
    out.push(Action::Append(Change::SessionClosed { bucket: bucket.into(), session: session.id }));
    out.push(Action::PurgeSession { bucket: bucket.into(), session: session.id });
}

fn name_of(report: &SliceReport) -> SliceName {
    SliceName { index: report.index, partition: report.partition }
}
