//! Heartbeats, as everybody may hear them.

use crate::{
    client::Client,
    wait::{deadline, stretched},
};
use anyhow::{Context, Result, ensure};
use async_nats::client::RequestErrorKind;
use futures_util::StreamExt;
use highwater_schemas::{api::Join, subjects};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The heartbeats of all nodes from some time on.
pub struct Beats(async_nats::Subscriber);

impl Beats {
    /// From now on: the server knows of the subscription once it answers a later request, here that nobody listens.
    pub async fn listen(client: &Client) -> Result<Self> {
        let beats = client.nats.subscribe(subjects::CLUSTER_JOIN).await?;
        let answered = client.nats.request("nobody.listens", Vec::new().into()).await;
        let unheard = answered.as_ref().is_err_and(|error| error.kind() == RequestErrorKind::NoResponders);
        ensure!(unheard, "the server does not say that nobody listens: {answered:?}");
        Ok(Self(beats))
    }

    /// The next one, of whatever node.
    pub async fn next(&mut self, within: Duration) -> Result<Join> {
        timeout(stretched(within), self.received()).await.context("no heartbeat comes")?
    }

    /// Waits until so many of a node have come; each within that time, however many others come meanwhile.
    pub async fn of(&mut self, node: &str, many: usize, within: Duration) -> Result<()> {
        for _ in 0..many {
            let next = timeout(stretched(within), self.next_of(node)).await;
            next.with_context(|| format!("no heartbeat of {node}"))??;
        }
        Ok(())
    }

    async fn next_of(&mut self, node: &str) -> Result<()> {
        while self.received().await?.node != node {}
        Ok(())
    }

    async fn received(&mut self) -> Result<Join> {
        let message = self.0.next().await.context("the connection ended")?;
        Ok(serde_json::from_slice(&message.payload)?)
    }

    /// Waits until none has come for so long.
    pub async fn end(&mut self, silent: Duration, within: Duration) -> Result<()> {
        let deadline = deadline(within);
        while let Ok(next) = timeout(silent, self.received()).await {
            next?;
            ensure!(Instant::now() < deadline, "heartbeats come");
        }
        Ok(())
    }
}
