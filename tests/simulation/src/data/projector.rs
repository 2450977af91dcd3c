//! A stand-in for a projector's process: it follows the log, and runs the tasks that are its own.

use super::{
    env::{BUCKET, Env, Letter},
    lane::LaneInfo,
    plan::Plan,
    task::{Assignment, End, KnownToAll, Task},
};
use highwater_projector::verify::Known;
use highwater_schemas::{
    Position,
    api::{Join, NodeKind, Suspicion},
    lane::LaneTarget,
    report::{Item, Reporter},
    state::{Bucket, SessionKind, StateContext},
    timestamp::Asked,
};
use std::collections::{BTreeMap, BTreeSet};

const HEARTBEAT: u64 = 200;

/// Vbucket, generation, session.
type Key = (u16, u64, u64);

/// One projector.
pub struct Projector {
    pub name: String,
    pub incarnation: u64,
    pub up: bool,
    context: StateContext,
    followed: usize,
    tasks: BTreeMap<Key, Task>,
    /// Ended, until the log wants others.
    ended: BTreeSet<Key>,
    known_to_all: BTreeMap<(u16, u64), KnownToAll>,
    suspicions: Vec<Suspicion>,
    broken: BTreeSet<u64>,
    /// Vbuckets, with the generation, whose chains cannot go on.
    lost: BTreeSet<(u16, u64)>,
    beat_at: u64,
    reporter: Reporter,
    asked: bool,
}

impl Projector {
    pub fn new(at: usize) -> Self {
        Self {
            name: format!("p{at}"),
            incarnation: 1,
            up: true,
            context: StateContext::default(),
            followed: 0,
            tasks: BTreeMap::new(),
            ended: BTreeSet::new(),
            known_to_all: BTreeMap::new(),
            suspicions: Vec::new(),
            broken: BTreeSet::new(),
            lost: BTreeSet::new(),
            beat_at: 0,
            reporter: Reporter::default(),
            asked: false,
        }
    }

    pub fn restart(&mut self) {
        let incarnation = self.incarnation + 1;
        *self = Self { name: self.name.clone(), incarnation, ..Self::new(0) };
    }

    pub fn follow(&mut self, env: &mut Env, most: usize) {
        if env.follow(&mut self.context, &mut self.followed, most) {
            self.reconcile(env);
        }
    }

    fn reconcile(&mut self, env: &mut Env) {
        let mut wanted: BTreeMap<Key, Plan> = BTreeMap::new();
        let Some(bucket) = self.context.buckets.get(BUCKET) else { return };
        for (vb, vbucket) in bucket.vbuckets.iter().enumerate() {
            let ours = vbucket.projector == self.name && vbucket.incarnation == self.incarnation;
            if !ours || vbucket.start_of(vbucket.generation).is_none() {
                continue;
            }
            let key = |session| (vb as u16, vbucket.generation, session);
            wanted.insert(key(0), Plan::live(bucket, vb));
            for session in bucket.sessions.values() {
                if session.vbs.get(vb).is_some_and(|s| s.generation == vbucket.generation) {
                    wanted.insert(key(session.id), Plan::session(bucket, session));
                }
            }
        }
        self.tasks.retain(|key, _| wanted.contains_key(key));
        self.ended.retain(|key| wanted.contains_key(key));
        for (key, plan) in wanted {
            match self.tasks.get_mut(&key) {
                Some(task) => task.replan(env, plan),
                None if self.ended.contains(&key) => {}
                None => {
                    if let Some(assignment) = assignment(bucket, key) {
                        if key.2 == 0 {
                            self.known_to_all.insert((key.0, key.1), KnownToAll::default());
                        }
                        self.tasks.insert(key, Task::new(assignment, plan));
                    }
                }
            }
        }
    }

    /// Each of its tasks goes on a little.
    pub fn step(&mut self, env: &mut Env) {
        let keys: Vec<Key> = self.tasks.keys().copied().collect();
        for key in keys {
            if env.faulty && env.rng.chance(350) {
                continue;
            }
            let Some(task) = self.tasks.get_mut(&key) else { continue };
            let all = self.known_to_all.entry((key.0, key.1)).or_default();
            task.lane.step(env);
            if let Err(end) = task.step(env, all) {
                self.ended(env, key, end);
            }
        }
        if env.now >= self.beat_at {
            self.beat(env);
        }
    }

    fn ended(&mut self, env: &mut Env, key: Key, end: End) {
        let name = &self.name;
        env.say(|| format!("{name} {key:?} ends: {end:?}"));
        let vbuuid = self.tasks.remove(&key).map_or(0, |task| task.assignment.lane.vbuuid);
        match end {
            End::Again => {
                self.reconcile(env);
                return;
            }
            End::Lost => {
                env.count("chains lost");
                self.ended.insert(key);
                self.lost.insert((key.0, key.1));
            }
            End::Broken => {
                env.count("sessions broken");
                self.ended.insert(key);
                self.broken.insert(key.2);
            }
            End::Suspected(s) => {
                env.count("suspicions");
                self.ended.insert(key);
                self.suspicions.push(Suspicion {
                    bucket: BUCKET.into(),
                    vb: key.0,
                    vbuuid,
                    reason: s.reason,
                    intact: s.intact,
                    last: s.last,
                    broken: s.broken,
                    bookmarks: s.bookmarks,
                });
            }
        }
        self.beat(env);
    }

    fn beat(&mut self, env: &mut Env) {
        self.beat_at = env.now + HEARTBEAT;
        let bucket = self.context.buckets.get(BUCKET);
        self.suspicions
            .retain(|s| bucket.and_then(|b| b.vbuckets.get(usize::from(s.vb))).is_some_and(|v| v.vbuuid() == s.vbuuid));
        self.broken.retain(|id| bucket.is_some_and(|b| b.sessions.contains_key(id)));
        self.lost.retain(|(vb, generation)| {
            bucket.and_then(|b| b.vbuckets.get(usize::from(*vb))).is_some_and(|v| v.generation == *generation)
        });
        let newest = bucket.map_or(0, Bucket::newest_reconcile);
        let live = self.tasks.keys().filter(|(_, _, session)| *session == 0);
        let asked = live.filter_map(|(vb, g, _)| self.known_to_all.get(&(*vb, *g)).map(|all| all.reconcile_after));
        let asked = asked.filter(|after| *after > newest).max();
        let bucket = || BUCKET.to_owned();
        let reconcile = asked.map(|after| Item::Reconcile { bucket: bucket(), after: after - 1 });
        let live = self.tasks.keys().filter(|(_, _, session)| *session == 0);
        let waiting = live.filter_map(|(vb, g, _)| self.known_to_all.get(&(*vb, *g)).map(|all| all.names_after));
        let named = waiting.filter(|after| *after > 0).max();
        let named = named.map(|after| Item::Named { bucket: bucket(), after: after - 1 });
        let lost = self.lost.iter();
        let lost = lost.map(|(vb, generation)| Item::LostChain { bucket: bucket(), vb: *vb, generation: *generation });
        let broken = self.broken.iter().map(|session| Item::BrokenSession { bucket: bucket(), session: *session });
        let items = self
            .suspicions
            .iter()
            .map(Item::suspicion)
            .chain(reconcile)
            .chain(named)
            .chain(lost)
            .chain(broken)
            .collect();
        let term = self.context.term;
        let anew = self.reporter.told().edition == 0 || self.reporter.term() != term;
        if std::mem::take(&mut self.asked) || anew {
            self.reporter.begin(term);
        }
        self.reporter.set(BUCKET, items);
        let (told, kind) = (self.reporter.told(), NodeKind::Projector);
        let join = Join { term, report: told, ..Join::new(kind, &self.name, self.incarnation) };
        env.mail(Letter::Join(Box::new(join)));
        while let Some(part) = self.reporter.next_part(&self.name, kind, self.incarnation) {
            env.mail(Letter::Report(Box::new(part)));
        }
    }

    /// The coordinator has not got all that was told.
    pub fn ask_report(&mut self) {
        (self.asked, self.beat_at) = (true, 0);
    }

    pub fn want(&mut self, seq: u64) {
        for (_, task) in self.tasks.iter_mut().filter(|((_, _, session), _)| *session == 0) {
            task.waiting.note(Asked { catalog: 1, seq });
        }
    }

    pub fn describe(&self) -> Vec<String> {
        self.tasks.values().map(|task| format!("{} {}", self.name, task.describe())).collect()
    }
}

fn assignment(bucket: &Bucket, (vb, generation, session): Key) -> Option<Assignment> {
    let vbucket = bucket.vbuckets.get(usize::from(vb))?;
    let x = vbucket.start_of(generation)?;
    let durable = bucket.history.last().and_then(|st| st.vbs.get(usize::from(vb)));
    let durable = durable.filter(|st| st.vbuuid == vbucket.vbuuid());
    let opened = bucket.sessions.get(&session);
    let (target, from) = match opened {
        Some(s) => (LaneTarget::Catchup { session }, s.vbs.get(usize::from(vb)).map_or(0, |s| s.from)),
        None => (LaneTarget::Mutation, vbucket.restart),
    };
    let lists = opened.is_some_and(|s| s.kind.lists());
    Some(Assignment {
        lane: LaneInfo {
            vb,
            vbuuid: vbucket.vbuuid(),
            generation,
            target,
            from: Position::new(if lists { 0 } else { from }, x.round),
            dropped: vbucket.dropped,
            created: 0,
        },
        lists,
        ends_listed: opened.is_some_and(|s| s.kind == SessionKind::Reconcile),
        known: Known {
            created: durable.map_or(0, |st| st.created),
            first_seq: 0,
            position: x.seqno.max(vbucket.restart),
            held: vbucket.held,
            bookmarks: vbucket.bookmarks.clone(),
            doubt: None,
        },
    })
}
