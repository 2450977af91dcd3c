//! A stream that is deleted as soon as it is there: what needs it waits.

use crate::client::Client;
use anyhow::{Context, Result};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinHandle;

const EVERY: Duration = Duration::from_millis(20);

/// Deletes until it is told to stop.
pub struct Deleting {
    over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Deleting {
    /// Over a connection of its own. The stream is gone when this returns.
    pub async fn start(url: &str, stream: &str) -> Result<Self> {
        let (client, stream, over) = (Client::connect(url).await?, stream.to_owned(), Arc::new(AtomicBool::new(false)));
        client.js.delete_stream(&stream).await.with_context(|| format!("{stream} is not deleted"))?;
        let told = Arc::clone(&over);
        let task = tokio::spawn(async move {
            while !told.load(Ordering::Relaxed) {
                // Mostly it is not there.
                let _ = client.js.delete_stream(&stream).await;
                tokio::time::sleep(EVERY).await;
            }
        });
        Ok(Self { over, task })
    }

    pub async fn stop(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.context("it panicked")
    }
}
