//! A stand-in for a projector with its router: it reads the vbuckets that its copy of the log gives it, and says how far.

use crate::{
    message::{Inbox, Message},
    node::{Node, Process},
    world::World,
};
use highwater_schemas::{
    Position, StVb,
    api::{Join, NodeKind, Suspicion},
    report::{Item, Reporter},
    state::StateContext,
    wire::{Sync, SyncVb},
};
use std::{collections::BTreeMap, rc::Rc};

const HEARTBEAT: u64 = 500;
/// SYNC, milliseconds.
const SYNC: u64 = 60;

/// One projector.
pub struct ProjectorNode {
    pub process: Process,
    pub inbox: Inbox,
    pub context: StateContext,
    /// (bucket, declared, vbucket, generation) → how far.
    read: BTreeMap<(String, u64, usize, u64), u64>,
    suspicions: Vec<Suspicion>,
    beat_due: u64,
    sync_due: u64,
    reporter: Reporter,
    /// Who leads has not got all that was told.
    asked: bool,
}

impl ProjectorNode {
    pub fn new(at: usize) -> Self {
        Self {
            process: Process::new(Node::projector(at)),
            inbox: Inbox::default(),
            context: StateContext::default(),
            read: BTreeMap::new(),
            suspicions: Vec::new(),
            beat_due: 0,
            sync_due: 0,
            reporter: Reporter::default(),
            asked: false,
        }
    }
}

impl World {
    pub(crate) fn start_projector(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.projectors[at];
        node.context = StateContext::default();
        node.read.clear();
        node.suspicions.clear();
        node.reporter = Reporter::default();
        (node.beat_due, node.sync_due) = (now, now);
    }

    pub(crate) fn run_projector(&mut self, at: usize) {
        let me = Node::projector(at);
        while let Some(message) = self.projectors[at].inbox.take(true, &mut self.rng) {
            if matches!(message, Message::AskReport) {
                (self.projectors[at].asked, self.projectors[at].beat_due) = (true, 0);
                continue;
            }
            if let Message::Record(record) = message
                && let Err(error) = self.projectors[at].context.offer(&record)
            {
                // The service ends, and its supervisor starts it again.
                self.say(|| format!("{me}: {error}"));
                let back = self.rng.range(100, 1_000);
                self.crash(me, back);
                return;
            }
        }
        if self.projectors[at].beat_due <= self.now {
            self.projector_beats(at);
        }
        if self.projectors[at].sync_due <= self.now {
            self.projector_syncs(at);
        }
        let node = &self.projectors[at];
        self.wake(me, node.beat_due.min(node.sync_due));
    }

    fn projector_beats(&mut self, at: usize) {
        let node = &mut self.projectors[at];
        node.beat_due = self.now + HEARTBEAT;
        let context = &node.context;
        node.suspicions.retain(|s| {
            let vb = context.buckets.get(&s.bucket).and_then(|b| b.vbuckets.get(usize::from(s.vb)));
            vb.is_some_and(|v| v.vbuuid() == s.vbuuid)
        });
        let mut items: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        for suspicion in &node.suspicions {
            items.entry(suspicion.bucket.clone()).or_default().push(Item::suspicion(suspicion));
        }
        let term = context.term;
        if node.reporter.told().edition == 0 || node.reporter.term() != term || std::mem::take(&mut node.asked) {
            node.reporter.begin(term);
        }
        node.reporter.keep(|bucket| items.contains_key(bucket));
        for (bucket, items) in items {
            node.reporter.set(&bucket, items);
        }
        let (name, life) = (node.process.node.name(), node.process.life);
        let report = node.reporter.told();
        let mut messages =
            vec![Message::Join(Rc::new(Join { term, report, ..Join::new(NodeKind::Projector, &name, life) }))];
        while let Some(part) = node.reporter.next_part(&name, NodeKind::Projector, life) {
            messages.push(Message::Report(Rc::new(part)));
        }
        for message in messages {
            self.publish(Node::projector(at), &[NodeKind::Coordinator, NodeKind::ClusterManager], &message);
        }
    }

    fn projector_syncs(&mut self, at: usize) {
        let node = &mut self.projectors[at];
        node.sync_due = self.now + SYNC;
        let (name, life) = (node.process.node.name(), node.process.life);
        let mut syncs = Vec::new();
        for (bucket_name, bucket) in &node.context.buckets {
            let mut vbs = Vec::new();
            for (vb, vbucket) in bucket.vbuckets.iter().enumerate() {
                if vbucket.generation == 0 || vbucket.projector != name || vbucket.incarnation != life {
                    continue;
                }
                let end = self.sources.get(&(bucket_name.clone(), vb)).copied().unwrap_or(0);
                let key = (bucket_name.clone(), bucket.declared, vb, vbucket.generation);
                let read = node.read.entry(key).or_insert(vbucket.restart);
                *read = (*read + 1 + self.rng.below(60)).min(end).max(*read);
                let covered = read.saturating_sub(self.rng.below(3)).max(vbucket.restart.min(*read));
                let state = StVb {
                    vbuuid: vbucket.vbuuid(),
                    generation: vbucket.generation,
                    position: Position::new(*read, 0),
                    covered,
                    ..StVb::default()
                };
                vbs.push(SyncVb { vb: vb as u16, state, source_last: end, bookmark: None });
            }
            if !vbs.is_empty() {
                syncs.push(Sync { bucket: bucket_name.clone(), vbs });
            }
        }
        for sync in syncs {
            self.publish(Node::projector(at), &[NodeKind::Coordinator], &Message::Sync(Rc::new(sync)));
        }
    }

    /// It finds one of its sources to contradict what it read before.
    pub(crate) fn suspect(&mut self, at: usize) {
        let node = &mut self.projectors[at];
        let owned: Vec<(String, usize, u64)> = node
            .context
            .buckets
            .iter()
            .flat_map(|(name, b)| b.vbuckets.iter().enumerate().map(move |(vb, v)| (name.clone(), vb, v)))
            .filter(|(_, _, v)| v.projector == node.process.node.name())
            .map(|(name, vb, v)| (name, vb, v.vbuuid()))
            .collect();
        let Some((bucket, vb, vbuuid)) = self.rng.pick(&owned) else { return };
        let last = self.sources.get(&(bucket.clone(), vb)).copied().unwrap_or(0);
        let (intact, broken) = (self.rng.below(last + 1), self.rng.chance(500));
        let (vb, reason, bookmarks) = (vb as u16, "simulated".into(), Vec::new());
        let suspicion = Suspicion { bucket, vb, vbuuid, reason, intact, last, broken, bookmarks };
        self.projectors[at].suspicions.push(suspicion);
    }

    pub(crate) fn write(&mut self) {
        for last in self.sources.values_mut() {
            *last += self.rng.below(5);
        }
        self.queue.push(self.now + 100, crate::world::Event::Write);
    }
}
