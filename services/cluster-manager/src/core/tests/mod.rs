//! What the state machine promises.

mod electing;
mod holding;
mod lease_races;

use super::*;
use highwater_schemas::api::{MOST_MEMBERS, ManagerReport, Presence};
use std::time::Duration;

const HEARTBEAT: u64 = 500;
const LEASE: u64 = 3_000;

fn config(node: &str) -> Config {
    Config { heartbeat: Duration::from_millis(HEARTBEAT), ..Config::new(node, 1) }
}

/// A core with the bus as it sees it: its heartbeats come back, its looks at the lease and writes are answered at once.
struct World {
    core: Core,
    now: u64,
    /// The lease as it is in the bucket.
    lease: Option<(u64, Lease)>,
    revision: u64,
    registered: Vec<String>,
    /// Others that send heartbeats: each tick of theirs is one of ours.
    nodes: Vec<Join>,
    published: Vec<ClusterEvent>,
    nominated: Vec<(String, Bootstrap)>,
    /// Writes of the lease are not acknowledged, though they succeed.
    silent: bool,
    /// Nothing gets through to NATS.
    cut: bool,
}

impl World {
    fn new(node: &str) -> Self {
        Self {
            core: Core::new(config(node), 0),
            now: 0,
            lease: None,
            revision: 10,
            registered: Vec::new(),
            nodes: Vec::new(),
            published: Vec::new(),
            nominated: Vec::new(),
            silent: false,
            cut: false,
        }
    }

    fn handle(&mut self, event: Event) {
        for action in self.core.handle(self.now, event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Beat(_) | Action::Publish(_) if self.cut => {}
            Action::Beat(join) => self.handle(Event::Join(*join)),
            Action::Publish(event) => {
                assert!(self.core.is_active(self.now), "only the active one publishes");
                self.published.push(event);
            }
            Action::ReadLease if self.cut => self.handle(Event::LeaseSeen(Seen::Failed)),
            Action::ReadLease => {
                let seen = match &self.lease {
                    Some((revision, lease)) => Seen::Held { revision: *revision, lease: Some(lease.clone()) },
                    None => Seen::Missing,
                };
                self.handle(Event::LeaseSeen(seen));
            }
            Action::WriteLease { lease, expected } => {
                let sent_at = self.now;
                let there = self.lease.as_ref().map_or(0, |(revision, _)| *revision);
                let outcome = if self.cut {
                    LeaseWritten::Unknown
                } else if there != expected {
                    LeaseWritten::Conflict
                } else {
                    self.revision += 1;
                    self.lease = Some((self.revision, lease));
                    if self.silent { LeaseWritten::Unknown } else { LeaseWritten::Done { revision: self.revision } }
                };
                self.handle(Event::LeaseWritten { sent_at, outcome });
            }
            Action::ReleaseLease { revision } => self.lease = self.lease.take().filter(|(r, _)| *r != revision),
            Action::MakeBucket => self.handle(Event::BucketMade),
            Action::ListRegistered => self.handle(Event::Registered(self.registered.clone())),
            Action::Register { node } => self.registered.push(node),
            Action::Nominate { to, bootstrap } => self.nominated.push((to, bootstrap)),
        }
    }

    /// Time passes; everybody beats.
    fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            let before = self.now;
            self.now = self.core.next_tick(before).max(before + 1).min(end);
            if before / HEARTBEAT != self.now / HEARTBEAT && !self.cut {
                for join in self.nodes.clone() {
                    self.handle(Event::Join(join));
                }
            }
            self.handle(Event::Tick);
        }
    }

    fn active(&self) -> bool {
        self.core.is_active(self.now)
    }

    fn master(&self) -> Option<(String, u64)> {
        self.core.master(self.now).map(|m| (m.node, m.term))
    }

    /// The last bootstrap: who is to coordinate, in which term.
    fn chosen(&self) -> (&str, u64) {
        self.nominated.last().map_or(("", 0), |(_, b)| (b.master.as_str(), b.term))
    }

    fn alive(&self, node: &str) -> Option<bool> {
        let all: &[Presence] = self.published.last().map_or(&[], |e| &e.members);
        all.iter().find(|m| m.node == node).map(|m| m.alive)
    }

    fn report(&mut self, node: &str, change: impl Fn(&mut ManagerReport)) {
        let join = self.nodes.iter_mut().find(|j| j.node == node).expect(node);
        change(join.manager.as_mut().expect("an index manager"));
        let join = join.clone();
        self.handle(Event::Join(join));
    }

    /// An index manager takes the office it was nominated for.
    fn take_office(&mut self) {
        let (node, term) = self.chosen();
        let (node, term) = (node.to_owned(), term);
        for manager in self.nodes.iter_mut().filter_map(|j| j.manager.as_mut()) {
            (manager.term, manager.leading) = (term, None);
        }
        self.report(&node, |r| r.leading = Some(term));
    }

    fn answer(&mut self, node: &str, accepted: bool, term: u64) {
        let report = ManagerReport { term, ..ManagerReport::default() };
        let (_, asked) = self.chosen();
        let reply = Some(BootstrapReply { accepted, report });
        self.handle(Event::BootstrapAnswered { node: node.into(), term: asked, reply });
    }
}

fn manager(node: &str, version: u64, term: u64) -> Join {
    let report = ManagerReport { version, term, ..ManagerReport::default() };
    Join { manager: Some(report), ..Join::new(NodeKind::Coordinator, node, 7) }
}

/// Active, with index managers `a` (version 5) and `b` (version 9), of which `b` coordinates.
fn settled() -> World {
    let mut world = World::new("cm");
    world.nodes = vec![manager("a", 5, 3), manager("b", 9, 3), Join::new(NodeKind::Indexer, "i", 4)];
    world.run(2_000);
    world.take_office();
    world.run(1_000);
    assert_eq!(world.master(), Some(("b".into(), 4)));
    world
}

fn lease_of(holder: &str) -> Lease {
    Lease { holder: holder.into(), incarnation: 1, lease_ms: LEASE }
}
