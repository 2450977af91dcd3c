//! A whole deployment in one thread: its processes, its server, its time.

use crate::{
    bucket::Bucket,
    client::Client,
    cluster_manager::ClusterManagerNode,
    faults::Plan,
    follower::Follower,
    indexer::IndexerNode,
    invariants::Invariants,
    log::Log,
    manager::ManagerNode,
    message::{Answer, Ask, Inbox, Message, Open, Purpose, Request},
    network::Network,
    node::{Node, Process},
    oracle::Oracle,
    projector::ProjectorNode,
    queue::Queue,
    rng::Rng,
};
use highwater_schemas::api::NodeKind;
use std::collections::BTreeMap;

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// A process's loop runs.
    Run(Node),
    /// A message reaches a process, unless it is cut off then.
    Arrive {
        to: Node,
        message: Message,
    },
    /// A request reaches the server; of an earlier life of the server's, it does not.
    Request {
        from: Node,
        ask: Ask,
        epoch: u64,
        request: Request,
    },
    /// An answer reaches who asked.
    Answer {
        ask: Ask,
        epoch: Option<u64>,
        answer: Answer,
    },
    Timeout {
        ask: Ask,
    },
    Follow {
        node: Node,
        id: u64,
    },
    Start(Node),
    Fault,
    /// The sources grow.
    Write,
    Client(usize),
    /// What must hold is looked at.
    Look,
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub failure: Option<String>,
    pub stats: BTreeMap<&'static str, u64>,
}

/// How long runs last.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Virtual milliseconds with faults.
    pub faulty: u64,
    /// Virtual milliseconds for everything to be well again.
    pub settling: u64,
    /// Also lets in what was decided before the log lost something and reaches it afterwards. An expected sequence alone does not
    /// tell such a record from a fresh one when the new log happens to have the length of the old one.
    pub stale: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { faulty: 25_000, settling: 40_000, stale: false }
    }
}

/// The deployment.
pub struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) queue: Queue<Event>,
    pub(crate) network: Network,
    pub(crate) log: Log,
    pub(crate) bucket: Bucket,
    /// Lives of the server.
    pub(crate) epoch: u64,
    pub(crate) managers: Vec<ManagerNode>,
    pub(crate) cluster_managers: Vec<ClusterManagerNode>,
    pub(crate) projectors: Vec<ProjectorNode>,
    pub(crate) indexers: Vec<IndexerNode>,
    pub(crate) clients: Vec<Client>,
    pub(crate) followers: BTreeMap<Node, Follower>,
    /// Followers that are late by so much.
    pub(crate) slow: BTreeMap<Node, u64>,
    pub(crate) asks: BTreeMap<Ask, Open>,
    asked: Ask,
    /// Last sequence of each source stream.
    pub(crate) sources: BTreeMap<(String, usize), u64>,
    pub(crate) plan: Plan,
    pub(crate) invariants: Invariants,
    pub(crate) oracle: Oracle,
    pub(crate) limits: Limits,
    pub(crate) calm: bool,
    pub(crate) calm_at: u64,
    pub(crate) failure: Option<String>,
    pub(crate) verbose: bool,
}

impl World {
    pub fn new(seed: u64, limits: Limits, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(&mut rng);
        let mut world = Self {
            now: 1_000,
            queue: Queue::default(),
            network: Network::new(),
            log: Log::default(),
            bucket: Bucket::default(),
            epoch: 1,
            managers: (0..plan.managers).map(ManagerNode::new).collect(),
            cluster_managers: (0..plan.cluster_managers).map(ClusterManagerNode::new).collect(),
            projectors: (0..plan.projectors).map(ProjectorNode::new).collect(),
            indexers: (0..plan.indexers).map(IndexerNode::new).collect(),
            clients: vec![Client::new(), Client::new()],
            followers: BTreeMap::new(),
            slow: BTreeMap::new(),
            asks: BTreeMap::new(),
            asked: 0,
            sources: BTreeMap::new(),
            plan,
            invariants: Invariants::default(),
            oracle: Oracle::default(),
            limits,
            calm: false,
            calm_at: 1_000 + limits.faulty,
            failure: None,
            verbose,
            rng,
        };
        for node in world.nodes() {
            let at = world.now + world.rng.below(400);
            world.queue.push(at, Event::Start(node));
        }
        let start = world.now;
        for client in 0..world.clients.len() {
            world.queue.push(start + 1_500, Event::Client(client));
        }
        world.queue.push(start + 100, Event::Write);
        world.queue.push(start + 3_000, Event::Fault);
        world.queue.push(start + 50, Event::Look);
        world
    }

    /// Runs to the end, or to the first thing that must not be.
    pub fn run(mut self) -> Outcome {
        let calm_at = self.calm_at;
        let end = calm_at + self.limits.settling;
        while self.failure.is_none() {
            let Some((at, event)) = self.queue.pop() else { break };
            if at >= calm_at && !self.calm {
                self.now = calm_at;
                self.calm_down();
            }
            self.now = at;
            if self.now >= end {
                let why = self.unsettled().unwrap_or_default();
                for node in &self.cluster_managers {
                    self.say(|| format!("{} {:?}", node.process.node, node.core));
                }
                for node in &self.managers {
                    let report = node.machine.as_ref().map(highwater_coordinator::manager::Manager::report);
                    self.say(|| format!("{} {report:?}", node.process.node));
                }
                self.fail(format!("I6: not settled {} s after the last fault: {why}", self.limits.settling / 1_000));
                break;
            }
            let look = matches!(event, Event::Look);
            self.step(event);
            if look && self.calm && self.settled() && self.unsettled().is_none() {
                self.check_end();
                break;
            }
        }
        self.invariants.count("log records", self.log.appended);
        self.invariants.count("compactions", self.log.compacted);
        self.invariants.count("terms", self.log.terms.len() as u64);
        self.invariants.count("virtual ms", self.now);
        Outcome { failure: self.failure, stats: self.invariants.stats }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Run(node) => self.run_process(node),
            Event::Arrive { to, message } => {
                if self.network.cut_until(to, self.now).is_none() {
                    self.arrive(to, message);
                }
            }
            Event::Request { from, ask, epoch, request } => {
                if epoch == self.epoch || epoch == 0 {
                    self.serve(from, ask, request);
                }
            }
            Event::Answer { ask, epoch, answer } => {
                let cut = self.asks.get(&ask).is_some_and(|o| self.network.cut_until(o.node, self.now).is_some());
                if !cut && epoch.is_none_or(|e| e == self.epoch) {
                    self.answered(ask, Some(answer));
                }
            }
            Event::Timeout { ask } => self.answered(ask, None),
            Event::Follow { node, id } => self.follower_woken(node, id),
            Event::Start(node) => self.start(node),
            Event::Fault => self.fault(),
            Event::Write => self.write(),
            Event::Client(at) => self.client(at),
            Event::Look => {
                self.look();
                self.queue.push(self.now + 50, Event::Look);
            }
        }
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        let all = |n: usize, make: fn(usize) -> Node| (0..n).map(make);
        all(self.managers.len(), Node::manager)
            .chain(all(self.cluster_managers.len(), Node::cluster_manager))
            .chain(all(self.projectors.len(), Node::projector))
            .chain(all(self.indexers.len(), Node::indexer))
            .collect()
    }

    pub(crate) fn fail(&mut self, why: impl Into<String>) {
        if self.failure.is_none() {
            self.failure = Some(format!("at {} ms: {}", self.now, why.into()));
        }
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>7} {}", self.now, what());
        }
    }

    pub(crate) fn process(&self, node: Node) -> Option<&Process> {
        match node.kind {
            NodeKind::Coordinator => self.managers.get(node.at).map(|n| &n.process),
            NodeKind::ClusterManager => self.cluster_managers.get(node.at).map(|n| &n.process),
            NodeKind::Projector => self.projectors.get(node.at).map(|n| &n.process),
            NodeKind::Indexer => self.indexers.get(node.at).map(|n| &n.process),
            NodeKind::Catalog => None,
        }
    }

    pub(crate) fn process_mut(&mut self, node: Node) -> Option<&mut Process> {
        match node.kind {
            NodeKind::Coordinator => self.managers.get_mut(node.at).map(|n| &mut n.process),
            NodeKind::ClusterManager => self.cluster_managers.get_mut(node.at).map(|n| &mut n.process),
            NodeKind::Projector => self.projectors.get_mut(node.at).map(|n| &mut n.process),
            NodeKind::Indexer => self.indexers.get_mut(node.at).map(|n| &mut n.process),
            NodeKind::Catalog => None,
        }
    }

    pub(crate) fn inbox(&mut self, node: Node) -> Option<&mut Inbox> {
        match node.kind {
            NodeKind::Coordinator => self.managers.get_mut(node.at).map(|n| &mut n.inbox),
            NodeKind::ClusterManager => self.cluster_managers.get_mut(node.at).map(|n| &mut n.inbox),
            NodeKind::Projector => self.projectors.get_mut(node.at).map(|n| &mut n.inbox),
            NodeKind::Indexer => self.indexers.get_mut(node.at).map(|n| &mut n.inbox),
            NodeKind::Catalog => None,
        }
    }

    /// Has a process's loop run at a time, unless it does earlier.
    pub(crate) fn wake(&mut self, node: Node, at: u64) {
        let Some(process) = self.process_mut(node) else { return };
        if at < process.wake_at {
            process.wake_at = at;
            self.queue.push(at, Event::Run(node));
        }
    }

    /// Puts a message before a process.
    pub(crate) fn arrive(&mut self, node: Node, message: Message) {
        if node.kind == NodeKind::Catalog {
            self.client_hears(node.at, message);
            return;
        }
        if !self.process(node).is_some_and(|p| p.up) {
            return;
        }
        if let Some(inbox) = self.inbox(node) {
            inbox.push(message);
        }
        self.wake(node, self.now);
    }

    fn run_process(&mut self, node: Node) {
        let now = self.now;
        let Some(process) = self.process_mut(node) else { return };
        if process.wake_at != now {
            return;
        }
        process.wake_at = u64::MAX;
        if !process.up {
            return;
        }
        if process.paused_until > now {
            let until = process.paused_until;
            self.wake(node, until);
            return;
        }
        match node.kind {
            NodeKind::Coordinator => self.run_manager(node.at),
            NodeKind::ClusterManager => self.run_cluster_manager(node.at),
            NodeKind::Projector => self.run_projector(node.at),
            NodeKind::Indexer => self.run_indexer(node.at),
            NodeKind::Catalog => {}
        }
    }

    fn start(&mut self, node: Node) {
        if self.process(node).is_none_or(|p| p.up) {
            return;
        }
        let now = self.now;
        if let Some(process) = self.process_mut(node) {
            process.up = true;
            process.life += 1;
            process.paused_until = 0;
            process.wake_at = u64::MAX;
        }
        self.say(|| format!("{node} starts"));
        match node.kind {
            NodeKind::Coordinator => self.start_manager(node.at),
            NodeKind::ClusterManager => self.start_cluster_manager(node.at),
            NodeKind::Projector => self.start_projector(node.at),
            NodeKind::Indexer => self.start_indexer(node.at),
            NodeKind::Catalog => {}
        }
        if node.kind != NodeKind::ClusterManager {
            self.follow(node);
        }
        self.wake(node, now);
    }

    /// A process ends at once; it starts again after a while.
    pub(crate) fn crash(&mut self, node: Node, back_after: u64) {
        if !self.process(node).is_some_and(|p| p.up) {
            return;
        }
        self.say(|| format!("{node} crashes, back after {back_after} ms"));
        if let Some(process) = self.process_mut(node) {
            process.up = false;
        }
        if let Some(inbox) = self.inbox(node) {
            inbox.clear();
        }
        if node.kind == NodeKind::Coordinator {
            self.managers[node.at].fall();
        }
        self.asks.retain(|_, open| open.node != node);
        self.queue.push(self.now + back_after, Event::Start(node));
    }

    /// Publishes to everyone of these kinds.
    pub(crate) fn publish(&mut self, from: Node, kinds: &[NodeKind], message: &Message) {
        let Some(at) = self.network.leaves(from, self.now, &mut self.rng) else { return };
        for to in self.nodes().into_iter().filter(|n| kinds.contains(&n.kind)) {
            self.deliver(at, to, message.clone());
        }
    }

    /// To one node; lost when it is.
    pub(crate) fn send(&mut self, from: Node, to: Node, message: Message) {
        if let Some(at) = self.network.leaves(from, self.now, &mut self.rng) {
            self.deliver(at, to, message);
        }
    }

    fn deliver(&mut self, at: u64, to: Node, message: Message) {
        if let Some(arrives) = self.network.arrives(to, at, &mut self.rng) {
            self.queue.push(arrives, Event::Arrive { to, message });
        }
    }

    /// Remembers a request, and for how long its answer is waited for.
    pub(crate) fn ask(&mut self, node: Node, purpose: Purpose, patience: u64) -> Ask {
        self.asked += 1;
        let life = self.process(node).map_or(0, |p| p.life);
        self.asks.insert(self.asked, Open { node, life, purpose });
        self.queue.push(self.now + patience, Event::Timeout { ask: self.asked });
        self.asked
    }

    pub(crate) fn answered(&mut self, ask: Ask, answer: Option<Answer>) {
        let Some(open) = self.asks.remove(&ask) else { return };
        if open.node.kind != NodeKind::Catalog && self.process(open.node).is_none_or(|p| !p.up || p.life != open.life) {
            return;
        }
        self.arrive(open.node, Message::Outcome(open.purpose, answer));
    }

    /// Answers another node's request.
    pub(crate) fn reply(&mut self, from: Node, ask: Ask, answer: Answer) {
        let Some(at) = self.network.leaves(from, self.now, &mut self.rng) else { return };
        let Some(to) = self.asks.get(&ask).map(|o| o.node) else { return };
        if let Some(at) = self.network.arrives(to, at, &mut self.rng) {
            self.queue.push(at, Event::Answer { ask, epoch: None, answer });
        }
    }
}
