//! Which server leads a replicated stream, and that another one does.

use crate::{client::Client, wait::until};
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;

async fn led_by(client: &Client, stream: &str) -> Result<String> {
    let found = client.js.get_stream(stream).await?;
    found.cached_info().cluster.as_ref().and_then(|c| c.leader.clone()).filter(|l| !l.is_empty()).context("no leader")
}

/// Has the server that leads a stream step down, and waits until another one leads. False: it refused, as it led no more.
pub async fn another_leads(client: &Client, stream: &str, within: Duration) -> Result<bool> {
    let now = async || led_by(client, stream).await.map_err(|error| error.to_string());
    let was = until("a leader", within, now).await?;
    let stepped: Result<Value, _> = client.js.request(format!("STREAM.LEADER.STEPDOWN.{stream}"), &()).await;
    if !stepped.is_ok_and(|stepped| stepped["success"] == true) {
        return Ok(false);
    }
    until("another leader", within, async || match now().await? {
        leader if leader == was => Err(leader),
        _ => Ok(()),
    })
    .await?;
    Ok(true)
}
