//! A stand-in for a projector's task of one vbucket around the real `Cover`, `Removals` and verdicts on the source.
//!
//! It goes as `services/projector/src/vbucket.rs` and its parts do, step by step; what they await, other things come between.

use super::{
    env::{BUCKET, Env},
    lane::{Lane, LaneInfo},
    pump::{Pump, Pumped, Read},
    source::Source,
};
use highwater_bus::StreamState;
use highwater_projector::{
    cover::{Cover, Question},
    removals::Removals,
    verify::{Found, Judged, Known, Suspected},
};
use highwater_router::packer::Step;
use highwater_schemas::{
    Position,
    lane::{LaneTarget, Routes},
    state::{Bucket, Session, SessionKind, thin},
    timestamp::{Asked, Bookmark},
    wire::{DocOp, KeyVersions, Removal},
};
use std::{collections::BTreeMap, sync::Arc};

const POLL: u64 = 1_000;
const LOOK: u64 = 50;
const SILENCE: u64 = 5;
const HINT_EVERY: u64 = 200;
const MARKS: usize = 64;
const MOST_LOOKED_AT: usize = 128;
/// As in the real one, shorter: time is scarcer here.
const LIST_AFTER: u64 = 60;

/// A step of a lane; as `highwater_schemas::lane::Chunk`, without its channel.
pub enum Chunk {
    Versions { step: Step, idle: bool },
    Listed { to: Position },
    Removed { round: u64, removal: Removal },
    Covered { to: Position, covered: u64, asked: Vec<Asked>, source_last: u64 },
}

/// What to evaluate and for whom.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub routes: Arc<Routes>,
    indexes: Vec<u32>,
    anchor: u64,
    newest_reconcile: u64,
    staged: Option<u64>,
}

impl Plan {
    pub fn live(bucket: &Bucket, vb: usize) -> Self {
        let sessions = bucket.sessions.values().filter(|s| s.kind != SessionKind::Reconcile);
        Self {
            routes: Arc::new(bucket.routes(vb)),
            indexes: bucket.live_indexes().map(|(n, _)| n).collect(),
            anchor: sessions.map(|s| s.id).max().unwrap_or(0),
            newest_reconcile: bucket.newest_reconcile(),
            staged: bucket.reconcile.as_ref().filter(|r| r.staged).map(|r| r.id),
        }
    }

    pub fn session(bucket: &Bucket, session: &Session) -> Self {
        let mut routes = Routes { topology: session.topology, ..Routes::default() };
        let mut indexes = Vec::new();
        for slice in &session.slices {
            if let Some(index) = bucket.indexes.get(&slice.index) {
                let partitions = index.placed.hosts.len() as u32;
                routes.nodes.entry(session.node.clone()).or_default().push((slice.index, slice.partition, partitions));
                indexes.push(slice.index);
            }
        }
        indexes.dedup();
        Self { routes: Arc::new(routes), indexes, ..Self::default() }
    }
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
}

/// How a task ends by itself.
#[derive(Debug)]
pub enum End {
    Suspected(Suspected),
    /// What a session has read does not join on.
    Broken,
    Again,
}

#[derive(Debug, Clone, Copy)]
struct Frozen {
    at: u64,
    after: u64,
}

struct Asking {
    question: Question,
    staged: Option<u64>,
    wants: BTreeMap<u64, u64>,
    position: u64,
    silent: bool,
    /// The stream's state, once the server has looked.
    state: Option<(StreamState, u64)>,
    /// No message is above the position; asked after that.
    nothing_above: Option<bool>,
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
    removals: Removals,
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
    source: u64,
    server: u64,
    first_seq: u64,
    listing: bool,
    restarts: u64,
    asking: Option<Asking>,
    pub waiting: BTreeMap<u64, u64>,
    answered: BTreeMap<u64, u64>,
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
            removals: Removals::new(lane.dropped, lane.generation == 1),
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
            source: 0,
            server: 0,
            first_seq: 0,
            listing: lists,
            restarts: 0,
            asking: None,
            waiting: BTreeMap::new(),
            answered: BTreeMap::new(),
            read_at: 0,
            poll_at: 0,
            look_at: 0,
            line: 0,
            assignment,
        }
    }

    fn live(&self) -> bool {
        self.assignment.lane.target == LaneTarget::Mutation
    }

    fn stream<'a>(&self, env: &'a Env) -> &'a Source {
        &env.sources[usize::from(self.assignment.lane.vb)]
    }

    /// The next thing that it does.
    pub fn step(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
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
                self.verify(env, all)?;
            }
        }
        if env.now >= self.poll_at {
            self.poll_at = env.now + POLL;
            self.ask(env);
            if self.plan.anchor > 0 || !self.live() {
                self.send(env, KeyVersions::default(), true, true);
            }
        }
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
                    check(self.stream(env), &known).map_err(End::Suspected)?;
                }
                self.source = self.stream(env).identity();
            }
            1 => {
                let source = &env.sources[usize::from(self.assignment.lane.vb)];
                match self.pump.open(source, self.assignment.lane.from.seqno, self.assignment.lists) {
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
                let to = Position::new(self.cover.position(), self.round);
                self.lane.chunk(env, Chunk::Listed { to });
                Ok(())
            }
            Pumped::Changed(why) => self.changed(env, all, &why),
            Pumped::Messages { messages, restarts, idle } => self.messages(env, all, &messages, restarts, idle),
        }
    }

    fn changed(&mut self, env: &Env, all: &mut KnownToAll, _why: &str) -> Result<(), End> {
        if !self.live() {
            return Err(End::Broken);
        }
        self.verify(env, all)?;
        Err(End::Again)
    }

    fn known(&self, all: &KnownToAll) -> Known {
        Known {
            created: self.created,
            first_seq: self.first_seq,
            position: self.cover.position(),
            held: all.held.max(self.assignment.known.held),
            bookmarks: self.marks.clone(),
        }
    }

    fn verify(&mut self, env: &Env, all: &KnownToAll) -> Result<(), End> {
        let source = self.stream(env);
        check(source, &self.known(all)).map_err(End::Suspected)?;
        self.source = source.identity();
        self.line = source.line();
        if let Some(last) = self.marks.last_mut() {
            last.source = self.source;
        }
        Ok(())
    }

    fn restarted(&mut self, env: &Env, all: &mut KnownToAll) -> Result<(), End> {
        let hidden = self.cover.covered() < self.cover.position();
        if !self.live() {
            return if hidden { Err(End::Broken) } else { Ok(()) };
        }
        self.verify(env, all)?;
        if hidden {
            self.frozen = Some(Frozen { at: self.covered(), after: self.plan.newest_reconcile });
        }
        self.ask_to_reconcile(all);
        Ok(())
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
        for Read { seq, message } in messages {
            if self.listing {
                self.cover.listed(*seq);
            } else {
                self.cover.message(*seq);
            }
            let op = if message.put { DocOp::Put } else { DocOp::Delete };
            versions.push_doc(*seq, &Source::docid(message.key), op);
            for index in self.plan.indexes.iter().filter(|_| message.put) {
                let key = message.uid.to_be_bytes();
                versions.push_key(*index, |b| b.write_key(&key), |_| ());
            }
        }
        self.last_message = (last.message.time, last.message.uid);
        if self.live() {
            let mark = bookmark(last.seq, &last.message, self.source);
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
        self.put_removals(env);
        Ok(())
    }

    fn covered(&self) -> u64 {
        if self.listing {
            return 0;
        }
        self.frozen.map_or(u64::MAX, |frozen| frozen.at).min(self.cover.covered())
    }

    fn ask_to_reconcile(&self, all: &mut KnownToAll) {
        all.reconcile_after = all.reconcile_after.max(self.plan.newest_reconcile + 1);
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
            removal: None,
            anchor,
        };
        self.lane.chunk(env, Chunk::Versions { step, idle });
    }

    fn put_removals(&mut self, env: &mut Env) {
        while let Some(removal) = self.removals.due(self.cover.covered()) {
            self.send(env, KeyVersions::default(), true, true);
            self.round += 1;
            if let Removal::Listed { session, .. } = removal
                && self.frozen.is_some_and(|frozen| session > frozen.after)
            {
                self.frozen = None;
            }
            self.at(env);
            env.count(if matches!(removal, Removal::Below(_)) { "floors" } else { "reconciles in a chain" });
            self.lane.chunk(env, Chunk::Removed { round: self.round, removal });
        }
    }

    fn ask_if_needed(&mut self, env: &Env) {
        if self.cover.needs_answer() || !self.waiting.is_empty() || self.removals.needs_answer() {
            self.ask(env);
        }
    }

    fn ask(&mut self, env: &Env) {
        if self.asking.is_some() {
            return;
        }
        self.asking = Some(Asking {
            question: self.cover.question(),
            staged: self.removals.question(),
            wants: std::mem::take(&mut self.waiting),
            position: self.cover.position(),
            silent: env.now >= self.read_at + SILENCE,
            state: None,
            nothing_above: None,
        });
    }

    /// The question under way goes on: the server looks, looks again, the answer arrives.
    fn look(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
        let Some(mut asking) = self.asking.take() else { return Ok(()) };
        let source = self.stream(env);
        match (&asking.state, asking.nothing_above) {
            (None, _) => {
                asking.state = Some((source.state(), source.identity()));
                self.asking = Some(asking);
                Ok(())
            }
            (Some((state, _)), None) => {
                let none = source.messages.range(asking.position + 1..).next().is_none();
                asking.nothing_above = Some(state.last_seq > asking.position && asking.silent && none);
                self.asking = Some(asking);
                Ok(())
            }
            (Some((state, identity)), Some(nothing_above)) => {
                let (state, identity) = (state.clone(), *identity);
                self.answer(env, all, asking, (&state, identity, nothing_above))
            }
        }
    }

    fn answer(
        &mut self,
        env: &mut Env,
        all: &mut KnownToAll,
        asking: Asking,
        (state, source, nothing_above): (&StreamState, u64, bool),
    ) -> Result<(), End> {
        let fell =
            state.last_seq < self.source_last.max(self.assignment.lane.from.seqno) || state.first_seq < self.first_seq;
        if state.created != self.created || fell {
            self.changed(env, all, "the source's state has changed")?;
        }
        if source != self.source && self.source != 0 && self.live() {
            self.verify(env, all)?;
        }
        self.source = source;
        self.first_seq = state.first_seq;
        if self.listing {
            return Ok(());
        }
        self.source_last = state.last_seq;
        self.look_for_removals(env, all, state, asking.staged);
        self.cover.answer(asking.question, state.last_seq);
        if nothing_above && asking.position == self.cover.position() && state.last_seq > asking.position {
            self.cover.nothing_more(state.last_seq);
            self.last_message = (state.last_time, 0);
            self.send(env, KeyVersions::default(), true, false);
        }
        for (catalog, seq) in asking.wants {
            let newest = self.answered.entry(catalog).or_default();
            *newest = seq.max(*newest);
        }
        let asked = self.answered.iter().map(|(catalog, seq)| Asked { catalog: *catalog, seq: *seq }).collect();
        let (to, covered, source_last) = (self.at(env), self.covered(), self.source_last);
        self.lane.chunk(env, Chunk::Covered { to, covered, asked, source_last });
        self.put_removals(env);
        Ok(())
    }

    fn look_for_removals(&mut self, env: &Env, all: &mut KnownToAll, state: &StreamState, question: Option<u64>) {
        if !self.live() {
            return;
        }
        self.removals.answer(question, state.last_seq);
        self.hint |= self.removals.state(state);
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

fn bookmark(seqno: u64, message: &super::source::Message, source: u64) -> Bookmark {
    let subject = Source::docid(message.key);
    Bookmark { seqno, subject, time: message.time, hash: message.uid, source }
}

/// Compares a source with what is known of it.
fn check(source: &Source, known: &Known) -> Result<(), Suspected> {
    let mut judged = Judged::default();
    for mark in known.bookmarks.iter().rev().take(MOST_LOOKED_AT) {
        if judged.take(mark.seqno, look(source, mark)) {
            break;
        }
    }
    known.decide(&source.state(), judged, source.identity()).map_or(Ok(()), Err)
}

fn look(source: &Source, mark: &Bookmark) -> Found {
    if let Some(there) = source.messages.get(&mark.seqno) {
        let same = there.time == mark.time && there.uid == mark.hash;
        return if same { Found::Same } else { Found::Other };
    }
    let key = (0..super::source::KEYS).find(|key| Source::docid(*key) == mark.subject).unwrap_or_default();
    match source.last_of(key) {
        Some(last) if last > mark.seqno => Found::Overwritten,
        Some(_) => Found::Lost,
        None => Found::Gone,
    }
}
