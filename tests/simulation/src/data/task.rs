//! A stand-in for a projector's task of one vbucket around the real `Cover`, `Removals` and verdicts on the source.
//!
//! It goes as `services/projector/src/vbucket.rs` and its parts do, step by step; what they await, other things come between.

mod asking;
mod offering;
mod trust;
mod vanished;

use super::{
    env::{BUCKET, Env},
    lane::{Lane, LaneInfo},
    looks::{bookmark, check},
    plan::Plan,
    pump::{Pump, Pumped, Read},
    source::Source,
};
use asking::Asking;
use highwater_bus::StreamState;
use highwater_projector::{
    cover::Cover,
    recent::Recent,
    removals::Removals,
    vanished::Vanished,
    verify::{Known, Suspected},
};
use highwater_router::packer::Step;
use highwater_schemas::{
    Position,
    lane::{LaneTarget, Offer},
    state::thin,
    timestamp::{Asked, Bookmark, Wants},
    wire::{DocOp, KeyVersions, Removal},
};
use offering::Offering;
use std::{sync::Arc, time::Instant};
use vanished::Looking;

const POLL: u64 = 1_000;
const LOOK: u64 = 50;
const SILENCE: u64 = 5;
const HINT_EVERY: u64 = 200;
const MARKS: usize = 64;
/// As in the real one, shorter: time is scarcer here.
const LIST_AFTER: u64 = 60;

/// A step of a lane; as `highwater_schemas::lane::Chunk`, without its channel.
pub enum Chunk {
    Versions { step: Step, idle: bool },
    Listed { to: Position },
    Removed { round: u64, removal: Removal, versions: KeyVersions, offer: Option<Offer> },
    Covered { to: Position, covered: u64, asked: Vec<Asked>, source_last: u64, offer: Option<Offer> },
}

/// What the task is told when it starts.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub lane: LaneInfo,
    pub lists: bool,
    pub ends_listed: bool,
    pub known: Known,
}

/// What the tasks of a vbucket know together.
#[derive(Debug, Default, Clone, Copy)]
pub struct KnownToAll {
    pub held: u64,
    pub reconcile_after: u64,
    /// One more than the reconcile that is not enough for what waits to be named; 0: nothing waits.
    pub names_after: u64,
}

/// How a task ends by itself.
#[derive(Debug)]
pub enum End {
    Suspected(Suspected),
    /// What a session has read does not join on.
    Broken,
    Again,
    /// What was sent of a chain must not be sent again with other content.
    Lost,
}

#[derive(Debug, Clone, Copy)]
struct Frozen {
    at: u64,
    after: u64,
}

/// One task.
pub struct Task {
    pub assignment: Assignment,
    /// How far its beginning is: verified, opened, begun.
    phase: u8,
    began: Option<u64>,
    pump: Pump,
    pub lane: Lane,
    cover: Cover,
    offering: Offering,
    removals: Removals,
    vanished: Vanished,
    looking: Option<Looking>,
    /// What the clock showed when the simulated one showed nothing.
    epoch: Instant,
    pub plan: Plan,
    frozen: Option<Frozen>,
    hint: bool,
    hinted_at: Option<u64>,
    late: bool,
    round: u64,
    created: i64,
    source_last: u64,
    last_message: (i64, u64),
    bookmark: Option<Bookmark>,
    marks: Vec<Bookmark>,
    recent: Recent,
    doubt: Option<u64>,
    compared: Option<u64>,
    /// Messages were taken up that an earlier run of the server had sent than it was compared with.
    took_older: bool,
    doubted: Wants,
    source: u64,
    server: u64,
    first_seq: u64,
    listing: bool,
    list_end: Option<u64>,
    restarts: u64,
    asking: Option<Asking>,
    pub waiting: Wants,
    answered: Wants,
    read_at: u64,
    poll_at: u64,
    look_at: u64,
    /// The line that it was last compared with; the oracle's.
    line: usize,
}

impl Task {
    pub fn new(assignment: Assignment, plan: Plan) -> Self {
        let (lane, lists) = (assignment.lane.clone(), assignment.lists);
        Self {
            phase: 0,
            began: None,
            pump: Pump::default(),
            cover: Cover::new(lane.from.seqno),
            offering: Offering::new(lane.from.seqno),
            removals: Removals::new(lane.dropped, lane.generation == 1),
            vanished: Vanished::default(),
            looking: None,
            epoch: Instant::now(),
            round: lane.from.round,
            lane: Lane::new(lane),
            plan,
            frozen: None,
            hint: false,
            hinted_at: None,
            late: false,
            created: 0,
            source_last: 0,
            last_message: (0, 0),
            bookmark: None,
            marks: assignment.known.bookmarks.clone(),
            recent: Recent::new(0, 0, 0),
            doubt: None,
            compared: None,
            took_older: false,
            doubted: Wants::default(),
            source: 0,
            server: 0,
            first_seq: 0,
            listing: lists,
            list_end: None,
            restarts: 0,
            asking: None,
            waiting: Wants::default(),
            answered: Wants::default(),
            read_at: 0,
            poll_at: 0,
            look_at: 0,
            line: 0,
            assignment,
        }
    }

    /// Messages that it remembers: some remember few.
    fn memory(&self) -> u64 {
        if self.assignment.lane.vbuuid.is_multiple_of(3) { 6 } else { 40 }
    }

    fn live(&self) -> bool {
        self.assignment.lane.target == LaneTarget::Mutation
    }

    fn stream<'a>(&self, env: &'a Env) -> &'a Source {
        &env.sources[usize::from(self.assignment.lane.vb)]
    }

    /// The next thing that it does.
    pub fn step(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
        let began = self.live() && self.phase == 3;
        self.next_step(env, all).map_err(|end| if began && matches!(end, End::Again) { End::Lost } else { end })
    }

    fn next_step(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
        if self.assignment.ends_listed && !self.listing {
            if env.now >= self.poll_at {
                self.poll_at = env.now + POLL;
                let to = Position::new(self.cover.position(), self.round);
                self.lane.chunk(env, Chunk::Listed { to });
            }
            return Ok(());
        }
        if self.phase < 3 {
            let since = *self.began.get_or_insert(env.now);
            if self.assignment.ends_listed && env.now < since + LIST_AFTER {
                return Ok(());
            }
            return self.begin(env, all);
        }
        if self.lane.window.full() {
            return Ok(());
        }
        self.ask_if_needed(env);
        if env.now >= self.look_at {
            self.look_at = env.now + LOOK;
            let server = self.stream(env).run;
            if self.live() && server != self.server {
                self.server = server;
                self.restarted(env, all)?;
            }
        }
        if env.now >= self.poll_at {
            self.poll_at = env.now + POLL;
            self.ask(env);
            if self.list_end == Some(self.cover.position()) {
                let to = Position::new(self.cover.position(), self.round);
                self.lane.chunk(env, Chunk::Listed { to });
            }
            if self.plan.anchor > 0 || !self.live() {
                self.send(env, KeyVersions::default(), true, true);
            }
        }
        self.look_for_vanished(env, all);
        match env.rng.below(3) {
            0 => self.look(env, all),
            _ => self.read(env, all),
        }
    }

    fn begin(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
        match self.phase {
            0 => {
                if self.live() {
                    let known = self.assignment.known.clone();
                    check(self.stream(env), &known, None).map_err(End::Suspected)?;
                }
                self.source = self.stream(env).identity();
            }
            1 => {
                let source = &env.sources[usize::from(self.assignment.lane.vb)];
                let before = if self.live() { self.memory() } else { 0 };
                let after = self.assignment.lane.from.seqno.saturating_sub(before);
                self.recent = Recent::new(after, source.last_seq, self.memory() as usize);
                match self.pump.open(source, after, self.assignment.lists) {
                    Ok(created) => self.created = created,
                    Err(_) if !self.live() => return Err(End::Broken),
                    Err(_) => return Err(End::Again),
                }
                let source = self.stream(env);
                let (identity, server, line) = (source.identity(), source.run, source.line());
                if self.live() && identity != self.source {
                    return Err(End::Again);
                }
                (self.source, self.server, self.line) = (identity, server, line);
            }
            _ => {
                let from = self.assignment.lane.from.seqno;
                if self.live() && from > self.marks.last().map_or(0, |last| last.seqno) {
                    self.bookmark = self.stream(env).messages.get(&from).map(|m| bookmark(from, m, self.source));
                    self.marks.extend(self.bookmark.clone());
                }
                self.lane = Lane::new(LaneInfo { created: self.created, ..self.assignment.lane.clone() });
                if self.live() {
                    self.cover.doubt(u64::MAX);
                }
                self.removals.staged(self.plan.staged);
                self.send(env, KeyVersions::default(), true, true);
                self.poll_at = env.now + POLL;
                all.held = all.held.max(self.assignment.known.held);
            }
        }
        self.phase += 1;
        Ok(())
    }

    /// The log has moved on.
    pub fn replan(&mut self, env: &mut Env, plan: Plan) {
        if self.phase < 3 {
            self.plan = plan;
        } else if self.plan != plan {
            self.plan = plan;
            self.removals.staged(self.plan.staged);
            self.send(env, KeyVersions::default(), true, true);
        }
    }

    fn read(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
        let source = &env.sources[usize::from(self.assignment.lane.vb)];
        match self.pump.next(source, &mut env.rng) {
            Pumped::Nothing => Ok(()),
            Pumped::Listed { upto } => {
                self.listing = false;
                self.cover.list_complete(upto);
                self.list_end = Some(self.cover.position());
                if !self.assignment.ends_listed {
                    all.held = all.held.max(upto);
                }
                let to = Position::new(self.cover.position(), self.round);
                self.lane.chunk(env, Chunk::Listed { to });
                Ok(())
            }
            Pumped::Changed(why) => self.changed(env, all, &why),
            Pumped::Messages { messages, restarts, idle } => {
                let (run, created) = (self.pump.run(), self.created as u64);
                let sent = Source::identity_of(run, created);
                self.took_older |= !messages.is_empty() && self.compared.is_some_and(|compared| sent < compared);
                self.messages(env, all, &messages, restarts, idle)
            }
        }
    }

    fn messages(
        &mut self,
        env: &mut Env,
        all: &mut KnownToAll,
        messages: &[Read],
        restarts: u64,
        idle: bool,
    ) -> Result<(), End> {
        if restarts != self.restarts {
            self.restarts = restarts;
            self.restarted(env, all)?;
        }
        let (before, messages) =
            messages.split_at(messages.partition_point(|m| m.seq <= self.assignment.lane.from.seqno && self.live()));
        for read @ Read { seq, message } in before {
            self.recent.push(*seq, &Source::docid(message.key), message.time, message.uid);
            let before = std::mem::replace(&mut self.last_message, (message.time, message.uid));
            self.offering.message(read, before);
        }
        if let Some(first) = messages.first().filter(|m| m.seq <= self.cover.position()) {
            let why = "the source brought a message that its state had denied";
            if !self.live() {
                return Err(End::Broken);
            }
            self.verify(env, all)?;
            let intact = first.seq - 1;
            return Err(End::Suspected(Suspected {
                reason: why.into(),
                intact,
                last: self.source_last.max(self.cover.position()),
                broken: false,
                bookmarks: self.known(all).proof(intact),
            }));
        }
        let Some(last) = messages.last() else { return Ok(()) };
        all.held = all.held.max(last.seq);
        let mut versions = KeyVersions::default();
        for read @ Read { seq, message } in messages {
            let before = std::mem::replace(&mut self.last_message, (message.time, message.uid));
            if self.listing {
                self.cover.listed(*seq);
            } else {
                let begins = self.offering.message(read, before);
                self.cover.message(*seq, begins, self.offering.batches.is_open());
            }
            let op = if message.put { DocOp::Put } else { DocOp::Delete };
            self.vanished.read(&Source::docid(message.key), *seq);
            if self.live() {
                self.recent.push(*seq, &Source::docid(message.key), message.time, message.uid);
            }
            versions.push_doc(*seq, &Source::docid(message.key), op);
            for index in self.plan.indexes.iter().filter(|_| message.put) {
                let key = message.uid.to_be_bytes();
                versions.push_key(*index, |b| b.write_key(&key), |_| ());
            }
        }
        if self.live() {
            self.look_at_doubt();
        }
        if self.live() && env.rng.chance(env.marked) {
            let mark = bookmark(last.seq, &last.message, if self.doubt.is_some() { 0 } else { self.source });
            self.marks.push(mark.clone());
            thin(&mut self.marks, MARKS);
            self.bookmark = Some(mark);
        }
        self.send(env, versions, idle, false);
        self.read_at = env.now;
        let late = env.now as i64 - last.message.time / 1_000_000 > super::source::MARKER_LIFE as i64;
        if late && self.live() && !std::mem::replace(&mut self.late, true) {
            self.ask_to_reconcile(all);
        } else if !late {
            self.late = false;
        }
        self.put_removals(env, all);
        Ok(())
    }

    fn at(&self, env: &mut Env) -> Position {
        let (at, lane) = (Position::new(self.cover.position(), self.round), &self.assignment.lane);
        if self.live() {
            env.place((lane.vb, lane.vbuuid, lane.generation), at, self.line);
        }
        at
    }

    fn send(&mut self, env: &mut Env, versions: KeyVersions, idle: bool, anchor: bool) {
        let step = Step {
            routes: Arc::clone(&self.plan.routes),
            versions,
            to: self.at(env),
            covered: self.covered(),
            server_time: self.last_message.0,
            hash: self.last_message.1,
            bookmark: self.bookmark.take(),
            offer: self.offer(env),
            removal: None,
            anchor,
        };
        self.lane.chunk(env, Chunk::Versions { step, idle });
    }

    fn put_removals(&mut self, env: &mut Env, all: &mut KnownToAll) {
        while let Some(removal) = self.removals.due(self.cover.covered()) {
            self.send(env, KeyVersions::default(), true, true);
            self.round += 1;
            if let Removal::Listed { session, .. } = removal
                && self.frozen.is_some_and(|frozen| session > frozen.after)
            {
                self.frozen = None;
            }
            self.at(env);
            self.round_begins();
            let offer = self.offer(env);
            let (what, versions) = match removal {
                Removal::Below(_) => ("floors", KeyVersions::default()),
                Removal::Listed { .. } => ("reconciles in a chain", KeyVersions::default()),
                Removal::Named { .. } => ("reconciles of named documents in a chain", self.name_vanished(env, all)),
            };
            env.count(what);
            self.lane.chunk(env, Chunk::Removed { round: self.round, removal, versions, offer });
        }
    }

    fn look_for_removals(&mut self, env: &Env, all: &mut KnownToAll, state: &StreamState, question: Option<u64>) {
        if !self.live() {
            return;
        }
        self.removals.answer(question, state.last_seq);
        self.removals.state(state);
        if self.removals.is_missing() && self.vanished.is_settled() {
            self.removals.settle();
            self.hint = true;
        }
        if self.hint && self.hinted_at.is_none_or(|at| env.now >= at + HINT_EVERY) {
            (self.hint, self.hinted_at) = (false, Some(env.now));
            self.ask_to_reconcile(all);
        }
    }

    pub fn describe(&self) -> String {
        let lane = &self.assignment.lane;
        format!(
            "{BUCKET} vb {} {:?} g {} phase {} at {} covered {} listing {} frozen {:?} removals {:?}",
            lane.vb,
            lane.target,
            lane.generation,
            self.phase,
            self.cover.position(),
            self.cover.covered(),
            self.listing,
            self.frozen,
            self.removals
        )
    }
}

trait WriteKey {
    fn write_key(&mut self, key: &[u8]) -> Result<(), highwater_schemas::wire::Unindexable>;
}

impl WriteKey for Vec<u8> {
    fn write_key(&mut self, key: &[u8]) -> Result<(), highwater_schemas::wire::Unindexable> {
        self.extend_from_slice(key);
        Ok(())
    }
}
