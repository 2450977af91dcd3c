//! One run: steps in which everything goes on a little and something may go wrong, then rest.

use super::{
    checks,
    coordinator::Coordinator,
    env::{BUCKET, Env, Letter, Request},
    indexer::Indexer,
    projector::Projector,
    source::{KEYS, Source},
};
use crate::{rng::Rng, world::Outcome};
use highwater_coordinator::core::Event;

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct DataLimits {
    /// Steps with faults.
    pub steps: u64,
    /// Nothing goes wrong at all.
    pub calm: bool,
}

impl Default for DataLimits {
    fn default() -> Self {
        Self { steps: 700, calm: false }
    }
}

/// How often things happen in a run, in a thousand steps.
#[derive(Debug)]
struct Weights {
    write: u64,
    delete: u64,
    /// Atomic batches, of a thousand writes.
    batch: u64,
    hot: bool,
    remove: u64,
    restart: u64,
    fault: u64,
    crash: u64,
    host: u64,
    topic: u64,
    catchup: u64,
    term: u64,
}

impl Weights {
    fn write_one(&self, source: &mut Source, rng: &mut Rng, now: u64) {
        let key = if self.hot && rng.chance(700) { 0 } else { rng.below(KEYS as u64) as usize };
        if !source.is_taking_a_batch() && rng.chance(self.batch) {
            source.begin_batch(rng.range(1, 9));
        }
        source.write(key, !rng.chance(self.delete), now);
    }
}

/// A simulated data path.
pub struct DataWorld {
    env: Env,
    limits: DataLimits,
    weights: Weights,
    coordinator: Coordinator,
    projectors: Vec<Projector>,
    indexers: Vec<Indexer>,
    /// When a node that is down comes back.
    back_at: Vec<u64>,
    want: u64,
    runs: Vec<(u64, u64)>,
}

impl DataWorld {
    pub fn new(seed: u64, limits: DataLimits, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let (vbs, projectors, indexers) = (rng.range(1, 2), rng.range(1, 2), rng.range(1, 2));
        let some = |rng: &mut Rng, most: u64| if limits.calm || rng.chance(400) { 0 } else { rng.below(most) };
        let weights = Weights {
            write: rng.range(50, 500),
            delete: rng.range(50, 300),
            batch: if rng.chance(500) { 0 } else { rng.range(10, 400) },
            hot: rng.chance(300),
            remove: some(&mut rng, 25),
            restart: some(&mut rng, 8),
            fault: some(&mut rng, 8),
            crash: some(&mut rng, 12),
            topic: some(&mut rng, 8),
            catchup: some(&mut rng, 8),
            term: some(&mut rng, 6),
            host: some(&mut rng, 6),
        };
        let mut env = Env::new(rng, vbs as usize, verbose);
        let coordinator = Coordinator::new(&mut env, indexers as usize);
        Self {
            runs: vec![(0, 0); env.sources.len()],
            env,
            limits,
            weights,
            coordinator,
            projectors: (0..projectors as usize).map(Projector::new).collect(),
            indexers: (0..indexers as usize).map(Indexer::new).collect(),
            back_at: vec![0; (projectors + indexers) as usize],
            want: 0,
        }
    }

    pub fn run(mut self) -> Outcome {
        let weights = &self.weights;
        self.env.say(|| format!("{weights:?}"));
        for _ in 0..20 {
            self.turn(5);
        }
        self.coordinator.declare(&mut self.env);
        let partitions = self.env.rng.range(1, 2);
        self.coordinator.create(&mut self.env, "i1", partitions);
        self.env.faulty = !self.limits.calm;
        let second = self.env.rng.below(self.limits.steps);
        for step in 0..self.limits.steps {
            if step == second {
                let partitions = self.env.rng.range(1, 2);
                self.coordinator.create(&mut self.env, "i2", partitions);
            }
            self.happen();
            let ms = if self.env.rng.chance(8) { self.env.rng.below(2_500) } else { self.env.rng.range(1, 8) };
            self.turn(ms);
            if self.env.broken.is_some() {
                break;
            }
        }
        if self.env.broken.is_none() {
            self.rest();
        }
        Outcome { failure: self.env.broken, stats: self.env.stats }
    }

    /// Everything goes on a little.
    fn turn(&mut self, ms: u64) {
        let env = &mut self.env;
        env.now += ms;
        env.step += 1;
        while let Some(letter) = env.due() {
            match letter {
                Letter::Sync(sync) => self.coordinator.event(env, Event::Sync(sync)),
                Letter::Join(join) => self.coordinator.event(env, Event::Join(*join)),
                Letter::Report(part) => self.coordinator.event(env, Event::Report(*part)),
                Letter::AskReport(node) => {
                    let mut indexers = self.indexers.iter_mut().filter(|indexer| indexer.up);
                    let mut projectors = self.projectors.iter_mut().filter(|projector| projector.up);
                    if let Some(indexer) = indexers.find(|indexer| indexer.name == node) {
                        indexer.ask_report();
                    } else if let Some(projector) = projectors.find(|projector| projector.name == node) {
                        projector.ask_report();
                    }
                }
                Letter::HighWatermark(hwt) => self.coordinator.event(env, Event::HighWatermark(hwt)),
                Letter::Missed(missed) => self.coordinator.event(env, Event::Missed(missed)),
                Letter::Stability(to, stability) => {
                    if self.indexers[to].up {
                        self.indexers[to].stability(&stability);
                    }
                }
                Letter::Want(to, seq) => {
                    if self.projectors[to].up {
                        self.projectors[to].want(seq);
                    }
                }
            }
        }
        self.coordinator.tick(env);
        for projector in self.projectors.iter_mut().filter(|p| p.up) {
            if !env.faulty || env.rng.chance(400) {
                let most = if env.faulty { env.rng.range(1, 6) as usize } else { usize::MAX };
                projector.follow(env, most);
            }
            projector.step(env);
        }
        for indexer in self.indexers.iter_mut().filter(|i| i.up) {
            if !env.faulty || env.rng.chance(400) {
                let most = if env.faulty { env.rng.range(1, 6) as usize } else { usize::MAX };
                indexer.follow(env, most);
            }
            if !env.faulty || env.rng.chance(700) {
                indexer.step(env);
            }
        }
        for (at, due) in self.back_at.iter().enumerate().filter(|(_, due)| **due <= env.now) {
            let _ = due;
            match at.checked_sub(self.projectors.len()) {
                None => self.projectors[at].up = true,
                Some(at) => self.indexers[at].up = true,
            }
        }
    }

    /// Documents are written and vanish, requests come, things break.
    fn happen(&mut self) {
        let (env, weights) = (&mut self.env, &self.weights);
        let (now, step) = (env.now, env.step);
        for vb in 0..env.sources.len() {
            let (source, rng) = (&mut env.sources[vb], &mut env.rng);
            let (run, epoch) = (source.run, source.epoch);
            while rng.chance(weights.write) {
                weights.write_one(source, rng, now);
            }
            if rng.chance(weights.remove) && !source.is_taking_a_batch() {
                let gone = source.remove(rng, now, step);
                // Somebody may hear what is removed.
                let heard: Vec<_> = gone.into_iter().filter(|_| rng.chance(700)).collect();
                env.hints[vb].extend(heard);
                env.count("removals without a message");
            }
            let (source, rng) = (&mut env.sources[vb], &mut env.rng);
            if rng.chance(30) {
                source.save();
            }
            if rng.chance(weights.restart) {
                source.restart();
                env.count("restarts of the server");
                env.say(|| format!("source {vb} restarts"));
            }
            let (source, rng) = (&mut env.sources[vb], &mut env.rng);
            if rng.chance(weights.fault) {
                let what = source.fault(rng, step);
                env.count("faults of sources");
                let source = &env.sources[vb];
                env.say(|| format!("source {vb} {what}: last {} with {:?}", source.last_seq, source.messages));
            }
            if env.sources[vb].epoch != epoch && env.sources[vb].ends_inside_a_batch() {
                env.count("batches cut by a fault");
            }
            let (source, rng) = (&mut env.sources[vb], &mut env.rng);
            if source.run != run && rng.chance(400) {
                // Clients are back before anybody looks at it.
                for _ in 0..rng.range(1, 4 * KEYS as u64) {
                    weights.write_one(source, rng, now);
                }
                env.count("restarts that are overwritten");
            }
        }
        if env.rng.chance(40) {
            self.request();
        }
        self.break_nodes();
        self.break_host();
        self.break_topics();
        if self.env.rng.chance(self.weights.term) {
            self.coordinator.succeed(&mut self.env);
            self.env.count("terms");
        }
    }

    fn request(&mut self) {
        let env = &mut self.env;
        let Some(bucket) = self.coordinator.context().buckets.get(BUCKET) else { return };
        self.want += 1;
        let mut vbs = Vec::new();
        for (vb, source) in env.sources.iter().enumerate() {
            let state = source.state();
            if self.runs[vb].0 != source.run {
                self.runs[vb] = (source.run, self.want);
            }
            let vbuuid = bucket.vbuckets[vb].vbuuid();
            vbs.push((state.last_seq, source.line(), vbuuid, state.created, state.last_time, self.runs[vb].1));
        }
        env.requests.push(Request { since: self.want, vbs });
        if env.requests.len() > 6 {
            env.requests.remove(0);
        }
        for projector in 0..self.projectors.len() {
            env.mail(Letter::Want(projector, self.want));
        }
    }

    fn break_nodes(&mut self) {
        let env = &mut self.env;
        if !env.rng.chance(self.weights.crash) {
            return;
        }
        let at = env.rng.below(self.back_at.len() as u64) as usize;
        let down = if env.rng.chance(300) { env.rng.below(3_000) } else { env.rng.below(200) };
        self.back_at[at] = env.now + down;
        env.count("crashes");
        match at.checked_sub(self.projectors.len()) {
            None => {
                self.projectors[at].restart();
                self.projectors[at].up = false;
            }
            Some(at) => self.indexers[at].crash(),
        }
        env.say(|| format!("node {at} is down for {down}"));
    }

    /// The machine of a projector, an indexer and the coordinator goes down: what only that indexer had applied nobody knows.
    fn break_host(&mut self) {
        let env = &mut self.env;
        if !env.rng.chance(self.weights.host) {
            return;
        }
        let (projectors, indexers) = (self.projectors.len(), self.indexers.len());
        let projector = env.rng.below(projectors as u64) as usize;
        let indexer = env.rng.below(indexers as u64) as usize;
        let down = env.rng.range(50, 1_500);
        self.back_at[projector] = env.now + down;
        self.back_at[projectors + indexer] = env.now + down;
        self.projectors[projector].restart();
        self.projectors[projector].up = false;
        self.indexers[indexer].crash();
        self.coordinator.succeed(env);
        env.count("hosts lost");
        env.say(|| format!("the host of projector {projector} and indexer {indexer} is down for {down}"));
    }

    fn break_topics(&mut self) {
        let env = &mut self.env;
        if env.rng.chance(self.weights.topic) {
            let topic = &mut env.topic;
            topic.epoch += 1;
            let what = match env.rng.below(3) {
                0 => {
                    let lost = env.rng.range(1, 4);
                    for _ in 0..lost {
                        topic.messages.pop_last();
                    }
                    topic.last = topic.messages.last_key_value().map_or(0, |(seq, _)| *seq);
                    "lost its tail"
                }
                1 => {
                    for _ in 0..env.rng.range(1, 30) {
                        topic.messages.pop_first();
                    }
                    "dropped its head"
                }
                _ => {
                    let epoch = topic.epoch;
                    *topic = super::env::Topic { created: env.now as i64, epoch, ..super::env::Topic::default() };
                    "was made anew"
                }
            };
            env.count("faults of the mutation topic");
            env.say(|| format!("mutation topic {what}"));
        }
        if env.rng.chance(self.weights.catchup) {
            let ids: Vec<u64> = env.catchups.keys().copied().collect();
            if let Some(topic) = env.rng.pick(&ids).and_then(|id| env.catchups.get_mut(&id)) {
                topic.epoch += 1;
                topic.messages.pop_last();
                topic.last = topic.messages.last_key_value().map_or(0, |(seq, _)| *seq);
                env.count("faults of catchup topics");
            }
        }
    }

    /// Nothing goes wrong any more, and nothing is written.
    fn rest(&mut self) {
        self.env.faulty = false;
        self.back_at.fill(0);
        for source in &mut self.env.sources {
            while source.is_taking_a_batch() {
                source.write(0, true, self.env.now);
            }
        }
        for round in 0..2 {
            if !self.settles() {
                if self.env.broken.is_none() {
                    let why = self.describe();
                    self.env.violated(format!("I5: it does not come to rest ({round}): {why}"));
                }
                return;
            }
            if round == 0 {
                self.coordinator.reconcile(&mut self.env);
                for _ in 0..3 {
                    self.turn(10);
                }
            }
        }
        for indexer in &self.indexers {
            for store in indexer.open.values() {
                checks::rests(&mut self.env, &indexer.name, store);
            }
        }
    }

    /// Waits until every slice shows the newest timestamp, and that is the source as it is.
    fn settles(&mut self) -> bool {
        let mut good = 0;
        for turn in 0..3_000 {
            self.turn(if turn % 50 == 0 { 300 } else { 10 });
            good = if self.settled() { good + 1 } else { 0 };
            if good >= 8 || self.env.broken.is_some() {
                return self.env.broken.is_none();
            }
        }
        false
    }

    fn settled(&self) -> bool {
        let Some(bucket) = self.coordinator.context().buckets.get(BUCKET) else { return false };
        let Some(st) = &self.coordinator.issued else { return false };
        let newest = st.vbs.iter().zip(&self.env.sources).zip(&bucket.vbuckets).all(|((st, source), vbucket)| {
            let at = st.position.seqno;
            st.vbuuid == vbucket.vbuuid() && at == st.covered && at == source.last_seq
        });
        let reconciles = bucket.reconcile.is_some() || bucket.naming.is_some();
        let quiet = bucket.rollback.is_none() && !reconciles && bucket.sessions.is_empty();
        let slices: usize = bucket.live_indexes().map(|(_, index)| index.placed.hosts.len()).sum();
        let shown: Option<usize> = self.indexers.iter().map(|i| i.shows(st.number)).sum();
        newest && quiet && slices > 0 && shown == Some(slices)
    }

    fn describe(&self) -> String {
        let bucket = self.coordinator.context().buckets.get(BUCKET);
        let mut out = vec![String::new()];
        out.extend(bucket.map(|b| {
            format!(
                "sessions {:?}, rollback {:?}, reconcile {:?}, {:?}",
                b.sessions, b.rollback, b.reconcile, b.vbuckets
            )
        }));
        out.push(format!("ST {:?}", self.coordinator.issued));
        out.extend(self.env.sources.iter().map(|s| format!("source {:?}", s.state())));
        out.extend(self.projectors.iter().flat_map(Projector::describe));
        out.extend(self.indexers.iter().flat_map(Indexer::describe));
        out.join("\n    ")
    }
}
