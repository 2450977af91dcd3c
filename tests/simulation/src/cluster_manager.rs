//! A cluster manager: its state machine, driven as the service's loop drives it.

use crate::{
    message::{Answer, Inbox, Message, Purpose, Request},
    node::{Node, Process},
    world::World,
};
use highwater_cluster_manager::{
    Config,
    core::{Action, Core, Event, Seen},
};
use highwater_schemas::api::{LeaseWritten, Leave, NodeKind};
use std::rc::Rc;

/// How long the bus waits for the bucket, and for an index manager's answer.
const BUCKET: u64 = 2_000;
const BOOTSTRAP: u64 = 1_000;

/// One cluster manager.
pub struct ClusterManagerNode {
    pub process: Process,
    pub inbox: Inbox,
    pub core: Option<Core>,
    started: u64,
    lease: u64,
}

impl ClusterManagerNode {
    pub fn new(at: usize) -> Self {
        Self {
            process: Process::new(Node::cluster_manager(at)),
            inbox: Inbox::default(),
            core: None,
            started: 0,
            lease: 3_000,
        }
    }
}

impl World {
    pub(crate) fn start_cluster_manager(&mut self, at: usize) {
        self.bucket.ensure();
        let now = self.now;
        let node = &mut self.cluster_managers[at];
        let config = Config::new(node.process.node.name(), node.process.life);
        node.lease = config.lease.as_millis() as u64;
        node.started = now;
        node.core = Some(Core::new(config, 0));
    }

    pub(crate) fn run_cluster_manager(&mut self, at: usize) {
        for _ in 0..1_000 {
            let node = &mut self.cluster_managers[at];
            let ms = self.now - node.started;
            let Some(core) = node.core.as_mut() else { return };
            let due = core.next_tick(ms);
            if due <= ms {
                self.feed_cluster_manager(at, Event::Tick);
                continue;
            }
            if let Some(message) = node.inbox.take(true, &mut self.rng) {
                self.cluster_manager_hears(at, message);
                continue;
            }
            let wake = node.started + due;
            self.wake(Node::cluster_manager(at), wake);
            return;
        }
        self.wake(Node::cluster_manager(at), self.now + 1);
    }

    fn cluster_manager_hears(&mut self, at: usize, message: Message) {
        let event = match message {
            Message::Join(join) => Event::Join((*join).clone()),
            Message::Leave(leave) => Event::Leave(leave),
            Message::Cluster(event) => Event::Heard((*event).clone()),
            Message::Outcome(purpose, answer) => match (purpose, answer) {
                (Purpose::Look, Some(Answer::Seen(seen))) => Event::LeaseSeen(seen),
                (Purpose::Look, _) => Event::LeaseSeen(Seen::Failed),
                (Purpose::Write { sent_at }, Some(Answer::Written(outcome))) => {
                    Event::LeaseWritten { sent_at, outcome }
                }
                (Purpose::Write { sent_at }, _) => Event::LeaseWritten { sent_at, outcome: LeaseWritten::Unknown },
                (Purpose::MakeBucket, Some(Answer::Made(true))) => Event::BucketMade,
                (Purpose::Register { .. }, Some(Answer::Registered(true))) => return,
                (Purpose::Register { node }, _) => Event::NotRegistered { node },
                (Purpose::List, Some(Answer::Names(Some(names)))) => Event::Registered(names),
                (Purpose::Nominate { to, term }, answer) => {
                    let reply = match answer {
                        Some(Answer::Bootstrap(reply)) => Some(reply),
                        _ => None,
                    };
                    Event::BootstrapAnswered { node: to, term, reply }
                }
                _ => return,
            },
            _ => return,
        };
        self.feed_cluster_manager(at, event);
    }

    fn feed_cluster_manager(&mut self, at: usize, event: Event) {
        let me = Node::cluster_manager(at);
        let node = &mut self.cluster_managers[at];
        let ms = self.now - node.started;
        let Some(core) = node.core.as_mut() else { return };
        let was = (core.is_active(ms), core.master(ms));
        let actions = core.handle(ms, event);
        let is = (core.is_active(ms), core.master(ms));
        if was != is {
            self.say(|| format!("{me} active {}, master {:?}", is.0, is.1));
        }
        for action in actions {
            if !matches!(action, Action::Beat(_) | Action::Publish(_)) {
                self.say(|| format!("{me}: {action:?}"));
            }
            self.carry_out_cluster(at, action);
        }
    }

    fn carry_out_cluster(&mut self, at: usize, action: Action) {
        let me = Node::cluster_manager(at);
        let lease_ms = self.cluster_managers[at].lease;
        match action {
            Action::Beat(join) => {
                let message = Message::Join(Rc::new(*join));
                self.publish(me, &[NodeKind::Coordinator, NodeKind::ClusterManager], &message);
            }
            Action::Publish(event) => {
                let message = Message::Cluster(Rc::new(event));
                self.publish(me, &[NodeKind::Coordinator, NodeKind::ClusterManager], &message);
            }
            Action::ReadLease => self.request(me, Purpose::Look, Request::Look, BUCKET),
            Action::WriteLease { lease, expected } => {
                let sent_at = self.now - self.cluster_managers[at].started;
                self.request(me, Purpose::Write { sent_at }, Request::Write { lease, expected }, lease_ms / 3);
            }
            Action::ReleaseLease { revision } => {
                self.request(me, Purpose::Release, Request::Release(revision), BUCKET);
            }
            Action::MakeBucket => self.request(me, Purpose::MakeBucket, Request::MakeBucket, BUCKET),
            Action::Register { node } => {
                self.request(me, Purpose::Register { node: node.clone() }, Request::Register(node), BUCKET);
            }
            Action::ListRegistered => self.request(me, Purpose::List, Request::List, BUCKET),
            Action::Nominate { to, bootstrap } => {
                self.say(|| format!("{me} tells {to}: {} for term {}", bootstrap.master, bootstrap.term));
                let ask = self.ask(me, Purpose::Nominate { to: to.clone(), term: bootstrap.term }, BOOTSTRAP);
                if let Some(to) = Node::named(&to) {
                    self.send(me, to, Message::Nominate { ask, bootstrap });
                }
            }
        }
    }

    /// Ends as a service does that is told to: without the lease, and with a goodbye.
    pub(crate) fn cluster_manager_leaves(&mut self, at: usize, back_after: u64) {
        let process = &self.cluster_managers[at].process;
        if !process.up {
            return;
        }
        let me = process.node;
        let leave = Leave { node: me.name(), kind: NodeKind::ClusterManager, incarnation: process.life };
        self.feed_cluster_manager(at, Event::Stop);
        self.publish(me, &[NodeKind::ClusterManager], &Message::Leave(leave));
        self.crash(me, back_after);
    }
}
