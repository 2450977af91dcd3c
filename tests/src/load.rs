//! Writers and readers in the background.

use crate::{
    ask,
    client::{Client, Refused},
    documents,
    oracle::Index,
    rng::Rng,
    source::{Source, Write},
    wait::until,
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// Documents that are written again and again.
const IDS: u64 = 500;
const BURST: u64 = 50;
const WRITES_GO_ON_WITHIN: Duration = Duration::from_secs(30);
/// A scan without an answer for so long has failed.
const SCAN_WITHIN: Duration = Duration::from_secs(20);
const BETWEEN_SCANS: Duration = Duration::from_millis(10);

/// Writes in the background until it is told to stop.
pub struct Writer {
    over: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Writer {
    /// As fast as the server takes it.
    pub fn start(source: &Source, rng: &mut Rng) -> Self {
        Self::paced(source, rng, Duration::ZERO)
    }

    /// With a pause between the bursts.
    pub fn paced(source: &Source, rng: &mut Rng, pause: Duration) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (source, mut rng, told) = (source.clone(), rng.fork(), over.clone());
        let task = tokio::spawn(async move {
            while !told.load(Ordering::Relaxed) {
                write(&source, BURST, &mut rng).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(())
        });
        Self { over, task }
    }

    /// Returns when all is acknowledged.
    pub async fn stop(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.context("the writer panicked")?
    }
}

/// So many random writes.
pub async fn write(source: &Source, count: u64, rng: &mut Rng) -> Result<()> {
    let writes: Vec<Write> = (0..count).map(|_| documents::write(rng, source.streams.len(), IDS)).collect();
    source.write(writes).await
}

/// So many random writes to a source, and then indexes that equal it.
pub async fn index(
    client: &Client,
    source: &Source,
    writes: u64,
    indexes: &[Index],
    rng: &mut Rng,
    within: Duration,
) -> Result<()> {
    write(source, writes, rng).await?;
    client.create_indexes(&source.bucket, indexes, within).await?;
    ask::each(client, source, indexes).await
}

/// A new key-value bucket, written and indexed as by [`index`].
pub async fn indexed(
    client: &Client,
    bucket: &str,
    writes: u64,
    indexes: &[Index],
    rng: &mut Rng,
    within: Duration,
) -> Result<Source> {
    let source = Source::key_value(client, bucket).await?;
    index(client, &source, writes, indexes, rng, within).await?;
    Ok(source)
}

/// Waits until so many further writes are acknowledged.
pub async fn written(source: &Source, further: u64) -> Result<()> {
    let total = || source.log().acknowledged().iter().sum::<u64>();
    let wanted = total() + further;
    until(
        "writes go on",
        WRITES_GO_ON_WITHIN,
        async || {
            if total() >= wanted { Ok(()) } else { Err(total().to_string()) }
        },
    )
    .await
}

/// What became of scans in the background.
#[derive(Debug, Default)]
pub struct Scanned {
    pub answered: u64,
    /// Each with the time since the scans began.
    pub failed: Vec<(Duration, Refused)>,
    /// The longest time from one answer to the next.
    pub pause: Duration,
}

/// Scans in the background, one after the other.
pub struct Scans {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    task: JoinHandle<Scanned>,
}

impl Scans {
    pub fn start(client: &Client, request: Value) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (client, told, counted) = (client.clone(), over.clone(), answered.clone());
        let task = tokio::spawn(async move {
            let mut scanned = Scanned::default();
            let began = Instant::now();
            let mut last = began;
            // Once at least, however soon it is over.
            loop {
                match client.request_within("hw.query.scan", &request, SCAN_WITHIN).await {
                    Ok(_) => {
                        scanned.answered += 1;
                        counted.store(scanned.answered, Ordering::Relaxed);
                        scanned.pause = scanned.pause.max(last.elapsed());
                        last = Instant::now();
                    }
                    Err(refused) => scanned.failed.push((began.elapsed(), refused)),
                }
                if told.load(Ordering::Relaxed) {
                    break;
                }
                tokio::time::sleep(BETWEEN_SCANS).await;
            }
            scanned.pause = scanned.pause.max(last.elapsed());
            scanned
        });
        Self { over, answered, task }
    }

    /// Scans that were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub async fn stop(self) -> Result<Scanned> {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.context("the scans panicked")
    }
}
