//! No list of a stream's present documents lacks one: what a list did not name is taken for removed.
//!
//! Three servers replicate a stream with five revisions of each document, writers write as fast as they are let, and documents that
//! are written once are acknowledged right before a list begins. It is read as projectors read it, by connections to each server.

use async_nats::jetstream::{Context as JetStream, kv};
use highwater_bus::{Bus, ConnectSettings, ReadFrom};
use highwater_projector::pump::{self, Pumped};
use highwater_tests::{branches::reconcile, cluster::SERVICES, load::Writer, prelude::*, rounds, wait::deadline};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::RwLock, task::JoinSet};

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
const PREFIX: &str = "$KV.people.";
const REVISIONS: i64 = 5;
/// Documents that are written again and again.
const HOT: u64 = 300;
/// Documents that are written before each list.
const COLD: u64 = 3;
/// Writes of a writer that are acknowledged before it writes on.
const BURST: u64 = 100;
/// Another server leads the stream once in so many lists.
const LED: u64 = 25;
/// What hangs takes longer.
const WITHIN: Duration = Duration::from_secs(60);
const ACK_WITHIN: Duration = Duration::from_secs(2);
const AGAIN_AFTER: Duration = Duration::from_millis(20);

fn kept() -> kv::Config {
    kv::Config { bucket: BUCKET.into(), history: REVISIONS, num_replicas: 3, ..kv::Config::default() }
}

/// By document, the highest seqno.
type Newest = BTreeMap<String, u64>;

/// What was acknowledged.
#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<Newest>>);

impl Acknowledged {
    fn add(&self, id: String, seqno: u64) {
        raise(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), id, seqno);
    }

    fn now(&self) -> Newest {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn raise(newest: &mut Newest, id: String, seqno: u64) {
    let of = newest.entry(id).or_default();
    *of = seqno.max(*of);
}

/// Writes a document once; None: it may be stored or not.
async fn write(js: &JetStream, id: &str) -> Option<u64> {
    let acknowledged = async { js.publish(format!("{PREFIX}{id}"), "{\"age\":1}".into()).await.ok()?.await.ok() };
    Some(tokio::time::timeout(ACK_WITHIN, acknowledged).await.ok()??.sequence)
}

/// Writes a document until it is acknowledged.
async fn write_surely(js: &JetStream, id: &str) -> Result<u64> {
    let deadline = deadline(WITHIN);
    loop {
        match write(js, id).await {
            Some(seqno) => return Ok(seqno),
            None => ensure!(Instant::now() < deadline, "{id} cannot be written"),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Writes hot documents as long as it is not held up: whoever writes `hold` has all that was sent settled.
async fn write_on(js: JetStream, acknowledged: Acknowledged, hold: Arc<RwLock<()>>, mut rng: Rng) {
    loop {
        let _writes = hold.read().await;
        let mut burst = JoinSet::new();
        for _ in 0..BURST {
            let (js, id) = (js.clone(), format!("hot{}", rng.below(HOT)));
            burst.spawn(async move { (write(&js, &id).await, id) });
        }
        while let Some(written) = burst.join_next().await {
            if let Ok((Some(seqno), id)) = written {
                acknowledged.add(id, seqno);
            }
        }
    }
}

/// A list, and what came behind it.
struct Read {
    upto: u64,
    listed: Newest,
    beyond: Newest,
    position: u64,
    pump: pump::Running,
}

impl Read {
    /// Reads a list to its end; Err: it has to begin again, and why.
    async fn list(bus: &Bus) -> Result<Result<Self, String>> {
        let from = ReadFrom { lists: true, apart: true, ..ReadFrom::default() };
        let pump = pump::Running::start(bus, STREAM, from);
        let mut read = Self { upto: 0, listed: Newest::new(), beyond: Newest::new(), position: 0, pump };
        loop {
            match read.next().await? {
                Pumped::Opened { .. } => {}
                Pumped::Messages { messages, .. } => read.take(&messages, true)?,
                Pumped::Listed { upto } => {
                    ensure!(read.position <= upto, "the list goes up to {upto}, and named {}", read.position);
                    read.upto = upto;
                    read.position = upto;
                    return Ok(Ok(read));
                }
                Pumped::Changed(why) => return Ok(Err(why)),
            }
        }
    }

    async fn next(&mut self) -> Result<Pumped> {
        let next = tokio::time::timeout(WITHIN, self.pump.pumped.recv()).await;
        next.with_context(|| format!("nothing comes behind {}", self.position))?.context("the pump has ended")
    }

    fn take(&mut self, messages: &[highwater_bus::StreamMessage], list: bool) -> Result<()> {
        for message in messages {
            ensure!(message.seq > self.position, "{} came behind {}", message.seq, self.position);
            self.position = message.seq;
            let subject = message.subject_text();
            let id = subject.strip_prefix(PREFIX).context("a foreign subject")?;
            raise(if list { &mut self.listed } else { &mut self.beyond }, id.to_owned(), message.seq);
        }
        Ok(())
    }

    /// Reads on up to a seqno that the stream has.
    async fn up_to(&mut self, seqno: u64) -> Result<Result<(), String>> {
        while self.position < seqno {
            match self.next().await? {
                Pumped::Messages { messages, .. } => self.take(&messages, false)?,
                Pumped::Changed(why) => return Ok(Err(why)),
                Pumped::Opened { .. } | Pumped::Listed { .. } => bail!("it lists again"),
            }
        }
        Ok(Ok(()))
    }

    /// What was acknowledged before the list began is in it, but for what was written again since, or lies behind it.
    async fn check(&self, before: &Newest, bus: &Bus) -> Result<()> {
        for (id, seqno) in before {
            let (listed, beyond) = (self.listed.get(id), self.beyond.get(id));
            let newest = listed.max(beyond);
            if newest < Some(seqno) {
                // All revisions up to where it was read may be overwritten by later ones.
                let last = bus.last_of(STREAM, &format!("{PREFIX}{id}")).await?.map(|last| last.seq);
                ensure!(
                    last > Some(self.position),
                    "{id} was acknowledged as {seqno} before a list up to {} that named {listed:?}; then came {beyond:?}, up to {}; \
                     its last one is {last:?}",
                    self.upto,
                    self.position
                );
                continue;
            }
            ensure!(
                newest > Some(seqno) || *seqno > self.upto || listed == Some(seqno),
                "{id} is {seqno} all the time, and a list up to {} lacks it",
                self.upto
            );
        }
        Ok(())
    }
}

/// The stream has another leader soon.
async fn another_leader(js: &JetStream) -> Result<bool> {
    let stepped: Value = js.request(format!("STREAM.LEADER.STEPDOWN.{STREAM}"), &()).await.context("step down")?;
    Ok(stepped["success"] == true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_on_three_servers_are_complete() -> Result<()> {
    let mut rng = Rng::seeded("lists");
    Cluster::replicated()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            client.js.create_key_value(kept()).await?;
            let (acknowledged, hold) = (Acknowledged::default(), Arc::new(RwLock::new(())));
            let (mut buses, mut writers) = (Vec::new(), JoinSet::new());
            for server in cluster.servers() {
                let settings = ConnectSettings { url: server.url().into(), ..ConnectSettings::default() };
                buses.push(Bus::connect(&settings).await?);
                let js = Client::connect(server.url()).await?.js;
                writers.spawn(write_on(js, acknowledged.clone(), Arc::clone(&hold), rng.fork()));
            }
            let (mut led, mut again, mut beside) = (0, 0, 0);
            for round in 0..rounds(300, 3_000) {
                // Writers go on all the time, or rest from before the last documents are written, or right after.
                let rests = rng.below(3);
                let mut rest = if rests == 1 { Some(hold.write().await) } else { None };
                for n in 0..COLD {
                    let id = format!("cold{round}_{n}");
                    let seqno = write_surely(&client.js, &id).await?;
                    acknowledged.add(id, seqno);
                }
                if rests == 2 {
                    rest = Some(hold.write().await);
                }
                if round % LED == LED - 1 {
                    led += u64::from(another_leader(&client.js).await?);
                }
                let before = acknowledged.now();
                let bus = rng.pick(&buses);
                let deadline = deadline(WITHIN);
                loop {
                    let why = match Read::list(bus).await? {
                        Ok(mut read) => {
                            let last = until("the stream answers", WITHIN, async || {
                                bus.stream_state(STREAM).await.map(|s| s.last_seq).map_err(|e| e.to_string())
                            })
                            .await?;
                            match read.up_to(last).await? {
                                Ok(()) => {
                                    beside += u64::from(last > read.upto);
                                    read.check(&before, bus).await.with_context(|| format!("list {round}, {rests}"))?;
                                    break;
                                }
                                Err(why) => why,
                            }
                        }
                        Err(why) => why,
                    };
                    again += 1;
                    ensure!(Instant::now() < deadline, "list {round} does not end: {why}");
                }
                drop(rest);
            }
            writers.abort_all();
            println!(
                "{again} lists were begun again, another server led {led} times; writes came during {beside} lists"
            );
            ensure!(led > 0, "the stream was always led by one server");
            ensure!(beside > 0, "nothing was written while a list was read");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconciles_on_three_servers_take_nothing_away() -> Result<()> {
    let mut rng = Rng::seeded("reconciles");
    Cluster::replicated()
        .await?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value_configured(&client, kept()).await?.patient(WITHIN);
            let indexes = documents::indexes(1);
            client.create_indexes(BUCKET, &indexes[..2], WITHIN).await?;
            for round in 0..rounds(3, 100) {
                let writer = Writer::start(&source, &mut rng);
                for n in 0..3 {
                    let cold = |i| Write::put(0, format!("cold{round}_{n}_{i}"), &json!({"age": i, "city": "Oslo"}));
                    source.write((0..COLD).map(cold)).await?;
                    reconcile(&client, BUCKET, WITHIN).await?;
                }
                writer.stop().await?;
                source.fill().await?;
                ask::each(&client, &source, &indexes[..2]).await.with_context(|| format!("round {round}"))?;
            }
            Ok(())
        })
        .await
}
