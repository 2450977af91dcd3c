//! Catchup and build sessions, and the indexes that they make active.

use super::{Action, Core};
use highwater_schemas::{
    api::{NodeKind, SliceReport, SliceState},
    state::{Bucket, Change, IndexState, Session, SessionKind, SessionVb, SliceName},
};
use std::collections::BTreeMap;

impl Core {
    /// Opens sessions for slices that need one, closes those that nobody needs.
    pub(super) fn check_sessions(&mut self, out: &mut Vec<Action>) {
        let mut next = self.context.next_session;
        for (name, bucket) in &self.context.buckets {
            // One that needs none may have merged before the session was opened for it: it never takes that one up.
            let done = |session: &Session, slice: &SliceName| {
                let report = self.members.report(&session.node, name, *slice);
                report.is_some_and(|r| r.done_with >= session.id || !needs_session(r))
            };
            for session in bucket.sessions.values() {
                let current = session.vbs.iter().zip(&bucket.vbuckets).all(|(s, v)| s.generation == v.generation);
                if !current
                    || self.members.is_broken(name, session.id)
                    || session.slices.iter().all(|slice| done(session, slice))
                {
                    close(name, session, out);
                }
            }
            if bucket.vbuckets.iter().any(|v| v.start_of(v.generation).is_none()) {
                continue;
            }
            for (node, kind, incarnation, needing) in self.needing(name, bucket) {
                next += 1;
                let from = |vb: usize| match kind {
                    SessionKind::Comparison => 0,
                    _ => needing.iter().map(|s| s.resume.get(vb).copied().unwrap_or(0)).min().unwrap_or(0),
                };
                let vbs = bucket
                    .vbuckets
                    .iter()
                    .enumerate()
                    .map(|(vb, v)| SessionVb { generation: v.generation, from: from(vb) })
                    .collect();
                let slices = needing.iter().map(|s| SliceName { index: s.index, partition: s.partition }).collect();
                out.push(Action::Append(Change::SessionOpened {
                    bucket: name.clone(),
                    session: next,
                    node,
                    incarnation,
                    slices,
                    vbs,
                    kind,
                }));
            }
        }
    }

    /// Per live node and kind of session the slices of a bucket that need one and are in none.
    fn needing<'a>(
        &'a self,
        name: &'a str,
        bucket: &'a Bucket,
    ) -> Vec<(String, SessionKind, u64, Vec<&'a SliceReport>)> {
        let mut nodes: BTreeMap<(&str, SessionKind), (u64, Vec<&SliceReport>)> = BTreeMap::new();
        let branch = bucket.branch();
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
            let served = bucket.sessions.values().any(|s| {
                s.node == node
                    && s.id > report.done_with
                    && s.slices.contains(&SliceName { index: report.index, partition: report.partition })
            });
            if alive && exists && !served {
                let kind = match report.state {
                    _ if report.compare => SessionKind::Comparison,
                    SliceState::Building => SessionKind::Build,
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
            for (number, index) in bucket.live_indexes().filter(|(_, i)| i.state == IndexState::Building) {
                let mut active = 0;
                for (partition, host) in index.placed.hosts.iter().enumerate() {
                    let slice = SliceName { index: number, partition: partition as u32 };
                    let report = self.members.report(host, name, slice);
                    match report.map(|r| (r.state, r.error.clone())) {
                        Some((SliceState::Active, _)) => active += 1,
                        Some((SliceState::Error, why)) => {
                            let reason = why.unwrap_or_else(|| "unknown".into());
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

fn needs_session(report: &SliceReport) -> bool {
    matches!(report.state, SliceState::Building | SliceState::Catchup)
}

fn close(bucket: &str, session: &Session, out: &mut Vec<Action>) {
    out.push(Action::Append(Change::SessionClosed { bucket: bucket.into(), session: session.id }));
    out.push(Action::PurgeSession { bucket: bucket.into(), session: session.id });
}
