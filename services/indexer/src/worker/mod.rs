//! One thread per bucket: owns the bucket's core and the stores of its slices, and carries out what the core decides.

mod clock;
mod compare;
mod durable;
mod gate;
mod removed;
mod report;
mod stores;
mod walks;

use crate::{
    core::{Action, Batch, BucketCore, BucketView},
    feeds::SessionShare,
    files::SliceFiles,
    held::Held,
    jobs::Jobs,
    ledger::{Entered, Ledger},
    marks::{Marks, Unchanged},
    report::BucketReport,
    store::{
        BackIndex, KeptSnapshot, MergeOutcome, PersistOutcome, SliceIdentity, SliceMark, SliceStore, StoreError,
        StoreStats, Verified,
    },
};
use clock::ServerClock;
pub(crate) use gate::Gate;
use highwater_bus::{Incidents, fault};
use highwater_schemas::{
    ErrorCode, StabilityTimestamp,
    state::SliceName,
    wire::{HighWatermark, Missed, Stability},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use stores::Open;
use tokio::sync::{mpsc, oneshot, watch};
use walks::Walk;

/// Events that may wait for a worker.
pub(crate) const EVENTS: usize = 256;
/// Events taken before what they allow is applied.
const BURST: usize = 128;

/// Layers whose merge panicked are merged again after this.
const MERGE_AGAIN: Duration = Duration::from_secs(60);

/// What a slice is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SliceInfo {
    pub(crate) identity: SliceIdentity,
    pub(crate) partitions: u32,
    /// For each key whether it is descending.
    pub(crate) directions: Vec<bool>,
}

/// What a check found; nothing while the slice is still filled for the first time.
pub(crate) type VerifyAnswer = Result<Option<Verified>, StoreError>;

/// A slice as it is at this moment.
pub(crate) struct Look {
    pub(crate) identity: SliceIdentity,
    pub(crate) mark: SliceMark,
    /// Of the node's records.
    pub(crate) newer: Option<SliceMark>,
    pub(crate) kept: Vec<KeptSnapshot>,
    pub(crate) stats: StoreStats,
    pub(crate) back: BackIndex,
}

/// What a worker is told.
pub(crate) enum Event {
    /// The log has moved on: what it says now is in [`Outside::latest`].
    State,
    /// Answered with where to read the mutation topic from, once the slices are open.
    Start {
        resume: oneshot::Sender<Option<(u64, i64)>>,
    },
    TopicOpened {
        after: u64,
        created: i64,
        /// It has dropped all that came after that.
        cut: bool,
        /// What the server's clock showed, nanoseconds since the epoch: where it did not say, the time of the topic's last message,
        /// and 0 where there is none.
        now: i64,
    },
    Live {
        topic: u64,
        batch: Arc<Batch>,
    },
    Session {
        session: u64,
        topic: u64,
        batch: Arc<Batch>,
    },
    Stability(Box<Stability>),
    Persisted {
        slice: SliceName,
        /// Which opening of the slice this is about.
        opening: u64,
        mark: SliceMark,
        topic: u64,
        /// Why the job did not run to its end, if it did not.
        outcome: Result<Box<PersistOutcome>, StoreError>,
    },
    /// Marks of slices without changes were written, or not.
    Marked {
        /// Each with its opening.
        slices: Vec<(SliceName, u64, SliceMark)>,
        outcome: Result<(), StoreError>,
    },
    Merged {
        slice: SliceName,
        opening: u64,
        /// None: the job did not run to its end.
        outcome: Option<MergeOutcome>,
    },
    /// A slice was checked, or the pages of a large one.
    Checked {
        slice: SliceName,
        opening: u64,
        outcome: Result<(), StoreError>,
    },
    /// Check a slice; it goes on meanwhile. The check is given up when nobody waits for the answer any more.
    Verify {
        slice: SliceName,
        answer: oneshot::Sender<VerifyAnswer>,
    },
    /// Look into a slice.
    Look {
        slice: SliceName,
        answer: oneshot::Sender<Result<Look, StoreError>>,
    },
    Tick,
    /// Make durable what is readable, then end.
    Drain(oneshot::Sender<()>),
}

/// What the log says of a bucket and of its slices on this node.
type Said = (BucketView, BTreeMap<SliceName, SliceInfo>);

/// What the log says of a bucket, until its worker takes it. A worker that is busy finds only the newest.
#[derive(Clone, Default)]
pub(crate) struct Latest(Arc<Mutex<Option<Said>>>);

impl Latest {
    pub(crate) fn put(&self, view: BucketView, infos: BTreeMap<SliceName, SliceInfo>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((view, infos));
    }

    fn take(&self) -> Option<Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a worker needs of the node.
pub(crate) struct Outside {
    pub(crate) node: String,
    pub(crate) incarnation: u64,
    pub(crate) bucket: String,
    /// Tells the bucket from a later one of the same name.
    pub(crate) declared: u64,
    pub(crate) latest: Latest,
    pub(crate) gate: Arc<Gate>,
    pub(crate) limits: crate::store::StoreLimits,
    pub(crate) files: SliceFiles,
    pub(crate) held: Held,
    pub(crate) jobs: Jobs,
    pub(crate) ledger: Ledger,
    pub(crate) marks: Arc<Marks>,
    pub(crate) events: mpsc::WeakSender<Event>,
    pub(crate) watermark: watch::Sender<Option<HighWatermark>>,
    pub(crate) report: watch::Sender<BucketReport>,
    pub(crate) missed: mpsc::Sender<Missed>,
    pub(crate) purges: mpsc::Sender<(String, u64, u64)>,
    pub(crate) share: SessionShare,
    pub(crate) incidents: Incidents,
}

impl Outside {
    /// The bucket's name, and which bucket of that name it is.
    fn bucket(&self) -> (&str, u64) {
        (&self.bucket, self.declared)
    }
}

pub(crate) struct Worker {
    outside: Outside,
    core: BucketCore,
    infos: BTreeMap<SliceName, SliceInfo>,
    open: BTreeMap<SliceName, Open>,
    /// Openings so far; tells what belongs to an earlier one.
    openings: u64,
    /// To be opened again once nobody reads the old environment.
    reopening: BTreeSet<SliceName>,
    /// What the directories of each slice's lives begin with.
    stems: BTreeMap<SliceName, String>,
    /// To get a larger map, likewise.
    growing: BTreeSet<SliceName>,
    entered: Entered,
    unchanged: Vec<(SliceName, Unchanged)>,
    paused: VecDeque<(u64, u64, Arc<Batch>)>,
    /// Walks over all documents of a vbucket that have not ended; each gets a page in turn.
    walks: VecDeque<Walk>,
    started: Instant,
    reported: Instant,
    notable: u64,
    newest: Option<Arc<StabilityTimestamp>>,
    /// None until the mutation topic was opened, and where the server does not say what it shows.
    clock: Option<ServerClock>,
    drain: Option<oneshot::Sender<()>>,
}

impl Worker {
    pub(crate) fn new(outside: Outside) -> Self {
        Self {
            outside,
            core: BucketCore::new(),
            infos: BTreeMap::new(),
            open: BTreeMap::new(),
            openings: 0,
            reopening: BTreeSet::new(),
            stems: BTreeMap::new(),
            growing: BTreeSet::new(),
            entered: Entered::default(),
            unchanged: Vec::new(),
            paused: VecDeque::new(),
            walks: VecDeque::new(),
            started: Instant::now(),
            reported: Instant::now(),
            notable: 0,
            newest: None,
            clock: None,
            drain: None,
        }
    }

    /// Runs until told to end, or until nobody can tell it anything any more.
    pub(crate) fn run(mut self, mut events: mpsc::Receiver<Event>) {
        loop {
            if self.walks.is_empty() {
                let Some(event) = events.blocking_recv() else { break };
                fault("worker", &self.outside.bucket);
                self.take_view();
                self.handle(event);
            } else {
                self.take_view();
            }
            for _ in 0..BURST {
                match events.try_recv() {
                    Ok(event) => self.handle(event),
                    Err(_) => break,
                }
            }
            if !self.walks.is_empty() && events.is_closed() && events.is_empty() {
                break;
            }
            self.walk_on();
            self.feed_paused();
            let now = self.started.elapsed().as_millis() as u64;
            // What cannot become durable must not grow without end: then the topic holds what is new.
            let actions = if self.outside.ledger.is_overfull() { self.core.retry(now) } else { self.advance(now) };
            self.carry_out(actions);
            self.check_memory();
            self.write_marks();
            self.publish();
            if self.drained() {
                break;
            }
        }
        for slice in self.infos.keys() {
            self.outside.held.remove(self.outside.bucket(), *slice);
        }
    }

    fn handle(&mut self, event: Event) {
        let actions = match event {
            Event::State => {
                self.take_view();
                Vec::new()
            }
            Event::Start { resume } => {
                let marks: Vec<SliceMark> = self.open.values().map(|o| o.mark.clone()).collect();
                // The feed that waits for this may be gone; then so are we soon.
                let _ = resume.send(BucketCore::resume_topic(&marks));
                Vec::new()
            }
            Event::TopicOpened { after, created, cut, now } => {
                self.core.topic_opened(after, created, cut);
                let mut actions = vec![Action::Report];
                let first = self.clock.is_none();
                self.clock = ServerClock::showing(now).or(self.clock);
                if first {
                    // Those that were opened before the clock was known.
                    let open = self.open.iter();
                    let late: Vec<SliceName> =
                        open.filter(|(_, open)| self.is_late(&open.mark)).map(|(slice, _)| *slice).collect();
                    for slice in late {
                        actions.extend(self.core.late(slice));
                    }
                }
                actions
            }
            Event::Live { topic, batch } => self.core.live(topic, batch),
            Event::Session { session, topic, batch } => {
                self.paused.push_back((session, topic, batch));
                self.feed_paused();
                self.check_memory();
                Vec::new()
            }
            Event::Stability(stability) => {
                self.core.named(stability.st.term, &stability.wanted);
                self.core.stability([stability.st]);
                Vec::new()
            }
            Event::Persisted { slice, opening, mark, topic, outcome } => {
                self.persisted(slice, opening, &mark, topic, outcome)
            }
            Event::Marked { slices, outcome } => self.marked(&slices, &outcome),
            Event::Merged { slice, opening, outcome } => {
                if let Some(open) = self.open.get_mut(&slice).filter(|o| o.opening == opening) {
                    if outcome.is_none() {
                        open.merges_after = Some(Instant::now() + MERGE_AGAIN);
                    }
                    open.store.finish_merge(outcome);
                }
                Vec::new()
            }
            Event::Checked { slice, opening, outcome } => self.checked(slice, opening, outcome),
            Event::Verify { slice, answer } => {
                self.verify(slice, answer);
                Vec::new()
            }
            Event::Look { slice, answer } => {
                // Who asked may be gone.
                let _ = answer.send(self.look(slice));
                Vec::new()
            }
            Event::Tick => {
                for open in self.open.values() {
                    open.held.expire();
                }
                for slice in self.core.slices().filter(|s| !s.in_step()).map(|s| s.name).collect::<Vec<_>>() {
                    self.set_stage(slice, None);
                }
                self.grow_and_reopen();
                self.check_sessions();
                Vec::new()
            }
            Event::Drain(done) => {
                self.drain = Some(done);
                self.core.persist_all()
            }
        };
        self.carry_out(actions);
    }

    /// Takes up what the log says, if that is news.
    fn take_view(&mut self) {
        let Some((view, infos)) = self.outside.latest.take() else { return };
        self.infos = infos;
        // The core does not know of a slice that waits to be reopened.
        let gone: Vec<_> = self.reopening.iter().filter(|s| !self.infos.contains_key(s)).copied().collect();
        for slice in gone {
            self.remove(slice);
        }
        let actions = self.core.state(view);
        self.carry_out(actions);
    }

    /// Applies what can be applied, unless the node follows a later term already.
    fn advance(&mut self, now: u64) -> Vec<Action> {
        let core = &mut self.core;
        self.outside.gate.apply(core.term(), || core.advance(now))
    }

    /// Takes session batches that were not held up by a flush or by memory.
    fn feed_paused(&mut self) {
        while let Some((session, _, _)) = self.paused.front() {
            if self.outside.ledger.is_full() || self.core.session_paused(*session) {
                return;
            }
            if let Some((session, topic, batch)) = self.paused.pop_front() {
                let actions = self.core.session_batch(session, topic, &batch);
                self.carry_out(actions);
            }
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut todo: VecDeque<Action> = actions.into();
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Open { slice, reset } => todo.extend(self.open_slice(slice, reset)),
                Action::Rewind { slice } => {
                    if let Some(open) = self.open.get(&slice) {
                        open.held.close(ErrorCode::InRollback, "the source's history has changed".into());
                    }
                    todo.extend(self.open_slice(slice, false));
                }
                Action::RollBack { slice, st } => todo.extend(self.roll_back(slice, st)),
                Action::Remove { slice } => self.remove(slice),
                Action::Apply { slice, steps, st, readable } => {
                    match self.apply(slice, &steps, &st, readable) {
                        Ok(true) => {}
                        Ok(false) => {
                            // What was to follow counted on it.
                            todo.retain(|later| !later.follows(slice));
                            todo.extend(self.core.compare_again(slice));
                        }
                        Err(error) => todo.extend(self.fail(slice, &error)),
                    }
                }
                Action::Collect { slice, batch, after, bulk } => {
                    let collected = self.collect(slice, &batch, after, bulk);
                    todo.extend(self.or_fail(slice, collected));
                }
                Action::Compare { slice, session, batch, after, proven } => {
                    let compared = self.compare(slice, session, &batch, after, proven);
                    todo.extend(self.or_fail(slice, compared));
                }
                Action::Sweep { slice, session, vb, walk } => todo.extend(self.sweep(slice, session, vb, walk)),
                Action::BeginStage { slice, reconcile, vbs } => {
                    self.set_stage(slice, Some(removed::Stage::new(reconcile, vbs)));
                }
                Action::DropStage { slice } => self.set_stage(slice, None),
                Action::Stage { slice, batch, after } => {
                    let staged = self.stage(slice, &batch, after);
                    todo.extend(self.or_fail(slice, staged));
                }
                Action::EndStage { slice, vb, upto, walk } => todo.extend(self.end_stage(slice, vb, upto, walk)),
                Action::Floor { slice, vb, floor, walk } => todo.extend(self.floor(slice, vb, floor, walk)),
                Action::Persist { slice, mark, topic, why } => todo.extend(self.persist(slice, mark, topic, why)),
                Action::Purge { session, below } => {
                    // Best effort: the next durable point asks again.
                    let _ = self.outside.purges.try_send((self.outside.bucket.clone(), session, below));
                }
                Action::Ask { numbers } => {
                    let missed = Missed { bucket: self.outside.bucket.clone(), term: self.core.term(), numbers };
                    // When too many questions wait, it is asked again or given up.
                    let _ = self.outside.missed.try_send(missed);
                }
                Action::Report => self.notable += 1,
            }
        }
    }

    fn or_fail(&mut self, slice: SliceName, done: Result<(), StoreError>) -> Vec<Action> {
        done.err().map_or_else(Vec::new, |error| self.fail(slice, &error))
    }

    /// True when everything that was to be made durable before the end is.
    fn drained(&mut self) -> bool {
        if self.drain.is_none() || self.core.slices().any(|s| s.persisting) {
            return false;
        }
        if let Some(done) = self.drain.take() {
            let _ = done.send(());
        }
        true
    }
}

impl Drop for Worker {
    /// Also when it panics: what it held in memory is free.
    fn drop(&mut self) {
        self.outside.ledger.enter(&mut self.entered, Entered::default());
    }
}

pub(crate) fn stem(info: &SliceInfo) -> String {
    format!("{}.{}", info.identity.index_id, info.identity.partition)
}
