//! The shell of the real coordinator: its log acknowledges everything, its term ends now and then.

use super::env::{BUCKET, Env, Letter};
use highwater_coordinator::{
    Config,
    core::{Action, Bootstrapping, Core, Ddl, Event},
};
use highwater_schemas::{
    StabilityTimestamp,
    api::{BucketReconcile, Join, NodeKind},
    definition::{BucketDefinition, IndexDefinition},
    state::{Change, StateContext},
    wire,
};
use std::{collections::VecDeque, rc::Rc, time::Duration};

const NAME: &str = "c";

/// The coordinator.
pub struct Coordinator {
    core: Core,
    indexers: usize,
    tick_at: u64,
    pub issued: Option<StabilityTimestamp>,
}

impl Coordinator {
    pub fn new(env: &mut Env, indexers: usize) -> Self {
        Self::over(env, StateContext::default(), indexers)
    }

    fn over(env: &mut Env, context: StateContext, indexers: usize) -> Self {
        let mut context = context;
        let started = context.record(Change::TermStarted { coordinator: NAME.into() }, context.term + 1, env.now);
        let json = started.to_json();
        context.offer(&json).expect("the log can be read");
        env.log.push(Rc::new(json));
        let config = Config {
            persistence_interval: Duration::from_millis(150),
            reconcile_interval: Duration::from_secs(20),
            ..Config::new(NAME, 1)
        };
        let core = Core::new(config, context, Bootstrapping::begin(env.now, String::new()), env.now);
        Self { core, indexers, tick_at: env.now, issued: None }
    }

    /// Another one takes office.
    pub fn succeed(&mut self, env: &mut Env) {
        let context = self.context().clone();
        *self = Self::over(env, context, self.indexers);
    }

    pub fn context(&self) -> &StateContext {
        self.core.context()
    }

    pub fn declare(&mut self, env: &mut Env) {
        let streams: Vec<String> =
            (0..env.sources.len()).map(|vb| format!(r#"{{"name":"S{vb}","strip_prefix":"s{vb}."}}"#)).collect();
        let json = format!(r#"{{"name":"{BUCKET}","source":{{"streams":[{}]}}}}"#, streams.join(","));
        let definition: BucketDefinition = serde_json::from_str(&json).expect("it is well-formed");
        self.ddl(env, Ddl::BucketAdd(definition));
    }

    pub fn create(&mut self, env: &mut Env, name: &str, partitions: u64) {
        let json = format!(r#"{{"bucket":"{BUCKET}","name":"{name}","keys":["a"],"num_partition":{partitions}}}"#);
        let definition: IndexDefinition = serde_json::from_str(&json).expect("it is well-formed");
        self.ddl(env, Ddl::IndexCreate(definition));
    }

    pub fn reconcile(&mut self, env: &mut Env) {
        self.ddl(env, Ddl::BucketReconcile(BucketReconcile { name: BUCKET.into() }));
    }

    fn ddl(&mut self, env: &mut Env, ddl: Ddl) {
        let probe = Ok(env.sources.iter().map(|s| s.last_seq).collect::<Vec<u64>>().into());
        let random = env.rng.next();
        self.event(env, Event::Ddl { token: 1, ddl, probe, random });
    }

    /// Time has passed.
    pub fn tick(&mut self, env: &mut Env) {
        if env.now < self.tick_at {
            return;
        }
        let echo = Join { term: self.context().term, ..Join::new(NodeKind::Coordinator, NAME, 1) };
        self.event(env, Event::Join(echo));
        let random = env.rng.next();
        self.event(env, Event::Tick { random });
        self.tick_at = self.core.next_tick(env.now).max(env.now + 1);
    }

    pub fn event(&mut self, env: &mut Env, event: Event) {
        let mut next = VecDeque::from([event]);
        while let Some(event) = next.pop_front() {
            let mut appended = false;
            for action in self.core.handle(env.now, event) {
                match action {
                    Action::Append(change) => {
                        self.append(env, change);
                        appended = true;
                    }
                    Action::Publish(stability) => {
                        let fresh = self.issued.as_ref().is_none_or(|st| st.number < stability.st.number);
                        if fresh {
                            env.count("timestamps issued");
                            self.issued = Some(stability.st.clone());
                        }
                        if !fresh && stability.wanted.is_empty() {
                            env.count("timestamps told again");
                        }
                        // As it travels.
                        let told =
                            Rc::new(wire::decode(&wire::encode(&stability)).expect("what is encoded can be read"));
                        for indexer in 0..self.indexers {
                            env.mail(Letter::Stability(indexer, Rc::clone(&told)));
                        }
                    }
                    Action::AskReport { node } => {
                        env.count("reports asked for");
                        env.mail(Letter::AskReport(node));
                    }
                    Action::Reply { answer, .. } => env.say(|| format!("answers {answer:?}")),
                    Action::EnsureStreams { job, .. } => {
                        let random = env.rng.next();
                        next.push_back(Event::StreamsEnsured { job, outcome: Ok(()), random });
                    }
                    Action::Assign { job, node, .. } => next.push_back(Event::Assigned { job, node, outcome: Ok(()) }),
                    Action::CheckTopics { term, .. } => {
                        next.push_back(Event::TopicsChecked { term, made: Ok(()), found: None });
                    }
                    Action::DeleteStreams { job, .. } => next.push_back(Event::StreamsDeleted { job }),
                    Action::PurgeSession { session, .. } => {
                        env.catchups.remove(&session);
                    }
                }
            }
            if appended {
                next.push_back(Event::Tick { random: env.rng.next() });
            }
        }
    }

    fn append(&mut self, env: &mut Env, change: Change) {
        env.say(|| format!("log: {change:?}"));
        match &change {
            Change::BranchStarted { vbuuid, broken, .. } => {
                env.began.insert(*vbuuid, env.step);
                env.count(if *broken { "branches, broken" } else { "branches, unproven" });
            }
            Change::ReconcileStarted { id, named, .. } => {
                // Of what was not named, one of named documents says no more than the one of all before it.
                let before = self.core.context().buckets.get(BUCKET).and_then(|bucket| bucket.reconciled.as_ref());
                let listed = before.and_then(|before| env.began.get(&before.id).copied()).unwrap_or(0);
                env.began.insert(*id, if *named { listed } else { env.step });
                env.count(if *named { "reconciles of named documents" } else { "reconciles of all documents" });
            }
            Change::ReconcileDone { .. } => env.count("reconciles done"),
            Change::VbucketAssigned { .. } => env.count("generations"),
            Change::RollbackDone { .. } => env.count("rollbacks done"),
            Change::SessionOpened { .. } => env.count("sessions"),
            _ => {}
        }
        let context = self.core.context();
        let json = context.record(change, context.term, env.now).to_json();
        self.core.applied(&json).expect("what the coordinator appends can be applied");
        env.log.push(Rc::new(json));
    }
}
