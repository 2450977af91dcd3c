//! An index manager: its state machine, driven as the service's loop drives it.
//!
//! Actions are carried out in order; the process may end, or stand still, between any two of them. What is for the coordinator
//! waits while an append is not settled.

use crate::{
    disk::Disk,
    message::{Answer, Ask, Inbox, Message, Purpose, Request},
    node::{Node, Process},
    world::World,
};
use highwater_coordinator::{
    Config,
    core::{self, Ddl},
    manager::{Action, Event, Manager, Now, Outcome},
};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{Join, Leave, NodeKind, heartbeat},
};
use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

/// The time of day when a run begins.
const WALL: u64 = 1_700_000_000_000;
/// Records larger than this do not fit.
const MAX_RECORD: usize = 1 << 20;
/// How long the bus waits for what it asked.
const PATIENCE: u64 = 5_000;

/// One index manager.
pub struct ManagerNode {
    pub process: Process,
    pub disk: Disk,
    /// A copy of the disk as it once was.
    pub stray: Option<Disk>,
    pub machine: Option<Manager>,
    pub inbox: Inbox,
    todo: VecDeque<Action>,
    started: u64,
    ticked: u64,
    beat_due: u64,
    heartbeat: u64,
    next_token: u64,
    waiting: BTreeMap<u64, Ask>,
    nominations: BTreeMap<u64, Ask>,
    /// It ends after so many actions more.
    pub crash_in: Option<u64>,
    /// It stands still after so many actions more, for so long.
    pub pause_in: Option<(u64, u64)>,
    /// Losses of the log when it decided last.
    losses: u64,
    /// Since when it is up, connected and running.
    pub well_since: u64,
}

impl ManagerNode {
    pub fn new(at: usize) -> Self {
        Self {
            process: Process::new(Node::manager(at)),
            disk: Disk::default(),
            stray: None,
            machine: None,
            inbox: Inbox::default(),
            todo: VecDeque::new(),
            started: 0,
            ticked: 0,
            beat_due: 0,
            heartbeat: 500,
            next_token: 0,
            waiting: BTreeMap::new(),
            nominations: BTreeMap::new(),
            crash_in: None,
            pause_in: None,
            losses: 0,
            well_since: 0,
        }
    }

    /// What is in memory is gone.
    pub fn fall(&mut self) {
        self.machine = None;
        self.todo.clear();
        self.waiting.clear();
        self.nominations.clear();
        self.crash_in = None;
        self.pause_in = None;
    }

    pub fn leading(&self) -> Option<u64> {
        self.machine.as_ref().and_then(Manager::leading)
    }

    fn now(&self, now: u64) -> Now {
        Now { ms: now - self.started, wall: WALL + now }
    }
}

impl World {
    pub(crate) fn start_manager(&mut self, at: usize) {
        let opened = self.managers[at].disk.open();
        let (context, chain) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.fail(format!("I7: the copy of m{at} cannot be opened: {error}"));
                return;
            }
        };
        let compact_above = self.plan.compact_above;
        let now = self.now;
        let node = &mut self.managers[at];
        let mut config = Config::new(node.process.node.name(), node.process.life);
        config.compact_above = compact_above;
        config.stability_interval = Duration::from_millis(100);
        config.persistence_interval = Duration::from_secs(2);
        node.machine = Some(Manager::new(config, context, chain, node.disk.term, MAX_RECORD));
        node.started = now;
        node.well_since = now;
        node.ticked = 0;
        node.beat_due = now;
        node.heartbeat = 500;
    }

    pub(crate) fn run_manager(&mut self, at: usize) {
        for _ in 0..1_000 {
            let now = self.now;
            let node = &mut self.managers[at];
            let Some(machine) = node.machine.as_mut() else { return };
            if let Some(action) = node.todo.pop_front() {
                if !self.carry_out(at, action) {
                    return;
                }
                continue;
            }
            let ms = now - node.started;
            let due = machine.next_tick(ms).max(node.ticked + 1);
            if due <= ms {
                node.ticked = ms;
                let random = self.rng.next();
                self.feed_manager(at, Event::Tick { random });
                continue;
            }
            if node.beat_due <= now {
                self.manager_beats(at);
                continue;
            }
            let free = !machine.busy();
            if let Some(message) = node.inbox.take(free, &mut self.rng) {
                self.manager_hears(at, message);
                continue;
            }
            let wake = (node.started + due).min(node.beat_due);
            self.wake(Node::manager(at), wake);
            return;
        }
        self.wake(Node::manager(at), self.now + 1);
    }

    fn feed_manager(&mut self, at: usize, event: Event) {
        let now = self.managers[at].now(self.now);
        let verbose = self.verbose;
        if verbose && !matches!(event, Event::Tick { .. } | Event::Join(_) | Event::Lead(_) | Event::Cluster(_)) {
            let shown: String = match &event {
                Event::Record(r) => String::from_utf8_lossy(r).into_owned(),
                Event::Read(Ok((last, records))) => format!("Read to {last}, {} records", records.len()),
                Event::Found { id, record } => format!("Found {id} {:?}", record.as_ref().map(Option::is_some)),
                other => format!("{other:?}"),
            };
            self.say(|| format!("m{at} < {}", shown.chars().take(200).collect::<String>()));
        }
        let losses = self.log.losses;
        let node = &mut self.managers[at];
        node.losses = losses;
        let Some(machine) = node.machine.as_mut() else { return };
        let was = (machine.leading(), machine.context().version);
        let actions = machine.handle(now, event);
        let is = (machine.leading(), machine.context().version);
        let steps = machine.news();
        node.todo.extend(actions);
        if verbose {
            for step in steps {
                self.say(|| format!("m{at} step {} {}: {}", step.step, step.name, step.note));
            }
            if was != is {
                self.say(|| format!("m{at} {was:?} -> {is:?}"));
            }
        }
        self.observe_manager(at);
    }

    fn manager_hears(&mut self, at: usize, message: Message) {
        match message {
            Message::Join(join) => self.feed_manager(at, Event::Join((*join).clone())),
            Message::Report(part) => {
                self.feed_manager(at, Event::Lead(core::Event::Report((*part).clone())));
                self.observe_report_part(at, &part);
            }
            Message::Cluster(event) => {
                self.managers[at].heartbeat = heartbeat(event.heartbeat_ms).as_millis() as u64;
                self.feed_manager(at, Event::Cluster((*event).clone()));
            }
            Message::Sync(sync) => self.feed_manager(at, Event::Lead(core::Event::Sync((*sync).clone()))),
            Message::Hwt(hwt) => self.feed_manager(at, Event::Lead(core::Event::HighWatermark((*hwt).clone()))),
            Message::Nominate { ask, bootstrap } => {
                let node = &mut self.managers[at];
                node.next_token += 1;
                let token = node.next_token;
                node.nominations.insert(token, ask);
                self.feed_manager(at, Event::Nominated { token, bootstrap });
            }
            Message::Admin { ask, ddl } => self.manager_asked(at, ask, ddl),
            Message::Opened => self.feed_manager(at, Event::Opened),
            Message::Record(record) => self.feed_manager(at, Event::Record((*record).clone())),
            Message::Outcome(purpose, answer) => self.manager_answered(at, purpose, answer),
            Message::Leave(_) | Message::Stability(_) | Message::Assign { .. } | Message::AskReport => {}
        }
    }

    fn manager_asked(&mut self, at: usize, ask: Ask, ddl: Ddl) {
        let random = self.rng.next();
        let node = &mut self.managers[at];
        let Some(machine) = &node.machine else { return };
        if machine.leading().is_none() {
            let error = ApiError::new(ErrorCode::NoCoordinator, "does not coordinate");
            self.reply(Node::manager(at), ask, Answer::Ddl(Err(error)));
            return;
        }
        node.next_token += 1;
        let token = node.next_token;
        let unknown = ddl.probes().filter(|d| !machine.context().buckets.contains_key(&d.name));
        node.waiting.insert(token, ask);
        if unknown.is_some() {
            self.request(Node::manager(at), Purpose::Probe { token, ddl }, Request::Streams, PATIENCE);
        } else {
            self.feed_manager(at, Event::Lead(core::Event::Ddl { token, ddl, probe: core::unprobed(), random }));
        }
    }

    fn manager_answered(&mut self, at: usize, purpose: Purpose, answer: Option<Answer>) {
        let late = || "timed out".to_owned();
        let event = match (purpose, answer) {
            (Purpose::Append { id }, Some(Answer::Appended(outcome))) => Event::Appended { id, outcome },
            (Purpose::Append { id }, _) => Event::Appended { id, outcome: Outcome::Unknown },
            (Purpose::ReadAt { id }, Some(Answer::Found(record))) => {
                Event::Found { id, record: Ok(record.map(|r| (*r).clone())) }
            }
            (Purpose::ReadAt { id }, _) => Event::Found { id, record: Err(late()) },
            (Purpose::ReadLog, Some(Answer::Contents(last, records))) => {
                Event::Read(Ok((last, records.iter().map(|r| (**r).clone()).collect())))
            }
            (Purpose::ReadLog, _) => Event::Read(Err(late())),
            (Purpose::Probe { token, ddl }, answer) => {
                let probe = match (ddl.probes(), answer) {
                    (Some(definition), Some(_)) => {
                        let last = |vb| *self.sources.entry((definition.name.clone(), vb)).or_insert(3);
                        Ok((0..definition.vbuckets().len()).map(last).collect::<Vec<u64>>().into())
                    }
                    _ => Err(ApiError::new(ErrorCode::Internal, late())),
                };
                Event::Lead(core::Event::Ddl { token, ddl, probe, random: self.rng.next() })
            }
            (Purpose::Streams { job }, answer) => {
                let outcome = answer.map(|_| ()).ok_or_else(late);
                Event::Lead(core::Event::StreamsEnsured { job, outcome, random: self.rng.next() })
            }
            (Purpose::Deletion { job }, _) => Event::Lead(core::Event::StreamsDeleted { job }),
            (Purpose::Assign { job, node }, answer) => {
                let outcome = match answer {
                    Some(Answer::Assigned(outcome)) => outcome,
                    _ => Err(ApiError::new(ErrorCode::NodeUnavailable, late())),
                };
                Event::Lead(core::Event::Assigned { job, node, outcome })
            }
            (Purpose::Topics { term }, answer) => {
                let made = answer.map(|_| ()).ok_or_else(late);
                Event::Lead(core::Event::TopicsChecked { term, made, found: None })
            }
            _ => return,
        };
        self.feed_manager(at, event);
    }

    fn manager_beats(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.managers[at];
        node.beat_due = now + node.heartbeat;
        let Some(machine) = &node.machine else { return };
        let join = Join {
            term: machine.context().term,
            manager: Some(machine.report()),
            ..Join::new(NodeKind::Coordinator, &node.process.node.name(), node.process.life)
        };
        self.observe_report(at, join.manager.as_ref().map_or(0, |m| m.term));
        let message = Message::Join(Rc::new(join));
        self.publish(Node::manager(at), &[NodeKind::Coordinator, NodeKind::ClusterManager], &message);
    }

    /// Ends as a service does that is told to.
    pub(crate) fn manager_leaves(&mut self, at: usize) {
        let process = &self.managers[at].process;
        if !process.up {
            return;
        }
        let leave = Leave { node: process.node.name(), kind: NodeKind::Coordinator, incarnation: process.life };
        self.publish(Node::manager(at), &[NodeKind::ClusterManager], &Message::Leave(leave));
    }

    /// False when nothing more can be done now.
    fn carry_out(&mut self, at: usize, action: Action) -> bool {
        let me = Node::manager(at);
        let node = &mut self.managers[at];
        if let Some(left) = &mut node.crash_in {
            if *left == 0 {
                let back = self.rng.range(50, 6_000);
                self.crash(me, back);
                return false;
            }
            *left -= 1;
        }
        if let Some((left, how_long)) = &mut node.pause_in {
            if *left == 0 {
                let until = self.now + *how_long;
                node.pause_in = None;
                node.process.paused_until = until;
                node.todo.push_front(action);
                self.say(|| format!("{me} stands still between two actions until {until}"));
                self.wake(me, until);
                return false;
            }
            *left -= 1;
        }
        match action {
            Action::KeepTerm(term) => {
                let before = node.disk.term;
                node.disk.keep_term(term);
                if term < before {
                    self.fail(format!("I4: the term on the disk of {me} falls from {before} to {term}"));
                }
                return self.synced(at);
            }
            Action::Keep { records, anew } => {
                node.disk.keep(records, anew);
                self.observe_disk(at);
                return self.synced(at);
            }
            Action::Answer { token, reply } => {
                if let Some(ask) = node.nominations.remove(&token) {
                    self.observe_report(at, reply.report.term);
                    self.reply(me, ask, Answer::Bootstrap(reply));
                }
            }
            Action::Beat => self.manager_beats(at),
            Action::ReadLog => self.request(me, Purpose::ReadLog, Request::ReadLog, PATIENCE),
            Action::Append { id, expected, payload, rollup } => {
                let request = Request::Append { expected, payload: Rc::new(payload), rollup, losses: node.losses };
                self.say(|| format!("{me} appends {id} behind {expected}{}", if rollup { " as a rollup" } else { "" }));
                self.request(me, Purpose::Append { id }, request, PATIENCE);
            }
            Action::ReadAt { id, seq } => self.request(me, Purpose::ReadAt { id }, Request::ReadAt(seq), PATIENCE),
            Action::Follow => self.follow(me),
            Action::NotAppended(_) => {}
            Action::SteppedDown(why) => {
                self.say(|| format!("{me} steps down: {why}"));
                let waiting = std::mem::take(&mut self.managers[at].waiting);
                for (_, ask) in waiting {
                    let error = ApiError::new(ErrorCode::NoCoordinator, "stepped down");
                    self.reply(me, ask, Answer::Ddl(Err(error)));
                }
            }
            Action::Lead(action) => self.lead(at, action),
        }
        true
    }

    /// A write to disk takes its time.
    fn synced(&mut self, at: usize) -> bool {
        let wait = self.rng.below(4);
        if wait > 0 {
            self.wake(Node::manager(at), self.now + wait);
        }
        wait == 0
    }

    fn lead(&mut self, at: usize, action: core::Action) {
        let me = Node::manager(at);
        match action {
            core::Action::Append(_) => self.fail("I7: the core's append reached the shell"),
            core::Action::Reply { token, answer } => {
                if let Some(ask) = self.managers[at].waiting.remove(&token) {
                    self.observe_reply(at, ask, &answer);
                    self.reply(me, ask, Answer::Ddl(answer));
                }
            }
            core::Action::Publish(stability) => {
                self.observe_stability(at, &stability);
                let message = Message::Stability(Rc::new(stability));
                self.publish(me, &[NodeKind::Indexer], &message);
            }
            core::Action::AskReport { node } => {
                if let Some(to) = Node::named(&node) {
                    self.invariants.count("reports asked for", 1);
                    self.send(me, to, Message::AskReport);
                }
            }
            core::Action::EnsureStreams { job, .. } => {
                self.request(me, Purpose::Streams { job }, Request::Streams, PATIENCE);
            }
            core::Action::Assign { job, node, .. } => {
                let ask = self.ask(me, Purpose::Assign { job, node: node.clone() }, PATIENCE);
                if let Some(to) = Node::named(&node) {
                    self.send(me, to, Message::Assign { ask });
                }
            }
            core::Action::CheckTopics { term, .. } => {
                self.request(me, Purpose::Topics { term }, Request::Streams, PATIENCE);
            }
            core::Action::DeleteStreams { job, .. } => {
                self.request(me, Purpose::Deletion { job }, Request::Streams, PATIENCE);
            }
            core::Action::PurgeSession { .. } => {}
        }
    }
}
