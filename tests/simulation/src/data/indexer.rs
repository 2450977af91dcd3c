//! A stand-in for an indexer's process around the real core: it carries out what that decides on stores in memory.

use super::{
    checks,
    env::{BUCKET, Env, Letter},
    store::{Disk, Store},
};
use highwater_indexer::core::{Action, Batch, Branch, BucketCore, BucketView, Mode, OpenSession, Shares, Start};
use highwater_schemas::{
    StabilityTimestamp,
    api::{Join, NodeKind, SliceReport},
    report::{Item, Reporter},
    state::{Bucket, SessionKind, SliceName, StateContext, branch_of},
    wire::{HighWatermark, Missed, Stability},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

const HEARTBEAT: u64 = 200;

/// Where a topic is read.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    after: u64,
    created: i64,
    epoch: u64,
}

/// One indexer.
pub struct Indexer {
    pub name: String,
    pub incarnation: u64,
    pub up: bool,
    context: StateContext,
    followed: usize,
    core: BucketCore,
    started: bool,
    pub open: BTreeMap<SliceName, Store>,
    disks: BTreeMap<SliceName, Disk>,
    topic: Option<Reading>,
    sessions: BTreeMap<u64, Reading>,
    paused: VecDeque<(u64, u64, Arc<Batch>)>,
    /// Walks that have not ended.
    walks: Vec<Action>,
    newest: Option<Arc<StabilityTimestamp>>,
    notable: bool,
    beat_at: u64,
    hwt: Option<HighWatermark>,
    reporter: Reporter,
    asked: bool,
}

impl Indexer {
    pub fn new(at: usize) -> Self {
        Self {
            name: format!("i{at}"),
            incarnation: 1,
            up: true,
            context: StateContext::default(),
            followed: 0,
            core: BucketCore::new(),
            started: false,
            open: BTreeMap::new(),
            disks: BTreeMap::new(),
            topic: None,
            sessions: BTreeMap::new(),
            paused: VecDeque::new(),
            walks: Vec::new(),
            newest: None,
            notable: false,
            beat_at: 0,
            hwt: None,
            reporter: Reporter::default(),
            asked: false,
        }
    }

    /// What was not durable is lost.
    pub fn crash(&mut self) {
        let mut disks = std::mem::take(&mut self.disks);
        disks.extend(std::mem::take(&mut self.open).into_iter().map(|(name, store)| (name, store.disk)));
        let incarnation = self.incarnation + 1;
        *self = Self { name: self.name.clone(), incarnation, up: false, disks, ..Self::new(0) };
    }

    pub fn follow(&mut self, env: &mut Env, most: usize) {
        if !env.follow(&mut self.context, &mut self.followed, most) && self.started {
            return;
        }
        let Some(bucket) = self.context.buckets.get(BUCKET) else { return };
        let view = view(&self.name, self.incarnation, self.context.term, bucket);
        let sessions: Vec<u64> = view.sessions.keys().copied().collect();
        self.sessions.retain(|id, _| sessions.contains(id));
        for id in sessions {
            self.sessions.entry(id).or_default();
        }
        let actions = self.core.state(view);
        self.carry_out(env, actions);
        self.started = true;
    }

    pub fn stability(&mut self, stability: &Stability) {
        if self.started {
            self.core.named(stability.st.term, &stability.wanted);
            self.core.stability([stability.st.clone()]);
        }
    }

    /// Topics are read, what can be applied is, reports leave.
    pub fn step(&mut self, env: &mut Env) {
        if !self.started {
            self.speak(env);
            return;
        }
        self.read_topic(env);
        self.read_sessions(env);
        self.feed_paused(env);
        self.end_persists(env);
        self.end_walks(env);
        let actions = self.core.advance(env.now);
        self.carry_out(env, actions);
        if env.rng.chance(20) {
            let names: Vec<SliceName> = self.open.keys().copied().collect();
            if let Some(name) = env.rng.pick(&names) {
                let mut actions = self.core.persist_session(name);
                actions.extend(self.core.persist_now(name));
                self.carry_out(env, actions);
            }
        }
        self.speak(env);
    }

    fn read_topic(&mut self, env: &mut Env) {
        let Some(reading) = &mut self.topic else {
            let marks: Vec<_> = self.open.values().map(|store| store.disk.newest_mark()).collect();
            let topic = &env.topic;
            let after = match BucketCore::resume_topic(&marks) {
                None => topic.last,
                Some((after, created)) if created == topic.created && after <= topic.last => after,
                _ => 0,
            };
            self.open_topic(env, after);
            return;
        };
        if reading.epoch != env.topic.epoch {
            if reading.created != env.topic.created || reading.after > env.topic.last {
                self.open_topic(env, 0);
                return;
            }
            reading.epoch = env.topic.epoch;
        }
        let most = if env.faulty { env.rng.below(4) } else { 64 };
        for _ in 0..most {
            let Some(reading) = &mut self.topic else { return };
            let mut mine = env.topic.messages.range(reading.after + 1..).filter(|(_, (node, _))| *node == self.name);
            let Some((seq, (_, batch))) = mine.next() else { return };
            reading.after = *seq;
            let (seq, batch) = (*seq, Arc::clone(batch));
            let actions = self.core.live(seq, batch);
            self.carry_out(env, actions);
        }
    }

    fn open_topic(&mut self, env: &Env, after: u64) {
        self.topic = Some(Reading { after, created: env.topic.created, epoch: env.topic.epoch });
        let cut = env.topic.messages.is_empty() && env.topic.last > after;
        self.core.topic_opened(after, env.topic.created, cut);
        self.notable = true;
    }

    fn read_sessions(&mut self, env: &mut Env) {
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        for id in ids {
            let (Some(topic), Some(reading)) = (env.catchups.get(&id), self.sessions.get_mut(&id)) else { continue };
            if reading.epoch != topic.epoch {
                if reading.after > topic.last || reading.created != topic.created {
                    reading.after = 0;
                }
                (reading.epoch, reading.created) = (topic.epoch, topic.created);
            }
            let most = if env.faulty { env.rng.below(4) } else { 64 };
            for (seq, (_, batch)) in topic.messages.range(reading.after + 1..).take(most as usize) {
                reading.after = *seq;
                self.paused.push_back((id, *seq, Arc::clone(batch)));
            }
        }
    }

    fn feed_paused(&mut self, env: &mut Env) {
        while let Some((session, topic, batch)) = self.paused.pop_front() {
            if self.core.session_paused(session) {
                self.paused.push_front((session, topic, batch));
                return;
            }
            let actions = self.core.session_batch(session, topic, &batch);
            self.carry_out(env, actions);
        }
    }

    /// Ends a walk at once, or some steps later.
    fn walk_or_wait(&mut self, env: &mut Env, walk: Action) -> Vec<Action> {
        if env.faulty && env.rng.chance(500) {
            self.walks.push(walk);
            return Vec::new();
        }
        self.walk(&walk)
    }

    fn walk(&mut self, walk: &Action) -> Vec<Action> {
        let (Action::Sweep { slice, walk: number, .. }
        | Action::EndStage { slice, walk: number, .. }
        | Action::Floor { slice, walk: number, .. }) = *walk
        else {
            return Vec::new();
        };
        if !self.core.is_walking(slice, number) {
            return Vec::new();
        }
        match (walk, self.open.get_mut(&slice)) {
            (Action::Sweep { session, vb, .. }, Some(store)) => store.sweep(*session, *vb),
            (Action::Floor { vb, floor, .. }, Some(store)) => store.floor(*vb, *floor),
            _ => {}
        }
        self.core.walked(slice, number)
    }

    fn end_walks(&mut self, env: &mut Env) {
        for walk in std::mem::take(&mut self.walks) {
            let actions = self.walk_or_wait(env, walk);
            self.carry_out(env, actions);
        }
    }

    fn end_persists(&mut self, env: &mut Env) {
        let running: Vec<SliceName> =
            self.open.iter().filter(|(_, store)| store.persist.is_some()).map(|(name, _)| *name).collect();
        for name in running {
            if env.faulty && env.rng.chance(700) {
                continue;
            }
            let good = !env.faulty || env.rng.chance(930);
            let Some(store) = self.open.get_mut(&name) else { continue };
            let Some((mark, topic)) = store.end_persist(good) else { continue };
            self.core.set_bulk(name, store.in_bulk());
            let actions = self.core.persisted(name, &mark, topic, good);
            self.carry_out(env, actions);
        }
    }

    fn carry_out(&mut self, env: &mut Env, actions: Vec<Action>) {
        let mut todo: VecDeque<Action> = actions.into();
        while let Some(action) = todo.pop_front() {
            self.tell(env, &action);
            match action {
                Action::Open { slice, reset } => todo.extend(self.open_slice(slice, reset)),
                Action::Rewind { slice } => todo.extend(self.open_slice(slice, false)),
                Action::RollBack { slice, st } => {
                    let Some(store) = self.open.get_mut(&slice) else { continue };
                    store.roll_back(st);
                    env.count("slices rolled back");
                    todo.extend(self.core.opened(slice, &store.disk.mark, &store.disk.kept(), store.in_bulk()));
                }
                Action::Remove { slice } => {
                    self.open.remove(&slice);
                    self.disks.remove(&slice);
                }
                Action::Apply { slice, steps, st, readable } => {
                    let Some(store) = self.open.get_mut(&slice) else { continue };
                    for (vb, step) in &steps {
                        match &step.batch.removal {
                            Some(removal) => store.carry_out(*vb, removal, step),
                            None => store.replace(&step.batch, &(step.after..=step.upto)),
                        }
                    }
                    if self.newest.as_ref().is_none_or(|n| n.number < st.number) {
                        self.newest = Some(Arc::clone(&st));
                    }
                    if readable {
                        checks::shown(env, &self.name, store, &st);
                    }
                }
                Action::Collect { slice, batch, after, bulk } => {
                    if let Some(store) = self.open.get_mut(&slice) {
                        store.collect(&batch, after, bulk);
                    }
                }
                Action::Compare { slice, session, batch, after, proven } => {
                    if let Some(store) = self.open.get_mut(&slice) {
                        store.compare(session, &batch, after, proven);
                    }
                }
                Action::Sweep { .. } | Action::Floor { .. } => todo.extend(self.walk_or_wait(env, action)),
                Action::BeginStage { slice, reconcile, vbs } => {
                    if let Some(store) = self.open.get_mut(&slice) {
                        store.begin_stage(reconcile, vbs);
                    }
                }
                Action::DropStage { slice } => {
                    if let Some(store) = self.open.get_mut(&slice) {
                        store.drop_stage();
                    }
                }
                Action::Stage { slice, batch, after } => {
                    if let Some(store) = self.open.get_mut(&slice) {
                        store.stage(&batch, after);
                    }
                }
                Action::EndStage { slice, vb, upto, .. } => {
                    if let Some(store) = self.open.get_mut(&slice) {
                        store.end_stage(vb, upto);
                        if env.faulty && env.rng.chance(30) {
                            store.overfull();
                            self.core.unprepared(slice);
                        }
                    }
                    todo.extend(self.walk_or_wait(env, action));
                }
                Action::Persist { slice, mark, topic, why } => {
                    let begun = self.open.get_mut(&slice).is_some_and(|s| s.begin_persist(mark.clone(), topic, why));
                    if !begun {
                        todo.extend(self.core.persisted(slice, &mark, topic, false));
                    }
                }
                Action::Purge { session, below } => {
                    if let Some(topic) = env.catchups.get_mut(&session) {
                        topic.messages = topic.messages.split_off(&below);
                    }
                }
                Action::Ask { numbers } => {
                    env.count("timestamps asked for");
                    let missed = Missed { bucket: BUCKET.into(), term: self.core.term(), numbers };
                    env.mail(Letter::Missed(missed));
                }
                Action::Report => self.notable = true,
            }
        }
    }

    fn open_slice(&mut self, slice: SliceName, reset: bool) -> Vec<Action> {
        let Some(bucket) = self.context.buckets.get(BUCKET) else { return Vec::new() };
        let Some(index) = bucket.indexes.get(&slice.index) else { return Vec::new() };
        let partitions = index.placed.hosts.len() as u32;
        let before = self.open.remove(&slice).map(|store| store.disk).or_else(|| self.disks.remove(&slice));
        let disk = before.filter(|_| !reset).unwrap_or_else(Disk::empty);
        let newest = disk.newest_mark();
        let mark = if self.core.counts(&newest) { newest } else { disk.mark.clone() };
        let store = Store::open(slice, partitions, disk);
        let actions = self.core.opened(slice, &mark, &store.disk.kept(), store.in_bulk());
        self.open.insert(slice, store);
        actions
    }

    fn tell(&self, env: &Env, action: &Action) {
        env.say(|| match action {
            Action::Apply { slice, st, readable, .. } => {
                let at: Vec<_> = st.vbs.iter().map(|v| (v.generation, v.position, v.covered, v.reconciled)).collect();
                format!("{} {slice:?} applies {} {at:?} readable {readable}", self.name, st.number)
            }
            Action::Collect { slice, batch, after, .. }
            | Action::Compare { slice, batch, after, .. }
            | Action::Stage { slice, batch, after } => {
                let what = format!("{action:?}");
                let what = what.split(' ').next().unwrap_or_default();
                format!(
                    "{} {slice:?} {what} vb {} {:?} to {:?} after {after}",
                    self.name, batch.vb, batch.from, batch.to
                )
            }
            other => format!("{} {other:?}", self.name),
        });
    }

    fn speak(&mut self, env: &mut Env) {
        let hwt = HighWatermark {
            bucket: BUCKET.into(),
            node: self.name.clone(),
            incarnation: self.incarnation,
            hwt: self.core.high_watermark().unwrap_or_default(),
            held: (0, 0),
            durable: self.core.durable(),
            queued: 0,
        };
        if self.hwt.as_ref() != Some(&hwt) {
            self.hwt = Some(hwt.clone());
            env.mail(Letter::HighWatermark(hwt));
        }
        if self.notable || env.now >= self.beat_at {
            self.notable = false;
            self.beat_at = env.now + HEARTBEAT;
            let term = if self.started { self.core.term() } else { self.context.term };
            let anew = self.reporter.told().edition == 0 || self.reporter.term() != term;
            if std::mem::take(&mut self.asked) || anew {
                self.reporter.begin(term);
            }
            let applied = self.newest.iter().map(|st| Item::Applied { bucket: BUCKET.into(), st: st.without_wants() });
            let slices = self.core.slices().filter(|_| self.core.listens()).map(|s| Item::slice(&report(s)));
            self.reporter.set(BUCKET, applied.chain(slices).collect());
            let (told, kind) = (self.reporter.told(), NodeKind::Indexer);
            let join = Join { term, report: told, ..Join::new(kind, &self.name, self.incarnation) };
            env.mail(Letter::Join(Box::new(join)));
            while let Some(part) = self.reporter.next_part(&self.name, kind, self.incarnation) {
                env.mail(Letter::Report(Box::new(part)));
            }
        }
    }

    /// The coordinator has not got all that was told.
    pub fn ask_report(&mut self) {
        (self.asked, self.notable) = (true, true);
    }

    /// Whether everything that it hosts shows this ST, and how many slices those are.
    pub fn shows(&self, number: u64) -> Option<usize> {
        let all = self.core.slices().all(|s| s.mode == Mode::InStep && s.readable && s.applied == number);
        (all && self.paused.is_empty()).then_some(self.core.slices().count())
    }

    pub fn describe(&self) -> Vec<String> {
        let of = |s: &highwater_indexer::core::Slice| {
            format!(
                "{} {:?} {:?} readable {} applied {} compare {} bulk {} persisting {} done with {} following {:?} staging {:?} {} at {:?}",
                self.name,
                s.name,
                s.mode,
                s.readable,
                s.applied,
                s.compare,
                s.bulk,
                s.persisting,
                s.done_with,
                s.following,
                s.staging.is_some(),
                s.staged,
                s.vbs
            )
        };
        self.core.slices().map(of).collect()
    }
}

fn report(s: &highwater_indexer::core::Slice) -> SliceReport {
    SliceReport {
        session: s.following.as_ref().map_or(0, |f| f.id),
        done_with: s.done_with,
        resume: s.resume(),
        docs_done: s.docs_done,
        error: match &s.mode {
            Mode::Failed(why) => Some(why.clone()),
            _ => None,
        },
        compare: s.compare,
        branch: branch_of(s.vbs.iter().map(|vb| vb.vbuuid)),
        content: s.vbs.iter().map(|vb| vb.content).collect(),
        staged: s.staged,
        unstaged: s.unstaged,
        ..SliceReport::new(BUCKET, s.name, s.state())
    }
}

/// What the log says of a node.
fn view(node: &str, incarnation: u64, term: u64, bucket: &Bucket) -> BucketView {
    let branch = |f: &highwater_schemas::state::Failover| Branch { vbuuid: f.vbuuid, start: f.start, broken: f.broken };
    let shares = bucket.vbuckets.iter().map(|v| Shares {
        vbuuid: v.vbuuid(),
        generation: v.generation,
        starts: v
            .starts
            .iter()
            .filter(|(_, s)| s.vbuuid == v.vbuuid())
            .map(|(g, s)| (*g, Start { x: s.x, term: s.term, merged: s.merged }))
            .collect(),
        branches: v.failover.iter().map(branch).collect(),
    });
    let slices = bucket.live_indexes().flat_map(|(number, index)| {
        let hosts = index.placed.hosts.iter().enumerate().filter(|(_, host)| *host == node);
        hosts.map(move |(partition, _)| (SliceName { index: number, partition: partition as u32 }, index.topology))
    });
    let own = bucket.sessions.values().filter(|s| s.node == node && s.incarnation == incarnation);
    let sessions = own.map(|s| {
        let open = OpenSession {
            slices: s.slices.clone(),
            from: s.vbs.iter().map(|v| v.from).collect(),
            reconciled: s.vbs.iter().map(|v| v.reconciled).collect(),
            lists: s.kind.lists(),
            stages: bucket.reconcile.as_ref().filter(|_| s.kind == SessionKind::Reconcile).map(|r| r.id),
        };
        (s.id, open)
    });
    let (shares, slices, sessions) = (shares.collect(), slices.collect(), sessions.collect());
    let numbers_below = bucket.numbers_below;
    BucketView { term, numbers_below, topology: bucket.topology, shares, slices, sessions }
}
