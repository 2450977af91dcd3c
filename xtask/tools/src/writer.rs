//! Acknowledged publishes to JetStream with a bounded window in flight.
//!
//! One task reads the acknowledgements that arrive on one inbox; each frees a place in the window.

use anyhow::{Context, Result, bail};
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};

/// How long to wait for a place in the window before giving up.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why the first refused publish was refused.
type Failure = Arc<Mutex<Option<String>>>;

/// A writer with at most `window` publishes in flight.
pub struct Writer {
    client: Client,
    reply: String,
    window: u32,
    places: Arc<Semaphore>,
    failure: Failure,
    task: JoinHandle<()>,
}

impl Writer {
    pub async fn new(client: Client, window: u32) -> Result<Self> {
        let reply = client.new_inbox();
        let inbox = client.subscribe(reply.clone()).await.context("cannot subscribe")?;
        client.flush().await.context("cannot flush")?;
        let places = Arc::new(Semaphore::new(window as usize));
        let failure = Failure::default();
        let task = tokio::spawn(free_places(inbox, places.clone(), failure.clone()));
        Ok(Self { client, reply, window, places, failure, task })
    }

    /// Publishes; waits for a place in the window.
    pub async fn publish(&self, subject: String, payload: Bytes) -> Result<()> {
        self.take(1).await?;
        self.client.publish_with_reply(subject, self.reply.clone(), payload).await.context("cannot publish")
    }

    /// Waits until every publish is acknowledged.
    pub async fn flush(&self) -> Result<()> {
        self.client.flush().await.context("cannot flush")?;
        self.take(self.window).await?;
        self.places.add_permits(self.window as usize);
        Ok(())
    }

    async fn take(&self, places: u32) -> Result<()> {
        match timeout(PATIENCE, self.places.acquire_many(places)).await {
            Ok(Ok(permits)) => permits.forget(),
            Ok(Err(_)) => {
                let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
                bail!("a publish was refused: {}", failure.unwrap_or_else(|| "the connection was lost".into()));
            }
            Err(_) => bail!("JetStream acknowledged no publish for {} s", PATIENCE.as_secs()),
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn free_places(mut inbox: Subscriber, places: Arc<Semaphore>, failure: Failure) {
    while let Some(message) = inbox.next().await {
        let refused = message.status.is_some() || message.payload.windows(8).any(|part| part == b"\"error\":");
        if refused {
            let text = if message.payload.is_empty() {
                "no stream takes the subject".into()
            } else {
                String::from_utf8_lossy(&message.payload).into_owned()
            };
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            break;
        }
        places.add_permits(1);
    }
    places.close();
}
