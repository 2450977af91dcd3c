//! Follows the replicated log, runs a worker per bucket, answers scans and status, reports to the coordinator.
//!
//! Its loop waits for nothing that takes long: what works through a slice does so in the bucket's worker, on a thread that reads,
//! or as a job, and none of them is awaited here.
//!
//! `requests`: who answers what; `diagnosis`: the requests that look into slices; `reports`: what the coordinator is told;
//! `workers`: how the workers end, and what follows.

mod diagnosis;
mod reports;
mod requests;
mod view;
mod workers;

use crate::{
    config::{Config, MOST_SCANS},
    core::BucketView,
    feeds::{self, Feed, QUESTIONS, Refused, SessionShare},
    files::SliceFiles,
    held::Held,
    jobs::Jobs,
    ledger::Ledger,
    marks::Marks,
    read_threads::ReadThreads,
    report::BucketReport,
    scan::Scans,
    store::StoreError,
    worker::{self, EVENTS, Event, Gate, Latest, Outside, SliceInfo},
};
use highwater_bus::{
    Bus, BusError, Ending, Endpoints, Heart, ServiceSpec, StateView, TaskSet, fault, supervise::Errands,
};
use highwater_schemas::{
    api,
    report::Reporter,
    state::{Concerns, SliceName},
    subjects,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::AbortHandle,
    time::sleep_until,
};
use view::{hosted_slices, infos, view};

/// Purges of catchup topics that may wait.
const PURGES: usize = 64;
/// Workers look at what has expired this often.
const TICK: Duration = Duration::from_millis(50);
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
    began: Instant,
    events: mpsc::Sender<Event>,
    latest: Latest,
    gate: Arc<Gate>,
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
    scans: Scans,
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
    /// What the coordinator is told, and when that was begun anew.
    reporter: Reporter,
    begun: Option<Instant>,
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
    let mut requests = endpoints(&bus, &config).await?;
    let notable = watch::Sender::new(0);
    let mut noted = notable.subscribe();
    let mut shell = Shell {
        files: SliceFiles::new(&config.data_dir),
        bus: bus.clone(),
        state: StateView::new(&bus),
        scans: Scans {
            held: Held::new(config.snapshot_age),
            threads: Arc::new(ReadThreads::new(config.scans, MOST_SCANS, incidents.clone())),
            max_payload: bus.max_payload(),
            incidents: incidents.clone(),
        },
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
        reporter: Reporter::default(),
        begun: None,
        config: config.clone(),
    };
    let mut heart = Heart::new(&bus, config.heartbeat).await?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut orphans = tokio::time::interval(ORPHANS_AFTER);
    orphans.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (led, mut is_led) = mpsc::channel(1);
    let mut tidied = false;
    let mut caught_up = false;
    let mut ready = Some(ready);
    loop {
        fault("service", "");
        if !caught_up && shell.state.ready() {
            caught_up = true;
            orphans.reset();
            shell.reconcile(Concerns::Everything);
            shell.report_anew();
            heart.beat(&shell.heartbeat()).await;
        }
        if caught_up && let Some(ready) = ready.take() {
            let _ = ready.send(());
        }
        let report_at = heart.report_at(&shell.reporter);
        tokio::select! {
            touched = shell.state.next() => {
                let touched = touched?;
                if caught_up {
                    shell.reconcile(touched);
                }
                if caught_up && shell.is_new_term() {
                    shell.report_anew();
                    heart.beat(&shell.heartbeat()).await;
                }
            }
            request = requests.next() => match request {
                Some(request) => shell.request(request).await,
                None => return Err(IndexerError::Ended("the connection to NATS has ended".into())),
            },
            // None of them ends by itself.
            Some((name, _)) = tasks.join_next() => return Err(IndexerError::Ended(format!("{name} has ended"))),
            Some((name, Ending::Panicked(_))) = shell.feeds.join_next() => {
                return Err(IndexerError::Ended(format!("{name}: it panicked")));
            }
            Some((of, ending)) = shell.workers.join_next() => if shell.worker_ended(&of, ending) {
                shell.report(true);
                heart.beat(&shell.heartbeat()).await;
            },
            () = heart.due(), if caught_up => {
                shell.report(true);
                heart.beat(&shell.heartbeat()).await;
            }
            Ok(()) = noted.changed(), if caught_up => shell.report(false),
            () = sleep_until(report_at.unwrap_or_else(tokio::time::Instant::now)), if report_at.is_some() => {
                let join = shell.heartbeat();
                heart.report(&mut shell.reporter, &join).await;
            }
            _ = orphans.tick(), if caught_up && !tidied => {
                shell.errands.spawn("asking who coordinates", tell_who_leads(bus.clone(), led.clone()));
            }
            Some(term) = is_led.recv(), if !tidied => {
                // Somebody coordinates in the term of the log: what it does not know is not about to be completed.
                let context = shell.state.context();
                tidied = context.version > 0 && term == context.term;
                if tidied {
                    shell.remove_orphans();
                }
            }
            _ = tick.tick() => {
                for bucket in shell.buckets.values() {
                    // A full inbox keeps the worker going without ticks.
                    let _ = bucket.events.try_send(Event::Tick);
                }
                shell.start_again();
            }
            _ = stop.changed() => {
                shell.drain().await;
                heart.leave(&shell.heartbeat()).await;
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

/// Asks in which term somebody coordinates.
async fn tell_who_leads(bus: Bus, told: mpsc::Sender<u64>) {
    fault("errand", "asking who coordinates");
    let asked = bus.request(subjects::CLUSTER_MASTER, b"{}".to_vec(), Duration::from_secs(1)).await;
    let reply = asked.ok().and_then(|reply| api::reply(&reply.payload).ok());
    if let Some(term) = reply.and_then(|reply| reply["master"]["term"].as_u64()) {
        // The service may have ended.
        let _ = told.send(term).await;
    }
}

impl Shell {
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
            fault("errand", "removing files of slices that are gone");
            if let Err(error) = files.remove_orphans(&known) {
                tracing::warn!(%error, "files of slices that are not here any more cannot be removed");
            }
        });
    }

    /// Brings the workers and their sessions to what the log says.
    fn reconcile(&mut self, touched: Concerns) {
        let context = self.state.context();
        let stay = |name: &String, r: &Running| context.buckets.get(name).is_some_and(|b| b.declared == r.declared);
        let gone: Vec<String> = self.buckets.iter().filter(|(n, r)| !stay(n, r)).map(|(n, _)| n.clone()).collect();
        for name in gone {
            // A worker that ends well takes back what it held by itself.
            if self.buckets.remove(&name).is_some_and(|running| running.again.is_some()) {
                self.scans.held.forget(&name);
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
                self.update(&name, view, infos);
            } else if !view.slices.is_empty() {
                let declared = bucket.declared;
                self.start(&name, declared, view, infos);
            }
        }
    }

    fn update(&mut self, name: &str, view: BucketView, infos: BTreeMap<SliceName, SliceInfo>) {
        let Some(running) = self.buckets.get_mut(name).filter(|running| running.again.is_none()) else { return };
        for (slice, info) in &infos {
            // Scans wait for a slice from when the log says that it is here.
            self.scans.held.open((name, running.declared), *slice, &info.directions);
        }
        let sessions: Vec<u64> = view.sessions.keys().copied().collect();
        running.latest.put(view, infos);
        // A worker whose inbox is full looks for news by itself, and one that has ended is heard of by itself.
        let _ = running.events.try_send(Event::State);
        running.sessions.retain(|id, task| {
            let open = sessions.contains(id);
            if !open {
                task.abort();
            }
            open
        });
        for id in sessions {
            if !running.sessions.contains_key(&id) {
                let what = format!("reading session {id} of bucket {name}");
                let task = self.feeds.spawn(what, running.feed.clone().session(id));
                running.sessions.insert(id, task);
            }
        }
    }

    /// Has a worker open the slices of a bucket; the feeds begin when it has.
    fn start(&mut self, name: &str, declared: u64, view: BucketView, infos: BTreeMap<SliceName, SliceInfo>) {
        let (events, inbox) = mpsc::channel(EVENTS);
        let (watermark, watermarks) = watch::channel(None);
        let (missed, questions) = mpsc::channel(QUESTIONS);
        let (report, watched) = watch::channel(BucketReport::default());
        let (latest, gate, share) = (Latest::default(), Arc::<Gate>::default(), SessionShare::default());
        let outside = Outside {
            node: self.config.node.clone(),
            incarnation: self.config.incarnation,
            bucket: name.to_owned(),
            declared,
            latest: latest.clone(),
            gate: Arc::clone(&gate),
            files: self.files.clone(),
            held: self.scans.held.clone(),
            limits: self.config.limits(hosted_slices(&self.config.node, self.state.context())),
            jobs: self.jobs.clone(),
            ledger: self.ledger.clone(),
            marks: Arc::clone(&self.marks),
            events: events.downgrade(),
            watermark,
            report,
            missed,
            purges: self.purges.clone(),
            share: share.clone(),
            incidents: self.bus.incidents(),
        };
        let feed = Feed {
            bus: self.bus.clone(),
            bucket: name.to_owned(),
            events: events.clone(),
            refused: Arc::clone(&self.refused),
            share,
        };
        let (report_of, feed_of) = (watched.clone(), feed.clone());
        let running = Running {
            declared,
            began: Instant::now(),
            events: events.clone(),
            latest: latest.clone(),
            gate,
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
        latest.put(view.clone(), infos.clone());
        // The inbox is empty.
        let _ = events.try_send(Event::Start { resume });
        let (listening, heard) = oneshot::channel();
        let (mutation, node) = (feed_of.clone(), self.config.node.clone());
        let read_topic = async move {
            // Slices are told of once their topic is open, and the coordinator answers with a timestamp.
            let heard = mutation.bus.subscribe(&subjects::stability(&mutation.bucket)).await.ok();
            let _ = listening.send(heard);
            if let Ok(from) = resumed.await {
                mutation.mutation(node, from).await;
            }
        };
        let hear = async move { feed_of.stability(heard.await.ok().flatten()).await };
        let what = |does: &str| format!("{does} bucket {name}");
        let tasks = vec![
            self.feeds.spawn(what("reading the topic of"), read_topic),
            self.feeds.spawn(what("hearing the timestamps of"), hear),
            self.feeds.spawn(what("speaking for"), feeds::speak(self.bus.clone(), watermarks, questions)),
            self.feeds.spawn(what("reporting on"), reports::note(report_of, self.notable.clone())),
        ];
        if let Some(running) = self.buckets.get_mut(name) {
            running.tasks = tasks;
        }
        // Sessions that were open before are taken up as any other.
        self.update(name, view, infos);
    }
}
