//! A stand-in for an indexer: it follows the log, builds what it hosts, applies stability timestamps as the real one does.

use crate::{
    message::{Answer, Inbox, Message},
    node::{Node, Process},
    world::World,
};
use highwater_schemas::{
    StabilityTimestamp,
    api::{Join, NodeKind, SliceReport, SliceState},
    report::{Item, Reporter},
    state::{Bucket, SliceName, StateContext},
    wire::HighWatermark,
};
use std::{collections::BTreeMap, rc::Rc};

const HEARTBEAT: u64 = 500;

/// A slice as it stands.
#[derive(Debug, Clone)]
struct Slice {
    state: SliceState,
    session: u64,
    done_with: u64,
    /// What its session brings is there then.
    done_at: u64,
    /// The branches that it is on.
    branch: u64,
    /// It must be compared with every document.
    compare: bool,
}

/// What a node has of a bucket.
#[derive(Debug, Clone, Default)]
pub struct Held {
    slices: BTreeMap<SliceName, Slice>,
    pub applied: Option<StabilityTimestamp>,
    durable: Option<StabilityTimestamp>,
    /// Marked, durable at this time.
    persisting: Option<(u64, StabilityTimestamp)>,
    term: u64,
    pub applied_at: u64,
}

/// One indexer.
pub struct IndexerNode {
    pub process: Process,
    pub inbox: Inbox,
    pub context: StateContext,
    /// By name and declaration.
    pub buckets: BTreeMap<(String, u64), Held>,
    /// Since when it is up, connected and running.
    pub well_since: u64,
    beat_due: u64,
    notable: bool,
    reporter: Reporter,
    /// Who leads has not got all that was told.
    asked: bool,
}

impl IndexerNode {
    pub fn new(at: usize) -> Self {
        Self {
            process: Process::new(Node::indexer(at)),
            inbox: Inbox::default(),
            context: StateContext::default(),
            buckets: BTreeMap::new(),
            well_since: 0,
            beat_due: 0,
            notable: false,
            reporter: Reporter::default(),
            asked: false,
        }
    }

    /// Brings what it has to what the log says.
    fn reconcile(&mut self, now: u64, wait: u64) {
        let name = self.process.node.name();
        let life = self.process.life;
        let known: Vec<(String, u64)> = self.context.buckets.iter().map(|(n, b)| (n.clone(), b.declared)).collect();
        self.buckets.retain(|key, _| known.contains(key));
        for (bucket_name, bucket) in &self.context.buckets {
            let held = self.buckets.entry((bucket_name.clone(), bucket.declared)).or_default();
            self.notable |= merge_again(held, bucket);
            let mut hosted = Vec::new();
            for (number, index) in bucket.live_indexes() {
                for (partition, _) in index.placed.hosts.iter().enumerate().filter(|(_, host)| **host == name) {
                    hosted.push(SliceName { index: number, partition: partition as u32 });
                }
            }
            held.slices.retain(|slice, _| hosted.contains(slice));
            for slice in hosted {
                held.slices.entry(slice).or_insert_with(|| {
                    self.notable = true;
                    let branch = bucket.branch();
                    Slice { state: SliceState::Building, session: 0, done_with: 0, done_at: 0, branch, compare: false }
                });
            }
            for (slice_name, slice) in &mut held.slices {
                if slice.branch != bucket.branch() {
                    slice.branch = bucket.branch();
                    slice.compare = slice.state != SliceState::Building;
                    if slice.state == SliceState::Active {
                        slice.state = SliceState::Catchup;
                    }
                    slice.done_with = slice.done_with.max(slice.session);
                    slice.session = 0;
                    self.notable = true;
                }
                if slice.session != 0 && !bucket.sessions.contains_key(&slice.session) {
                    slice.done_with = slice.done_with.max(slice.session);
                    slice.session = 0;
                    self.notable = true;
                }
                if slice.session == 0 && matches!(slice.state, SliceState::Building | SliceState::Catchup) {
                    let open = bucket.sessions.values().rev().find(|s| {
                        s.id > slice.done_with
                            && s.node == name
                            && s.incarnation == life
                            && s.slices.contains(slice_name)
                            && s.kind.lists() == slice.compare
                    });
                    if let Some(session) = open {
                        (slice.session, slice.done_at) = (session.id, now + wait);
                        self.notable = true;
                    }
                }
            }
        }
    }
}

/// What was applied beyond where a later generation begins is void, as is what is of another branch.
fn merge_again(held: &mut Held, bucket: &Bucket) -> bool {
    let Some(applied) = &held.applied else { return false };
    let void = applied.vbs.iter().zip(&bucket.vbuckets).any(|(st, vb)| {
        st.vbuuid != vb.vbuuid() || vb.starts.range(st.generation + 1..).any(|(_, start)| !st.position.le(start.x))
    });
    if void {
        held.applied = None;
        held.persisting = None;
        for slice in held.slices.values_mut().filter(|s| s.state == SliceState::Active) {
            slice.state = SliceState::Catchup;
        }
    }
    void
}

impl World {
    pub(crate) fn start_indexer(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.indexers[at];
        node.context = StateContext::default();
        node.well_since = now;
        node.beat_due = now;
        node.reporter = Reporter::default();
        for held in node.buckets.values_mut() {
            held.applied.clone_from(&held.durable);
            held.persisting = None;
            held.term = 0;
            for slice in held.slices.values_mut() {
                slice.session = 0;
                if held.durable.is_none() && slice.state == SliceState::Active {
                    slice.state = SliceState::Building;
                }
            }
        }
    }

    pub(crate) fn run_indexer(&mut self, at: usize) {
        let me = Node::indexer(at);
        let mut changed = false;
        while let Some(message) = self.indexers[at].inbox.take(true, &mut self.rng) {
            match message {
                Message::Record(record) => {
                    changed = true;
                    if let Err(error) = self.indexers[at].context.offer(&record) {
                        self.say(|| format!("{me}: {error}"));
                        let back = self.rng.range(100, 1_000);
                        self.crash(me, back);
                        return;
                    }
                }
                Message::AskReport => (self.indexers[at].asked, self.indexers[at].notable) = (true, true),
                Message::Assign { ask } => {
                    let outcome = if !self.calm && self.rng.chance(30) {
                        Err(highwater_schemas::ApiError::new(highwater_schemas::ErrorCode::StorageFailed, "full"))
                    } else {
                        Ok(())
                    };
                    self.reply(me, ask, Answer::Assigned(outcome));
                }
                Message::Stability(stability) => {
                    self.apply(at, &stability.bucket, &stability.st);
                }
                _ => {}
            }
        }
        let wait = self.rng.range(20, 400);
        let now = self.now;
        let node = &mut self.indexers[at];
        // Until it has read the log, nothing is known to be gone.
        if changed && node.context.version > 0 {
            node.reconcile(now, wait);
        }
        let mut durable = Vec::new();
        for ((name, _), held) in &mut node.buckets {
            for slice in held.slices.values_mut().filter(|s| s.session != 0 && now >= s.done_at) {
                slice.state = SliceState::Active;
                slice.done_with = slice.session;
                slice.session = 0;
                slice.compare = false;
                node.notable = true;
            }
            if let Some((_, st)) = held.persisting.take_if(|(at, _)| now >= *at) {
                durable.push((name.clone(), st.number));
                held.durable = Some(st);
            }
        }
        let (node_name, life) = (node.process.node.name(), node.process.life);
        for (bucket, durable) in durable {
            let hwt = HighWatermark {
                bucket,
                node: node_name.clone(),
                incarnation: life,
                hwt: Vec::new(),
                held: (0, 0),
                durable,
                queued: 0,
            };
            self.publish(me, &[NodeKind::Coordinator], &Message::Hwt(Rc::new(hwt)));
        }
        let node = &self.indexers[at];
        if node.beat_due <= now || node.notable {
            self.indexer_beats(at);
        }
        let node = &self.indexers[at];
        let busy = node.buckets.values().any(|h| h.persisting.is_some() || h.slices.values().any(|s| s.session != 0));
        let wake = if busy { (now + 20).min(node.beat_due) } else { node.beat_due };
        self.wake(me, wake);
    }

    fn indexer_beats(&mut self, at: usize) {
        let node = &mut self.indexers[at];
        node.beat_due = self.now + HEARTBEAT;
        node.notable = false;
        let term = node.context.term;
        if node.reporter.told().edition == 0 || node.reporter.term() != term || std::mem::take(&mut node.asked) {
            node.reporter.begin(term);
        }
        let mut told = Vec::new();
        for ((bucket, declared), held) in &node.buckets {
            let Some(known) = node.context.buckets.get(bucket).filter(|b| b.declared == *declared) else { continue };
            let applied = held.applied.iter();
            let applied = applied.map(|st| Item::Applied { bucket: bucket.clone(), st: st.without_wants() });
            let slices = held.slices.iter().map(|(name, slice)| {
                Item::slice(&SliceReport {
                    session: slice.session,
                    done_with: slice.done_with,
                    resume: vec![0; known.vbuckets.len()],
                    branch: slice.branch,
                    compare: slice.compare,
                    ..SliceReport::new(bucket, *name, slice.state)
                })
            });
            node.reporter.set(bucket, applied.chain(slices).collect());
            told.push(bucket.clone());
        }
        node.reporter.keep(|bucket| told.iter().any(|known| known == bucket));
        let (name, life) = (node.process.node.name(), node.process.life);
        let report = node.reporter.told();
        let mut messages =
            vec![Message::Join(Rc::new(Join { term, report, ..Join::new(NodeKind::Indexer, &name, life) }))];
        while let Some(part) = node.reporter.next_part(&name, NodeKind::Indexer, life) {
            messages.push(Message::Report(Rc::new(part)));
        }
        for message in messages {
            self.publish(Node::indexer(at), &[NodeKind::Coordinator, NodeKind::ClusterManager], &message);
        }
    }

    /// Takes a stability timestamp if it may.
    fn apply(&mut self, at: usize, bucket_name: &str, st: &StabilityTimestamp) {
        let persist_after = self.rng.range(5, 60);
        let now = self.now;
        let node = &mut self.indexers[at];
        let term = node.context.term;
        let Some(bucket) = node.context.buckets.get(bucket_name) else { return };
        let Some(held) = node.buckets.get_mut(&(bucket_name.to_owned(), bucket.declared)) else { return };
        // Of a term that it has left, or that its log does not know yet.
        if st.term < held.term || st.term != term || st.vbs.len() != bucket.vbuckets.len() {
            return;
        }
        held.term = st.term;
        let reach = |(s, v): (&highwater_schemas::StVb, &highwater_schemas::state::Vbucket)| {
            s.vbuuid == v.vbuuid() && s.generation <= v.generation
        };
        if !st.vbs.iter().zip(&bucket.vbuckets).all(reach) {
            return;
        }
        if let Some(applied) = &held.applied {
            if st.number <= applied.number {
                return;
            }
            if !applied.le(st) {
                // It can never show this one.
                self.invariants.count("timestamps below an applied one", 1);
                return;
            }
        }
        held.applied = Some(st.clone());
        held.applied_at = now;
        if st.persist && held.persisting.is_none() {
            held.persisting = Some((now + persist_after, st.clone()));
        }
        self.invariants.count("timestamps applied", 1);
    }
}
