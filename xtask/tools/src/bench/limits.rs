//! What this machine can do without Highwater: the numbers that the others are measured against.

use super::{
    BUCKET, STREAM,
    documents::{Random, document, subject},
    report::{Report, Spread},
};
use crate::{
    child::Child,
    client,
    term::{group, step},
    writer::Writer,
};
use anyhow::{Context, Result, ensure};
use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{AckPolicy, PullConsumer, pull},
        kv,
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use heed::{CommitOrAbort, Database, EnvOpenOptions, types};
use highwater_bus::{Bus, ConnectSettings, ReadFrom, StreamReader};
use std::{
    convert::Infallible,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// The subject that is echoed.
const ECHO: &str = "xtask.echo";
/// Publishes in flight.
pub const WINDOW: u32 = 4_096;
/// The bucket of the raw updates, with as many documents as the other, and how many updates are timed.
const SCRATCH: &str = "scratch";
const UPDATES: u64 = 200_000;
/// Messages that one pull request asks for.
const PULL: usize = 8_192;
/// Runs of a short measurement; the best counts.
const RUNS: usize = 3;
const ROUND_TRIPS: usize = 5_000;
/// Entries of the LMDB environment.
const LMDB_ENTRIES: u64 = 500_000;
const STALLED: Duration = Duration::from_secs(10);

/// Rates are per second.
#[derive(Debug, Clone)]
pub struct Limits {
    pub publish: f64,
    /// Acked publishes that each replace a document of a bucket with history 1.
    pub update: f64,
    pub read: f64,
    /// The same with our own frame reader, in as many parts as pay.
    pub frames: f64,
    pub round_trip: Spread,
    pub cursor: f64,
}

impl Limits {
    pub fn add_to(&self, report: &mut Report) {
        report.limit("raw acked publish", self.publish, "msg/s");
        report.limit("raw acked update, history 1", self.update, "msg/s");
        report.limit("raw stream read, AckPolicy::None", self.read, "msg/s");
        report.limit("raw frame read", self.frames, "msg/s");
        report.limit("NATS round trip, p50", self.round_trip.p50.as_secs_f64() * 1e3, "ms");
        report.limit("NATS round trip, p99", self.round_trip.p99.as_secs_f64() * 1e3, "ms");
        report.limit("raw LMDB cursor", self.cursor, "rows/s");
    }
}

/// Fills the bucket and measures every limit.
pub async fn measure(nats: &Client, url: &str, documents: u64, directory: &Path) -> Result<Limits> {
    let since = Instant::now();
    let publish = publish_all(nats, documents).await?;
    step(&format!("raw acked publish: {} msg/s", group(publish as u64)), since.elapsed());

    let since = Instant::now();
    let read = read(nats, documents).await?;
    step(&format!("raw stream read: {} msg/s", group(read as u64)), since.elapsed());

    let since = Instant::now();
    let frames = frames(url, documents).await?;
    step(&format!("raw frame read: {} msg/s", group(frames as u64)), since.elapsed());

    let since = Instant::now();
    let update = update_all(nats, documents).await?;
    step(&format!("raw acked update: {} msg/s", group(update as u64)), since.elapsed());

    let since = Instant::now();
    let round_trip = round_trips(nats, url, directory).await?;
    step(&format!("NATS round trip: {round_trip}"), since.elapsed());

    let since = Instant::now();
    let directory = directory.join("lmdb");
    let cursor = tokio::task::spawn_blocking(move || cursor(&directory)).await.context("the LMDB run panicked")??;
    step(&format!("raw LMDB cursor: {} rows/s", group(cursor as u64)), since.elapsed());
    Ok(Limits { publish, update, read, frames, round_trip, cursor })
}

/// Messages of the stream read in a second, at best.
pub async fn read(nats: &Client, documents: u64) -> Result<f64> {
    let mut read = 0.0_f64;
    for _ in 0..RUNS {
        let stream = read_with_stream(nats, documents).await?;
        let pulls = read_with_pulls(nats, documents).await?;
        read = read.max(stream).max(pulls);
    }
    Ok(read)
}

/// Messages of the stream that our own reader reads in a second, at best, in as many parts as it takes.
async fn frames(url: &str, documents: u64) -> Result<f64> {
    let settings = ConnectSettings { url: url.into(), name: "xtask bench".into(), ..ConnectSettings::default() };
    let bus = Bus::connect(&settings).await?;
    let mut best = 0.0_f64;
    for _ in 0..RUNS {
        let since = Instant::now();
        let (bus, from) = (bus.clone(), ReadFrom { apart: true, ..ReadFrom::default() });
        let reading = tokio::spawn(async move {
            let mut reader = StreamReader::open(&bus, STREAM, from).await?;
            let (mut messages, mut seq) = (Vec::new(), 0);
            while seq < documents {
                reader.next_ready(PULL, &mut messages).await?;
                seq = messages.last().map_or(seq, |last| last.seq);
                messages.clear();
            }
            anyhow::Ok(())
        });
        reading.await.context("the reader panicked")??;
        best = best.max(documents as f64 / since.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Makes the bucket with its documents; messages in a second.
pub async fn publish_all(nats: &Client, documents: u64) -> Result<f64> {
    let config = kv::Config { bucket: BUCKET.into(), history: 1, ..Default::default() };
    jetstream::new(nats.clone()).create_key_value(config).await.context("cannot create the key-value bucket")?;
    let writer = Writer::new(nats.clone(), WINDOW).await?;
    // Made beforehand in chunks, so that only publishing is timed.
    let mut spent = Duration::ZERO;
    let mut next = 0;
    while next < documents {
        let end = (next + 50_000).min(documents);
        let chunk: Vec<(String, Bytes)> = (next..end)
            .map(|number| document(number, 0))
            .map(|document| (subject(&document.id), document.json))
            .collect();
        let since = Instant::now();
        for (subject, json) in chunk {
            writer.publish(subject, json).await?;
        }
        writer.flush().await?;
        spent += since.elapsed();
        next = end;
    }
    Ok(documents as f64 / spent.as_secs_f64())
}

/// Replaces documents of a bucket of its own, so that the stream to build from stays as it was read.
async fn update_all(nats: &Client, documents: u64) -> Result<f64> {
    let config = kv::Config { bucket: SCRATCH.into(), history: 1, ..Default::default() };
    let jetstream = jetstream::new(nats.clone());
    jetstream.create_key_value(config).await.context("cannot create the key-value bucket")?;
    let writer = Writer::new(nats.clone(), WINDOW).await?;
    let mut random = Random::new(2);
    let mut since = Instant::now();
    for number in 0..documents + UPDATES {
        if number == documents {
            writer.flush().await?;
            since = Instant::now();
        }
        let which = if number < documents { number } else { random.below(documents) };
        let one = document(which, number);
        writer.publish(format!("$KV.{SCRATCH}.{}", one.id), one.json).await?;
    }
    writer.flush().await?;
    let took = since.elapsed();
    jetstream.delete_key_value(SCRATCH).await.context("cannot delete the key-value bucket")?;
    Ok(UPDATES as f64 / took.as_secs_f64())
}

async fn consumer(nats: &Client) -> Result<PullConsumer> {
    let stream = jetstream::new(nats.clone()).get_stream(STREAM).await.context("the bucket has no stream")?;
    let config = pull::Config { ack_policy: AckPolicy::None, ..Default::default() };
    stream.create_consumer(config).await.context("cannot create a consumer")
}

/// Reads with async-nats' own continuous pulls.
async fn read_with_stream(nats: &Client, count: u64) -> Result<f64> {
    let consumer = consumer(nats).await?;
    let since = Instant::now();
    let builder = consumer.stream().max_messages_per_batch(PULL).heartbeat(Duration::from_secs(5));
    let mut messages = builder.messages().await.context("cannot pull")?;
    for _ in 0..count {
        let next = timeout(STALLED, messages.next()).await.context("the stream does not answer")?;
        next.context("the consumer ended")?.context("cannot read the stream")?;
    }
    Ok(count as f64 / since.elapsed().as_secs_f64())
}

/// Reads with overlapping pull requests of our own.
async fn read_with_pulls(nats: &Client, count: u64) -> Result<f64> {
    let consumer = consumer(nats).await?;
    let name = &consumer.cached_info().name;
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}");
    let request = Bytes::from(format!("{{\"batch\":{PULL},\"expires\":{}}}", STALLED.as_nanos()));
    let reply = nats.new_inbox();
    let mut inbox = nats.subscribe(reply.clone()).await.context("cannot subscribe")?;
    let since = Instant::now();
    let (mut asked, mut got) = (0, 0);
    while got < count {
        while asked < got + PULL as u64 {
            nats.publish_with_reply(next.clone(), reply.clone(), request.clone()).await.context("cannot pull")?;
            asked += PULL as u64;
        }
        let message = timeout(STALLED, inbox.next()).await.context("the stream does not answer")?;
        let message = message.context("the connection was lost")?;
        ensure!(message.status.is_none(), "a pull was answered {:?}", message.description);
        got += 1;
    }
    Ok(count as f64 / since.elapsed().as_secs_f64())
}

/// Answers every request with what it holds, until it is ended: a process of its own, as the services are.
pub async fn echo(url: &str) -> Result<()> {
    let responder = client::connect(url).await?;
    let mut requests = responder.subscribe(ECHO).await.context("cannot subscribe")?;
    // On a worker, where its messages arrive: the quickest that a service can be.
    let answering = tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            if let Some(reply) = message.reply {
                responder.publish(reply, message.payload).await.context("cannot reply")?;
            }
        }
        Ok(())
    });
    answering.await.context("the echo panicked")?
}

async fn round_trips(nats: &Client, url: &str, directory: &Path) -> Result<Spread> {
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command.args(["echo", url]);
    let _responder = Child::start("echo", command, directory)?;
    let payload = Bytes::from(vec![b'x'; 128]);
    // Until the other process has subscribed.
    let since = Instant::now();
    while let Err(error) = nats.request(ECHO, payload.clone()).await {
        ensure!(since.elapsed() < STALLED, "no echo: {error}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The client too is on a worker, as that of the lookups.
    let nats = nats.clone();
    let asking = tokio::spawn(async move {
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        for _ in 0..ROUND_TRIPS {
            let since = Instant::now();
            nats.request(ECHO, payload.clone()).await.context("no echo")?;
            times.push(since.elapsed());
        }
        Ok(Spread::of(times))
    });
    asking.await.context("the client panicked")?
}

/// Rows per second of a cursor over an environment in the page cache.
#[allow(unsafe_code)]
fn cursor(directory: &Path) -> Result<f64> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let mut options = EnvOpenOptions::new();
    options.map_size(1 << 30);
    // SAFETY: the directory is new and only this process opens it, once.
    let env = unsafe { options.open(directory) }.context("cannot open an LMDB environment")?;
    let outcome = env.create_databases_and_commit(env.write_txn()?, |opener, txn| {
        let entries: Database<types::Bytes, types::Bytes> = opener.create_database(txn, None)?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, Infallible>::Commit(entries))
    })?;
    let CommitOrAbort::Commit(entries) = outcome;
    let mut txn = env.write_txn()?;
    for number in 0..LMDB_ENTRIES {
        let key = format!("\u{5}{:02}\u{0}\u{0}u{number:08}", number * 80 / LMDB_ENTRIES);
        let flags = heed::PutFlags::APPEND;
        entries.put_with_flags(&mut txn, flags, key.as_bytes(), br#"{"name":"Ada Lovelace"}"#)?;
    }
    txn.commit()?;
    let mut best = 0.0_f64;
    for _ in 0..RUNS + 2 {
        let txn = env.read_txn()?;
        let since = Instant::now();
        let mut rows = 0_u64;
        for entry in entries.iter(&txn)? {
            let (key, value) = entry?;
            rows += u64::from(!key.is_empty() && !value.is_empty());
        }
        ensure!(rows == LMDB_ENTRIES, "the cursor met {rows} rows");
        best = best.max(rows as f64 / since.elapsed().as_secs_f64());
    }
    Ok(best)
}
