//! What must hold at every moment, and what must hold when everything is well again.

use crate::{
    log::{Payload, record},
    node::Node,
    world::World,
};
use highwater_schemas::{
    StabilityTimestamp,
    api::NodeKind,
    report::{Item, ReportPart},
    state::{Change, IndexState},
    wire::Stability,
};
use std::collections::{BTreeMap, BTreeSet};

/// So many looks must find everything well; one that does not, as when a record is just on its way, takes back so many.
const WELL: u64 = 50;
const ILL: u64 = 3;
/// A live holder of what the log lost is one that was well for so long.
const HOLDER: u64 = 3_000;

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Invariants {
    pub stats: BTreeMap<&'static str, u64>,
    /// Term → who led in it, and in which life.
    led: BTreeMap<u64, (String, u64)>,
    /// Per index manager the highest term of which it told others.
    pub terms: BTreeMap<usize, u64>,
    /// (bucket, vbuuid of its first branches, number) → the timestamp, without its marks.
    numbers: BTreeMap<(String, u64, u64), StabilityTimestamp>,
    /// Newest number, by bucket, and when it was published.
    published: BTreeMap<String, (u64, u64)>,
    /// (who, life, term, bucket) for which it issued a timestamp.
    issued: BTreeSet<(usize, u64, u64, String)>,
    /// The newest timestamp that an indexer reported before that.
    reported: BTreeMap<(usize, u64, u64, String), StabilityTimestamp>,
    pub lost: Option<Lost>,
    /// Something was lost that nobody who was there held.
    pub excused: bool,
    well: u64,
}

/// The log's last record before it lost its tail.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    pub version: u64,
    pub mark: (u64, u128),
}

impl Invariants {
    pub fn count(&mut self, what: &'static str, n: u64) {
        *self.stats.entry(what).or_default() += n;
    }
}

impl World {
    /// After each step of an index manager.
    pub(crate) fn observe_manager(&mut self, at: usize) {
        let node = &self.managers[at];
        let (name, life) = (node.process.node.name(), node.process.life);
        let Some(machine) = &node.machine else { return };
        if let Some(term) = machine.leading() {
            let led = self.invariants.led.entry(term).or_insert_with(|| (name.clone(), life));
            if *led != (name.clone(), life) {
                let why = format!("I1: {} led in term {term}, now {name} does", led.0);
                self.fail(why);
                return;
            }
        }
        let term = machine.report().term;
        let before = self.invariants.terms.get(&at).copied().unwrap_or(0);
        if term < before {
            let why = format!("I4: {name} told others of term {before}, and now knows {term}");
            self.fail(why);
        }
    }

    /// A report leaves: its term must be durable.
    pub(crate) fn observe_report(&mut self, at: usize, term: u64) {
        let disk = self.managers[at].disk.durable_term();
        if term > disk {
            self.fail(format!("I4: m{at} tells others of term {term} while {disk} is durable"));
        }
        let told = self.invariants.terms.entry(at).or_default();
        *told = (*told).max(term);
    }

    /// What indexers report to who leads, once that has all of it.
    pub(crate) fn observe_report_part(&mut self, at: usize, part: &ReportPart) {
        let node = &self.managers[at];
        let core = node.machine.as_ref().and_then(|m| m.core());
        let has = core.is_some_and(|core| core.has_report_of(&part.node));
        let Some(term) = node.leading().filter(|term| part.kind == NodeKind::Indexer && part.term == *term && has)
        else {
            return;
        };
        for item in &part.items {
            let Item::Applied { bucket, st } = item else { continue };
            let key = (at, node.process.life, term, bucket.clone());
            // Whoever comes back later is not waited for, and merges again where need be.
            if self.invariants.issued.contains(&key) {
                continue;
            }
            let known = self.invariants.reported.entry(key).or_insert_with(|| st.clone());
            if known.number < st.number {
                *known = st.clone();
            }
        }
    }

    /// A stability timestamp is published.
    pub(crate) fn observe_stability(&mut self, at: usize, stability: &Stability) {
        let now = self.now;
        let node = &self.managers[at];
        let Some(bucket) = node.machine.as_ref().and_then(|m| m.context().buckets.get(&stability.bucket)) else {
            return;
        };
        let birth = bucket.vbuckets.first().and_then(|v| v.failover.last()).map_or(0, |f| f.vbuuid);
        let mut problem = None;
        let st = &stability.st;
        let plain = StabilityTimestamp { wanted: false, persist: false, ..st.clone() };
        let key = (stability.bucket.clone(), birth, st.number);
        let known = self.invariants.numbers.entry(key).or_insert_with(|| plain.clone());
        if *known != plain {
            problem = Some(format!(
                "I5: number {} of {} named {known:?}, now m{at} gives it to {plain:?}",
                st.number, stability.bucket
            ));
        }
        let key = (at, node.process.life, st.term, stability.bucket.clone());
        self.invariants.issued.insert(key.clone());
        if let Some(reported) = self.invariants.reported.get(&key) {
            let current = reported.vbs.len() == st.vbs.len()
                && reported.vbs.iter().zip(&bucket.vbuckets).all(|(r, v)| {
                    // What lies beyond where a later generation began is void.
                    let void = v.starts.range(r.generation + 1..).any(|(_, start)| !r.position.le(start.x));
                    r.vbuuid == v.vbuuid() && !void
                });
            if current && st.number > reported.number && !reported.le(st) {
                problem = Some(format!("I5: m{at} issues {st:?} below {reported:?}, which was reported to it"));
            }
        }
        self.invariants.published.insert(stability.bucket.clone(), (st.number, now));
        self.invariants.count("timestamps published", 1);
        match problem {
            // A reservation may be among what nobody there held.
            Some(_) if self.invariants.excused => self.invariants.count("timestamps that break 5 after such a loss", 1),
            Some(problem) => self.fail(problem),
            None => {}
        }
    }

    /// A record became durable somewhere.
    pub(crate) fn observe_disk(&mut self, at: usize) {
        if self.log.losses > 0 {
            return;
        }
        let (version, mark) = match self.managers[at].disk.marks.last_key_value() {
            Some((version, mark)) => (*version, *mark),
            None => return,
        };
        for (other, node) in self.managers.iter().enumerate() {
            let theirs = node.disk.marks.get(&version);
            if theirs.is_some_and(|theirs| theirs.0 == mark.0 && *theirs != mark) {
                let why = format!("I3: m{at} and m{other} disagree about version {version} of incarnation {}", mark.0);
                self.fail(why);
                return;
            }
        }
    }

    /// Before a record enters the log: no generation begins below what a live indexer has applied.
    pub(crate) fn before_assignment(&mut self, payload: &Payload) {
        let Some(record) = record(payload) else { return };
        let Change::VbucketAssigned { bucket, vb, generation, x, .. } = record.change else { return };
        let (now, vb) = (self.now, usize::from(vb));
        let Some(context) = self.log.read.as_ref().filter(|_| self.network.calm() && !self.invariants.excused) else {
            return;
        };
        let Some(known) = context.buckets.get(&bucket) else { return };
        for node in &self.indexers {
            let key = (NodeKind::Indexer, node.process.node.name());
            let there = context.nodes.get(&key).is_some_and(|e| !e.gone && e.incarnation == node.process.life);
            let Some(held) = node.buckets.get(&(bucket.clone(), known.declared)) else { continue };
            let Some(state) = held.applied.as_ref().and_then(|st| st.vbs.get(vb)) else { continue };
            let current = known.vbuckets.get(vb).is_some_and(|v| v.vbuuid() == state.vbuuid);
            if there
                && now >= node.well_since + HOLDER
                && current
                && state.generation < generation
                && !state.position.le(x)
            {
                let why = format!("I5: generation {generation} of {bucket} begins at {x:?}, {} has {state:?}", key.1);
                return self.fail(why);
            }
        }
    }

    /// Before a record enters the log: does it come from someone who holds what the log lost?
    pub(crate) fn before_append(&mut self, payload: &Payload) {
        let Some(lost) = self.invariants.lost else { return };
        let Some(record) = record(payload) else { return };
        let holds = |m: &crate::manager::ManagerNode| m.disk.marks.get(&lost.version) == Some(&lost.mark);
        let whose = match &record.change {
            Change::TermStarted { coordinator } => coordinator.clone(),
            Change::Snapshot { context, .. } => context.coordinator.clone(),
            _ => String::new(),
        };
        self.invariants.lost = None;
        if Node::named(&whose).is_some_and(|n| holds(&self.managers[n.at])) && record.version > lost.version {
            self.invariants.count("lost tails completed", 1);
            return;
        }
        let now = self.now;
        let lossless = self.network.loss == 0;
        let passed_over = self.managers.iter().any(|m| {
            holds(m)
                && m.process.up
                && lossless
                && m.process.paused_until <= now
                && self.network.cut_until(m.process.node, now).is_none()
                && now >= m.well_since + HOLDER
        });
        if passed_over {
            self.invariants.count("lost tails with a live holder passed over", 1);
        } else {
            self.invariants.excused = true;
            self.invariants.count("lost tails that nobody there held", 1);
        }
    }

    /// Looked at now and then.
    pub(crate) fn look(&mut self) {
        let now = self.now;
        for at in 0..self.managers.len() {
            let cut = self.network.cut_until(Node::manager(at), now).is_some();
            let node = &mut self.managers[at];
            if cut || !node.process.up || node.process.paused_until > now {
                node.well_since = now;
            }
        }
        for at in 0..self.indexers.len() {
            let node = Node::indexer(at);
            let ill =
                self.network.cut_until(node, now).is_some() || self.slow.contains_key(&node) || !self.network.calm();
            let node = &mut self.indexers[at];
            if ill || !node.process.up || node.process.paused_until > now {
                node.well_since = now;
            }
        }
    }

    /// Whether everything has been well for a while.
    pub(crate) fn settled(&mut self) -> bool {
        let well = self.invariants.well;
        self.invariants.well = if self.unsettled().is_none() { well + 1 } else { well.saturating_sub(ILL) };
        self.invariants.well >= WELL
    }

    /// Why it is not.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let mut leading = self.managers.iter().filter(|m| m.leading().is_some());
        if !self.resting() {
            return Some("administrators are at work".into());
        }
        let Some(master) = leading.next() else { return Some("nobody coordinates".into()) };
        if leading.next().is_some() {
            return Some("two coordinate".into());
        }
        let machine = master.machine.as_ref()?;
        let context = machine.context();
        for node in &self.managers {
            let Some(other) = &node.machine else { return Some(format!("{} is down", node.process.node)) };
            let theirs = other.context();
            if (theirs.version, &theirs.hash) != (context.version, &context.hash) {
                return Some(format!(
                    "{} is at version {} of incarnation {}, the coordinator at {} of {}: {:?}",
                    node.process.node,
                    theirs.version,
                    theirs.incarnation,
                    context.version,
                    context.incarnation,
                    other.report().waiting
                ));
            }
            if node.disk.version() != context.version {
                return Some(format!("{}'s disk is at version {}", node.process.node, node.disk.version()));
            }
        }
        match &self.log.read {
            Some(read) if read == context => {}
            Some(read) => return Some(format!("the log is at version {} of {}", read.version, read.incarnation)),
            None => return Some("the log cannot be read from its beginning".into()),
        }
        for (name, bucket) in &context.buckets {
            for index in bucket.indexes.values() {
                let state = &index.state;
                if matches!(state, IndexState::Preparing | IndexState::Building) {
                    return Some(format!("index {} of {name} is {state:?}", index.placed.definition.name));
                }
            }
            if let Some(rollback) = &bucket.rollback {
                return Some(format!("{name} is being rolled back: {:?}", rollback.phase));
            }
            if !bucket.sessions.is_empty() {
                return Some(format!("{} sessions of {name} are open", bucket.sessions.len()));
            }
            let fresh = |at: u64| self.now < at + 1_500;
            match self.invariants.published.get(name) {
                Some((_, at)) if fresh(*at) => {}
                other => return Some(format!("the last timestamp of {name} is {other:?}")),
            }
            for node in &self.indexers {
                if bucket.hosts().contains(node.process.node.name().as_str()) {
                    let held = node.buckets.get(&(name.clone(), bucket.declared));
                    if !held.is_some_and(|h| fresh(h.applied_at)) {
                        return Some(format!("{} has applied nothing of {name} for a while", node.process.node));
                    }
                }
            }
        }
        if self.clients.iter().any(|c| c.answered_at + 4_000 < self.now) {
            return Some("DDL is not answered".into());
        }
        None
    }

    /// At the end.
    pub(crate) fn check_end(&mut self) {
        let Some(context) = self.managers.iter().find(|m| m.leading().is_some()).and_then(|m| m.machine.as_ref())
        else {
            return;
        };
        let context = context.context().clone();
        let copies: Vec<_> = self.managers.iter().map(|m| m.disk.open()).collect();
        for (at, copy) in copies.iter().enumerate() {
            match copy {
                Ok((copy, _)) if *copy == context => {}
                Ok((copy, _)) => {
                    return self.fail(format!(
                        "I3: the copy of m{at}, version {}, is not what the coordinator has, version {}",
                        copy.version, context.version
                    ));
                }
                Err(error) => return self.fail(format!("I7: the copy of m{at} cannot be opened: {error}")),
            }
        }
        let first = &self.managers[0].disk.marks;
        let disagrees = |m: &&crate::manager::ManagerNode| {
            m.disk.marks.iter().any(|(version, mark)| first.get(version).is_some_and(|f| f.0 == mark.0 && f != mark))
        };
        if let Some(other) = self.managers.iter().find(disagrees) {
            let why = format!("I3: the chains of m0 and {} disagree", other.process.node);
            return self.fail(why);
        }
        if self.invariants.excused {
            self.invariants.count("runs in which what was acknowledged may be lost", 1);
        } else if let Some(why) = self.oracle.contradicted(&context) {
            self.fail(why);
        }
    }
}
