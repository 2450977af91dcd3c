//! What goes wrong, and when: a run has some kinds of faults, and how often they come is its own too.

use crate::{
    disk::Disk,
    invariants::Lost,
    node::Node,
    rng::Rng,
    world::{Event, World},
};
use highwater_schemas::api::NodeKind;

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    CrashManager,
    CrashMaster,
    CrashBetweenActions,
    PauseManager,
    PauseBetweenActions,
    CrashClusterManager,
    PauseClusterManager,
    LeaveManager,
    LeaveClusterManager,
    CrashNode,
    PauseNode,
    Cut,
    Loss,
    Delay,
    SlowFollower,
    ServerRestart,
    TailLoss,
    DeleteLog,
    PurgeLog,
    DeleteBucket,
    StrayCopy,
    Suspicion,
    ForeignMessage,
}

const SMALL: [Kind; 18] = [
    Kind::CrashManager,
    Kind::CrashMaster,
    Kind::CrashBetweenActions,
    Kind::PauseManager,
    Kind::PauseBetweenActions,
    Kind::CrashClusterManager,
    Kind::PauseClusterManager,
    Kind::LeaveManager,
    Kind::LeaveClusterManager,
    Kind::CrashNode,
    Kind::PauseNode,
    Kind::Cut,
    Kind::Loss,
    Kind::Delay,
    Kind::SlowFollower,
    Kind::ServerRestart,
    Kind::Suspicion,
    Kind::ForeignMessage,
];

/// What a run is like.
#[derive(Debug, Clone)]
pub struct Plan {
    pub managers: usize,
    pub cluster_managers: usize,
    pub projectors: usize,
    pub indexers: usize,
    pub compact_above: usize,
    /// Requests to the server that meet trouble, in a thousand.
    pub request_trouble: u64,
    kinds: Vec<Kind>,
    /// Milliseconds between two faults, at most.
    every: u64,
}

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        let often = rng.range(200, 900);
        let mut kinds: Vec<Kind> = SMALL.iter().copied().filter(|_| rng.chance(often)).collect();
        // What takes the log away, and what takes a copy away, do not come together: nobody promises anything then.
        match rng.below(8) {
            0 => kinds.push(Kind::TailLoss),
            1 => kinds.push(Kind::DeleteLog),
            2 => kinds.push(Kind::PurgeLog),
            3 => kinds.extend([Kind::TailLoss, Kind::DeleteLog, Kind::PurgeLog]),
            4 => kinds.push(Kind::StrayCopy),
            _ => {}
        }
        if rng.chance(250) {
            kinds.push(Kind::DeleteBucket);
        }
        Self {
            managers: rng.range(1, 4).max(rng.range(1, 3)) as usize,
            cluster_managers: rng.range(1, 3) as usize,
            projectors: rng.range(1, 2) as usize,
            indexers: rng.range(1, 3) as usize,
            compact_above: rng.range(15, 150) as usize,
            request_trouble: if rng.chance(500) { 0 } else { rng.range(1, 60) },
            kinds,
            every: rng.range(200, 4_000),
        }
    }
}

impl World {
    /// Time for the next fault.
    pub(crate) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let next = self.rng.range(50, self.plan.every);
        self.queue.push(self.now + next, Event::Fault);
        let Some(kind) = self.rng.pick(&self.plan.kinds.clone()) else { return };
        self.invariants.count("faults", 1);
        self.say(|| format!("fault: {kind:?}"));
        let now = self.now;
        let some = self.rng.below(self.managers.len() as u64) as usize;
        let master = self.managers.iter().position(|m| m.leading().is_some()).unwrap_or(some);
        let manager = if self.rng.chance(500) { master } else { some };
        let cluster_manager = self.rng.below(self.cluster_managers.len() as u64) as usize;
        let back = if self.rng.chance(500) { self.rng.range(20, 800) } else { self.rng.range(500, 8_000) };
        let long = self.rng.range(100, 6_000);
        match kind {
            Kind::CrashManager => self.crash(Node::manager(some), back),
            Kind::CrashMaster => self.crash(Node::manager(master), back),
            Kind::CrashBetweenActions => self.managers[manager].crash_in = Some(self.rng.below(12)),
            Kind::PauseManager => self.pause(Node::manager(manager), long),
            Kind::PauseBetweenActions => self.managers[manager].pause_in = Some((self.rng.below(12), long)),
            Kind::CrashClusterManager => self.crash(Node::cluster_manager(cluster_manager), back),
            Kind::PauseClusterManager => self.pause(Node::cluster_manager(cluster_manager), long),
            Kind::LeaveManager => {
                self.manager_leaves(manager);
                self.crash(Node::manager(manager), back);
            }
            Kind::LeaveClusterManager => self.cluster_manager_leaves(cluster_manager, back),
            Kind::CrashNode | Kind::PauseNode => {
                let others: Vec<Node> = self
                    .nodes()
                    .into_iter()
                    .filter(|n| matches!(n.kind, NodeKind::Projector | NodeKind::Indexer))
                    .collect();
                let Some(node) = self.rng.pick(&others) else { return };
                if kind == Kind::CrashNode { self.crash(node, back) } else { self.pause(node, long) }
            }
            Kind::Cut => {
                let nodes = self.nodes();
                let n = self.rng.range(1, 2);
                for _ in 0..n {
                    let node = if self.rng.chance(400) { Some(Node::manager(manager)) } else { self.rng.pick(&nodes) };
                    let keeps = self.rng.chance(500);
                    if let Some(node) = node {
                        self.say(|| format!("{node} is cut off for {long} ms"));
                        self.network.cut(node, now + long, keeps);
                    }
                }
            }
            Kind::Loss => self.network.loss = if self.network.loss > 0 { 0 } else { self.rng.range(10, 400) },
            Kind::Delay => self.network.delay = if self.network.delay > 3 { 3 } else { self.rng.range(5, 700) },
            Kind::SlowFollower => {
                let nodes = self.nodes();
                let lag = self.rng.range(50, 3_000);
                if self.slow.is_empty() {
                    if let Some(node) = self.rng.pick(&nodes) {
                        self.slow.insert(node, lag);
                    }
                } else {
                    self.slow.clear();
                }
            }
            Kind::ServerRestart => self.restart_server(long / 4),
            Kind::TailLoss => self.lose_tail(long / 4),
            Kind::DeleteLog => {
                self.log.delete();
                self.wake_followers();
            }
            Kind::PurgeLog => {
                let keep = if self.rng.chance(500) { 0 } else { self.rng.below(4) as usize };
                self.log.purge(keep);
            }
            Kind::DeleteBucket => self.bucket.delete(),
            Kind::StrayCopy => self.stray(some, back),
            Kind::ForeignMessage => {
                if self.log.write_foreign() {
                    self.invariants.count("foreign messages in the log", 1);
                    self.wake_followers();
                }
            }
            Kind::Suspicion => {
                let projector = self.rng.below(self.projectors.len() as u64) as usize;
                self.suspect(projector);
            }
        }
    }

    fn pause(&mut self, node: Node, how_long: u64) {
        let until = self.now + how_long;
        self.say(|| format!("{node} stands still until {until}"));
        if let Some(process) = self.process_mut(node) {
            process.paused_until = process.paused_until.max(until);
        }
        self.wake(node, until);
    }

    fn lose_tail(&mut self, down: u64) {
        let newest = |read: &Option<highwater_schemas::state::StateContext>| {
            read.as_ref().map(|r| (r.version, (r.incarnation, u128::from_str_radix(&r.hash, 16).unwrap_or_default())))
        };
        let before = newest(&self.log.read);
        let most = self.rng.range(1, 8);
        self.log.lose_tail(most);
        let after = newest(&self.log.read);
        self.say(|| format!("the log ends at {:?} instead of {:?}", after.map(|a| a.0), before.map(|b| b.0)));
        if let Some((version, mark)) = before.filter(|_| before != after) {
            self.invariants.lost.get_or_insert(Lost { version, mark });
        }
        self.restart_server(down);
    }

    /// A copy as it once was takes the place of the one that is there.
    fn stray(&mut self, at: usize, back: u64) {
        let old = self.managers[at].stray.take();
        let disk: Disk = self.managers[at].disk.clone();
        self.managers[at].stray = Some(disk);
        if let Some(old) = old {
            self.crash(Node::manager(at), back);
            self.say(|| format!("m{at} has its copy of version {} back", old.version()));
            // That manager alone may know a lower term than it once told.
            self.invariants.terms.remove(&at);
            self.invariants.count("old copies brought back", 1);
            self.managers[at].disk = old;
        }
    }

    /// No more faults: whoever is away comes back.
    pub(crate) fn calm_down(&mut self) {
        let now = self.now;
        self.calm = true;
        self.say(|| "calm".into());
        self.network.heal();
        self.slow.clear();
        for node in self.nodes() {
            if let Some(process) = self.process_mut(node) {
                process.paused_until = process.paused_until.min(now);
            }
            if node.kind == NodeKind::Coordinator {
                let manager = &mut self.managers[node.at];
                manager.crash_in = None;
                manager.pause_in = None;
            }
            self.wake(node, self.now);
        }
        self.wake_followers();
    }
}
