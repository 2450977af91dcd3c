//! Who is there, and what they report.
//!
//! The cluster manager says who is alive. Where it does not, heartbeats decide, and our own tells whether any can be heard: how
//! long a node was silent counts up to when our own last came back, and anew after a time in which it did not.

mod reported;

use super::{Action, Core};
use crate::{config::Config, room};
use highwater_schemas::{
    api::{ClusterEvent, Join, MOST_MEMBERS, NodeKind, SessionReading, SliceReport, Suspicion, VbReads},
    report::{Receiver, ReportPart, Told},
    state::{Change, NodeEntry, SliceName, StateContext},
    timestamp::StabilityTimestamp,
};
use reported::{Changes, Reported};
use std::collections::BTreeMap;

/// A report that is behind what was sent is asked for after this, milliseconds, and again after that: a node tells everything by
/// itself in a new term.
const ASK_AFTER: u64 = 100;
const ASK_AGAIN: u64 = 500;
/// Reports asked for at once.
const MOST_ASKED: usize = 16;
/// Nodes that are listened to before the log knows them: names that nobody heard of before leave room for those that it does.
const MOST_NEW: usize = MOST_MEMBERS / 4;
/// So many of them are entered in this time, milliseconds, those first that were heard first: each is a record of the log.
const MOST_ENTERED: usize = 64;
const ENTERED_IN: u64 = 1_000;

/// What a node said in this term.
struct Member {
    /// When it was heard first, and last.
    first: u64,
    last: u64,
    incarnation: u64,
    /// The term that it follows, by its heartbeat.
    term: u64,
    /// How much of its report it has sent, by its heartbeat.
    told: Told,
    /// Since when less of it has come, and when it was asked for.
    behind: Option<u64>,
    asked: Option<u64>,
    receiver: Receiver,
    report: Reported,
    /// An edition that is not whole: until then the report counts that there is.
    aside: Option<Reported>,
}

impl Member {
    fn new(now: u64, incarnation: u64) -> Self {
        Self {
            first: now,
            last: now,
            incarnation,
            term: 0,
            told: Told::default(),
            behind: None,
            asked: None,
            receiver: Receiver::default(),
            report: Reported::default(),
            aside: None,
        }
    }

    /// Looks whether all has come that was sent.
    fn look(&mut self, now: u64) {
        let behind = !self.receiver.has(self.told);
        self.behind = behind.then(|| self.behind.unwrap_or(now));
    }

    /// Whether it is to be asked for its report.
    fn ask(&mut self, now: u64) -> bool {
        let due = self.behind.is_some_and(|since| now >= since + ASK_AFTER)
            && self.asked.is_none_or(|asked| now >= asked + ASK_AGAIN);
        if due {
            self.asked = Some(now);
            // Whatever number the new edition has, it is taken.
            self.receiver = Receiver::default();
            self.aside = None;
        }
        due
    }

    fn take(&mut self, now: u64, part: ReportPart) -> Changes {
        let mut changes = Changes::default();
        let accepted = self.receiver.take(part);
        if accepted.begins {
            self.aside = Some(Reported::default());
        }
        for part in accepted.parts {
            let (term, whole) = (part.term, part.whole);
            match &mut self.aside {
                // Nothing of it counts yet.
                Some(aside) => aside.take(part, &mut Changes::default()),
                None => self.report.take(part, &mut changes),
            }
            if let Some(mut report) = self.aside.take_if(|_| whole) {
                let known = &self.report.slices;
                changes.opened.extend(report.slices.keys().filter(|bucket| !known.contains_key(*bucket)).cloned());
                changes.matters = true;
                report.term = term;
                self.report = report;
            }
        }
        self.look(now);
        changes
    }
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
    /// Since when nodes that the log does not know are counted, and how many were entered.
    entered: (u64, usize),
}

impl Members {
    pub(super) fn new(now: u64) -> Self {
        Self { seen: BTreeMap::new(), cluster: None, seen_cluster: 0, echo: None, since: now, entered: (now, 0) }
    }

    /// Whether a node is listened to. Among as many as there is room for the one that was heard longest ago makes room, if that was
    /// before `before`; one that the log does not know takes only the place of another such one.
    fn admit(&mut self, key: &(NodeKind, String), context: &StateContext, before: u64) -> bool {
        let nodes = &context.nodes;
        if !self.seen.contains_key(key) && !nodes.contains_key(key) {
            let new = || self.seen.iter().filter(|(other, _)| !nodes.contains_key(*other));
            if new().count() >= MOST_NEW {
                let oldest = new().min_by_key(|(_, m)| m.last).filter(|(_, m)| m.last < before);
                let Some(oldest) = oldest.map(|(other, _)| other.clone()) else { return false };
                self.seen.remove(&oldest);
            }
        }
        room::make(&mut self.seen, key, MOST_MEMBERS, before, |m| m.last)
    }

    /// How many more nodes that the log does not know may be entered now.
    fn may_enter(&mut self, now: u64) -> usize {
        if now >= self.entered.0 + ENTERED_IN {
            self.entered = (now, 0);
        }
        MOST_ENTERED.saturating_sub(self.entered.1)
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

    /// Whether a node has said that it follows this term, an indexer with its whole report.
    pub(super) fn follows(&self, kind: NodeKind, node: &str, term: u64) -> bool {
        let says = |m: &Member| if kind == NodeKind::Indexer { m.report.term } else { m.term };
        self.seen.get(&(kind, node.to_owned())).is_some_and(|m| says(m) >= term)
    }

    /// The newest ST of a bucket that each indexer had applied when it told its whole report.
    pub(super) fn applied(&self, bucket: &str) -> impl Iterator<Item = &StabilityTimestamp> {
        self.seen.values().filter_map(move |m| m.report.applied.get(bucket))
    }

    /// The newest of them.
    pub(super) fn newest_applied(&self, bucket: &str) -> Option<&StabilityTimestamp> {
        self.applied(bucket).max_by_key(|st| st.number)
    }

    /// The slices of a bucket, with their node and its incarnation.
    pub(super) fn reports(&self, bucket: &str) -> impl Iterator<Item = (&str, u64, &SliceReport)> {
        let indexers = self.seen.iter().filter(|((kind, _), _)| *kind == NodeKind::Indexer);
        indexers.flat_map(move |((_, node), m)| {
            let slices = m.report.slices.get(bucket).into_iter().flat_map(BTreeMap::values);
            slices.map(move |s| (node.as_str(), m.incarnation, s))
        })
    }

    /// One slice as its node reported it.
    pub(super) fn report(&self, node: &str, bucket: &str, slice: SliceName) -> Option<&SliceReport> {
        self.seen.get(&(NodeKind::Indexer, node.to_owned()))?.report.slices.get(bucket)?.get(&slice)
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
        self.seen.values().flat_map(|m| m.report.slices.values().flat_map(BTreeMap::values))
    }

    /// Whether a projector says that a session cannot go on.
    pub(super) fn is_broken(&self, bucket: &str, session: u64) -> bool {
        self.seen.values().flat_map(|m| &m.report.broken).any(|(b, s)| b == bucket && *s == session)
    }

    /// The newest reconcile of a bucket that is not enough for a projector that asks for one.
    pub(super) fn reconcile_after(&self, bucket: &str) -> Option<u64> {
        self.seen.values().filter_map(|m| m.report.reconciles.get(bucket)).max().copied()
    }

    /// The newest reconcile of a bucket that is not enough for a projector that has documents to name in one.
    pub(super) fn named_after(&self, bucket: &str) -> Option<u64> {
        self.seen.values().filter_map(|m| m.report.named.get(bucket)).max().copied()
    }

    /// Whether a projector waits for a reconcile of a bucket.
    pub(super) fn is_urgent(&self, bucket: &str) -> bool {
        self.seen.values().any(|m| m.report.urgent.contains(bucket))
    }

    /// Whether a projector says that a chain cannot go on.
    pub(super) fn is_lost(&self, bucket: &str, vb: usize, generation: u64) -> bool {
        let mut lost = self.seen.values().flat_map(|m| &m.report.lost);
        lost.any(|(b, v, g)| b == bucket && usize::from(*v) == vb && *g == generation)
    }

    /// What projectors have read for a session.
    pub(super) fn reading(&self, bucket: &str, session: u64) -> impl Iterator<Item = &SessionReading> {
        let reading = self.seen.values().flat_map(|m| m.report.reading.values());
        reading.filter(move |r| r.session == session && r.bucket == bucket)
    }

    /// What the projector of a vbucket has read of it.
    pub(super) fn reads(&self, projector: &str, bucket: &str, vb: usize) -> Option<&VbReads> {
        let member = self.seen.get(&(NodeKind::Projector, projector.to_owned()))?;
        member.report.reads.get(&(bucket.to_owned(), u16::try_from(vb).ok()?))
    }

    /// What projectors found to contradict.
    pub(super) fn suspicions(&self) -> impl Iterator<Item = &Suspicion> {
        self.seen.values().flat_map(|m| m.report.suspicions.values())
    }
}

impl Core {
    pub(super) fn join(&mut self, now: u64, join: Join) {
        let key = (join.kind, join.node);
        if key.0 == NodeKind::Coordinator && key.1 == self.config.node && join.incarnation == self.config.incarnation {
            self.members.echoed(now, &self.config);
        }
        let silent_since = now.saturating_sub(self.config.patience());
        if !self.members.admit(&key, &self.context, silent_since) {
            return;
        }
        let term = join.term.max(join.manager.as_ref().map_or(0, |m| m.term));
        let known = self.members.seen.get(&key).is_some_and(|m| m.incarnation == join.incarnation && m.term == term);
        self.urgent |= !known;
        let member = self.members.seen.entry(key).or_insert_with(|| Member::new(now, join.incarnation));
        if member.incarnation != join.incarnation {
            *member = Member::new(now, join.incarnation);
        }
        (member.last, member.term, member.told) = (now, term, join.report);
        member.look(now);
    }

    /// A part of what a node reports; who it is its heartbeat has said.
    pub(super) fn report(&mut self, now: u64, part: ReportPart) {
        let key = (part.kind, part.node.clone());
        let member = self.members.seen.get_mut(&key);
        let Some(member) = member.filter(|m| m.incarnation == part.incarnation) else { return };
        let Changes { matters, opened } = member.take(now, part);
        self.urgent |= matters;
        // Who has just opened slices has not heard of any timestamp.
        for bucket in opened {
            self.repeat_stability(&bucket);
        }
    }

    /// Asks for reports of which something got lost.
    pub(super) fn ask_for_reports(&mut self, now: u64, out: &mut Vec<Action>) {
        let behind = self.members.seen.iter_mut().filter(|(_, m)| m.behind.is_some());
        let due = behind.filter_map(|((_, node), m)| m.ask(now).then(|| node.clone()));
        out.extend(due.take(MOST_ASKED).map(|node| Action::AskReport { node }));
    }

    /// Who joined is entered, who is gone is crossed out; the cluster manager says who is there.
    pub(super) fn check_members(&mut self, now: u64, out: &mut Vec<Action>) {
        self.members.forget_cluster(now, &self.config);
        let room = self.members.may_enter(now);
        let mut new = Vec::new();
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
            let joined = Action::Append(Change::NodeJoined { node: node.clone(), kind: *kind, incarnation });
            match entry {
                Some(_) => out.push(joined),
                None => new.push((member.first, joined)),
            }
        }
        new.sort_by_key(|(first, _)| *first);
        new.truncate(room);
        self.members.entered.1 += new.len();
        out.extend(new.into_iter().map(|(_, joined)| joined));
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
