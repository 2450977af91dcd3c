//! Follows the replicated log; starts and stops vbucket tasks; reports to the coordinator.

mod report;

use crate::{
    config::Config,
    docid::Docids,
    panics::Panics,
    plans::{known, live_plan, session_plan},
    reads::{Purpose, Reading, Totals},
    recent::Recent,
    vbucket::{self, Assignment, Durable, End, HINTS, Hint, Inbox, KnownToAll, Plan, WANTS, purge},
    verify::Suspected,
};
use highwater_bus::{Bus, BusError, Ending, Endpoints, Heart, Incoming, ServiceSpec, StateView, TaskSet, fault};
use highwater_schemas::{
    Position,
    api::{self, Suspicion},
    lane::{LEAST_PAYLOAD, LaneTarget, OpenLane},
    report::Reporter,
    state::{Concerns, SessionKind, StateContext},
    subjects,
    timestamp::Asked,
    wire,
};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time::sleep_until,
};

/// Everything is reported anew this often at most when somebody asks.
const ANEW: Duration = Duration::from_millis(250);
/// Bytes that a process remembers of when documents expire.
const EXPIRIES: usize = 16 * 1024 * 1024;

/// Why the projector ended.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("the connection to NATS has ended")]
    Disconnected,
    #[error("nats-server takes {0} bytes in a message (max_payload); at least {LEAST_PAYLOAD} are needed")]
    SmallPayload(usize),
}

/// A vbucket of a generation, or of a session when that is not 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    bucket: String,
    declared: u64,
    vb: u16,
    generation: u64,
    session: u64,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.session {
            0 => write!(f, "vbucket {} of bucket {}", self.vb, self.bucket),
            _ => write!(f, "a session for vbucket {} of bucket {}", self.vb, self.bucket),
        }
    }
}

struct Running {
    abort: AbortHandle,
    purpose: Purpose,
    stream: String,
    wants: mpsc::Sender<Asked>,
    hints: mpsc::Sender<Hint>,
    plan: watch::Sender<Arc<Plan>>,
    vbuuid: u64,
    known_to_all: Arc<KnownToAll>,
    reading: Arc<Reading>,
    durable: Durable,
}

impl Running {
    /// Takes up the bookmarks that the log has now.
    fn remember(&self, context: &StateContext, key: &Key) {
        let Some(vbucket) = context.buckets.get(&key.bucket).and_then(|b| b.vbuckets.get(usize::from(key.vb))) else {
            return;
        };
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable.last().map(|mark| mark.seqno) != vbucket.bookmarks.last().map(|mark| mark.seqno) {
            durable.clone_from(&vbucket.bookmarks);
        }
    }
}

struct Shell {
    config: Config,
    bus: Bus,
    state: StateView,
    running: BTreeMap<Key, Running>,
    tasks: TaskSet<Key, End>,
    lanes: mpsc::Sender<OpenLane>,
    suspicions: Vec<Suspicion>,
    /// Sessions that cannot go on, and vbuckets, with the generation, whose chains cannot: each from when on it is reported.
    broken: BTreeMap<(String, u64), Instant>,
    lost: BTreeMap<(String, u16, u64), Instant>,
    panics: Panics,
    /// What tasks that are over have read.
    reads: Totals,
    /// Damaged wants so far.
    refused: Cell<u64>,
    /// What the coordinator is told, when that was begun anew, and whether somebody has not got all of it.
    reporter: Reporter,
    begun: Option<Instant>,
    asked: bool,
}

/// Runs the projector until `stop` turns true.
pub async fn run(
    config: Config,
    bus: Bus,
    lanes: mpsc::Sender<OpenLane>,
    ready: oneshot::Sender<()>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ProjectorError> {
    if bus.max_payload() < LEAST_PAYLOAD {
        return Err(ProjectorError::SmallPayload(bus.max_payload()));
    }
    let mut wants = bus.subscribe("hw.want.*").await?;
    let mut purges = bus.subscribe_api("STREAM.PURGE.*").await?;
    let mut deletes = bus.subscribe_api("STREAM.MSG.DELETE.*").await?;
    let mut requests = endpoints(&bus, &config).await?;
    let mut heart = Heart::new(&bus, config.heartbeat).await?;
    let mut shell = Shell {
        config,
        state: StateView::new(&bus),
        running: BTreeMap::new(),
        tasks: TaskSet::new(bus.incidents()),
        bus,
        lanes,
        suspicions: Vec::new(),
        broken: BTreeMap::new(),
        lost: BTreeMap::new(),
        panics: Panics::default(),
        reads: Totals::default(),
        refused: Cell::new(0),
        reporter: Reporter::default(),
        begun: None,
        asked: false,
    };
    let _ = ready.send(());
    loop {
        fault("service", "");
        let report_at = heart.report_at(&shell.reporter);
        tokio::select! {
            touched = shell.state.next() => {
                let touched = touched?;
                if shell.state.ready() {
                    shell.reconcile(&touched);
                }
            }
            want = wants.next() => match want {
                Some(message) => shell.want(&message.payload),
                None => return Err(ProjectorError::Disconnected),
            },
            asked = purges.next() => match asked {
                Some(Incoming { subject, payload, .. }) => {
                    shell.hint(stream_of(&subject), || purge(&payload));
                }
                None => return Err(ProjectorError::Disconnected),
            },
            asked = deletes.next() => match asked {
                Some(Incoming { subject, .. }) => {
                    shell.hint(stream_of(&subject), || Hint::Message);
                }
                None => return Err(ProjectorError::Disconnected),
            },
            Some((key, ending)) = shell.tasks.join_next() => {
                if let Some(end) = shell.end(&key, ending) {
                    shell.ended(&key, end);
                    shell.report();
                }
            }
            request = requests.next() => match request {
                Some(request) if request.subject.ends_with(".report") => {
                    shell.asked = true;
                    shell.report();
                }
                Some(request) => request.respond(Ok(api::ok(&api::Empty {}))).await,
                None => return Err(ProjectorError::Disconnected),
            },
            () = sleep_until(report_at.unwrap_or_else(tokio::time::Instant::now)), if report_at.is_some() => {
                let join = shell.heartbeat();
                heart.report(&mut shell.reporter, &join).await;
            }
            () = heart.due() => {
                if shell.state.ready() {
                    shell.reconcile(&Concerns::Everything);
                }
                shell.report();
                heart.beat(&shell.heartbeat()).await;
            }
            _ = stop.changed() => break,
        }
    }
    heart.leave(&shell.heartbeat()).await;
    Ok(())
}

async fn endpoints(bus: &Bus, config: &Config) -> Result<Endpoints, BusError> {
    bus.service(&ServiceSpec {
        name: "highwater-projector".into(),
        description: "Highwater's readers of source streams".into(),
        endpoints: ["ping", "report"].map(|verb| (verb.into(), subjects::node(&config.node, verb))).into(),
        queue_group: None,
    })
    .await
}

impl Shell {
    fn want(&self, payload: &[u8]) {
        let Ok(want) = wire::decode::<wire::Want>(payload) else {
            if self.refused.get() == 0 {
                tracing::warn!("refused a damaged want; further ones are only counted");
            }
            self.refused.set(self.refused.get() + 1);
            return;
        };
        for (_, running) in self.running.iter().filter(|(k, _)| k.bucket == want.bucket && k.session == 0) {
            // A full inbox answers the wants in it; catalogs repeat theirs.
            let _ = running.wants.try_send(Asked { catalog: want.catalog, seq: want.seq });
        }
    }

    /// Somebody asks JetStream to remove messages of a stream.
    fn hint(&self, stream: &str, hint: impl Fn() -> Hint) {
        for (_, running) in self.running.iter().filter(|(k, running)| k.session == 0 && running.stream == stream) {
            if running.hints.try_send(hint()).is_err() {
                running.known_to_all.missed_hints.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Starts what the log says is ours and is not running; stops what is no longer ours.
    fn reconcile(&mut self, touched: &Concerns) {
        let concerned = |name: &str| match touched {
            Concerns::Nothing => false,
            Concerns::Bucket(bucket) => bucket == name,
            Concerns::Everything => true,
        };
        let mut wanted: BTreeMap<Key, Arc<Plan>> = BTreeMap::new();
        for (name, bucket) in self.state.context().buckets.iter().filter(|(name, _)| concerned(name)) {
            for (vb, vbucket) in bucket.vbuckets.iter().enumerate() {
                let ours = vbucket.projector == self.config.node && vbucket.incarnation == self.config.incarnation;
                // On a new branch nobody reads before it was given to somebody.
                if !ours || vbucket.start_of(vbucket.generation).is_none() {
                    continue;
                }
                let key = |session| Key {
                    bucket: name.clone(),
                    declared: bucket.declared,
                    vb: vb as u16,
                    generation: vbucket.generation,
                    session,
                };
                wanted.insert(key(0), live_plan(bucket, vb));
                for session in bucket.sessions.values() {
                    if session.vbs.get(vb).is_some_and(|s| s.generation == vbucket.generation) {
                        wanted.insert(key(session.id), session_plan(bucket, session));
                    }
                }
            }
        }
        let keep: BTreeSet<Key> = wanted.keys().cloned().collect();
        self.running.retain(|key, running| {
            let stay = keep.contains(key) || !concerned(&key.bucket);
            if !stay {
                running.abort.abort();
                self.reads.add((&key.bucket, key.vb), running.purpose, &running.reading);
            }
            stay
        });
        for (key, plan) in wanted {
            match self.running.get(&key) {
                Some(running) => {
                    running.remember(self.state.context(), &key);
                    running.plan.send_if_modified(|old| {
                        let changed = *old != plan;
                        if changed {
                            *old = plan;
                        }
                        changed
                    });
                }
                None => self.start(key, plan),
            }
        }
    }

    fn start(&mut self, key: Key, plan: Arc<Plan>) {
        let Some(bucket) = self.state.context().buckets.get(&key.bucket) else { return };
        let vb = usize::from(key.vb);
        let (Some(stream), Some(vbucket)) = (bucket.definition.vbuckets().get(vb).cloned(), bucket.vbuckets.get(vb))
        else {
            return;
        };
        let round = vbucket.start_of(key.generation).map_or(0, |x| x.round);
        let session = bucket.sessions.get(&key.session);
        let (target, from) = match session {
            Some(session) => (LaneTarget::Catchup { session: key.session }, session.vbs.get(vb).map_or(0, |s| s.from)),
            None => (LaneTarget::Mutation, vbucket.restart),
        };
        let session_kind = session.map(|session| session.kind);
        let lists = session.is_some_and(|session| session.kind.lists());
        let vbuuid = vbucket.vbuuid();
        let live = Key { session: 0, ..key.clone() };
        let vbuckets: usize = self.state.context().buckets.values().map(|b| b.vbuckets.len()).sum();
        // A live task that begins again finds what sessions know.
        let mut others = self.running.range(live.clone()..);
        let other = others.next().filter(|(other, _)| Key { session: 0, ..(*other).clone() } == live);
        let known_to_all = match other {
            Some((_, running)) => Arc::clone(&running.known_to_all),
            None => Arc::new(KnownToAll::new(EXPIRIES / vbuckets.max(1))),
        };
        let docids = Docids::new(&stream, bucket.definition.source.docid_codec);
        let source = stream.name;
        let (reading, durable) = (Arc::<Reading>::default(), Durable::default());
        let assignment = Assignment {
            bucket: key.bucket.clone(),
            stream: source.clone(),
            docids,
            kv: bucket.definition.is_kv(),
            vb: key.vb,
            vbuuid,
            generation: key.generation,
            target,
            from: Position::new(if lists { 0 } else { from }, round),
            dropped: vbucket.dropped,
            lists,
            ends_listed: session.is_some_and(|session| session.kind == SessionKind::Reconcile),
            recovers: session.is_some_and(|session| session.kind == SessionKind::Recovery),
            known: known(bucket, vb),
            known_to_all: Arc::clone(&known_to_all),
            durable: Arc::clone(&durable),
            reading: Arc::clone(&reading),
            counts_upto: if session.is_some() { vbucket.restart } else { u64::MAX },
            max_document: self.config.max_document,
            remembers: Recent::share(vbuckets),
        };
        tracing::info!(
            bucket = key.bucket,
            vb = key.vb,
            generation = key.generation,
            session = key.session,
            from,
            "reading"
        );
        let (plan_in, plan_out) = watch::channel(plan);
        let (wants, wants_out) = mpsc::channel(WANTS);
        let (hints, hints_out) = mpsc::channel(HINTS);
        let inbox = Inbox { plan: plan_out, wants: wants_out, hints: hints_out };
        let task = vbucket::run(self.bus.clone(), assignment, inbox, self.lanes.clone());
        let abort = self.tasks.spawn(key.clone(), task);
        let purpose = Purpose::of(session_kind);
        let running = Running {
            abort,
            purpose,
            stream: source,
            wants,
            hints,
            plan: plan_in,
            vbuuid,
            known_to_all,
            reading,
            durable,
        };
        self.running.insert(key, running);
    }

    /// How a task ended, unless it was us who ended it.
    fn end(&mut self, key: &Key, ending: Ending<End>) -> Option<End> {
        match ending {
            Ending::Done(End::Crashed) | Ending::Panicked(_) => {
                self.panics.count(&key.bucket, key.vb, Instant::now());
                Some(if key.session == 0 { End::Lost } else { End::Broken("a task of it panicked".into()) })
            }
            Ending::Done(end) => Some(end),
            Ending::Aborted => None,
        }
    }

    /// A task ended by itself.
    fn ended(&mut self, key: &Key, end: End) {
        let (bucket, vb, session) = (&key.bucket, key.vb, key.session);
        match end {
            End::Lost | End::Crashed => {
                tracing::warn!(bucket, vb, generation = key.generation, "asking for another generation");
                self.lost.insert((bucket.clone(), vb, key.generation), self.panics.patience(bucket, vb));
            }
            End::Again => {
                // The next look at the log starts it again.
                if let Some(running) = self.running.remove(key) {
                    self.reads.add((&key.bucket, key.vb), running.purpose, &running.reading);
                }
            }
            End::Broken(why) => {
                tracing::info!(bucket, vb, session, why, "the session is over");
                self.broken.insert((bucket.clone(), session), self.panics.patience(bucket, vb));
            }
            End::Suspected(Suspected { reason, intact, last, broken, bookmarks }) => {
                let Some(running) = self.running.get(key) else { return };
                tracing::warn!(bucket, vb, reason, intact, last, broken, "the source is not what was read before");
                let vbuuid = running.vbuuid;
                let bucket = bucket.clone();
                self.suspicions.push(Suspicion { bucket, vb, vbuuid, reason, intact, last, broken, bookmarks });
            }
        }
    }
}

/// The stream that a request of JetStream's API is about.
fn stream_of(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or_default()
}
