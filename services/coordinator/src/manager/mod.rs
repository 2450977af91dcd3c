//! The state machine of an index manager: replica, candidate, coordinator (design section 11).
//!
//! # Constraints
//! - Expected sequences alone fence nobody who is current, so every record carries (incarnation, term, version, hash of the one
//!   before). A nomination becomes a term when its `term_started` record is acknowledged; nothing is done in a term before that.
//! - The highest term that was heard of is durable before anything is answered; lower nominations are refused.
//! - What an append came to is not always told. It is settled by reading the place where it must be: our own record there is
//!   success, another one means that someone else coordinates.
//! - The log can be lost: its tail, or all of it. Who coordinated then steps down; the next nomination compares the log with the
//!   copies. A copy that goes on where the log ends is published anew, under a new incarnation.
//!
//! # Layout
//! - `chain`: hashes of the copy's records; `compare`: a log beside a copy
//! - `append`: one append until it is settled
//! - `candidate`: from the nomination to the term; `leading`: the term
//!
//! Time is milliseconds of a clock that never goes back, and beside it the time of day, for people.

mod append;
mod candidate;
pub mod chain;
pub mod compare;
mod leading;
#[cfg(test)]
mod tests;

pub use append::Outcome;

use crate::{
    config::Config,
    core::{self, Core},
    room,
};
use candidate::Candidate;
use chain::{Chain, Linked, What};
use highwater_schemas::{
    api::{
        Bootstrap, BootstrapReply, BootstrapStep, ClusterEvent, Join, MOST_MEMBERS, MOST_REGISTERED_TOLD, MOST_WORDS,
        ManagerReport, NodeKind, heartbeat, is_plausible_term,
    },
    state::{Offered, StateContext, StateError},
};
use leading::Leading;
use std::collections::{BTreeMap, BTreeSet};

/// A log with a hole is read from its beginning again this often at most, milliseconds.
const FOLLOW_AGAIN: u64 = 1_000;

/// A moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Of a clock that never goes back, milliseconds.
    pub ms: u64,
    /// Milliseconds since the epoch.
    pub wall: u64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    Nominated {
        token: u64,
        bootstrap: Bootstrap,
    },
    Join(Join),
    Cluster(ClusterEvent),
    /// The log is read from its beginning, for the first time or because it is not what it was.
    Opened,
    /// A record of the log, as it travelled.
    Record(Vec<u8>),
    /// What [`Action::ReadLog`] found: the last sequence and the records.
    Read(Result<(u64, Vec<Vec<u8>>), String>),
    Appended {
        id: u64,
        outcome: Outcome,
    },
    /// What [`Action::ReadAt`] found.
    Found {
        id: u64,
        record: Result<Option<Vec<u8>>, String>,
    },
    /// For who coordinates.
    Lead(core::Event),
    Tick {
        random: u64,
    },
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Durable before anything that follows.
    KeepTerm(u64),
    /// Records, durable before any answer that follows, and before a timestamp whose number one of them reserves;
    /// `anew`: instead of all that was there, and durable before anything that follows.
    Keep {
        records: Vec<Linked>,
        anew: bool,
    },
    Answer {
        token: u64,
        reply: BootstrapReply,
    },
    /// Report to the cluster manager now.
    Beat,
    ReadLog,
    Append {
        id: u64,
        expected: u64,
        payload: Vec<u8>,
        rollup: bool,
    },
    ReadAt {
        id: u64,
        seq: u64,
    },
    /// Read the log from its beginning again.
    Follow,
    /// It coordinates no more: requests that wait are for the next one.
    SteppedDown(String),
    /// A change could not be made, and nothing that followed from it: for the log.
    NotAppended(String),
    /// Never an append.
    Lead(core::Action),
}

/// What another index manager last reported.
#[derive(Debug, Clone)]
struct Peer {
    report: ManagerReport,
    last: u64,
}

enum Role {
    Replica,
    Candidate(Box<Candidate>),
    Leading(Box<Leading>),
}

/// The state machine.
pub struct Manager {
    config: Config,
    /// The copy; while it coordinates, the core has it.
    context: StateContext,
    chain: Chain,
    /// The highest term heard of.
    term: u64,
    /// Who was nominated for it.
    nominated: String,
    role: Role,
    peers: BTreeMap<String, Peer>,
    /// Why it cannot lead, or what it waits for.
    waiting: Option<String>,
    /// The last term that it was nominated for and did not open.
    declined: Option<u64>,
    /// The last term that it declined because others may tell what its copy does not.
    undecided: Option<u64>,
    /// The copy was given up since the log was opened, and nothing has taken its place.
    gave_up: bool,
    /// A log with a hole is read again no earlier.
    follow_due: u64,
    last_id: u64,
    /// When the last tick was.
    ticked: u64,
    /// What it did when it was nominated last.
    steps: Vec<BootstrapStep>,
    /// A record larger than this cannot be appended, bytes.
    max_record: usize,
}

impl Manager {
    /// Begins as a replica with the copy that it kept: the context, the hashes that led to it, and the highest term.
    pub fn new(config: Config, context: StateContext, chain: Chain, term: u64, max_record: usize) -> Self {
        Self {
            config,
            term: term.max(context.term),
            context,
            chain,
            nominated: String::new(),
            role: Role::Replica,
            peers: BTreeMap::new(),
            waiting: None,
            declined: None,
            undecided: None,
            gave_up: false,
            follow_due: 0,
            last_id: 0,
            ticked: 0,
            steps: Vec::new(),
            max_record,
        }
    }

    /// What the log says, as far as it is known here.
    pub fn context(&self) -> &StateContext {
        match &self.role {
            Role::Leading(leading) => leading.core.context(),
            _ => &self.context,
        }
    }

    /// The term in which it coordinates.
    pub fn leading(&self) -> Option<u64> {
        match &self.role {
            Role::Leading(leading) => Some(leading.term),
            _ => None,
        }
    }

    /// The coordinator's state machine, while it coordinates.
    pub fn core(&self) -> Option<&Core> {
        match &self.role {
            Role::Leading(leading) => Some(&leading.core),
            _ => None,
        }
    }

    /// True while an append is not settled: what is for who coordinates should wait in its subscriptions.
    pub fn busy(&self) -> bool {
        matches!(&self.role, Role::Leading(leading) if leading.append.is_some())
    }

    pub fn report(&self) -> ManagerReport {
        let context = self.context();
        ManagerReport {
            version: context.version,
            hash: context.hash.clone(),
            term: self.term,
            leading: self.leading(),
            registered: context.registered().take(MOST_REGISTERED_TOLD).map(str::to_owned).collect(),
            declined: self.declined,
            undecided: self.undecided(),
            waiting: self.waiting.as_ref().map(|why| why.chars().take(MOST_WORDS).collect()),
        }
    }

    /// The steps since it was nominated last.
    pub fn bootstrap(&self, now: u64) -> Vec<BootstrapStep> {
        match &self.role {
            Role::Replica => self.steps.clone(),
            Role::Candidate(candidate) => candidate.boot.steps(self.waiting.clone()),
            Role::Leading(leading) => leading.core.bootstrap(now),
        }
    }

    /// The steps that were done since this was asked last.
    pub fn news(&mut self) -> Vec<BootstrapStep> {
        match &mut self.role {
            Role::Replica => Vec::new(),
            Role::Candidate(candidate) => candidate.boot.news(),
            Role::Leading(leading) => leading.core.boot().news(),
        }
    }

    /// When [`Event::Tick`] is due next, if nothing else happens before.
    pub fn next_tick(&self, now: u64) -> u64 {
        const IDLE: u64 = 50;
        match &self.role {
            Role::Leading(leading) if leading.append.is_none() => leading.core.next_tick(now),
            // From the last tick on: who asks again before it must not push it away.
            _ => (self.ticked + IDLE).max(now),
        }
    }

    /// One step.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Nominated { token, bootstrap } => self.nominated(now, token, &bootstrap, &mut out),
            Event::Join(join) => self.join(now, join, &mut out),
            Event::Cluster(event) => self.cluster(now, event, &mut out),
            Event::Opened => self.opened(&mut out),
            Event::Record(payload) => self.record(now, &payload, &mut out),
            Event::Read(read) => self.read(now, read, &mut out),
            Event::Appended { id, outcome } => self.appended(now, id, &outcome, &mut out),
            Event::Found { id, record } => self.found(now, id, record, &mut out),
            Event::Lead(event) => self.lead(now, event, &mut out),
            Event::Tick { random } => self.tick(now, random, &mut out),
        }
        out
    }

    fn nominated(&mut self, now: Now, token: u64, bootstrap: &Bootstrap, out: &mut Vec<Action>) {
        let again = bootstrap.term == self.term && bootstrap.master == self.nominated && !self.nominated.is_empty();
        if !again && (bootstrap.term <= self.term || !is_plausible_term(self.term, bootstrap.term)) {
            out.push(Action::Answer { token, reply: BootstrapReply { accepted: false, report: self.report() } });
            return;
        }
        if !again {
            self.term = bootstrap.term;
            self.nominated.clone_from(&bootstrap.master);
            out.push(Action::KeepTerm(self.term));
            let why = format!("{} is nominated for term {}", bootstrap.master, bootstrap.term);
            self.step_down(why, out);
            self.waiting = None;
            if bootstrap.master == self.config.node {
                self.stand(now, bootstrap, out);
            }
        }
        out.push(Action::Answer { token, reply: BootstrapReply { accepted: true, report: self.report() } });
        // The others' registration: who was nominated hears it too.
        out.push(Action::Beat);
    }

    fn join(&mut self, now: Now, join: Join, out: &mut Vec<Action>) {
        if let (NodeKind::Coordinator, Some(report)) = (join.kind, &join.manager)
            && join.node != self.config.node
        {
            if !is_plausible_term(self.term, report.term.max(report.leading.unwrap_or(0))) {
                return;
            }
            let silent_since = now.ms.saturating_sub(self.config.patience());
            if room::make(&mut self.peers, &join.node, MOST_MEMBERS, silent_since, |p| p.last) {
                self.peers.insert(join.node.clone(), Peer { report: report.clone(), last: now.ms });
            }
            self.gather(now, out);
        }
        self.lead(now, core::Event::Join(join), out);
    }

    fn cluster(&mut self, now: Now, event: ClusterEvent, out: &mut Vec<Action>) {
        self.config.heartbeat = heartbeat(event.heartbeat_ms);
        if let Some(master) = &event.master
            && is_plausible_term(self.term, master.term)
            && master.node != self.config.node
            && self.leading().is_some_and(|term| term < master.term)
        {
            self.step_down(format!("{} coordinates in term {}", master.node, master.term), out);
        }
        self.lead(now, core::Event::Cluster(event), out);
    }

    fn opened(&mut self, out: &mut Vec<Action>) {
        self.gave_up &= self.context.version == 0;
        self.check_last(out);
    }

    fn record(&mut self, now: Now, payload: &[u8], out: &mut Vec<Action>) {
        match &self.role {
            // It reads the log itself.
            Role::Candidate(_) => {}
            Role::Leading(_) => self.overheard(payload, out),
            Role::Replica => self.follow(now, payload, out),
        }
    }

    /// A replica applies the log to its copy; a copy that contradicts it loses.
    fn follow(&mut self, now: Now, payload: &[u8], out: &mut Vec<Action>) {
        // What is no record was written by somebody else.
        let Some(record) = Linked::read(payload) else { return };
        let link = &record.link;
        let (agrees, before) = (self.chain.agrees(link.version, &link.hash), self.context.version);
        // The next record, or a log that is published anew from this very copy.
        let next = link.prev == self.context.hash && (link.version == before + 1 || link.what == What::Snapshot);
        let old = link.incarnation <= self.context.incarnation && link.version <= before;
        // What the copy has of this version is not of a later term than all of it.
        let later = link.incarnation == self.context.incarnation && link.term > self.context.term;
        let contradicts = match self.context.offer(&record.json) {
            _ if old && (agrees == Some(false) || later) => true,
            // Beyond the copy only what is of an earlier life is known.
            Ok(Offered::Known) => link.version > before,
            Ok(taken) => {
                // Where there is no copy, one that was given up may be on the disk.
                let anew = before == 0 || (taken == Offered::Replaced && !next);
                if anew {
                    self.chain = Chain::default();
                }
                self.chain.push(link.version, &link.hash);
                self.term = self.term.max(self.context.term);
                self.waiting = None;
                out.push(Action::Keep { records: vec![record], anew });
                false
            }
            // Read before what is missing was published anew.
            Err(StateError::Order { .. }) => {
                // Or it comes after records that a reader passed over which took a log that grew again for the old one.
                if !old && now.ms >= self.follow_due {
                    self.follow_due = now.ms + FOLLOW_AGAIN;
                    out.push(Action::Follow);
                }
                false
            }
            Err(_) if old => false,
            Err(StateError::Chain { .. } | StateError::Term { .. }) => true,
            Err(error) => {
                self.waiting = Some(format!("the state log cannot be used: {error}"));
                false
            }
        };
        if contradicts && !self.gave_up {
            // The log is right. The copy on disk stays until there is something to put in its place.
            (self.context, self.chain, self.gave_up) = (StateContext::default(), Chain::default(), true);
            // Its term may be durable by its records alone, and those of the log may be of lower ones.
            out.extend([Action::KeepTerm(self.term), Action::Follow]);
        }
    }

    /// The index managers that must be heard before a lost log is replaced, and were not for a while.
    fn missing(&self, now: Now, registered: &BTreeSet<String>) -> Vec<String> {
        let mut all = registered.clone();
        all.extend(self.context.registered().map(str::to_owned));
        all.extend(self.peers.values().flat_map(|p| p.report.registered.iter().cloned()));
        all.remove(&self.config.node);
        all.retain(|node| self.peers.get(node).is_none_or(|p| now.ms >= p.last + self.config.patience()));
        all.into_iter().collect()
    }

    fn live(&self, now: Now) -> impl Iterator<Item = (&String, &ManagerReport)> {
        let live = self.peers.iter().filter(move |(_, p)| now.ms < p.last + self.config.patience());
        live.map(|(node, p)| (node, &p.report))
    }

    /// A live index manager with a later copy.
    fn later(&self, now: Now) -> Option<(&String, u64)> {
        let later = self.live(now).filter(|(_, r)| r.version > self.context.version);
        later.map(|(node, r)| (node, r.version)).max_by_key(|(_, version)| *version)
    }

    /// If a term was opened since, that was another time.
    fn undecided(&self) -> Option<u64> {
        self.undecided.filter(|term| *term > self.context().term)
    }

    /// A live index manager with a copy may tell what ours does not: it was not nominated since we declined for that.
    fn others_may_tell(&self, now: Now) -> bool {
        let since = self.undecided();
        let asked = |r: &ManagerReport| since.is_some_and(|since| r.declined.is_some_and(|term| term > since));
        self.live(now).any(|(_, r)| r.version > 0 && !asked(r))
    }

    /// A live index manager with a copy that goes beyond the log, unless it cannot tell whether it does.
    fn beyond(&self, now: Now, log: u64) -> Option<(&String, u64)> {
        let mut beyond = self.live(now).filter(|(_, r)| r.version > log && r.undecided.is_none());
        beyond.next().map(|(node, r)| (node, r.version))
    }

    /// Ends whatever it was.
    fn step_down(&mut self, why: String, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.role, Role::Replica) {
            Role::Replica => return,
            Role::Candidate(candidate) => {
                self.declined = Some(candidate.term());
                self.steps = candidate.boot.steps(Some(why));
            }
            Role::Leading(leading) => {
                let boot;
                (self.context, boot) = leading.core.into_parts();
                self.steps = boot.steps(None);
                out.push(Action::SteppedDown(why));
            }
        }
        // What was passed over meanwhile is read again.
        out.push(Action::Follow);
        out.push(Action::Beat);
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}
