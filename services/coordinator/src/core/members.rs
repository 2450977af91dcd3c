//! Who is there, and what they report.
//!
//! The cluster manager says who is alive. Where it does not, heartbeats decide, and our own tells whether any can be heard: how
//! long a node was silent counts up to when our own last came back, and anew after a time in which it did not.

use super::{Action, Core};
use crate::{config::Config, room};
use highwater_schemas::{
    api::{ClusterEvent, Join, MOST_MEMBERS, NodeKind, Reads, SessionReading, SliceReport, Suspicion, VbReads},
    state::{Change, NodeEntry, SliceName, StateContext},
    timestamp::StabilityTimestamp,
};
use std::collections::BTreeMap;

/// What a node reported in this term.
struct Member {
    last: u64,
    incarnation: u64,
    term: u64,
    /// By bucket.
    slices: BTreeMap<String, BTreeMap<SliceName, SliceReport>>,
    applied: Vec<(String, StabilityTimestamp)>,
    suspicions: Vec<Suspicion>,
    /// Sessions that cannot go on.
    broken: Vec<(String, u64)>,
    /// Buckets of which a reconcile with a higher number is asked for.
    reconciles: Vec<(String, u64)>,
    /// Buckets of which one cannot wait.
    urgent: Vec<String>,
    /// Chains, by bucket, vbucket and generation, that it cannot go on with.
    lost: Vec<(String, u16, u64)>,
    /// How far it has read for sessions.
    reading: Vec<SessionReading>,
    /// What it has read of vbuckets.
    reads: Vec<VbReads>,
}

/// What nodes and the cluster manager said since this index manager coordinates.
pub(super) struct Members {
    seen: BTreeMap<(NodeKind, String), Member>,
    /// Incarnation and whether it is alive, by the cluster manager's last word.
    cluster: Option<BTreeMap<(NodeKind, String), (u64, bool)>>,
    /// When that was.
    seen_cluster: u64,
    /// When our own heartbeat last came back.
    echo: Option<u64>,
    /// Since when it comes back without a break.
    since: u64,
}

impl Members {
    pub(super) fn new(now: u64) -> Self {
        Self { seen: BTreeMap::new(), cluster: None, seen_cluster: 0, echo: None, since: now }
    }

    /// Our own heartbeat came back. After a break everyone is listened to anew.
    fn echoed(&mut self, now: u64, config: &Config) {
        let heartbeat = config.heartbeat_ms();
        // Who was heard just before a shorter one, and is heard soon after it, was not silent for too long.
        let short = config.patience().saturating_sub(heartbeat).max(heartbeat + heartbeat / 2);
        if self.echo.is_none_or(|echo| now > echo + short) {
            self.since = now;
        }
        self.echo = Some(now);
    }

    /// Whether who was heard last at `last` has missed its heartbeats, and not only we.
    fn silent(&self, last: u64, config: &Config) -> bool {
        self.echo.is_some_and(|echo| echo >= last.max(self.since) + config.patience())
    }

    pub(super) fn see(&mut self, now: u64, event: ClusterEvent) {
        self.seen_cluster = now;
        let entry = |m: highwater_schemas::api::Presence| ((m.kind, m.node), (m.incarnation, m.alive));
        self.cluster = Some(event.members.into_iter().map(entry).collect());
    }

    /// Takes what a node says of some of its buckets, unless it belongs to a report that is not there: that comes again.
    fn take(&mut self, key: &(NodeKind, String), only: &[String], part: Member) {
        let fits = |m: &&mut Member| m.incarnation == part.incarnation && m.term == part.term;
        let Some(member) = self.seen.get_mut(key).filter(fits) else { return };
        member.last = part.last;
        member.slices.retain(|bucket, _| !only.contains(bucket));
        member.slices.extend(part.slices);
        member.applied.retain(|(bucket, _)| !only.contains(bucket));
        member.applied.extend(part.applied);
    }

    /// The buckets of which a report tells of slices, and of which the node had none before.
    fn opened(&self, key: &(NodeKind, String), report: &Member) -> Vec<String> {
        let before = self.seen.get(key).filter(|m| m.incarnation == report.incarnation);
        let known = |bucket: &String| before.is_some_and(|m| m.slices.contains_key(bucket));
        report.slices.keys().filter(|bucket| !known(bucket)).cloned().collect()
    }

    /// Without a cluster manager its last word counts for a while only.
    pub(super) fn forget_cluster(&mut self, now: u64, config: &Config) {
        if now > self.seen_cluster + 2 * config.patience() {
            self.cluster = None;
        }
    }

    /// What the cluster manager says of a node; None: it does not know it, or there is no cluster manager.
    fn alive(&self, key: &(NodeKind, String), incarnation: u64) -> Option<bool> {
        let (known, alive) = self.cluster.as_ref()?.get(key)?;
        // Another incarnation was there after or before this one: only one of them can be.
        Some(*alive && *known == incarnation)
    }

    /// The live indexers that have not yet reported under this term. Those that miss their heartbeats are not waited for.
    pub(super) fn waited_for<'a>(
        &'a self,
        context: &'a StateContext,
        started: u64,
        config: &Config,
    ) -> impl Iterator<Item = String> + 'a {
        let late = self.silent(started, config);
        context
            .nodes
            .iter()
            .filter(|((kind, _), entry)| *kind == NodeKind::Indexer && !entry.gone)
            .filter(move |(key, entry)| {
                let given_up = match self.alive(key, entry.incarnation) {
                    Some(alive) => !alive,
                    None => late,
                };
                !given_up && !self.follows(NodeKind::Indexer, &key.1, context.term)
            })
            .map(|((_, node), _)| node.clone())
    }

    /// Whether a node has said that it follows this term.
    pub(super) fn follows(&self, kind: NodeKind, node: &str, term: u64) -> bool {
        self.seen.get(&(kind, node.to_owned())).is_some_and(|m| m.term >= term)
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

    /// The slices of a bucket, with their node and its incarnation.
    pub(super) fn reports(&self, bucket: &str) -> impl Iterator<Item = (&str, u64, &SliceReport)> {
        let indexers = self.seen.iter().filter(|((kind, _), _)| *kind == NodeKind::Indexer);
        indexers.flat_map(move |((_, node), m)| {
            m.slices.get(bucket).into_iter().flat_map(BTreeMap::values).map(move |s| (node.as_str(), m.incarnation, s))
        })
    }

    /// One slice as its node reported it.
    pub(super) fn report(&self, node: &str, bucket: &str, slice: SliceName) -> Option<&SliceReport> {
        self.seen.get(&(NodeKind::Indexer, node.to_owned()))?.slices.get(bucket)?.get(&slice)
    }

    /// Which life of an indexer reported last.
    pub(super) fn incarnation(&self, node: &str) -> Option<u64> {
        self.seen.get(&(NodeKind::Indexer, node.to_owned())).map(|m| m.incarnation)
    }

    #[cfg(test)]
    pub(super) fn nodes(&self) -> usize {
        self.seen.len()
    }

    pub(super) fn slices(&self) -> impl Iterator<Item = &SliceReport> {
        self.seen.values().flat_map(|m| m.slices.values().flat_map(BTreeMap::values))
    }

    /// What was said of the slices of a bucket counts no more.
    pub(super) fn forget_slices(&mut self, bucket: &str) {
        for member in self.seen.values_mut() {
            member.slices.remove(bucket);
        }
    }

    /// Whether a projector says that a session cannot go on.
    pub(super) fn is_broken(&self, bucket: &str, session: u64) -> bool {
        self.seen.values().flat_map(|m| &m.broken).any(|(b, s)| b == bucket && *s == session)
    }

    /// The newest reconcile of a bucket that is not enough for a projector that asks for one.
    pub(super) fn reconcile_after(&self, bucket: &str) -> Option<u64> {
        self.seen.values().flat_map(|m| &m.reconciles).filter(|(b, _)| b == bucket).map(|(_, after)| *after).max()
    }

    /// Whether a projector waits for a reconcile of a bucket.
    pub(super) fn is_urgent(&self, bucket: &str) -> bool {
        self.seen.values().flat_map(|m| &m.urgent).any(|b| b == bucket)
    }

    /// Whether a projector says that a chain cannot go on.
    pub(super) fn is_lost(&self, bucket: &str, vb: usize, generation: u64) -> bool {
        let lost = self.seen.values().flat_map(|m| &m.lost);
        lost.into_iter().any(|(b, v, g)| b == bucket && usize::from(*v) == vb && *g == generation)
    }

    /// What projectors have read for a session.
    pub(super) fn reading(&self, bucket: &str, session: u64) -> impl Iterator<Item = &SessionReading> {
        let reading = self.seen.values().flat_map(|m| &m.reading);
        reading.filter(move |r| r.session == session && r.bucket == bucket)
    }

    /// What the projector of a vbucket has read of it.
    pub(super) fn reads(&self, projector: &str, bucket: &str, vb: usize) -> Reads {
        let member = self.seen.get(&(NodeKind::Projector, projector.to_owned()));
        let reads = member.and_then(|m| m.reads.iter().find(|r| r.bucket == bucket && usize::from(r.vb) == vb));
        reads.map(|r| r.reads).unwrap_or_default()
    }

    /// What projectors found to contradict, once.
    pub(super) fn take_suspicions(&mut self) -> Vec<Suspicion> {
        self.seen.values_mut().flat_map(|m| std::mem::take(&mut m.suspicions)).collect()
    }
}

impl Core {
    pub(super) fn join(&mut self, now: u64, join: Join) {
        let key = (join.kind, join.node);
        if key.0 == NodeKind::Coordinator && key.1 == self.config.node && join.incarnation == self.config.incarnation {
            self.members.echoed(now, &self.config);
        }
        let mut slices: BTreeMap<String, BTreeMap<SliceName, SliceReport>> = BTreeMap::new();
        for slice in join.slices {
            let name = SliceName { index: slice.index, partition: slice.partition };
            // Most reports are of few buckets: no key is made for each slice.
            if let Some(of_bucket) = slices.get_mut(&slice.bucket) {
                of_bucket.insert(name, slice);
            } else {
                slices.insert(slice.bucket.clone(), BTreeMap::from([(name, slice)]));
            }
        }
        let member = Member {
            last: now,
            incarnation: join.incarnation,
            term: join.term.max(join.manager.as_ref().map_or(0, |m| m.term)),
            slices,
            applied: join.applied,
            suspicions: join.suspicions,
            broken: join.broken_sessions,
            reconciles: join.reconciles,
            urgent: join.urgent,
            lost: join.lost_chains,
            reading: join.reading,
            reads: join.reads,
        };
        // Who has just opened slices has not heard of any timestamp.
        for bucket in self.members.opened(&key, &member) {
            self.repeat_stability(&bucket);
        }
        if let Some(only) = &join.only {
            self.members.take(&key, only, member);
            self.urgent = true;
            return;
        }
        let silent_since = now.saturating_sub(self.config.patience());
        if !room::make(&mut self.members.seen, &key, MOST_MEMBERS, silent_since, |m| m.last) {
            return;
        }
        let before = self.members.seen.get(&key);
        self.urgent |= before.is_none_or(|b| {
            b.incarnation != member.incarnation
                || b.term != member.term
                || b.slices != member.slices
                || !member.suspicions.is_empty()
                || b.broken != member.broken
                || b.reconciles != member.reconciles
                || b.lost != member.lost
                || b.urgent != member.urgent
        });
        self.members.seen.insert(key, member);
    }

    /// Who joined is entered, who is gone is crossed out; the cluster manager says who is there.
    pub(super) fn check_members(&mut self, now: u64, out: &mut Vec<Action>) {
        self.members.forget_cluster(now, &self.config);
        for ((kind, node), member) in &self.members.seen {
            if *kind == NodeKind::ClusterManager {
                continue;
            }
            let key = (*kind, node.clone());
            let entry = self.context.nodes.get(&key);
            let known = entry.is_some_and(|e| e.incarnation == member.incarnation && !e.gone);
            let fresh = now < member.last + self.config.patience();
            if known || !fresh || self.members.alive(&key, member.incarnation) == Some(false) {
                continue;
            }
            if *kind == NodeKind::Indexer && entry.is_some_and(|e| e.incarnation != member.incarnation) {
                self.close_sessions(out, |s| s.node == *node);
            }
            let incarnation = member.incarnation;
            out.push(Action::Append(Change::NodeJoined { node: node.clone(), kind: *kind, incarnation }));
        }
        for (key, entry) in &self.context.nodes {
            if !entry.gone && self.is_gone(key, entry) {
                if key.0 == NodeKind::Indexer {
                    self.close_sessions(out, |s| s.node == key.1);
                }
                out.push(Action::Append(Change::NodeLeft { node: key.1.clone(), kind: key.0 }));
            }
        }
    }

    fn is_gone(&self, key: &(NodeKind, String), entry: &NodeEntry) -> bool {
        if *key == (NodeKind::Coordinator, self.config.node.clone()) {
            return false;
        }
        let member = self.members.seen.get(key);
        let silent = self.members.silent(member.map_or(self.started, |m| m.last), &self.config);
        if !silent && member.is_some_and(|m| m.incarnation != entry.incarnation) {
            // It was started again: it joins, it does not leave.
            return false;
        }
        match self.members.alive(key, entry.incarnation) {
            Some(alive) => !alive,
            // Nobody else says so: its own heartbeats decide.
            None => silent,
        }
    }
}
