//! The cluster manager's state machine: `(now, event) -> actions`.
//!
//! Any number of instances hear the same heartbeats; the one that holds the lease is active, the others are standbys that know
//! as much. Nothing is published and nobody nominated without the lease, nor while our own heartbeats do not come back.

mod election;
mod lease;
mod members;
#[cfg(test)]
mod tests;

pub use election::{FORCED, MOST_REGISTERED, PATIENCE};
pub use lease::Seen;

use crate::config::Config;
use election::Election;
use highwater_schemas::api::{
    Bootstrap, BootstrapReply, ClusterEvent, ClusterStatus, Join, Lease, LeaseWritten, Leave, Master, NodeKind,
};
use lease::Leasehold;
use members::Members;

/// Bounds of the time between two ticks, milliseconds.
const TICK: (u64, u64) = (10, 100);

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A heartbeat, our own too: those that come back are the clock by which others are missed.
    Join(Join),
    Leave(Leave),
    /// What an active instance says, our own too.
    Heard(ClusterEvent),
    /// The answer to [`Action::ReadLease`]; there is always one.
    LeaseSeen(Seen),
    /// The answer to [`Action::WriteLease`]; there is always one. It was sent at `sent_at`, or later.
    LeaseWritten {
        sent_at: u64,
        outcome: LeaseWritten,
    },
    /// The bucket was made, and is empty.
    BucketMade,
    /// The answer to [`Action::ListRegistered`]; it may be missing.
    Registered(Vec<String>),
    /// An [`Action::Register`] that failed.
    NotRegistered {
        node: String,
    },
    /// The answer to [`Action::Nominate`]; None when there was none in time.
    BootstrapAnswered {
        node: String,
        term: u64,
        reply: Option<BootstrapReply>,
    },
    /// An operator gives up index managers that are missing.
    Force,
    /// Time has passed.
    Tick,
    /// The process ends: the lease is not to be taken again.
    Stop,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Publish our own heartbeat.
    Beat(Box<Join>),
    ReadLease,
    /// Write it if its revision is this one; 0: if there is none.
    WriteLease {
        lease: Lease,
        expected: u64,
    },
    /// Remove it if its revision is this one.
    ReleaseLease {
        revision: u64,
    },
    MakeBucket,
    ListRegistered,
    /// Remember that there is this index manager.
    Register {
        node: String,
    },
    /// Send the bootstrap to this index manager.
    Nominate {
        to: String,
        bootstrap: Bootstrap,
    },
    Publish(ClusterEvent),
}

/// The state machine. Times are milliseconds of a clock that never goes back.
#[derive(Debug)]
pub struct Core {
    config: Config,
    lease: Leasehold,
    members: Members,
    election: Election,
    /// As of the last event.
    active: bool,
    /// What the active one said last, and when, while it is another.
    followed: Option<(u64, ClusterEvent)>,
    ticked: u64,
    beat_at: u64,
    /// The membership is to be published.
    say: bool,
}

impl Core {
    pub fn new(config: Config, now: u64) -> Self {
        Self {
            lease: Leasehold::new(&config),
            members: Members::new(&config, now),
            election: Election::new(&config),
            active: false,
            followed: None,
            ticked: now,
            beat_at: now,
            say: false,
            config,
        }
    }

    /// Whether this instance holds the lease.
    pub fn is_active(&self, now: u64) -> bool {
        self.lease.held(now).is_some()
    }

    /// One step.
    pub fn handle(&mut self, now: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        // First of all: we may have slept.
        self.lease.expire(now);
        self.members.wake(now);
        match event {
            Event::Join(join) => self.join(now, join),
            Event::Leave(leave) => self.leave(&leave, &mut out),
            Event::Heard(event) => self.heard(now, event, &mut out),
            Event::LeaseSeen(seen) => self.lease.seen(now, seen, &mut out),
            Event::LeaseWritten { sent_at, outcome } => {
                if outcome == LeaseWritten::NoBucket {
                    self.election.bucket_lost();
                }
                self.lease.written(sent_at, outcome, &mut out);
                self.lease.expire(now);
            }
            Event::BucketMade => {
                self.election.bucket_lost();
                self.lease.look(&mut out);
            }
            Event::Registered(nodes) => self.election.list(nodes),
            Event::NotRegistered { node } => self.election.not_registered(&node),
            Event::BootstrapAnswered { node, term, reply } => {
                self.election.answered(now, &node, term, reply.as_ref());
            }
            Event::Force => self.election.force(now),
            Event::Tick => self.tick(now, &mut out),
            Event::Stop => self.lease.stop(&mut out),
        }
        self.settle(now, &mut out);
        out
    }

    fn join(&mut self, now: u64, join: Join) {
        if join.kind == NodeKind::Coordinator
            && let Some(report) = &join.manager
        {
            let term = report.term.max(report.leading.unwrap_or(0));
            if !self.election.believes(term) {
                return;
            }
            self.election.hear(now, &join.node, term, &report.registered);
        }
        self.members.join(now, join);
    }

    fn leave(&mut self, leave: &Leave, out: &mut Vec<Action>) {
        self.members.leave(leave);
        if leave.kind == NodeKind::ClusterManager && leave.node != self.config.node && !self.active {
            // It has let go of the lease.
            self.lease.look(out);
        }
    }

    fn heard(&mut self, now: u64, event: ClusterEvent, out: &mut Vec<Action>) {
        let believed = event.master.as_ref().is_none_or(|master| self.election.believes(master.term));
        if event.cluster_manager == self.config.node || !believed {
            return;
        }
        if let Some(master) = &event.master {
            self.election.hear_term(master.term);
        }
        if self.active {
            // Both of us believe to be it.
            self.lease.look(out);
        } else if self.followed.as_ref().is_none_or(|(at, old)| event.lease >= old.lease || self.stale(now, *at)) {
            self.followed = Some((now, event));
        }
    }

    fn stale(&self, now: u64, at: u64) -> bool {
        now.saturating_sub(at) > self.config.lease_ms().max(self.config.heartbeat_ms() * 2)
    }

    fn tick(&mut self, now: u64, out: &mut Vec<Action>) {
        self.ticked = now;
        self.lease.tick(now, out);
        if now < self.beat_at {
            return;
        }
        let heartbeat = self.config.heartbeat_ms();
        self.beat_at = if now < self.beat_at + heartbeat { self.beat_at + heartbeat } else { now + heartbeat };
        let own = Join::new(NodeKind::ClusterManager, &self.config.node, self.config.incarnation);
        out.push(Action::Beat(Box::new(own)));
        if self.active {
            self.say = true;
            self.election.register(now, out);
        } else {
            self.lease.look(out);
        }
    }

    /// Does what follows from having the lease or not.
    fn settle(&mut self, now: u64, out: &mut Vec<Action>) {
        let held = self.lease.held(now);
        match (self.active, held) {
            (false, Some(_)) => {
                self.active = true;
                self.followed = None;
                self.say = true;
                self.members.listen();
                self.election.begin(now, &self.members);
                self.election.register(now, out);
            }
            (true, None) => {
                self.active = false;
                self.election.end();
            }
            _ => {}
        }
        let Some(lease) = held.filter(|_| !self.members.deaf(now)) else { return };
        self.say |= self.election.step(now, &self.members, out);
        self.say |= self.members.take_changed();
        if std::mem::take(&mut self.say) {
            out.push(Action::Publish(ClusterEvent {
                cluster_manager: self.config.node.clone(),
                lease,
                heartbeat_ms: self.config.heartbeat_ms(),
                master: self.election.master(),
                members: self.members.presences(),
            }));
        }
    }

    /// When [`Event::Tick`] is due next.
    pub fn next_tick(&self, now: u64) -> u64 {
        let every = (self.config.heartbeat_ms() / 4).clamp(TICK.0, TICK.1);
        let due = (self.ticked + every).min(self.beat_at.max(self.ticked + 1));
        self.lease.ends().map_or(due, |ends| due.min(ends)).max(now)
    }

    /// The index manager that coordinates, as far as this instance knows.
    pub fn master(&self, now: u64) -> Option<Master> {
        if self.is_active(now) { self.election.master() } else { self.following(now).and_then(|e| e.master.clone()) }
    }

    fn following(&self, now: u64) -> Option<&ClusterEvent> {
        self.followed.as_ref().filter(|(at, _)| !self.stale(now, *at)).map(|(_, event)| event)
    }

    /// Every index manager that was ever heard of.
    pub fn registered(&self) -> impl Iterator<Item = &str> {
        self.election.registered().iter().map(String::as_str)
    }

    /// What `hw.cluster.members` answers, but for what only the master knows.
    pub fn status(&self, now: u64) -> ClusterStatus {
        let active = if self.is_active(now) {
            self.config.node.clone()
        } else {
            self.following(now).map(|e| e.cluster_manager.clone()).unwrap_or_default()
        };
        let master = self.master(now);
        let (coordinator, term) = master.map_or((String::new(), 0), |m| (m.node, m.term));
        let report = self.members.manager(&coordinator).and_then(|m| m.manager.as_ref());
        ClusterStatus {
            version: report.map_or(0, |r| r.version),
            members: self.members.statuses(now, &active, &coordinator),
            more_members: false,
            cluster_manager: active,
            coordinator,
            term,
            bootstrap: Vec::new(),
            buckets: Vec::new(),
            more_buckets: false,
        }
    }
}
