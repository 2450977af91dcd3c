//! The shell: tasks, subscriptions and the dispatch of requests. See the crate's head for who does what.

use crate::{CatalogError, Config, core::Core, list, scan, stats::Highest};
use highwater_bus::{
    Bus, Followed, Heart, ServiceRequest, ServiceSpec, StateTail, Subscription, TaskSet, fault,
    supervise::{self, Errands, Unfinished},
};
use highwater_schemas::{
    ApiError, ErrorCode, api,
    api::{Join, Master, NodeKind},
    subjects,
    wire::{self, HighWatermark, Stability},
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::timeout,
};

/// Requests in flight get this long at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// Of the requests that may be in flight so large a part may be administrative ones besides.
const ADMIN_SHARE: usize = 4;
/// Longer than the name of any administrative request.
const LONGEST_VERB: usize = 64;
/// How often to join until a cluster manager says otherwise.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Answers that nodes may have on the way to this catalog, KiB. The server drops a connection that is 64 MiB behind.
pub const EXPECTED_KIB: usize = 24 * 1_024;

/// What every task needs.
pub struct Shared {
    pub bus: Bus,
    pub config: Config,
    core: Mutex<Core>,
    highest: Mutex<Highest>,
    /// Something in the core changed.
    changed: watch::Sender<()>,
    /// Whom administrative requests are passed on to, by the log.
    master: watch::Sender<Option<Master>>,
    started: Instant,
    /// KiB of answers that nodes may have on the way to this catalog.
    pub expected: Semaphore,
}

impl Shared {
    pub fn core(&self) -> MutexGuard<'_, Core> {
        // The core is changed by whole events only, so it is sound even if a task panicked.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn highest(&self) -> MutexGuard<'_, Highest> {
        self.highest.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
    /// The core's time.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Runs a catalog until `stop` turns true. `ready` hears when it has read the log and takes requests.
pub async fn run(
    config: Config,
    bus: Bus,
    ready: oneshot::Sender<()>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), CatalogError> {
    config.check()?;
    let instance = uuid::Uuid::new_v4().as_u64_pair().0;
    // Administrative requests wait for the coordinator, which queries must not.
    let slots = [config.in_flight, config.in_flight.div_ceil(ADMIN_SHARE)].map(|n| (Arc::new(Semaphore::new(n)), n));
    let shared = Arc::new(Shared {
        bus: bus.clone(),
        config,
        core: Mutex::new(Core::new(instance)),
        highest: Mutex::default(),
        changed: watch::Sender::new(()),
        master: watch::Sender::new(None),
        started: Instant::now(),
        expected: Semaphore::new(EXPECTED_KIB),
    });
    let stability = bus.subscribe(&subjects::stability("*")).await?;
    let reports = bus.subscribe(&subjects::hwt("*", "*")).await?;
    let (read, caught_up) = oneshot::channel();
    let mut tasks = TaskSet::new(bus.incidents());
    tasks.spawn("what follows the log", follow(Arc::clone(&shared), read));
    tasks.spawn("what hears timestamps", listen(Arc::clone(&shared), stability, reports));
    let mut errands = Errands::new(bus.incidents());
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
        Some((name, ending)) = tasks.join_next() => return Err(why(name, ending.done())),
        Ok(()) = caught_up => {}
    }
    let mut queries = bus.service(&query_spec()).await?;
    let mut admin = bus.service(&admin_spec()).await?;
    let mut pings = bus.service(&node_spec(&shared.config.node)).await?;
    bus.flush().await?;
    let mut heart = Heart::new(&bus, HEARTBEAT).await?;
    let join = Join::new(NodeKind::Catalog, &shared.config.node, instance);
    tracing::info!(node = shared.config.node, "catalog ready");
    // Whoever started us may not care.
    let _ = ready.send(());
    loop {
        fault("service", "");
        let request = tokio::select! {
            _ = stop.changed() => break,
            Some((name, ending)) = tasks.join_next() => return Err(why(name, ending.done())),
            request = queries.next() => request,
            request = admin.next() => request,
            ping = pings.next() => match ping {
                Some(ping) => {
                    ping.respond(Ok(api::ok(&api::Empty {}))).await;
                    continue;
                }
                None => None,
            },
            () = heart.due() => {
                heart.beat(&join).await;
                continue;
            }
        };
        let Some(request) = request else { return Err(CatalogError::Ended("the connection to NATS")) };
        let (slots, in_flight) = &slots[usize::from(is_admin(&request.subject))];
        if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
            let shared = Arc::clone(&shared);
            errands.spawn("a request", async move {
                serve(&shared, request).await;
                drop(slot);
            });
        } else {
            let message = format!("{in_flight} requests are being worked on already");
            request.respond(Err(ApiError::new(ErrorCode::TooManyRequests, message))).await;
        }
    }
    drop((queries, admin));
    let idle = slots.iter().map(|(slots, in_flight)| slots.acquire_many(*in_flight as u32));
    if timeout(DRAIN, futures_util::future::join_all(idle)).await.is_err() {
        tracing::warn!("requests were still in flight at the end");
    }
    heart.leave(&join).await;
    Ok(())
}

/// The error of the background task that ended first; none of them ends by itself.
fn why(name: &'static str, ended: Result<Result<(), CatalogError>, Unfinished>) -> CatalogError {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) | Err(_) => CatalogError::Ended(name),
    }
}

fn query_spec() -> ServiceSpec {
    let verbs = ["scan", "count", "list", "describe", "nodes"];
    ServiceSpec {
        name: subjects::QUERY_SERVICE.into(),
        description: "Scans and counts of Highwater's indexes".into(),
        endpoints: verbs.map(|verb| (verb.to_owned(), subjects::query(verb))).into(),
        queue_group: Some(subjects::QUERY_SERVICE.into()),
    }
}

fn admin_spec() -> ServiceSpec {
    ServiceSpec {
        name: subjects::ADMIN_SERVICE.into(),
        description: "Administration of Highwater, passed on to the coordinator".into(),
        endpoints: vec![("admin".into(), subjects::admin(">"))],
        queue_group: Some(subjects::ADMIN_SERVICE.into()),
    }
}

fn node_spec(node: &str) -> ServiceSpec {
    ServiceSpec {
        name: "highwater-catalog".into(),
        description: "One of Highwater's query catalogs".into(),
        endpoints: vec![("ping".into(), subjects::node(node, "ping"))],
        queue_group: None,
    }
}

fn is_admin(subject: &str) -> bool {
    subject.starts_with(&subjects::admin(""))
}

async fn serve(shared: &Arc<Shared>, request: ServiceRequest) {
    if let Some(noun_verb) = request.subject.strip_prefix(&subjects::admin("")) {
        if noun_verb.len() > LONGEST_VERB {
            let message = "there is no administrative request of so long a name";
            return request.respond(Err(ApiError::new(ErrorCode::NotSupported, message))).await;
        }
        let mut master = shared.master.subscribe();
        let forwarded = async {
            fault("admin", noun_verb);
            shared.bus.forward(&mut master, noun_verb, request.payload.to_vec()).await
        };
        match supervise::caught(&shared.bus.incidents(), "an administrative request", forwarded).await.answer() {
            Ok(reply) => request.pass_on(reply).await,
            Err(error) => request.respond(Err(error)).await,
        }
        return;
    }
    let answer = query(shared, &request.subject, &request.payload);
    let answer = supervise::caught(&shared.bus.incidents(), "a query", answer).await.answer();
    // A requester must hear of our mistake too, rather than wait for its own timeout.
    request.respond(answer).await;
}

async fn query(shared: &Arc<Shared>, subject: &str, payload: &[u8]) -> Result<Vec<u8>, ApiError> {
    let verb = subject.rsplit('.').next().unwrap_or_default();
    fault("query", verb);
    match verb {
        "scan" => scan::scan(shared, payload).await,
        "count" => scan::count(shared, payload).await,
        "list" => list::list(shared, payload).await,
        "describe" => list::describe(shared, payload).await,
        "nodes" => list::nodes(shared, payload).await,
        verb => Err(ApiError::new(ErrorCode::NotSupported, format!("this version has no query {verb}"))),
    }
}

async fn follow(shared: Arc<Shared>, read: oneshot::Sender<()>) -> Result<(), CatalogError> {
    let mut tail = StateTail::new(&shared.bus);
    let mut read = Some(read);
    loop {
        fault("follow", "");
        let taken = tail.next(|followed, all| {
            let mut core = shared.core();
            let taken = match &followed {
                Followed::Opened { .. } => {
                    core.opened(all);
                    Ok(all)
                }
                Followed::Record(_, record) => core.record(record, all).map(|()| all),
            };
            let context = core.context();
            let master = Master { node: context.coordinator.clone(), term: context.term };
            shared.master.send_if_modified(|old| {
                let changed = old.as_ref() != Some(&master) && !master.node.is_empty();
                if changed {
                    *old = Some(master);
                }
                changed
            });
            taken
        });
        if taken.await? == Some(true) {
            shared.changed.send_replace(());
            if let Some(read) = read.take() {
                // `run` waits for it unless it is ending.
                let _ = read.send(());
            }
        }
    }
}

async fn listen(
    shared: Arc<Shared>,
    mut stability: Subscription,
    mut reports: Subscription,
) -> Result<(), CatalogError> {
    let mut refused = 0u64;
    loop {
        fault("listener", "");
        let taken = tokio::select! {
            message = stability.next() => {
                let message = message.ok_or(CatalogError::Ended("the connection to NATS"))?;
                wire::decode::<Stability>(&message.payload).map(|m| shared.core().stability(shared.now(), m))
            }
            message = reports.next() => {
                let message = message.ok_or(CatalogError::Ended("the connection to NATS"))?;
                wire::decode::<HighWatermark>(&message.payload).map(|m| shared.core().high_watermark(m))
            }
        };
        match taken {
            Ok(()) => {
                shared.changed.send_replace(());
            }
            Err(error) => {
                refused += 1;
                // Once: who sends garbage sends much of it.
                if refused == 1 {
                    tracing::warn!(%error, "a stability message cannot be read; further ones are only counted");
                }
            }
        }
    }
}
