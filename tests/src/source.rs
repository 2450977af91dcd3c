//! Writes documents as any NATS client would, and remembers every acknowledged write.

pub use crate::log::{Documents, Gone, Log, Name};
use crate::{client::Client, wait::deadline};
use anyhow::{Context, Result, ensure};
use async_nats::{
    HeaderMap, header,
    jetstream::{
        context::PublishAckFuture,
        kv,
        message::{PublishMessage, StreamMessage},
        stream::{Config, RawMessageErrorKind, StorageType},
    },
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Writes in flight.
const WINDOW: usize = 256;
/// A write that waits longer for its acknowledgement was lost with a server.
const ACK_WITHIN: Duration = Duration::from_secs(2);
/// A limit for which the server chooses the smallest message blocks.
const SMALL: i64 = 127_000;
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What a write does to its document.
#[derive(Debug, Clone)]
pub enum Op {
    Put(Bytes),
    Delete,
    /// Delete, and forget older revisions.
    Purge,
}

impl Op {
    pub(crate) fn payload(self) -> Option<Bytes> {
        match self {
            Self::Put(payload) => Some(payload),
            Self::Delete | Self::Purge => None,
        }
    }
}

/// One write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Number of the source stream.
    pub vb: usize,
    pub id: String,
    pub op: Op,
}

impl Write {
    pub fn put(vb: usize, id: impl Into<String>, document: &Value) -> Self {
        Self { vb, id: id.into(), op: Op::Put(document.to_string().into()) }
    }
}

/// A bucket of documents.
#[derive(Clone)]
pub struct Source {
    pub bucket: String,
    /// Name and subject prefix of each stream.
    pub streams: Vec<(String, String)>,
    client: Client,
    kv: bool,
    /// How long a write that is not acknowledged is sent again.
    patience: Duration,
    /// Writes so far: each has an id of its own.
    sent: Arc<AtomicU64>,
    log: Arc<Mutex<Log>>,
    /// The logs of what was taken back, the oldest first.
    pasts: Arc<Mutex<Vec<Arc<Log>>>>,
}

impl Source {
    /// A new key-value bucket that keeps one revision of each document.
    pub async fn key_value(client: &Client, bucket: &str) -> Result<Self> {
        Self::key_value_replicated(client, bucket, 1).await
    }

    /// As [`Self::key_value`] with some replicas.
    pub async fn key_value_replicated(client: &Client, bucket: &str, replicas: usize) -> Result<Self> {
        let config = kv::Config { bucket: bucket.into(), history: 1, num_replicas: replicas, ..kv::Config::default() };
        Self::key_value_configured(client, config).await
    }

    /// As [`Self::key_value`], kept in the server's memory.
    pub async fn key_value_in_memory(client: &Client, bucket: &str) -> Result<Self> {
        let storage = StorageType::Memory;
        let config = kv::Config { bucket: bucket.into(), history: 1, storage, ..kv::Config::default() };
        Self::key_value_configured(client, config).await
    }

    /// A new key-value bucket with this configuration.
    pub async fn key_value_configured(client: &Client, config: kv::Config) -> Result<Self> {
        let bucket = config.bucket.clone();
        client.js.create_key_value(config).await.context("no key-value bucket")?;
        Ok(Self::new(client, &bucket, true, vec![(format!("KV_{bucket}"), format!("$KV.{bucket}."))]))
    }

    /// A key-value bucket that is there, with what it holds.
    pub async fn existing(client: &Client, bucket: &str) -> Result<Self> {
        let source = Self::new(client, bucket, true, vec![(format!("KV_{bucket}"), format!("$KV.{bucket}."))]);
        source.reread().await?;
        Ok(source)
    }

    /// One stream made with this configuration, declared as a bucket; its name and subjects are filled in.
    pub async fn configured(client: &Client, bucket: &str, config: Config) -> Result<Self> {
        let (name, prefix) = (format!("{bucket}_0"), format!("{bucket}.0."));
        let subjects = vec![format!("{prefix}>")];
        client.js.create_stream(Config { name: name.clone(), subjects, ..config }).await.context("no stream")?;
        let request = json!({"name": bucket, "source": {"streams": [{"name": name, "strip_prefix": prefix}]}});
        client.insist("hw.admin.bucket.add", &request, Duration::from_secs(20)).await?;
        Ok(Self::new(client, bucket, false, vec![(name, prefix)]))
    }

    /// As [`Self::key_value`], in message blocks of 32 kB; it holds no more than [`SMALL`] bytes.
    pub async fn key_value_small(client: &Client, bucket: &str) -> Result<Self> {
        let config = kv::Config { bucket: bucket.into(), history: 1, max_bytes: SMALL, ..kv::Config::default() };
        Self::key_value_configured(client, config).await
    }

    /// New streams, declared as one bucket; every other one keeps only the newest revision of each document.
    pub async fn keyed_streams(client: &Client, bucket: &str, count: usize) -> Result<Self> {
        let streams: Vec<_> = (0..count).map(|i| (format!("{bucket}_{i}"), format!("{bucket}.{i}."))).collect();
        for (i, (name, prefix)) in streams.iter().enumerate() {
            let config = Config {
                name: name.clone(),
                subjects: vec![format!("{prefix}>")],
                max_messages_per_subject: if i % 2 == 0 { 1 } else { -1 },
                allow_rollup: true,
                ..Config::default()
            };
            client.js.create_stream(config).await.with_context(|| format!("no stream {name}"))?;
        }
        let declared: Vec<_> =
            streams.iter().map(|(name, prefix)| json!({"name": name, "strip_prefix": prefix})).collect();
        let request = json!({"name": bucket, "source": {"streams": declared}});
        client.insist("hw.admin.bucket.add", &request, Duration::from_secs(20)).await?;
        Ok(Self::new(client, bucket, false, streams))
    }

    fn new(client: &Client, bucket: &str, kv: bool, streams: Vec<(String, String)>) -> Self {
        let log = Log::for_streams(streams.len());
        Self {
            bucket: bucket.into(),
            streams,
            client: client.clone(),
            kv,
            patience: Duration::ZERO,
            sent: Arc::default(),
            log: Arc::new(Mutex::new(log)),
            pasts: Arc::default(),
        }
    }

    /// The same bucket: a write that is not acknowledged is sent again for so long, and stored once.
    #[must_use]
    pub fn patient(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// The same bucket over another connection.
    #[must_use]
    pub fn over(&self, client: &Client) -> Self {
        Self { client: client.clone(), ..self.clone() }
    }

    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the writes as fast as the server takes them; all are acknowledged when this returns.
    pub async fn write(&self, writes: impl IntoIterator<Item = Write>) -> Result<()> {
        if !self.patience.is_zero() {
            let all = stream::iter(writes).map(|write| self.write_surely(write));
            return all.buffer_unordered(WINDOW).try_collect().await;
        }
        let mut window = VecDeque::with_capacity(WINDOW);
        for write in writes {
            if window.len() >= WINDOW {
                self.settle(window.pop_front()).await?;
            }
            let ack = self.send(&write, None).await?;
            window.push_back((write, ack));
        }
        while !window.is_empty() {
            self.settle(window.pop_front()).await?;
        }
        Ok(())
    }

    /// Sends a write until it is acknowledged; it is stored once, by its id.
    async fn write_surely(&self, write: Write) -> Result<()> {
        let id = self.sent.fetch_add(1, Ordering::Relaxed);
        let deadline = deadline(self.patience);
        let above = self.log().acknowledged()[write.vb];
        let mut doubted = false;
        loop {
            let acknowledged = async { anyhow::Ok(self.send(&write, Some(id)).await?.await?) };
            let refused = match tokio::time::timeout(ACK_WITHIN, acknowledged).await {
                Ok(Ok(ack)) => {
                    self.log().add(write, ack.sequence);
                    return Ok(());
                }
                Ok(Err(error)) => error.to_string(),
                Err(late) => late.to_string(),
            };
            if !std::mem::replace(&mut doubted, true) {
                self.log().doubt(&write, above);
            }
            ensure!(Instant::now() < deadline, "a write of {} was not acknowledged: {refused}", write.id);
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn send(&self, write: &Write, id: Option<u64>) -> Result<PublishAckFuture> {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(header::NATS_MESSAGE_ID, id.to_string());
        }
        let payload = match &write.op {
            Op::Put(payload) => payload.clone(),
            Op::Delete | Op::Purge => Bytes::new(),
        };
        match write.op {
            Op::Delete if self.kv => headers.insert("KV-Operation", "DEL"),
            Op::Purge => {
                headers.insert("Nats-Rollup", "sub");
                if self.kv {
                    headers.insert("KV-Operation", "PURGE");
                }
            }
            _ => {}
        }
        let mut publish = PublishMessage::build().payload(payload);
        if !headers.is_empty() {
            publish = publish.headers(headers);
        }
        let subject = format!("{}{}", self.streams[write.vb].1, write.id);
        self.client.js.send_publish(subject, publish).await.context("a write was not sent")
    }

    async fn settle(&self, sent: Option<(Write, PublishAckFuture)>) -> Result<()> {
        if let Some((write, ack)) = sent {
            let ack = ack.await.with_context(|| format!("a write of {} was not acknowledged", write.id))?;
            self.log().add(write, ack.sequence);
        }
        Ok(())
    }

    /// The logs from this epoch on, the newest last.
    pub(crate) fn logs(&self, epoch: usize) -> Vec<Arc<Log>> {
        let pasts = self.pasts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Arc::new(self.log().clone());
        pasts.iter().chain([&now]).filter(|log| log.epoch >= epoch).cloned().collect()
    }

    /// The source was taken back: takes what the streams hold for all that is left of what was ever written. Nothing may be
    /// written meanwhile.
    pub async fn reread(&self) -> Result<()> {
        let since = Instant::now();
        let mut stored = Log::for_streams(self.streams.len());
        for vb in 0..self.streams.len() {
            let last = self.read(vb, |write, seqno| stored.add(write, seqno)).await?;
            stored.cover_all(vb, last);
        }
        self.begin(stored, since);
        Ok(())
    }

    /// The source was taken back to when its log was this one. Nothing may be written meanwhile.
    pub fn is_as_it_was(&self, then: Log) {
        self.begin(then, Instant::now());
    }

    /// A new epoch.
    fn begin(&self, mut stored: Log, since: Instant) {
        stored.since = Some(since);
        let mut pasts = self.pasts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut log = self.log();
        pasts.push(Arc::new(std::mem::take(&mut *log)));
        *log = Log::after(&pasts, stored);
    }

    /// Every message of a stream; answers its last seqno.
    async fn read(&self, vb: usize, mut take: impl FnMut(Write, u64)) -> Result<u64> {
        let (name, _) = &self.streams[vb];
        let mut stream = self.client.js.get_stream(name).await.with_context(|| format!("no stream {name}"))?;
        let last = stream.info().await?.state.last_sequence;
        let mut next = 1;
        while next <= last {
            let message = match stream.get_first_raw_message_by_subject(">", next).await {
                Ok(message) => message,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
                Err(error) => return Err(error).with_context(|| format!("message {next} of {name}")),
            };
            next = message.sequence + 1;
            take(self.stored(vb, &message)?, message.sequence);
        }
        Ok(last)
    }

    /// What should be in the streams and is not any more has vanished without a message, not before `from`. Nothing may be
    /// written meanwhile.
    pub async fn compare(&self, from: Instant) -> Result<()> {
        self.fill().await?;
        for vb in 0..self.streams.len() {
            let mut newest = BTreeMap::new();
            self.read(vb, |write, seqno| _ = newest.insert((vb, write.id), seqno)).await?;
            self.log().compare(vb, &newest, from);
        }
        Ok(())
    }

    /// Takes what the streams hold for the writes that were not acknowledged; the history is the same. Nothing may be written
    /// meanwhile.
    pub async fn fill(&self) -> Result<()> {
        for (vb, (name, _)) in self.streams.iter().enumerate() {
            let mut stream = self.client.js.get_stream(name).await.with_context(|| format!("no stream {name}"))?;
            let last = stream.info().await?.state.last_sequence;
            let missing = self.log().missing(vb, last);
            for seqno in missing {
                match stream.get_raw_message(seqno).await {
                    Ok(message) => {
                        let write = self.stored(vb, &message)?;
                        self.log().add(write, seqno);
                    }
                    Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => self.log().lose(vb, seqno),
                    Err(error) => return Err(error).with_context(|| format!("message {seqno} of {name}")),
                }
            }
            let acknowledged = self.log().acknowledged()[vb];
            ensure!(acknowledged <= last, "{name} ends at {last}, and {acknowledged} was acknowledged");
        }
        Ok(())
    }

    /// The write that is stored as this message.
    fn stored(&self, vb: usize, message: &StreamMessage) -> Result<Write> {
        let operation = message.headers.get("KV-Operation").map(|o| o.as_str().to_owned());
        let marker = message.headers.get("Nats-Marker-Reason").is_some();
        let deleted = match operation.as_deref() {
            _ if marker => true,
            operation if self.kv => matches!(operation, Some("DEL" | "PURGE")),
            _ => message.payload.is_empty(),
        };
        let op = if deleted { Op::Delete } else { Op::Put(message.payload.clone()) };
        let id = message.subject.strip_prefix(self.streams[vb].1.as_str()).context("a foreign subject")?.to_owned();
        Ok(Write { vb, id, op })
    }

    /// The seqnos of a reply's timestamp, in the order of the streams.
    pub fn seqnos(&self, reply: &Value) -> Result<Vec<u64>> {
        let seqno = |(name, _): &(String, String)| {
            reply["timestamp"][name]["seqno"].as_u64().with_context(|| format!("no {name} in {}", reply["timestamp"]))
        };
        self.streams.iter().map(seqno).collect()
    }

    /// The branches of a reply's timestamp, in the order of the streams.
    pub(crate) fn branches(&self, reply: &Value) -> Result<Vec<String>> {
        let branch = |(name, _): &(String, String)| {
            let vbuuid = reply["timestamp"][name]["vbuuid"].as_str();
            vbuuid.map(str::to_owned).with_context(|| format!("no branch of {name} in {}", reply["timestamp"]))
        };
        self.streams.iter().map(branch).collect()
    }
}
