//! One thread per bucket: owns the bucket's core and the stores of its slices, and carries out what the core decides.

use crate::{
    core::{Action, Batch, BucketCore, BucketView, Mode, Step},
    documents::replace,
    files::SliceFiles,
    held::{Held, HeldSlice},
    report::BucketReport,
    store::{LmdbStore, PersistJob, PersistOutcome, SliceIdentity, SliceMark, SliceStore, StoreError, StoreLimits},
};
use highwater_schemas::{ErrorCode, StVb, StabilityTimestamp, api::SliceReport, state::SliceName, wire::HighWatermark};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Events that may wait for a worker.
pub(crate) const EVENTS: usize = 256;
/// Events taken before what they allow is applied.
const BURST: usize = 128;
/// What a slice in step collects in its open layer during a gap's session before it is sealed, bytes.
const UNSEALED: usize = 8 * 1024 * 1024;
/// Reports are renewed this often when nothing notable happens.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What a slice is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SliceInfo {
    pub(crate) identity: SliceIdentity,
    pub(crate) partitions: u32,
    /// For each key whether it is descending.
    pub(crate) directions: Vec<bool>,
}

/// What a worker is told.
pub(crate) enum Event {
    State {
        view: BucketView,
        infos: BTreeMap<SliceName, SliceInfo>,
    },
    /// As [`Event::State`], answered with where to read the mutation topic from.
    Start {
        view: BucketView,
        infos: BTreeMap<SliceName, SliceInfo>,
        resume: oneshot::Sender<Option<(u64, i64)>>,
    },
    TopicOpened {
        after: u64,
        created: i64,
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
    Stability(Vec<StabilityTimestamp>),
    Persisted {
        slice: SliceName,
        mark: SliceMark,
        topic: u64,
        outcome: Box<PersistOutcome>,
    },
    Tick,
    /// Make durable what is readable, then end.
    Drain(oneshot::Sender<()>),
}

/// A persist for the node's one persister.
pub(crate) struct PersistRequest {
    pub(crate) job: PersistJob,
    pub(crate) done: Box<dyn FnOnce(PersistOutcome) -> Event + Send>,
    pub(crate) to: mpsc::Sender<Event>,
}

/// What a worker needs of the node.
pub(crate) struct Outside {
    pub(crate) node: String,
    pub(crate) incarnation: u64,
    pub(crate) bucket: String,
    pub(crate) files: SliceFiles,
    pub(crate) held: Held,
    pub(crate) memory_quota: usize,
    pub(crate) persister: mpsc::Sender<PersistRequest>,
    pub(crate) events: mpsc::WeakSender<Event>,
    pub(crate) watermark: watch::Sender<Option<HighWatermark>>,
    pub(crate) report: watch::Sender<BucketReport>,
    pub(crate) purges: mpsc::Sender<(String, u64, u64)>,
}

struct Open {
    store: LmdbStore,
    held: Arc<HeldSlice>,
    /// Begins the names of its directories.
    stem: String,
    unsealed: usize,
}

pub(crate) struct Worker {
    outside: Outside,
    core: BucketCore,
    infos: BTreeMap<SliceName, SliceInfo>,
    open: BTreeMap<SliceName, Open>,
    paused: VecDeque<(u64, u64, Arc<Batch>)>,
    started: Instant,
    reported: Instant,
    notable: u64,
    newest: Option<Arc<StabilityTimestamp>>,
    drain: Option<oneshot::Sender<()>>,
}

impl Worker {
    pub(crate) fn new(outside: Outside) -> Self {
        Self {
            outside,
            core: BucketCore::new(),
            infos: BTreeMap::new(),
            open: BTreeMap::new(),
            paused: VecDeque::new(),
            started: Instant::now(),
            reported: Instant::now(),
            notable: 0,
            newest: None,
            drain: None,
        }
    }

    /// Runs until told to end, or until nobody can tell it anything any more.
    pub(crate) fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.blocking_recv() {
            self.handle(event);
            for _ in 0..BURST {
                match events.try_recv() {
                    Ok(event) => self.handle(event),
                    Err(_) => break,
                }
            }
            self.feed_paused();
            let now = self.started.elapsed().as_millis() as u64;
            let actions = self.core.advance(now);
            self.carry_out(actions);
            self.check_memory();
            self.publish();
            if self.drained() {
                break;
            }
        }
        for slice in self.open.keys() {
            self.outside.held.remove(&self.outside.bucket, *slice);
        }
    }

    fn handle(&mut self, event: Event) {
        let actions = match event {
            Event::State { view, infos } => {
                self.infos = infos;
                self.core.state(view)
            }
            Event::Start { view, infos, resume } => {
                self.infos = infos;
                let actions = self.core.state(view);
                self.carry_out(actions);
                let marks: Vec<SliceMark> = self.open.values().map(|o| o.store.durable().clone()).collect();
                // The service waits for this before it reports; if it is gone, so are we soon.
                let _ = resume.send(BucketCore::resume_topic(&marks));
                Vec::new()
            }
            Event::TopicOpened { after, created } => {
                self.core.topic_opened(after, created);
                vec![Action::Report]
            }
            Event::Live { topic, batch } => self.core.live(topic, batch),
            Event::Session { session, topic, batch } => {
                self.paused.push_back((session, topic, batch));
                self.feed_paused();
                Vec::new()
            }
            Event::Stability(sts) => {
                self.core.stability(sts);
                Vec::new()
            }
            Event::Persisted { slice, mark, topic, outcome } => self.persisted(slice, &mark, topic, *outcome),
            Event::Tick => {
                for open in self.open.values() {
                    open.held.expire();
                }
                Vec::new()
            }
            Event::Drain(done) => {
                self.drain = Some(done);
                self.core.persist_all()
            }
        };
        self.carry_out(actions);
    }

    /// Takes session batches that were not held up by a flush or by memory.
    fn feed_paused(&mut self) {
        while let Some((session, _, _)) = self.paused.front() {
            let full = self.open.values().any(|o| o.store.memory() > 2 * self.outside.memory_quota);
            if full || self.core.session_paused(*session) {
                return;
            }
            if let Some((session, topic, batch)) = self.paused.pop_front() {
                let actions = self.core.session_batch(session, topic, &batch);
                self.carry_out(actions);
            }
        }
    }

    fn persisted(&mut self, slice: SliceName, mark: &SliceMark, topic: u64, outcome: PersistOutcome) -> Vec<Action> {
        let Some(open) = self.open.get_mut(&slice) else { return Vec::new() };
        match open.store.finish_persist(outcome) {
            Ok(()) => self.core.persisted(slice, mark, topic, true),
            Err(error) => {
                tracing::error!(bucket = self.outside.bucket, ?slice, %error, "cannot make the slice durable");
                let mut actions = self.core.persisted(slice, mark, topic, false);
                if matches!(error, StoreError::Poisoned(_)) {
                    // Only a new opening shows what is durable.
                    actions.push(Action::Open { slice, reset: false });
                }
                actions
            }
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut todo: VecDeque<Action> = actions.into();
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Open { slice, reset } => todo.extend(self.open_slice(slice, reset)),
                Action::Remove { slice } => self.remove(slice),
                Action::Apply { slice, steps, st, readable } => {
                    if let Err(error) = self.apply(slice, &steps, &st, readable) {
                        todo.extend(self.fail(slice, &error));
                    }
                }
                Action::Collect { slice, batch, after, bulk } => match self.collect(slice, &batch, after, bulk) {
                    Ok(true) => todo.extend(self.core.persist_session(slice)),
                    Ok(false) => {}
                    Err(error) => todo.extend(self.fail(slice, &error)),
                },
                Action::Persist { slice, mark, topic } => todo.extend(self.persist(slice, mark, topic)),
                Action::Purge { session, below } => {
                    // Best effort: the next durable point asks again.
                    let _ = self.outside.purges.try_send((self.outside.bucket.clone(), session, below));
                }
                Action::Report => self.notable += 1,
            }
        }
    }

    fn open_slice(&mut self, slice: SliceName, reset: bool) -> Vec<Action> {
        let Some(info) = self.infos.get(&slice).cloned() else { return Vec::new() };
        if let Some(old) = self.open.remove(&slice) {
            old.held
                .close(ErrorCode::InRollback, "the index is being built again: its source's history changed".into());
        }
        let held = self.outside.held.get(&self.outside.bucket, slice);
        let held = held.unwrap_or_else(|| self.outside.held.open(&self.outside.bucket, slice, info.directions.clone()));
        let mut opened = self.open_store(&info, reset);
        if let Err(error @ (StoreError::Damaged(_) | StoreError::OtherSlice { .. })) = &opened {
            tracing::warn!(bucket = self.outside.bucket, ?slice, %error, "building the slice again");
            opened = self.open_store(&info, true);
        }
        match opened {
            Ok(mut store) => {
                let mark = store.durable().clone();
                if !mark.building
                    && !mark.vbs.is_empty()
                    && let Ok(snapshot) = store.seal()
                {
                    let st = Arc::new(st_of(&mark));
                    self.newest = self.newest.take().filter(|n| n.number > st.number).or_else(|| Some(Arc::clone(&st)));
                    held.offer(st, snapshot);
                }
                self.open.insert(slice, Open { store, held, stem: stem(&info), unsealed: 0 });
                self.core.opened(slice, &mark)
            }
            Err(error) => self.fail(slice, &error),
        }
    }

    fn open_store(&self, info: &SliceInfo, reset: bool) -> Result<LmdbStore, StoreError> {
        let dir = self.outside.files.open(&self.outside.bucket, &stem(info), reset)?;
        LmdbStore::open(&dir, &info.identity, StoreLimits::default())
    }

    fn remove(&mut self, slice: SliceName) {
        if let Some(open) = self.open.remove(&slice) {
            open.held.close(ErrorCode::IndexNotFound, "the index was dropped".into());
            self.outside.held.remove(&self.outside.bucket, slice);
            let stem = open.stem.clone();
            drop(open);
            if let Err(error) = self.outside.files.remove(&self.outside.bucket, &stem) {
                tracing::warn!(bucket = self.outside.bucket, stem, %error, "cannot remove the slice's files");
            }
        }
    }

    fn fail(&mut self, slice: SliceName, error: &StoreError) -> Vec<Action> {
        tracing::error!(bucket = self.outside.bucket, ?slice, %error, "slice failed");
        if let Some(open) = self.open.get(&slice) {
            open.held.close(ErrorCode::StorageFailed, error.to_string());
        }
        self.core.failed(slice, error.to_string())
    }

    fn apply(
        &mut self,
        slice: SliceName,
        steps: &[(u16, Step)],
        st: &Arc<StabilityTimestamp>,
        readable: bool,
    ) -> Result<(), StoreError> {
        let (Some(open), Some(info)) = (self.open.get_mut(&slice), self.infos.get(&slice)) else { return Ok(()) };
        for (_, step) in steps {
            replace(&mut open.store, info, slice, &step.batch, step.after..=step.upto, false)?;
        }
        let snapshot = open.store.seal()?;
        if readable {
            open.held.offer(Arc::clone(st), snapshot);
        }
        if self.newest.as_ref().is_none_or(|n| n.number < st.number) {
            self.newest = Some(Arc::clone(st));
        }
        Ok(())
    }

    /// Slices in step whose layers exceed the quota become durable out of turn.
    fn check_memory(&mut self) {
        let quota = self.outside.memory_quota;
        let full: Vec<SliceName> =
            self.open.iter().filter(|(_, o)| o.store.memory() > quota).map(|(name, _)| *name).collect();
        for slice in full {
            let actions = self.core.persist_now(slice);
            self.carry_out(actions);
        }
    }

    /// True when the slice has collected enough to be made durable.
    fn collect(&mut self, slice: SliceName, batch: &Batch, after: u64, bulk: bool) -> Result<bool, StoreError> {
        let (Some(open), Some(info)) = (self.open.get_mut(&slice), self.infos.get(&slice)) else { return Ok(false) };
        replace(&mut open.store, info, slice, batch, after..=batch.to.seqno, bulk)?;
        open.unsealed += batch.size();
        if !bulk && open.unsealed > UNSEALED {
            open.unsealed = 0;
            open.store.seal()?;
        }
        Ok(open.store.memory() > self.outside.memory_quota)
    }

    fn persist(&mut self, slice: SliceName, mark: SliceMark, topic: u64) -> Vec<Action> {
        let Some(open) = self.open.get_mut(&slice) else { return Vec::new() };
        let job = open.store.begin_persist(mark.clone());
        let sender = self.outside.events.upgrade();
        let (Some(job), Some(to)) = (job, sender) else {
            return self.core.persisted(slice, &mark, topic, false);
        };
        let kept = mark.clone();
        let done = Box::new(move |outcome| Event::Persisted { slice, mark, topic, outcome: Box::new(outcome) });
        match self.outside.persister.try_send(PersistRequest { job, done, to }) {
            Ok(()) => Vec::new(),
            Err(_) => self.core.persisted(slice, &kept, topic, false),
        }
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

    fn publish(&mut self) {
        let mark = HighWatermark {
            bucket: self.outside.bucket.clone(),
            node: self.outside.node.clone(),
            incarnation: self.outside.incarnation,
            hwt: self.core.high_watermark().unwrap_or_default(),
            held: self.held_range(),
            durable: self.core.durable(),
            queued: self.core.queued() as u64,
        };
        self.outside.watermark.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&mark);
            if changed {
                *old = Some(mark);
            }
            changed
        });
        if self.notable > self.outside.report.borrow().notable || self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            let report = self.report();
            self.outside.report.send_replace(report);
        }
    }

    /// The STs that every readable slice of the bucket holds here.
    fn held_range(&self) -> (u64, u64) {
        let ranges = self
            .core
            .slices()
            .filter(|s| s.readable)
            .filter_map(|s| self.open.get(&s.name))
            .filter_map(|o| o.held.range());
        ranges.reduce(|a, b| (a.0.max(b.0), a.1.min(b.1))).unwrap_or((0, 0))
    }

    fn report(&self) -> BucketReport {
        let slices = self
            .core
            .slices()
            // A session is opened for what is reported: only once its place in the live chain cannot be missed.
            .filter(|_| self.core.listens())
            .map(|s| {
                let stats = self.open.get(&s.name).map(|o| o.store.stats()).unwrap_or_default();
                SliceReport {
                    bucket: self.outside.bucket.clone(),
                    index: s.name.index,
                    partition: s.name.partition,
                    state: s.state(),
                    session: s.following.as_ref().map_or(0, |f| f.id),
                    done_with: s.done_with,
                    resume: s.resume(),
                    docs_done: s.docs_done,
                    items: stats.items,
                    bytes: stats.live_bytes,
                    unindexed: stats.unindexed,
                    error: match &s.mode {
                        Mode::Failed(why) => Some(why.clone()),
                        _ => stats.poisoned,
                    },
                }
            })
            .collect();
        BucketReport {
            notable: self.notable,
            slices,
            applied: self.newest.as_deref().cloned(),
            durable: self.core.durable(),
            sessions: self.core.sessions(),
            dropped: self.core.dropped,
        }
    }
}

pub(crate) fn stem(info: &SliceInfo) -> String {
    format!("{}.{}", info.identity.index_id, info.identity.partition)
}

/// The ST that a slice shows right after opening.
fn st_of(mark: &SliceMark) -> StabilityTimestamp {
    StabilityTimestamp {
        number: mark.st,
        term: mark.term,
        wanted: true,
        persist: true,
        vbs: mark
            .vbs
            .iter()
            .map(|vb| StVb {
                vbuuid: vb.vbuuid,
                position: vb.position,
                covered: vb.covered,
                server_time: vb.server_time,
                hash: vb.hash,
                ..StVb::default()
            })
            .collect(),
    }
}
