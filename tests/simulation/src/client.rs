//! Administrators: one request after the other, to whoever seems to coordinate.

use crate::{
    message::{Answer, Ask, Message, Purpose},
    node::Node,
    world::{Event, World},
};
use highwater_coordinator::core::Ddl;
use highwater_schemas::{
    ApiError,
    api::{BucketListRequest, BucketRemove, IndexBuild, IndexDrop},
    definition::{BucketDefinition, IndexDefinition},
};
use serde_json::{Value, json};

const PATIENCE: u64 = 6_000;
/// After the last fault administrators go on for so long; then they only look.
const GO_ON: u64 = 6_000;
const BUCKETS: [&str; 3] = ["a", "b", "c"];

/// One administrator.
#[derive(Debug)]
pub struct Client {
    open: Option<(Ask, Ddl)>,
    names: u64,
    pub answered_at: u64,
    /// (bucket, index) still to be built.
    deferred: Vec<(String, String)>,
}

impl Client {
    pub fn new() -> Self {
        Self { open: None, names: 0, answered_at: 0, deferred: Vec::new() }
    }
}

impl World {
    /// Time for the next request.
    pub(crate) fn client(&mut self, at: usize) {
        let masters: Vec<usize> = (0..self.managers.len()).filter(|m| self.managers[*m].leading().is_some()).collect();
        let any = self.rng.below(self.managers.len() as u64) as usize;
        let to = if self.rng.chance(150) { any } else { self.rng.pick(&masters).unwrap_or(any) };
        let ddl = if self.resting() { Ddl::BucketList(BucketListRequest::default()) } else { self.next_ddl(at) };
        let me = Node::catalog(at);
        let ask = self.ask(me, Purpose::Ddl, PATIENCE);
        self.oracle.asked(&ddl);
        self.say(|| format!("{me} asks m{to} {ddl:?}"));
        self.clients[at].open = Some((ask, ddl.clone()));
        self.send(me, Node::manager(to), Message::Admin { ask, ddl });
    }

    /// Nothing is asked for any more that changes anything.
    pub(crate) fn resting(&self) -> bool {
        self.calm && self.now >= self.calm_at + GO_ON
    }

    fn next_ddl(&mut self, at: usize) -> Ddl {
        let bucket = BUCKETS[self.rng.below(BUCKETS.len() as u64) as usize].to_owned();
        let known = self.oracle.indexes();
        // Each has its own names: what one does to an index does not cross with what the other does.
        let own: Vec<_> = known.into_iter().filter(|(_, name)| name.starts_with(&format!("x{at}_"))).collect();
        let room = own.len() < 12;
        let client = &mut self.clients[at];
        match self.rng.below(100) {
            0..=49 if room => {
                client.names += 1;
                let name = format!("x{at}_{}", client.names);
                let deferred = self.rng.chance(200);
                if deferred {
                    client.deferred.push((bucket.clone(), name.clone()));
                }
                let value = json!({"bucket": bucket, "name": name, "keys": ["a"], "defer_build": deferred,
                    "num_partition": self.rng.range(1, 3)});
                match serde_json::from_value::<IndexDefinition>(value) {
                    Ok(definition) => Ddl::IndexCreate(definition),
                    Err(_) => Ddl::BucketList(BucketListRequest::default()),
                }
            }
            0..=69 => match self.rng.pick(&own) {
                Some((bucket, name)) => Ddl::IndexDrop(IndexDrop { bucket, name }),
                None => Ddl::BucketList(BucketListRequest::default()),
            },
            70..=79 => match client.deferred.pop() {
                Some((bucket, name)) => Ddl::IndexBuild(IndexBuild { bucket, names: vec![name] }),
                None => Ddl::BucketList(BucketListRequest::default()),
            },
            80..=94 if at == 0 => {
                let value = json!({"name": "s", "source": {"streams": [{"name": "S0"}, {"name": "S1"}]}});
                match serde_json::from_value::<BucketDefinition>(value) {
                    Ok(definition) => Ddl::BucketAdd(definition),
                    Err(_) => Ddl::BucketList(BucketListRequest::default()),
                }
            }
            95..=99 if at == 0 => Ddl::BucketRemove(BucketRemove { name: "s".into() }),
            _ => Ddl::BucketList(BucketListRequest::default()),
        }
    }

    pub(crate) fn client_hears(&mut self, at: usize, message: Message) {
        let Message::Outcome(Purpose::Ddl, answer) = message else { return };
        let me = Node::catalog(at);
        let ok = matches!(&answer, Some(Answer::Ddl(Ok(_))));
        self.say(|| format!("{me} hears {answer:?}"));
        let client = &mut self.clients[at];
        client.open = None;
        if ok || matches!(&answer, Some(Answer::Ddl(Err(e))) if e.code != highwater_schemas::ErrorCode::NoCoordinator) {
            client.answered_at = self.now;
        }
        self.invariants.count(if ok { "DDL done" } else { "DDL refused or unanswered" }, 1);
        let wait = self.rng.range(50, 600);
        self.queue.push(self.now + wait, Event::Client(at));
    }

    /// An answer leaves an index manager.
    pub(crate) fn observe_reply(&mut self, from: usize, ask: Ask, answer: &Result<Value, ApiError>) {
        let node = &self.managers[from];
        if let Some(machine) = &node.machine
            && answer.is_ok()
            && node.disk.version() < machine.context().version
        {
            let why = format!("I2: m{from} acknowledges what is not durable in its copy");
            self.fail(why);
        }
        let open =
            self.clients.iter().find_map(|c| c.open.as_ref().filter(|(open, _)| *open == ask).map(|o| o.1.clone()));
        // Who has stopped waiting does not know, but for what no later answer can change.
        if let Some(ddl) = open {
            self.oracle.told(&ddl, answer);
        }
    }
}
