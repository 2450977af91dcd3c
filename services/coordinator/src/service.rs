//! Messages in, actions out.

use crate::{
    config::Config,
    core::{Action, Core, Ddl, Event, Probe, Token},
    local_copy::{Comparison, LocalCopy, compare},
};
use highwater_bus::{Bus, BusError, Endpoints, ServiceRequest, ServiceSpec, StateLog, StreamSpec};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{self, JoinReply},
    definition::BucketDefinition,
    names,
    state::{Change, StateContext},
    subjects, wire,
};
use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Admin requests whose sources are being looked at, at most.
const PROBES: usize = 64;

/// The topics of every bucket are looked for this often; one that is lost is made again, and the chain shows what is missing.
const STREAM_CHECK: Duration = Duration::from_secs(5);

const NOUN_VERBS: [&str; 6] =
    ["bucket.add", "bucket.remove", "bucket.list", "index.create", "index.build", "index.drop"];

/// Why the coordinator ended.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("local copy of the state: {0}")]
    Disk(#[from] io::Error),
    #[error(
        "the state log in NATS is not the one this coordinator wrote: they differ at record {0}; if the stream HW_STATE was purged or damaged, delete it and start again: the local copy restores it; if this data directory belongs to another deployment, use the right one"
    )]
    OtherLog(usize),
    #[error("the state log in NATS cannot be used: {0}")]
    DamagedLog(#[from] highwater_schemas::state::StateError),
}

struct Shell {
    bus: Bus,
    core: Core,
    log: StateLog,
    copy: LocalCopy,
    started: Instant,
    next_token: Token,
    waiting: HashMap<Token, ServiceRequest>,
    /// Damaged messages so far: the first is logged.
    refused: u64,
}

/// Runs the coordinator until `stop` turns true.
pub async fn run(
    config: Config,
    bus: Bus,
    ready: oneshot::Sender<()>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), CoordinatorError> {
    let (copy, log, context) = recover(&config, &bus).await?;
    let started = Instant::now();
    let mut shell = Shell {
        core: Core::new(config.clone(), context, 0),
        bus: bus.clone(),
        log,
        copy,
        started,
        next_token: 0,
        waiting: HashMap::new(),
        refused: 0,
    };
    for bucket in shell.core.context().buckets.keys().cloned().collect::<Vec<_>>() {
        ensure(&bus, &bucket).await?;
    }
    let mut syncs = bus.subscribe("hw.sync.*").await?;
    let mut hwts = bus.subscribe("hw.hwt.*.*").await?;
    let mut admin = admin_service(&bus, &config).await?;
    let (probed, mut probes) = mpsc::channel::<(Token, Ddl, Probe)>(PROBES);
    shell.append(Change::TermStarted { coordinator: config.node.clone() }).await?;
    bus.flush().await?;
    let mut streams = tokio::time::interval(STREAM_CHECK);
    streams.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let _ = ready.send(());
    tracing::info!(node = config.node, version = shell.core.context().version, "coordinating");
    loop {
        let now = shell.now();
        let wait = Duration::from_millis(shell.core.next_tick(now) - now);
        if wait.is_zero() {
            shell.handle(Event::Tick { random: random() }).await?;
            continue;
        }
        tokio::select! {
            message = syncs.next() => match message {
                Some(m) => match wire::decode::<wire::Sync>(&m.payload) {
                    Ok(sync) => shell.handle(Event::Sync(sync)).await?,
                    Err(error) => shell.refuse(&m.subject, &error),
                },
                None => return Ok(()),
            },
            message = hwts.next() => match message {
                Some(m) => match wire::decode::<wire::HighWatermark>(&m.payload) {
                    Ok(hwt) => shell.handle(Event::HighWatermark(hwt)).await?,
                    Err(error) => shell.refuse(&m.subject, &error),
                },
                None => return Ok(()),
            },
            request = admin.next() => match request {
                Some(request) => shell.request(request, &probed).await?,
                None => return Ok(()),
            },
            Some((token, ddl, probe)) = probes.recv() => shell.handle(Event::Ddl { token, ddl, probe, random: random() }).await?,
            _ = streams.tick() => {
                let (bus, buckets) = (bus.clone(), shell.core.context().buckets.keys().cloned().collect::<Vec<_>>());
                tokio::spawn(async move { ensure_all(&bus, &buckets).await });
            }
            () = tokio::time::sleep(wait) => shell.handle(Event::Tick { random: random() }).await?,
            _ = stop.changed() => return Ok(()),
        }
    }
}

/// Reads the log and the local copy and brings them together.
async fn recover(config: &Config, bus: &Bus) -> Result<(LocalCopy, StateLog, StateContext), CoordinatorError> {
    let (mut copy, copied) = LocalCopy::open(&config.data_dir)?;
    let (mut log, records) = StateLog::open(bus).await?;
    let mut records: Vec<Vec<u8>> = records.into_iter().map(|r| r.to_vec()).collect();
    match compare(&records, &copied) {
        Comparison::LogIsAhead => copy.replace(&records)?,
        Comparison::LogLostTail(missing) => {
            tracing::warn!(
                records = missing.len(),
                "the state log in NATS lost its tail: completing it from the local copy"
            );
            for record in missing {
                log.append(&record).await?;
                records.push(record);
            }
        }
        Comparison::Contradiction(at) => return Err(CoordinatorError::OtherLog(at)),
    }
    let mut context = StateContext::default();
    for record in &records {
        context.apply_json(record)?;
    }
    if context.version == 0 {
        context.incarnation = uuid::Uuid::new_v4().to_string();
    }
    context.term += 1;
    Ok((copy, log, context))
}

async fn admin_service(bus: &Bus, config: &Config) -> Result<Endpoints, BusError> {
    let mut endpoints: Vec<(String, String)> =
        NOUN_VERBS.iter().map(|v| (v.replace('.', "-"), subjects::admin(v))).collect();
    endpoints.push(("forwarded".into(), subjects::node(&config.node, "admin.>")));
    endpoints.push(("join".into(), subjects::CLUSTER_JOIN.into()));
    endpoints.push(("members".into(), subjects::CLUSTER_MEMBERS.into()));
    bus.service(&ServiceSpec {
        name: subjects::ADMIN_SERVICE.into(),
        description: "Highwater administration".into(),
        endpoints,
        queue_group: Some(subjects::ADMIN_SERVICE.into()),
    })
    .await
}

async fn ensure(bus: &Bus, bucket: &str) -> Result<(), BusError> {
    bus.ensure_stream(&StreamSpec::mutation(bucket)).await?;
    bus.ensure_stream(&StreamSpec::catchup(bucket)).await
}

async fn ensure_all(bus: &Bus, buckets: &[String]) {
    for bucket in buckets {
        if let Err(error) = ensure(bus, bucket).await {
            tracing::debug!(bucket, %error, "cannot look after the bucket's topics");
        }
    }
}

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

impl Shell {
    fn refuse(&mut self, subject: &str, error: &wire::WireError) {
        if self.refused == 0 {
            tracing::warn!(subject, %error, "refused a message; further ones are only counted");
        }
        self.refused += 1;
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Feeds an event and carries out what follows, until nothing more is to be appended.
    async fn handle(&mut self, event: Event) -> Result<(), CoordinatorError> {
        let mut event = Some(event);
        while let Some(next) = event.take() {
            let now = self.now();
            let actions = self.core.handle(now, next);
            if self.carry_out(actions).await? {
                event = Some(Event::Tick { random: random() });
            }
        }
        Ok(())
    }

    /// True when something was appended.
    async fn carry_out(&mut self, actions: Vec<Action>) -> Result<bool, CoordinatorError> {
        let (mut appended, mut failed) = (false, None);
        for action in actions {
            match action {
                Action::Reply { token, answer } => self.reply(token, failed.take().map_or(answer, Err)).await,
                _ if failed.is_some() => {}
                Action::Append(change) => {
                    self.append(change).await?;
                    appended = true;
                }
                Action::Publish(stability) => {
                    let subject = subjects::stability(&stability.bucket);
                    self.bus.publish(&subject, wire::encode(&stability)).await?;
                }
                Action::EnsureStreams { bucket } => {
                    if let Err(error) = ensure(&self.bus, &bucket).await {
                        failed =
                            Some(ApiError::new(ErrorCode::Internal, format!("streams of bucket {bucket}: {error}")));
                    }
                }
                Action::DeleteStreams { bucket } => {
                    for stream in [subjects::mutation_stream(&bucket), subjects::catchup_stream(&bucket)] {
                        if let Err(error) = self.bus.delete_stream(&stream).await {
                            tracing::warn!(stream, %error, "cannot delete");
                        }
                    }
                }
                Action::PurgeSession { bucket, session } => {
                    let bus = self.bus.clone();
                    tokio::spawn(async move {
                        let stream = subjects::catchup_stream(&bucket);
                        if let Err(error) = bus.purge(&stream, &subjects::catchup(&bucket, session), None).await {
                            tracing::debug!(stream, session, %error, "cannot purge");
                        }
                    });
                }
            }
        }
        Ok(appended)
    }

    async fn append(&mut self, change: Change) -> Result<(), CoordinatorError> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let json = self.core.record(change, at).to_json();
        self.log.append(&json).await?;
        self.copy.append(&json)?;
        self.core.applied(&json)?;
        tracing::debug!(record = %String::from_utf8_lossy(&json), "appended");
        Ok(())
    }

    async fn reply(&mut self, token: Token, answer: Result<serde_json::Value, ApiError>) {
        if let Some(request) = self.waiting.remove(&token) {
            request.respond(answer.map(|value| api::ok(&value))).await;
        }
    }

    async fn request(
        &mut self,
        request: ServiceRequest,
        probed: &mpsc::Sender<(Token, Ddl, Probe)>,
    ) -> Result<(), CoordinatorError> {
        if request.subject == subjects::CLUSTER_JOIN {
            return match api::parse(&request.payload) {
                Ok(join) => {
                    let join: api::Join = join;
                    if let Err(error) = names::check("node", &join.node) {
                        request.respond(Err(error)).await;
                        return Ok(());
                    }
                    self.handle(Event::Join(join)).await?;
                    let reply = JoinReply { cluster_manager: String::new(), heartbeat_ms: self.core.heartbeat_ms() };
                    request.respond(Ok(api::ok(&reply))).await;
                    Ok(())
                }
                Err(error) => {
                    request.respond(Err(error)).await;
                    Ok(())
                }
            };
        }
        if request.subject == subjects::CLUSTER_MEMBERS {
            let status = self.core.status(self.now());
            request.respond(Ok(api::ok(&status))).await;
            return Ok(());
        }
        let ddl = match parse_ddl(&request.subject, &request.payload) {
            Ok(ddl) => ddl,
            Err(error) => {
                request.respond(Err(error)).await;
                return Ok(());
            }
        };
        self.next_token += 1;
        let token = self.next_token;
        match ddl.probes() {
            Some(definition) if self.waiting.len() < PROBES => {
                self.waiting.insert(token, request);
                let (bus, probed) = (self.bus.clone(), probed.clone());
                tokio::spawn(async move {
                    let probe = probe(&bus, &definition).await;
                    let _ = probed.send((token, ddl, probe)).await;
                });
                Ok(())
            }
            Some(_) => {
                request
                    .respond(Err(ApiError::new(ErrorCode::TooManyRequests, "too many admin requests are under way")))
                    .await;
                Ok(())
            }
            None => {
                self.waiting.insert(token, request);
                self.handle(Event::Ddl { token, ddl, probe: Ok(Vec::new()), random: random() }).await
            }
        }
    }
}

/// `hw.admin.<noun>.<verb>` or `hw.node.<id>.admin.<noun>.<verb>`.
fn parse_ddl(subject: &str, payload: &[u8]) -> Result<Ddl, ApiError> {
    let noun_verb = subject.split_once("admin.").map_or("", |(_, rest)| rest);
    Ok(match noun_verb {
        "bucket.add" => Ddl::BucketAdd(api::parse(payload)?),
        "bucket.remove" => Ddl::BucketRemove(api::parse(payload)?),
        "bucket.list" => {
            api::parse::<api::Empty>(payload)?;
            Ddl::BucketList
        }
        "index.create" => Ddl::IndexCreate(api::parse(payload)?),
        "index.build" => Ddl::IndexBuild(api::parse(payload)?),
        "index.drop" => Ddl::IndexDrop(api::parse(payload)?),
        other => {
            return Err(ApiError::new(
                ErrorCode::NotSupported,
                format!("there is no hw.admin.{other} in this version"),
            ));
        }
    })
}

/// Looks at the source streams of a bucket that is to be declared.
async fn probe(bus: &Bus, definition: &BucketDefinition) -> Probe {
    definition.check()?;
    let mut last = Vec::new();
    for stream in definition.vbuckets() {
        let state = match bus.stream_state(&stream.name).await {
            Ok(state) => state,
            Err(BusError::NoStream(name)) => {
                return Err(ApiError::new(ErrorCode::SourceNotFound, format!("there is no stream {name}")));
            }
            Err(error) => return Err(ApiError::new(ErrorCode::Internal, error.to_string())),
        };
        let covered = state
            .subjects
            .iter()
            .any(|s| s.starts_with(&stream.strip_prefix) || s.starts_with('>') || s.starts_with('*'));
        if !covered {
            return Err(ApiError::new(
                ErrorCode::BadSource,
                format!("no subject of stream {} begins with {:?}", stream.name, stream.strip_prefix),
            ));
        }
        last.push(state.last_seq);
    }
    Ok(last)
}
