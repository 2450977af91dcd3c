//! A writer that updates random documents at a steady rate.

use super::documents::{Random, document, subject};
use crate::{client, writer::Writer};
use anyhow::Result;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// How often it wakes to write what is due.
const TICK: Duration = Duration::from_millis(1);
/// Publishes in flight.
const WINDOW: u32 = 4_096;

/// What the writer did.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    pub count: u64,
    /// From its first write to its last acknowledgement.
    pub took: Duration,
}

impl Written {
    /// Acknowledged writes per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

/// A running writer.
pub struct Paced {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<Written>>,
}

impl Paced {
    /// Starts writing `rate` updates a second over a connection of its own.
    pub async fn start(url: &str, documents: u64, rate: f64, seed: u64) -> Result<Self> {
        let writer = Writer::new(client::connect(url).await?, WINDOW).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write(writer, documents, rate, seed, stop.clone()));
        Ok(Self { stop, task })
    }

    /// Stops it and waits for its last acknowledgement.
    pub async fn stop(self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn write(writer: Writer, documents: u64, rate: f64, seed: u64, stop: Arc<AtomicBool>) -> Result<Written> {
    let mut random = Random::new(seed);
    let since = Instant::now();
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (since.elapsed().as_secs_f64() * rate) as u64;
        while count < due && !stop.load(Ordering::Relaxed) {
            let one = document(random.below(documents), seed + 1 + count);
            writer.publish(subject(&one.id), one.json).await?;
            count += 1;
        }
        tokio::time::sleep(TICK).await;
    }
    writer.flush().await?;
    Ok(Written { count, took: since.elapsed() })
}
