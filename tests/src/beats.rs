//! Heartbeats, as everybody may hear them.

use crate::{client::Client, wait::SLOWER};
use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use highwater_schemas::{api::Join, subjects};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The heartbeats of all nodes from some time on.
pub struct Beats(async_nats::Subscriber);

impl Beats {
    /// From now on.
    pub async fn listen(client: &Client) -> Result<Self> {
        let beats = client.nats.subscribe(subjects::CLUSTER_JOIN).await?;
        client.nats.flush().await?;
        Ok(Self(beats))
    }

    /// Waits until so many of a node have come; each within that time, however many others come meanwhile.
    pub async fn of(&mut self, node: &str, many: usize, within: Duration) -> Result<()> {
        for _ in 0..many {
            let next = timeout(within * SLOWER, self.next_of(node)).await;
            next.with_context(|| format!("no heartbeat of {node}"))??;
        }
        Ok(())
    }

    async fn next_of(&mut self, node: &str) -> Result<()> {
        loop {
            let message = self.0.next().await.context("the connection ended")?;
            let join: Join = serde_json::from_slice(&message.payload)?;
            if join.node == node {
                return Ok(());
            }
        }
    }

    /// Waits until none has come for so long.
    pub async fn end(&mut self, silent: Duration, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within * SLOWER;
        while timeout(silent, self.0.next()).await.is_ok() {
            ensure!(Instant::now() < deadline, "heartbeats come");
        }
        Ok(())
    }
}
