//! Follows the replicated log, runs a worker per bucket, answers scans and status, reports to the coordinator.
//!
//! `diagnosis`: the requests that look into slices; `reports`: what the coordinator is told; `workers`: how the workers end, and
//! what follows.

mod diagnosis;
mod reports;
mod view;
mod workers;

use crate::{
    config::{Config, MOST_SCANS},
    core::BucketView,
    feeds::{self, Feed, QUESTIONS, Refused},
    files::SliceFiles,
    held::Held,
    jobs::Jobs,
    ledger::Ledger,
    marks::Marks,
    report::BucketReport,
    scan,
    store::StoreError,
    worker::{self, EVENTS, Event, Outside, SliceInfo},
};
use highwater_bus::{
    Bus, BusError, Ending, Endpoints, Heart, ServiceRequest, ServiceSpec, StateView, TaskSet, fault,
    supervise::{self, Errands},
};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{self, NodeKind, NodeStatus, UnindexedDoc},
    state::{Concerns, SliceName},
    subjects,
    wire::{self, ScanReply, ScanRequest},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::AbortHandle,
};
use view::{hosted_slices, infos, view};

/// Purges of catchup topics that may wait.
const PURGES: usize = 64;
/// Workers look at what has expired this often.
const TICK: Duration = Duration::from_millis(50);
/// Unindexable documents listed per slice.
const LISTED: usize = 100;
/// What the log does not know is kept this long after the start: a log that lost its tail may be completed.
const ORPHANS_AFTER: Duration = Duration::from_secs(30);

/// Why the indexer ended.
#[derive(Debug, thiserror::Error)]
pub enum IndexerError {
    /// A setting is out of its limits.
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("data directory: {0}")]
    Disk(#[from] io::Error),
    #[error("data directory: {0}")]
    Store(#[from] StoreError),
    /// What the whole node stands on.
    #[error("{0}")]
    Ended(String),
}

struct Running {
    /// Tells a bucket from a later one of the same name.
    declared: u64,
    events: mpsc::Sender<Event>,
    report: watch::Receiver<BucketReport>,
    /// What was last told of it.
    told: u64,
    feed: Feed,
    tasks: Vec<AbortHandle>,
    sessions: BTreeMap<u64, AbortHandle>,
    /// When its worker is started again, after it panicked.
    again: Option<Instant>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in self.tasks.iter().chain(self.sessions.values()) {
            task.abort();
        }
    }
}

struct Shell {
    config: Config,
    bus: Bus,
    state: StateView,
    files: SliceFiles,
    held: Held,
    jobs: Jobs,
    ledger: Ledger,
    marks: Arc<Marks>,
    purges: mpsc::Sender<(String, u64, u64)>,
    buckets: BTreeMap<String, Running>,
    refused: Refused,
    /// Requests that look into slices.
    diagnoses: Arc<Semaphore>,
    errands: Errands,
    /// What reads and speaks for the buckets, and their workers with when each bucket was declared.
    feeds: TaskSet<String>,
    workers: TaskSet<workers::Of, Ending<()>>,
    /// By bucket, when its worker was started after a panic for the last time.
    restarted: BTreeMap<String, Instant>,
    /// Changes whenever a bucket has something to report.
    notable: watch::Sender<u64>,
    /// The term of the last report of all buckets.
    said: u64,
}

/// Runs the indexer until `stop` turns true; then makes durable what is applied.
pub async fn run(
    config: Config,
    bus: Bus,
    ready: oneshot::Sender<()>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), IndexerError> {
    config.check()?;
    std::fs::create_dir_all(&config.data_dir)?;
    let incidents = bus.incidents();
    let mut tasks = TaskSet::new(incidents.clone());
    let jobs = Jobs::start(&mut tasks, &incidents);
    let marks = open_marks(&config)?;
    let (purges, purging) = mpsc::channel(PURGES);
    tasks.spawn("what purges catchup topics", purge(bus.clone(), purging));
    let held = Held::new(config.snapshot_age);
    let mut requests = endpoints(&bus, &config).await?;
    let notable = watch::Sender::new(0);
    let mut noted = notable.subscribe();
    let mut shell = Shell {
        files: SliceFiles::new(&config.data_dir),
        bus: bus.clone(),
        state: StateView::new(&bus),
        held: held.clone(),
        jobs,
        ledger: Ledger::new(config.memory_quota),
        marks: Arc::new(marks),
        purges,
        buckets: BTreeMap::new(),
        refused: Refused::default(),
        diagnoses: Arc::new(Semaphore::new(diagnosis::AT_ONCE)),
        errands: Errands::new(incidents.clone()),
        feeds: TaskSet::new(incidents.clone()),
        workers: TaskSet::new(incidents),
        restarted: BTreeMap::new(),
        notable,
        said: 0,
        config: config.clone(),
    };
    let scans = Arc::new(Semaphore::new(config.scans));
    let waiting = Arc::new(Semaphore::new(MOST_SCANS));
    let mut heart = Heart::new(&bus, config.heartbeat).await?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut orphans = tokio::time::interval(ORPHANS_AFTER);
    orphans.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tidied = false;
    let mut caught_up = false;
    let mut ready = Some(ready);
    loop {
        if !caught_up && shell.state.ready() {
            caught_up = true;
            orphans.reset();
            shell.reconcile(Concerns::Everything).await;
            heart.beat(&shell.report()).await;
        }
        if caught_up && let Some(ready) = ready.take() {
            let _ = ready.send(());
        }
        tokio::select! {
            touched = shell.state.next() => {
                let touched = touched?;
                if caught_up {
                    shell.reconcile(touched).await;
                }
                if caught_up && shell.is_new_term() {
                    heart.beat(&shell.report()).await;
                }
            }
            request = requests.next() => match request {
                Some(request) => shell.request(request, &held, &scans, &waiting).await,
                None => return Err(IndexerError::Ended("the connection to NATS has ended".into())),
            },
            // None of them ends by itself.
            Some((name, _)) = tasks.join_next() => return Err(IndexerError::Ended(format!("{name} has ended"))),
            Some((name, Ending::Panicked(_))) = shell.feeds.join_next() => {
                return Err(IndexerError::Ended(format!("{name}: it panicked")));
            }
            Some((of, ending)) = shell.workers.join_next() => if shell.worker_ended(&of, ending) {
                heart.beat(&shell.report()).await;
            },
            () = heart.due(), if caught_up => heart.beat(&shell.report()).await,
            Ok(()) = noted.changed(), if caught_up => if let Some(news) = shell.news() {
                heart.say(&news).await;
            },
            _ = orphans.tick(), if caught_up && !tidied => {
                tidied = shell.is_led().await;
                if tidied {
                    shell.remove_orphans();
                }
            }
            _ = tick.tick() => {
                for bucket in shell.buckets.values() {
                    // A full inbox keeps the worker going without ticks.
                    let _ = bucket.events.try_send(Event::Tick);
                }
                shell.start_again().await;
            }
            _ = stop.changed() => {
                shell.drain().await;
                heart.leave(&shell.report()).await;
                return Ok(());
            }
        }
    }
}

async fn endpoints(bus: &Bus, config: &Config) -> Result<Endpoints, BusError> {
    let endpoint = |verb: &str| (verb.to_owned(), subjects::node(&config.node, verb));
    let endpoints = subjects::INDEXER_VERBS.into_iter().map(endpoint).collect();
    bus.service(&ServiceSpec {
        name: "highwater-indexer".into(),
        description: "Highwater index slices".into(),
        endpoints,
        queue_group: None,
    })
    .await
}

/// Opens the marks of unchanged slices; without them slices only start further back.
fn open_marks(config: &Config) -> Result<Marks, StoreError> {
    match Marks::open(&config.data_dir) {
        Err(error @ (StoreError::Damaged(_) | StoreError::Lmdb(_))) => {
            tracing::warn!(%error, "the marks of unchanged slices are lost");
            Marks::discard(&config.data_dir)?;
            Marks::open(&config.data_dir)
        }
        other => other,
    }
}

async fn purge(bus: Bus, mut purges: mpsc::Receiver<(String, u64, u64)>) {
    while let Some((bucket, session, below)) = purges.recv().await {
        fault("purge", &bucket);
        let stream = subjects::catchup_stream(&bucket);
        if let Err(error) = bus.purge(&stream, &subjects::catchup(&bucket, session), Some(below)).await {
            tracing::debug!(stream, session, %error, "cannot purge");
        }
    }
}

impl Shell {
    /// Somebody coordinates in the term of the log: what it does not know is not about to be completed.
    async fn is_led(&self) -> bool {
        let context = self.state.context();
        let asked = self.bus.request(subjects::CLUSTER_MASTER, b"{}".to_vec(), Duration::from_secs(1)).await;
        let reply = asked.ok().and_then(|reply| api::reply(&reply.payload).ok());
        context.version > 0 && reply.is_some_and(|reply| reply["master"]["term"] == context.term)
    }

    fn remove_orphans(&mut self) {
        let known: BTreeSet<(String, String)> = self
            .state
            .context()
            .buckets
            .iter()
            .flat_map(|(name, bucket)| {
                infos(&self.config.node, bucket).into_values().map(|i| (name.clone(), worker::stem(&i)))
            })
            .collect();
        let files = self.files.clone();
        self.errands.spawn_job("removing files of slices that are gone", move || {
            if let Err(error) = files.remove_orphans(&known) {
                tracing::warn!(%error, "files of slices that are not here any more cannot be removed");
            }
        });
    }

    /// Brings the workers and their sessions to what the log says.
    async fn reconcile(&mut self, touched: Concerns) {
        let context = self.state.context();
        let stay = |name: &String, r: &Running| context.buckets.get(name).is_some_and(|b| b.declared == r.declared);
        let gone: Vec<String> = self.buckets.iter().filter(|(n, r)| !stay(n, r)).map(|(n, _)| n.clone()).collect();
        for name in gone {
            // A worker that ends well takes back what it held by itself.
            if self.buckets.remove(&name).is_some_and(|running| running.again.is_some()) {
                self.held.forget(&name);
            }
        }
        let names: Vec<String> = match touched {
            Concerns::Nothing => Vec::new(),
            Concerns::Bucket(bucket) => vec![bucket],
            Concerns::Everything => self.state.context().buckets.keys().cloned().collect(),
        };
        for name in names {
            let Some(bucket) = self.state.context().buckets.get(&name) else { continue };
            let (view, infos) =
                (view(&self.config, self.state.context().term, bucket), infos(&self.config.node, bucket));
            if self.buckets.contains_key(&name) {
                self.update(&name, view, infos).await;
            } else if !view.slices.is_empty() {
                let declared = bucket.declared;
                self.start(&name, declared, view, infos).await;
            }
        }
    }

    async fn update(&mut self, name: &str, view: BucketView, infos: BTreeMap<SliceName, SliceInfo>) {
        let Some(running) = self.buckets.get_mut(name).filter(|running| running.again.is_none()) else { return };
        running.sessions.retain(|id, task| {
            let open = view.sessions.contains_key(id);
            if !open {
                task.abort();
            }
            open
        });
        for id in view.sessions.keys() {
            if !running.sessions.contains_key(id) {
                let what = format!("reading session {id} of bucket {name}");
                let task = self.feeds.spawn(what, running.feed.clone().session(*id));
                running.sessions.insert(*id, task);
            }
        }
        // A worker that has ended is heard of by itself.
        let _ = running.events.send(Event::State { view, infos }).await;
    }

    async fn start(&mut self, name: &str, declared: u64, view: BucketView, infos: BTreeMap<SliceName, SliceInfo>) {
        let (events, inbox) = mpsc::channel(EVENTS);
        let (watermark, watermarks) = watch::channel(None);
        let (missed, questions) = mpsc::channel(QUESTIONS);
        let (report, watched) = watch::channel(BucketReport { term: view.term, ..BucketReport::default() });
        let outside = Outside {
            node: self.config.node.clone(),
            incarnation: self.config.incarnation,
            bucket: name.to_owned(),
            files: self.files.clone(),
            held: self.held.clone(),
            limits: self.config.limits(hosted_slices(&self.config.node, self.state.context())),
            jobs: self.jobs.clone(),
            ledger: self.ledger.clone(),
            marks: Arc::clone(&self.marks),
            events: events.downgrade(),
            watermark,
            report,
            missed,
            purges: self.purges.clone(),
            incidents: self.bus.incidents(),
        };
        let feed = Feed {
            bus: self.bus.clone(),
            bucket: name.to_owned(),
            events: events.clone(),
            refused: Arc::clone(&self.refused),
        };
        let (report_of, feed_of) = (watched.clone(), feed.clone());
        let running = Running {
            declared,
            events: events.clone(),
            report: watched,
            told: 0,
            feed,
            tasks: Vec::new(),
            sessions: BTreeMap::new(),
            again: None,
        };
        self.buckets.insert(name.to_owned(), running);
        if !self.start_worker(name, declared, outside, inbox) {
            return;
        }
        let (resume, resumed) = oneshot::channel();
        let sessions = view.clone();
        if events.send(Event::Start { view, infos: infos.clone(), resume }).await.is_err() {
            return;
        }
        let Ok(from) = resumed.await else { return };
        // Before the coordinator is told of the slices, as it answers with a timestamp.
        let heard = self.bus.subscribe(&subjects::stability(name)).await.ok();
        let what = |does: &str| format!("{does} bucket {name}");
        let tasks = vec![
            self.feeds.spawn(what("reading the topic of"), feed_of.clone().mutation(self.config.node.clone(), from)),
            self.feeds.spawn(what("hearing the timestamps of"), feed_of.stability(heard)),
            self.feeds.spawn(what("speaking for"), feeds::speak(self.bus.clone(), watermarks, questions)),
            self.feeds.spawn(what("reporting on"), reports::note(report_of, self.notable.clone())),
        ];
        if let Some(running) = self.buckets.get_mut(name) {
            running.tasks = tasks;
        }
        // Sessions that were open before are taken up as any other.
        self.update(name, sessions, infos).await;
    }

    async fn request(
        &mut self,
        request: ServiceRequest,
        held: &Held,
        scans: &Arc<Semaphore>,
        waiting: &Arc<Semaphore>,
    ) {
        match request.subject.rsplit('.').next() {
            Some("scan") => {
                let Ok(place) = Arc::clone(waiting).try_acquire_owned() else {
                    let reply = ScanReply::refused(ErrorCode::TooManyRequests, "too many scans wait on this node");
                    request.respond(Ok(wire::encode(&reply))).await;
                    return;
                };
                let (held, scans, refused) = (held.clone(), Arc::clone(scans), Arc::clone(&self.refused));
                let (max_payload, incidents) = (self.bus.max_payload(), self.bus.incidents());
                self.errands.spawn("a scan", async move {
                    let reply = match wire::decode::<ScanRequest>(&request.payload) {
                        Ok(scan) => {
                            let served = scan::serve(&incidents, &held, scan, &scans, max_payload);
                            let served = supervise::caught(&incidents, "a scan", served).await.done();
                            served.unwrap_or_else(|error| ScanReply::refused(ErrorCode::Internal, error.to_string()))
                        }
                        Err(error) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            ScanReply::refused(ErrorCode::MalformedRequest, error.to_string())
                        }
                    };
                    request.respond(Ok(wire::encode(&reply))).await;
                    drop(place);
                });
            }
            Some(verb @ ("verify" | "dump")) => {
                let verb = verb.to_owned();
                self.diagnose(&verb, request).await;
            }
            Some("assign") => {
                let answer = api::parse(&request.payload).and_then(|wanted| self.assign(&wanted));
                request.respond(answer.map(|()| api::ok(&api::Empty {}))).await;
            }
            Some("status") => {
                let asked = supervise::caught_now(&self.bus.incidents(), "a request for the status", || {
                    fault("status", "");
                    self.status(&request.payload)
                });
                let status = asked.done().unwrap_or_else(|error| Err(internal(&error)));
                request.respond(status.map(|s| api::ok(&s))).await;
            }
            _ => request.respond(Ok(api::ok(&api::Empty {}))).await,
        }
    }

    /// All slices, or those of the bucket that the request names; with a list of what one of them could not take when it names it.
    fn status(&self, payload: &[u8]) -> Result<NodeStatus, ApiError> {
        let asked: api::NodeStatusRequest = api::parse(payload)?;
        let mut unindexed = Vec::new();
        if let (Some(bucket), Some(index), Some(partition)) = (&asked.bucket, asked.index, asked.partition)
            && let Some((_, snapshot)) = self.held.get(bucket, SliceName { index, partition }).and_then(|h| h.newest())
        {
            let listed =
                snapshot.unindexed_docs(LISTED).map_err(|e| ApiError::new(ErrorCode::StorageFailed, e.to_string()))?;
            unindexed = listed
                .into_iter()
                .map(|(vb, id, seqno, reason)| UnindexedDoc { id, vb, seqno, reason: reason.as_str().into() })
                .collect();
        }
        let wanted = self.buckets.iter().filter(|(name, _)| asked.bucket.as_ref().is_none_or(|b| b == *name));
        Ok(NodeStatus {
            node: self.config.node.clone(),
            kind: NodeKind::Indexer,
            void_batches: wanted.clone().map(|(_, r)| r.report.borrow().void).sum(),
            slices: wanted.flat_map(|(_, r)| r.report.borrow().slices.clone()).collect(),
            refused_messages: self.refused.load(Ordering::Relaxed),
            unindexed,
        })
    }

    /// Whether there is room for further partitions: the disk can be written, and files can be opened.
    fn assign(&self, wanted: &api::Assign) -> Result<(), ApiError> {
        /// Files that a slice keeps open.
        const FILES: u64 = 3;
        let storage = |e: io::Error| ApiError::new(ErrorCode::StorageFailed, e.to_string());
        self.files.probe().map_err(storage)?;
        let slices = hosted_slices(&self.config.node, self.state.context()) as u64 + u64::from(wanted.partitions);
        let (limit, _) = rlimit::Resource::NOFILE.get().map_err(storage)?;
        if slices * FILES > limit {
            return Err(ApiError::new(
                ErrorCode::StorageFailed,
                format!("{slices} partitions need more than the {limit} files that this process may open"),
            ));
        }
        Ok(())
    }
}

fn internal(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}
