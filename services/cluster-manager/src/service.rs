//! Messages in, actions out.
//!
//! One task; what waits for an answer is done by short tasks of two sets, see the crate's head.

mod requests;

use crate::{
    config::Config,
    core::{Action, Core, Event, Seen},
    questions::{look, nominate},
};
use highwater_bus::{
    Bus, BusError, ClusterBucket, Endpoints, ServiceSpec, TaskSet, bounded_heartbeat, fault,
    supervise::{self, Errands},
};
use highwater_schemas::{
    api::{self, ClusterEvent, Join, JoinReply, LeaseWritten, Leave, MOST_HEARTBEAT, NodeKind},
    subjects,
};
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// Tasks that wait for the bucket or for index managers. At this many, what can be asked again at the next heartbeat is not
/// asked; looks at the lease and writes of it are one at a time anyway.
const MOST_TASKS: usize = 1_024;
/// Replies that wait for the master or for the active instance; further ones leave out what only the master knows, or are
/// refused.
const MOST_ASKING: usize = 64;
/// A connection that is lost takes messages until its buffer is full.
const PUBLISH: Duration = Duration::from_millis(500);
/// How long the bucket is waited for at the start, and how often it is looked for at least.
const MADE_WITHIN: Duration = Duration::from_secs(60);
const MAKE_AGAIN: Duration = Duration::from_secs(1);
/// How long giving up the lease may take at the end.
const RELEASE: Duration = Duration::from_secs(3);

/// Why the cluster manager ended.
#[derive(Debug, thiserror::Error)]
pub enum ClusterManagerError {
    /// A setting is out of its limits.
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("{0} has ended")]
    Ended(&'static str),
}

struct Shell {
    config: Config,
    bus: Bus,
    bucket: ClusterBucket,
    core: Core,
    started: Instant,
    /// What waits for an answer; each yields what is to be told to the core.
    tasks: TaskSet<&'static str, Option<Event>>,
    asking: Errands,
    /// Damaged messages so far: the first is logged.
    refused: u64,
    /// Who was active and who coordinated when that was last logged.
    said: (bool, String, u64),
}

/// Makes the bucket where it is missing. One that another instance has just made on several servers answers nobody until they
/// have elected its leader, and servers that are still finding each other make none.
async fn make(bus: &Bus, bucket: &ClusterBucket) -> Result<(), BusError> {
    let mut retry = bus.retry("making the bucket of the cluster managers").within(MAKE_AGAIN);
    let deadline = Instant::now() + MADE_WITHIN;
    loop {
        match bucket.ensure().await {
            Ok(_) => {
                retry.over();
                return Ok(());
            }
            Err(error) if !matches!(error, BusError::StreamDiffers { .. }) && Instant::now() < deadline => {
                retry.wait(&error).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Runs a cluster manager until `stop` turns true. `ready` hears when it takes part.
pub async fn run(
    config: Config,
    bus: Bus,
    ready: oneshot::Sender<()>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ClusterManagerError> {
    config.check().map_err(ClusterManagerError::Config)?;
    let bucket = ClusterBucket::new(bus.clone(), config.streams);
    tokio::select! {
        made = make(&bus, &bucket) => made?,
        _ = stop.changed() => return Ok(()),
    }
    let mut joins = bus.subscribe(subjects::CLUSTER_JOIN).await?;
    let mut leaves = bus.subscribe(subjects::CLUSTER_LEAVE).await?;
    let mut events = bus.subscribe(subjects::CLUSTER_EVENT).await?;
    let mut cluster = bus.service(&cluster_spec()).await?;
    let mut own = node_service(&bus, &config).await?;
    bus.flush().await?;
    let mut shell = Shell {
        core: Core::new(config.clone(), 0),
        config,
        tasks: TaskSet::new(bus.incidents()),
        asking: Errands::new(bus.incidents()),
        bus,
        bucket,
        started: Instant::now(),
        refused: 0,
        said: (false, String::new(), 0),
    };
    tracing::info!(node = shell.config.node, "cluster manager ready");
    let _ = ready.send(());
    let ended = || ClusterManagerError::Ended("the connection to NATS");
    let mut ends_by = None;
    loop {
        fault("service", "");
        let now = shell.now();
        if ends_by.is_some_and(|by| now >= by || shell.idle()) {
            break;
        }
        let wait = Duration::from_millis(shell.core.next_tick(now) - now);
        if wait.is_zero() {
            shell.handle(Event::Tick).await;
            continue;
        }
        tokio::select! {
            message = joins.next() => {
                let message = message.ok_or_else(ended)?;
                shell.join(&message.payload, message.reply.as_deref()).await;
            }
            message = leaves.next() => {
                if let Some(leave) = shell.decode::<Leave>(&message.ok_or_else(ended)?.payload) {
                    shell.handle(Event::Leave(leave)).await;
                }
            }
            message = events.next() => {
                if let Some(event) = shell.decode::<ClusterEvent>(&message.ok_or_else(ended)?.payload) {
                    shell.handle(Event::Heard(event)).await;
                }
            }
            request = cluster.next() => shell.cluster(request.ok_or_else(ended)?).await,
            request = own.next() => {
                let request = request.ok_or_else(ended)?;
                if request.subject.ends_with(".recover") { shell.recover(request).await } else { shell.own(request).await }
            }
            Some((_, ending)) = shell.tasks.join_next() => {
                if let Ok(Some(event)) = ending.done() {
                    shell.handle(event).await;
                }
            }
            () = tokio::time::sleep(wait) => shell.handle(Event::Tick).await,
            // Requests are answered until the lease is let go.
            _ = stop.changed(), if ends_by.is_none() => {
                ends_by = Some(now + RELEASE.as_millis() as u64);
                shell.handle(Event::Stop).await;
            }
        }
    }
    drop((cluster, own));
    // Standbys look at the lease when they hear it.
    let kind = NodeKind::ClusterManager;
    let leave = Leave { node: shell.config.node.clone(), kind, incarnation: shell.config.incarnation };
    highwater_bus::leave(&shell.bus, &leave).await;
    Ok(())
}

fn cluster_spec() -> ServiceSpec {
    let endpoint = |subject: &str| (subject.rsplit('.').next().unwrap_or_default().to_owned(), subject.to_owned());
    let endpoints = [
        subjects::CLUSTER_MEMBERS,
        subjects::CLUSTER_MASTER,
        subjects::CLUSTER_REPLICAS,
        subjects::CLUSTER_INDEXERS,
        subjects::CLUSTER_RECOVER,
    ];
    ServiceSpec {
        name: subjects::CLUSTER_SERVICE.into(),
        description: "Highwater's nodes, and which of them coordinates".into(),
        endpoints: endpoints.map(endpoint).into(),
        queue_group: Some(subjects::CLUSTER_SERVICE.into()),
    }
}

async fn node_service(bus: &Bus, config: &Config) -> Result<Endpoints, BusError> {
    let endpoint = |verb: &str| (verb.to_owned(), subjects::node(&config.node, verb));
    bus.service(&ServiceSpec {
        name: "highwater-cluster-manager".into(),
        description: "Highwater membership and election".into(),
        endpoints: ["ping", "status", "recover"].map(endpoint).into(),
        queue_group: None,
    })
    .await
}

impl Shell {
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn refuse(&mut self, why: &str) {
        if self.refused == 0 {
            tracing::warn!(why, "refused a message; further ones are only counted");
        }
        self.refused += 1;
    }

    fn decode<T: DeserializeOwned>(&mut self, payload: &[u8]) -> Option<T> {
        // A list would be taken for an object's fields in order.
        let object = payload.first() == Some(&b'{');
        match serde_json::from_slice(payload) {
            Ok(message) if object => Some(message),
            Ok(_) => {
                self.refuse("it is not a JSON object");
                None
            }
            Err(error) => {
                self.refuse(&error.to_string());
                None
            }
        }
    }

    async fn join(&mut self, payload: &[u8], reply: Option<&str>) {
        let join = match api::read_heartbeat(payload) {
            Ok(join) => join,
            Err(why) => return self.refuse(&why),
        };
        self.handle(Event::Join(join)).await;
        if let Some(reply) = reply.filter(|_| self.core.is_active(self.now())) {
            let told =
                JoinReply { cluster_manager: self.config.node.clone(), heartbeat_ms: self.config.heartbeat_ms() };
            self.publish(reply, api::ok(&told)).await;
        }
    }

    /// What cannot be sent in time is left out: it would be old.
    async fn publish(&self, subject: &str, payload: Vec<u8>) {
        match timeout(PUBLISH, self.bus.publish(subject, payload)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(subject, %error, "cannot publish"),
            Err(_) => tracing::debug!(subject, "cannot publish in time"),
        }
    }

    /// Feeds an event and carries out what follows.
    async fn handle(&mut self, event: Event) {
        let now = self.now();
        for action in self.core.handle(now, event) {
            self.carry_out(action).await;
        }
        self.say(now);
    }

    /// Logs who is active and who coordinates, when that has changed.
    fn say(&mut self, now: u64) {
        let master = self.core.master(now).unwrap_or(api::Master { node: String::new(), term: 0 });
        let active = self.core.is_active(now);
        if (active, &master.node, master.term) != (self.said.0, &self.said.1, self.said.2) {
            tracing::info!(active, master = master.node, term = master.term, "cluster");
            self.said = (active, master.node, master.term);
        }
    }

    async fn carry_out(&mut self, action: Action) {
        let (bucket, bus) = (self.bucket.clone(), self.bus.clone());
        let crowded = self.tasks.len() >= MOST_TASKS;
        match action {
            Action::Beat(join) => {
                let join = Join { troubles: bus.troubles(), ..*join };
                self.publish(subjects::CLUSTER_JOIN, bounded_heartbeat(join, MOST_HEARTBEAT)).await;
            }
            Action::Publish(event) => {
                self.publish(subjects::CLUSTER_EVENT, serde_json::to_vec(&event).unwrap_or_default()).await;
            }
            Action::ReadLease => {
                let failed = Some(Event::LeaseSeen(Seen::Failed));
                self.spawn("looking at the lease", failed, async move { Some(Event::LeaseSeen(look(&bucket).await)) });
            }
            Action::WriteLease { lease, expected } => {
                let (sent_at, patience) = (self.now(), self.config.lease / 3);
                let failed = Some(Event::LeaseWritten { sent_at, outcome: LeaseWritten::Unknown });
                self.spawn("writing the lease", failed, async move {
                    let outcome = bucket.write(&lease, expected, patience).await;
                    Some(Event::LeaseWritten { sent_at, outcome })
                });
            }
            Action::ReleaseLease { revision } => {
                self.spawn("giving up the lease", None, async move {
                    if let Err(error) = bucket.release(revision).await {
                        tracing::debug!(%error, "the lease runs out by itself");
                    }
                    None
                });
            }
            Action::MakeBucket => {
                self.spawn("making the bucket of the lease", None, async move {
                    match bucket.ensure().await {
                        Ok(true) => Some(Event::BucketMade),
                        Ok(false) => None,
                        Err(error) => {
                            bus.happened("making the bucket of the lease", &error);
                            None
                        }
                    }
                });
            }
            Action::Register { node } if crowded => {
                // Said again at the next heartbeat.
                let event = Event::NotRegistered { node };
                self.spawn("registering an index manager", None, std::future::ready(Some(event)));
            }
            Action::Register { node } => {
                let failed = Some(Event::NotRegistered { node: node.clone() });
                self.spawn("registering an index manager", failed, async move {
                    let outcome = bucket.register(&node).await;
                    outcome.err().map(|error| {
                        tracing::debug!(node, %error, "cannot remember the index manager yet");
                        Event::NotRegistered { node }
                    })
                });
            }
            Action::ListRegistered | Action::Nominate { .. } if crowded => {}
            Action::ListRegistered => {
                let listed = async move { bucket.registered().await.ok().map(Event::Registered) };
                self.spawn("listing index managers", None, listed);
            }
            Action::Nominate { to, bootstrap } => {
                let term = bootstrap.term;
                let failed = Some(Event::BootstrapAnswered { node: to.clone(), term, reply: None });
                self.spawn("nominating an index manager", failed, async move {
                    let reply = nominate(&bus, &to, &bootstrap).await;
                    Some(Event::BootstrapAnswered { node: to, term, reply })
                });
            }
        }
    }

    /// Does something beside the loop; it yields what the core is told, `failed` when it panicked.
    fn spawn(
        &mut self,
        what: &'static str,
        failed: Option<Event>,
        work: impl Future<Output = Option<Event>> + Send + 'static,
    ) {
        let incidents = self.bus.incidents();
        self.tasks.spawn(what, async move {
            let work = async {
                fault("errand", what);
                work.await
            };
            supervise::caught(&incidents, what, work).await.done().unwrap_or(failed)
        });
    }

    /// Nothing waits for an answer.
    fn idle(&mut self) -> bool {
        self.tasks.is_empty() && self.asking.under_way() == 0
    }
}
