//! Membership, vbucket owners and sessions. In this version the coordinator hears heartbeats itself.

use super::{Action, Core, ddl::mix};
use crate::config::{Config, MISSES};
use highwater_schemas::{
    Position,
    api::{Join, NodeKind, SliceReport, SliceState, Suspicion},
    state::{Bucket, Change, IndexState, SessionVb, SliceName, StateContext},
    timestamp::StabilityTimestamp,
};
use std::collections::BTreeMap;

struct Member {
    last: u64,
    incarnation: u64,
    slices: Vec<SliceReport>,
    applied: Vec<(String, StabilityTimestamp)>,
    suspicions: Vec<Suspicion>,
}

/// What nodes reported in this coordinator's life.
#[derive(Default)]
pub(super) struct Members {
    seen: BTreeMap<(NodeKind, String), Member>,
}

impl Members {
    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeKind, &String, u64)> {
        self.seen.iter().map(|((kind, node), m)| (*kind, node, m.last))
    }

    pub(super) fn all_reported(&self, context: &StateContext, now: u64, started: u64, config: &Config) -> bool {
        let patience = config.heartbeat.as_millis() as u64 * u64::from(MISSES);
        now >= started + patience
            || context
                .alive(NodeKind::Indexer)
                .all(|(node, _)| self.seen.contains_key(&(NodeKind::Indexer, node.to_owned())))
    }

    /// The newest ST of a bucket that any indexer has applied.
    pub(super) fn newest_applied(&self, bucket: &str) -> Option<&StabilityTimestamp> {
        self.seen
            .values()
            .flat_map(|m| &m.applied)
            .filter(|(name, _)| name == bucket)
            .map(|(_, st)| st)
            .max_by_key(|st| st.number)
    }

    fn reports(&self, bucket: &str) -> impl Iterator<Item = (&str, u64, &SliceReport)> {
        self.seen.iter().filter(|((kind, _), _)| *kind == NodeKind::Indexer).flat_map(move |((_, node), m)| {
            m.slices.iter().filter(move |s| s.bucket == bucket).map(move |s| (node.as_str(), m.incarnation, s))
        })
    }
}

impl Core {
    pub(super) fn join(&mut self, now: u64, join: Join, out: &mut Vec<Action>) {
        let key = (join.kind, join.node.clone());
        let known = self.context.nodes.get(&key).is_some_and(|e| e.incarnation == join.incarnation && !e.gone);
        if !known {
            let restarted = self.context.nodes.get(&key).is_some_and(|e| e.incarnation != join.incarnation);
            if join.kind == NodeKind::Indexer && restarted {
                self.close_sessions(out, |s| s.node == join.node);
            }
            out.push(Action::Append(Change::NodeJoined {
                node: join.node,
                kind: join.kind,
                incarnation: join.incarnation,
            }));
        }
        let member = Member {
            last: now,
            incarnation: join.incarnation,
            slices: join.slices,
            applied: join.applied,
            suspicions: join.suspicions,
        };
        self.members.seen.insert(key, member);
    }

    /// Nodes that missed their heartbeats are gone.
    pub(super) fn check_members(&mut self, now: u64, out: &mut Vec<Action>) {
        let patience = self.config.heartbeat.as_millis() as u64 * u64::from(MISSES);
        for ((kind, node), entry) in &self.context.nodes {
            if entry.gone || *kind == NodeKind::Coordinator {
                continue;
            }
            let last = self.members.seen.get(&(*kind, node.clone())).map_or(self.started, |m| m.last);
            if now >= last + patience {
                out.push(Action::Append(Change::NodeLeft { node: node.clone(), kind: *kind }));
            }
        }
    }

    /// Gives vbuckets without a live owner to the projector with the fewest, under a new generation.
    pub(super) fn assign_vbuckets(&mut self, out: &mut Vec<Action>) {
        let live: BTreeMap<String, u64> =
            self.context.alive(NodeKind::Projector).map(|(n, e)| (n.to_owned(), e.incarnation)).collect();
        if live.is_empty() {
            return;
        }
        let owned = |v: &highwater_schemas::state::Vbucket| {
            v.generation > 0
                && live.get(&v.projector) == Some(&v.incarnation)
                && v.starts.get(&v.generation).is_some_and(|(vbuuid, _)| *vbuuid == v.vbuuid())
        };
        let mut load: BTreeMap<&String, usize> = live.keys().map(|n| (n, 0)).collect();
        for vbucket in self.context.buckets.values().flat_map(|b| &b.vbuckets).filter(|v| owned(v)) {
            *load.entry(live.get_key_value(&vbucket.projector).map_or(&vbucket.projector, |(n, _)| n)).or_default() +=
                1;
        }
        for (name, bucket) in &self.context.buckets {
            let last = self.stability.get(name).and_then(|s| s.last());
            for (vb, vbucket) in bucket.vbuckets.iter().enumerate().filter(|(_, v)| !owned(v)) {
                let Some((projector, n)) = load.iter_mut().min_by_key(|(_, n)| **n) else { return };
                *n += 1;
                let (x, restart) = restart_of(vbucket, last, vb);
                out.push(Action::Append(Change::VbucketAssigned {
                    bucket: name.clone(),
                    vb: vb as u16,
                    generation: vbucket.generation + 1,
                    projector: (*projector).clone(),
                    incarnation: live[*projector],
                    x,
                    restart,
                }));
            }
        }
    }

    /// A source that contradicts what was read from it: a new branch from zero. It costs time, never truth.
    pub(super) fn start_branches(&mut self, random: u64, out: &mut Vec<Action>) {
        for member in self.members.seen.values_mut() {
            for suspicion in std::mem::take(&mut member.suspicions) {
                let current = self
                    .context
                    .buckets
                    .get(&suspicion.bucket)
                    .and_then(|b| b.vbuckets.get(usize::from(suspicion.vb)))
                    .is_some_and(|v| v.vbuuid() == suspicion.vbuuid);
                if current {
                    out.push(Action::Append(Change::BranchStarted {
                        bucket: suspicion.bucket,
                        vb: suspicion.vb,
                        vbuuid: mix(random, u64::from(suspicion.vb)),
                        start: 0,
                        reason: suspicion.reason,
                    }));
                }
            }
        }
    }

    /// Opens sessions for slices that need one, closes those that nobody needs.
    pub(super) fn check_sessions(&mut self, out: &mut Vec<Action>) {
        let mut next = self.context.next_session;
        for (name, bucket) in &self.context.buckets {
            let done = |node: &str, slice: &SliceName| {
                self.members
                    .reports(name)
                    .find(|(n, _, r)| *n == node && r.index == slice.index && r.partition == slice.partition)
                    .map_or(0, |(_, _, r)| r.done_with)
            };
            for session in bucket.sessions.values() {
                let current = session.vbs.iter().zip(&bucket.vbuckets).all(|(s, v)| s.generation == v.generation);
                if !current || session.slices.iter().all(|slice| done(&session.node, slice) >= session.id) {
                    out.push(Action::Append(Change::SessionClosed { bucket: name.clone(), session: session.id }));
                    out.push(Action::PurgeSession { bucket: name.clone(), session: session.id });
                }
            }
            if bucket.vbuckets.iter().any(|v| v.generation == 0) {
                continue;
            }
            for (node, incarnation, needing) in self.needing(name, bucket) {
                next += 1;
                let from =
                    |vb: usize| needing.iter().map(|s| s.resume.get(vb).copied().unwrap_or(0)).min().unwrap_or(0);
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
                }));
            }
        }
    }

    /// Per live node the slices of a bucket that need a session and are in none.
    fn needing<'a>(&'a self, name: &'a str, bucket: &'a Bucket) -> Vec<(String, u64, Vec<&'a SliceReport>)> {
        let mut nodes: BTreeMap<&str, (u64, Vec<&SliceReport>)> = BTreeMap::new();
        for (node, incarnation, report) in self.members.reports(name) {
            let alive = self
                .context
                .nodes
                .get(&(NodeKind::Indexer, node.to_owned()))
                .is_some_and(|e| !e.gone && e.incarnation == incarnation);
            let wanted = matches!(report.state, SliceState::Building | SliceState::Catchup);
            let exists = bucket.indexes.get(&report.index).is_some_and(|i| i.topology > 0);
            let served = bucket.sessions.values().any(|s| {
                s.node == node
                    && s.id > report.done_with
                    && s.slices.contains(&SliceName { index: report.index, partition: report.partition })
            });
            if alive && wanted && exists && !served {
                nodes.entry(node).or_insert((incarnation, Vec::new())).1.push(report);
            }
        }
        nodes.into_iter().map(|(n, (i, s))| (n.to_owned(), i, s)).collect()
    }

    fn close_sessions(&self, out: &mut Vec<Action>, which: impl Fn(&highwater_schemas::state::Session) -> bool) {
        for (name, bucket) in &self.context.buckets {
            for session in bucket.sessions.values().filter(|s| which(s)) {
                out.push(Action::Append(Change::SessionClosed { bucket: name.clone(), session: session.id }));
                out.push(Action::PurgeSession { bucket: name.clone(), session: session.id });
            }
        }
    }

    /// An index is active when all its partitions are, and failed when one is.
    pub(super) fn check_indexes(&mut self, out: &mut Vec<Action>) {
        for (name, bucket) in &self.context.buckets {
            for (number, index) in bucket.live_indexes().filter(|(_, i)| i.state == IndexState::Building) {
                let mut active = 0;
                for (partition, host) in index.placed.hosts.iter().enumerate() {
                    let report = self
                        .members
                        .reports(name)
                        .find(|(node, _, r)| node == host && r.index == number && r.partition == partition as u32);
                    match report.map(|(_, _, r)| (r.state, r.error.clone())) {
                        Some((SliceState::Active, _)) => active += 1,
                        Some((SliceState::Error, why)) => {
                            let reason = why.unwrap_or_else(|| "unknown".into());
                            out.push(Action::Append(Change::IndexFailed {
                                bucket: name.clone(),
                                index: number,
                                reason,
                            }));
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

/// Where a new generation counts from, and where it reads from: the last ST issued and its covered seqno.
fn restart_of(
    vbucket: &highwater_schemas::state::Vbucket,
    last: Option<&StabilityTimestamp>,
    vb: usize,
) -> (Position, u64) {
    let issued = last.and_then(|l| l.vbs.get(vb)).filter(|l| l.vbuuid == vbucket.vbuuid());
    match issued {
        Some(state) => (state.position, state.covered),
        None => match vbucket.starts.get(&vbucket.generation) {
            Some((vbuuid, x)) if *vbuuid == vbucket.vbuuid() => (*x, vbucket.restart),
            _ => (Position::new(vbucket.restart, 0), vbucket.restart),
        },
    }
}
