//! Messages in, actions out; `requests`: what is asked of an index manager; `reports`: what it says of itself, and what nodes say.

mod reports;
mod requests;

use crate::{
    CoordinatorError,
    config::Config,
    copy::{Copy, Kept},
    core::{self, Token},
    keeper::Keeper,
    manager::{Action, Event, Manager, Now, Outcome},
    topics,
    turns::Turns,
};
use highwater_bus::{
    Appended, Bus, Ending, Endpoints, Followed, Heart, Incidents, Retry, ServiceRequest, StateFollower, StateLog,
    Subscription, fault,
    supervise::{self, Errands, Unfinished},
};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{self, Assign, ClusterEvent, Join, Master, NodeKind},
    subjects, wire,
};
use requests::{admin_service, assign, node_service};
use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Outcomes that may wait for the loop.
const OUTCOMES: usize = 1_024;
/// Requests that may wait for their outcomes, and those that may be passed on at once.
const MOST_WAITING: usize = 256;
/// How long making records durable may take at the end.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// A record travels with headers.
const HEADROOM: usize = 16 * 1024;

struct Shell {
    config: Config,
    bus: Bus,
    manager: Manager,
    log: StateLog,
    keeper: Keeper,
    follower: StateFollower,
    started: Instant,
    next_token: Token,
    /// DDL whose reply is owed.
    waiting: HashMap<Token, ServiceRequest>,
    nominations: HashMap<u64, ServiceRequest>,
    /// Room for requests that are passed on.
    passing: Arc<Semaphore>,
    turns: Turns,
    errands: Errands,
    incidents: Incidents,
    outcomes: mpsc::Sender<Event>,
    /// Whom requests are passed on to.
    master: watch::Sender<Option<Master>>,
    /// The master by the cluster manager's last word.
    nominated: Option<Master>,
    heart: Heart,
    /// Damaged messages so far: the first is logged.
    refused: u64,
    /// That a change could not be made was said.
    not_appended: bool,
    /// Reading and writing the log, and making topics.
    log_retry: Retry,
    topics_retry: Retry,
    publish_retry: Retry,
}

/// Runs an index manager until `stop` turns true.
pub async fn run(
    config: Config,
    data_dir: &Path,
    bus: Bus,
    ready: oneshot::Sender<()>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), CoordinatorError> {
    let (copy, Kept { context, chain, term }) = Copy::open(data_dir)?;
    let max_record = bus.max_payload().saturating_sub(HEADROOM);
    let (outcomes, outcome) = mpsc::channel(OUTCOMES);
    let mut heard = Heard {
        nodes: bus.subscribe("hw.cluster.*").await?,
        events: bus.subscribe(subjects::CLUSTER_EVENT).await?,
        syncs: bus.subscribe("hw.sync.*").await?,
        hwts: bus.subscribe("hw.hwt.*.*").await?,
        missed: bus.subscribe(&subjects::missed("*")).await?,
        admin: admin_service(&bus).await?,
        node: node_service(&bus, &config.node).await?,
        outcome,
    };
    bus.flush().await?;
    let mut shell = Shell {
        manager: Manager::new(config.clone(), context, chain, term, max_record),
        log: StateLog::new(&bus, config.streams),
        keeper: Keeper::new(copy, bus.incidents()),
        follower: bus.follow_state(),
        started: Instant::now(),
        next_token: 0,
        waiting: HashMap::new(),
        nominations: HashMap::new(),
        passing: Arc::new(Semaphore::new(MOST_WAITING)),
        turns: Turns::default(),
        errands: Errands::new(bus.incidents()),
        incidents: bus.incidents(),
        outcomes,
        master: watch::Sender::new(None),
        nominated: None,
        heart: Heart::new(&bus, config.heartbeat).await?,
        refused: 0,
        not_appended: false,
        log_retry: bus.retry(format!("stream {}", subjects::STATE_STREAM)),
        topics_retry: bus.retry("making the streams of topics"),
        publish_retry: bus.retry("publishing stability timestamps"),
        bus,
        config,
    };
    let _ = ready.send(());
    tracing::info!(node = shell.config.node, version = shell.manager.context().version, "index manager");
    let incidents = shell.incidents.clone();
    match supervise::caught(&incidents, "the index manager", serve(&mut shell, &mut heard, &mut stop)).await {
        Ending::Done(ended) => ended,
        ending => {
            // Who waits hears of it, and others hear at once that somebody else is to coordinate.
            let why = ending.done().map_or_else(|unfinished| unfinished.to_string(), |_| String::new());
            shell.dismiss((ErrorCode::Internal, &format!("the index manager failed: {why}")), true).await;
            let join = Join::new(NodeKind::Coordinator, &shell.config.node, shell.config.incarnation);
            shell.heart.leave(&join).await;
            Err(CoordinatorError::Panicked(why))
        }
    }
}

/// What an index manager hears.
struct Heard {
    /// Heartbeats and reports, in the order in which a node sends them.
    nodes: Subscription,
    events: Subscription,
    syncs: Subscription,
    hwts: Subscription,
    missed: Subscription,
    admin: Endpoints,
    node: Endpoints,
    outcome: mpsc::Receiver<Event>,
}

async fn serve(shell: &mut Shell, heard: &mut Heard, stop: &mut watch::Receiver<bool>) -> Result<(), CoordinatorError> {
    let mut ticked = 0;
    loop {
        fault("service", "");
        let now = shell.now();
        let due = shell.manager.next_tick(now.ms).max(ticked + 1);
        if due <= now.ms {
            ticked = now.ms;
            shell.handle(Event::Tick { random: random() }).await?;
            continue;
        }
        // What is for the coordinator waits until its append is settled.
        let free = !shell.manager.busy();
        tokio::select! {
            Some(event) = heard.outcome.recv() => shell.handle(event).await?,
            kept = shell.keeper.written() => {
                kept?;
                shell.release().await?;
            }
            request = heard.node.next() => shell.node_request(need(request)?).await?,
            followed = shell.follower.next() => match followed? {
                Followed::Opened { .. } => shell.handle(Event::Opened).await?,
                Followed::Record(_, payload) => shell.handle(Event::Record(payload.to_vec())).await?,
            },
            message = heard.events.next() => {
                if let Some(event) = shell.decoded::<ClusterEvent>(&need(message)?.payload) {
                    shell.cluster(event).await?;
                }
            }
            message = heard.nodes.next(), if free => {
                let message = need(message)?;
                match message.subject.as_str() {
                    subjects::CLUSTER_JOIN => shell.join_of(&message.payload).await?,
                    subjects::CLUSTER_REPORT => shell.report_of(&message.payload).await?,
                    _ => {}
                }
            }
            message = heard.syncs.next(), if free => match wire::decode::<wire::Sync>(&need(message)?.payload) {
                Ok(sync) => shell.handle(Event::Lead(core::Event::Sync(sync))).await?,
                Err(error) => shell.refuse(&error),
            },
            message = heard.hwts.next(), if free => match wire::decode::<wire::HighWatermark>(&need(message)?.payload) {
                Ok(hwt) => shell.handle(Event::Lead(core::Event::HighWatermark(hwt))).await?,
                Err(error) => shell.refuse(&error),
            },
            message = heard.missed.next(), if free => match wire::decode::<wire::Missed>(&need(message)?.payload) {
                Ok(missed) => shell.handle(Event::Lead(core::Event::Missed(missed))).await?,
                Err(error) => shell.refuse(&error),
            },
            request = heard.admin.next(), if free => shell.admin_request(need(request)?).await?,
            () = shell.heart.due() => shell.beat().await,
            () = tokio::time::sleep(Duration::from_millis(due - now.ms)) => {}
            _ = stop.changed() => {
                // What is not durable by then is in the log.
                tokio::time::timeout(SETTLED_WITHIN, shell.settle()).await.unwrap_or(Ok(()))?;
                shell.dismiss((ErrorCode::NoCoordinator, "the index manager ends"), true).await;
                let join = shell.join();
                shell.heart.leave(&join).await;
                return Ok(());
            }
        }
    }
}

fn need<T>(item: Option<T>) -> Result<T, CoordinatorError> {
    item.ok_or(CoordinatorError::Disconnected)
}

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

impl Shell {
    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        Now { ms: self.started.elapsed().as_millis() as u64, wall }
    }

    fn refuse(&mut self, error: &dyn std::fmt::Display) {
        if self.refused == 0 {
            tracing::warn!(%error, "refused a message; further ones are only counted");
        }
        self.refused += 1;
    }

    fn decoded<T: serde::de::DeserializeOwned>(&mut self, payload: &[u8]) -> Option<T> {
        if payload.first() != Some(&b'{') {
            // A list would be taken for an object's fields in order.
            self.refuse(&"it is not a JSON object");
            return None;
        }
        serde_json::from_slice(payload).inspect_err(|error| self.refuse(error)).ok()
    }

    async fn cluster(&mut self, event: ClusterEvent) -> Result<(), CoordinatorError> {
        self.nominated.clone_from(&event.master);
        self.handle(Event::Cluster(event)).await
    }

    /// What fails is stated until it succeeds.
    fn note(&mut self, event: &Event) {
        let (retry, failed) = match event {
            Event::Read(read) => (&mut self.log_retry, read.as_ref().err()),
            Event::Appended { outcome: Outcome::Acked(_), .. } => (&mut self.log_retry, None),
            Event::Appended { outcome: Outcome::Refused(why), .. } => (&mut self.log_retry, Some(why)),
            Event::Lead(core::Event::TopicsChecked { made, .. }) => (&mut self.topics_retry, made.as_ref().err()),
            _ => return,
        };
        match failed {
            Some(why) => _ = retry.failed(why),
            None => retry.over(),
        }
    }

    /// Feeds an event and carries out what follows.
    async fn handle(&mut self, event: Event) -> Result<(), CoordinatorError> {
        self.note(&event);
        let now = self.now();
        for action in self.manager.handle(now, event) {
            self.carry_out(action).await?;
        }
        for step in self.manager.news() {
            let (number, name, note) = (step.step, step.name, step.note);
            tracing::info!(step = number, after_ms = step.done_ms, note, "bootstrap: {name}");
        }
        let master = self.known_master();
        self.master.send_if_modified(|old| {
            let changed = *old != master;
            if changed {
                *old = master;
            }
            changed
        });
        Ok(())
    }

    /// By the log, or by the cluster manager where that is newer.
    fn known_master(&self) -> Option<Master> {
        let context = self.manager.context();
        let by_log = Master { node: context.coordinator.clone(), term: context.term };
        match &self.nominated {
            Some(master) if master.term > by_log.term => Some(master.clone()),
            _ => (!by_log.node.is_empty()).then_some(by_log),
        }
    }

    async fn carry_out(&mut self, action: Action) -> Result<(), CoordinatorError> {
        match action {
            Action::KeepTerm(term) => {
                self.settle().await?;
                self.keeper.copy().keep_term(term)?;
            }
            Action::Keep { records, anew } => {
                if anew {
                    self.settle().await?;
                    self.keeper.copy().keep(&records, true)?;
                } else if self.keeper.keep(records) {
                    self.settle().await?;
                }
            }
            Action::Answer { token, reply } => {
                self.settle().await?;
                if let Some(request) = self.nominations.remove(&token) {
                    request.respond(Ok(api::ok(&reply))).await;
                }
            }
            Action::Beat => self.beat().await,
            Action::ReadLog => {
                let log = self.log.clone();
                self.spawn("reading the log", |unfinished| Event::Read(Err(unfinished.to_string())), async move {
                    let read = log.read().await.map_err(|e| e.to_string());
                    Event::Read(read.map(|c| (c.last_seq, c.records.into_iter().map(|r| r.to_vec()).collect())))
                });
            }
            Action::Append { id, expected, payload, rollup } => {
                let log = self.log.clone();
                let failed = move |_| Event::Appended { id, outcome: Outcome::Unknown };
                self.spawn("appending to the log", failed, async move {
                    let outcome = match log.append(expected, payload.into(), rollup).await {
                        Appended::Acked(seq) => Outcome::Acked(seq),
                        Appended::Moved => Outcome::Moved,
                        Appended::Unknown => Outcome::Unknown,
                        Appended::Refused(why) => {
                            tracing::debug!(why, "the log refused a record");
                            Outcome::Refused(why)
                        }
                    };
                    Event::Appended { id, outcome }
                });
            }
            Action::ReadAt { id, seq } => {
                let log = self.log.clone();
                let failed = move |unfinished: Unfinished| Event::Found { id, record: Err(unfinished.to_string()) };
                self.spawn("reading a record", failed, async move {
                    let record = log.read_at(seq).await.map_err(|e| e.to_string());
                    Event::Found { id, record: record.map(|r| r.map(|bytes| bytes.to_vec())) }
                });
            }
            Action::Follow => self.follower = self.bus.follow_state(),
            Action::NotAppended(why) => {
                if !std::mem::replace(&mut self.not_appended, true) {
                    tracing::error!(why, "a change could not be made; further ones are not said");
                }
            }
            Action::SteppedDown(why) => {
                tracing::warn!(why, "this index manager coordinates no more");
                self.settle().await?;
                self.dismiss((ErrorCode::NoCoordinator, &format!("the coordinator stepped down: {why}")), false).await;
            }
            Action::Lead(action) => {
                if let Some(action) = self.keeper.hold(action) {
                    self.lead(action).await?;
                }
                if self.keeper.is_crowded() {
                    self.settle().await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until every record is durable, and does what waited for that.
    async fn settle(&mut self) -> Result<(), CoordinatorError> {
        self.keeper.settle().await?;
        self.release().await
    }

    /// Refuses what waits for an outcome that nobody here will hear of; at the end nominations too.
    async fn dismiss(&mut self, (code, why): (ErrorCode, &str), end: bool) {
        let mut waiting: Vec<ServiceRequest> = self.waiting.drain().map(|(_, request)| request).collect();
        if end {
            waiting.extend(self.nominations.drain().map(|(_, request)| request));
        }
        for request in waiting {
            let message = format!("{why}; look whether it did what was asked");
            request.respond(Err(ApiError::new(code, message))).await;
        }
    }

    async fn release(&mut self) -> Result<(), CoordinatorError> {
        for action in self.keeper.released() {
            self.lead(action).await?;
        }
        Ok(())
    }

    async fn lead(&mut self, action: core::Action) -> Result<(), CoordinatorError> {
        let (bus, settings) = (self.bus.clone(), self.config.streams);
        match action {
            // The manager appends.
            core::Action::Append(_) => {}
            core::Action::Reply { token, answer } => {
                if let Some(request) = self.waiting.remove(&token) {
                    request.respond(answer.map(|value| api::ok(&value))).await;
                }
            }
            core::Action::Publish(stability) => {
                let subject = subjects::stability(&stability.bucket);
                // It is repeated; whatever speaks against it ends nobody.
                match self.bus.publish(&subject, wire::encode(&stability)).await {
                    Ok(()) => self.publish_retry.over(),
                    Err(error) => _ = self.publish_retry.failed(&error),
                }
            }
            core::Action::AskReport { node } => {
                // It is asked again.
                if let Err(error) = self.bus.publish(&subjects::node(&node, "report"), b"{}".to_vec()).await {
                    tracing::debug!(node, %error, "cannot ask for a report");
                }
            }
            core::Action::EnsureStreams { job, bucket, topic } => {
                let mut turn = self.turns.take(&topics::names(&bucket, topic.as_deref()));
                let failed = move |unfinished: Unfinished| {
                    let outcome = Err(unfinished.to_string());
                    Event::Lead(core::Event::StreamsEnsured { job, outcome, random: random() })
                };
                self.spawn("making streams", failed, async move {
                    turn.come().await;
                    let outcome = topics::ensure(&bus, &bucket, topic.as_deref(), &settings).await;
                    Event::Lead(core::Event::StreamsEnsured { job, outcome, random: random() })
                });
            }
            core::Action::Assign { job, node, bucket, index, partitions } => {
                let asked = node.clone();
                let failed = move |unfinished: Unfinished| {
                    let outcome = Err(unfinished.into());
                    Event::Lead(core::Event::Assigned { job, node: asked, outcome })
                };
                self.spawn("asking a host for room", failed, async move {
                    let outcome = assign(&bus, &node, &Assign { bucket, index, partitions }).await;
                    Event::Lead(core::Event::Assigned { job, node, outcome })
                });
            }
            core::Action::CheckTopics { term, buckets, sweep } => {
                let failed = move |unfinished: Unfinished| {
                    let made = Err(unfinished.to_string());
                    Event::Lead(core::Event::TopicsChecked { term, made, found: None })
                };
                self.spawn("checking topics", failed, async move {
                    let made = topics::check(&bus, &buckets, &settings).await;
                    let found = if sweep && made.is_ok() { topics::found(&bus, &buckets).await.ok() } else { None };
                    Event::Lead(core::Event::TopicsChecked { term, made, found })
                });
            }
            core::Action::DeleteStreams { job, streams } => {
                let mut turn = self.turns.take(&streams);
                // What is left is found again later.
                let failed = move |_| Event::Lead(core::Event::StreamsDeleted { job });
                self.spawn("deleting streams", failed, async move {
                    turn.come().await;
                    topics::delete(&bus, streams).await;
                    Event::Lead(core::Event::StreamsDeleted { job })
                });
            }
            core::Action::PurgeSession { bucket, session } => {
                self.errands.spawn("purging a session", async move {
                    fault("errand", "purging a session");
                    let stream = subjects::catchup_stream(&bucket);
                    if let Err(error) = bus.purge(&stream, &subjects::catchup(&bucket, session), None).await {
                        tracing::debug!(stream, session, %error, "cannot purge");
                    }
                });
            }
        }
        Ok(())
    }

    /// Does something beside the loop; its outcome is an event, a panic that of a failure.
    fn spawn(
        &mut self,
        what: &'static str,
        failed: impl FnOnce(Unfinished) -> Event + Send + 'static,
        work: impl Future<Output = Event> + Send + 'static,
    ) {
        let (outcomes, incidents) = (self.outcomes.clone(), self.incidents.clone());
        self.errands.spawn(what, async move {
            let work = async {
                fault("errand", what);
                work.await
            };
            let event = supervise::caught(&incidents, what, work).await.done().unwrap_or_else(failed);
            // The loop may have ended.
            let _ = outcomes.send(event).await;
        });
    }
}
