//! A stream's backup: through the JetStream API as `nats stream backup` and `restore` do, or a copy of its files.

use crate::{client::Client, cluster::Cluster, files, wait::until};
use anyhow::{Context, Result, bail, ensure};
use async_nats::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

/// A chunk, or what answers it, that takes longer is lost.
const CHUNK_WITHIN: Duration = Duration::from_secs(20);
/// Small, so that there are several.
const CHUNK_SIZE: usize = 32 * 1024;
const THERE_WITHIN: Duration = Duration::from_secs(30);

/// A stream as it was.
pub struct Backup {
    stream: String,
    config: Value,
    state: Value,
    chunks: Vec<Bytes>,
}

impl Backup {
    /// Of a stream as it is now, without its consumers.
    pub async fn take(client: &Client, stream: &str) -> Result<Self> {
        let deliver = client.nats.new_inbox();
        let mut delivered = client.nats.subscribe(deliver.clone()).await?;
        client.nats.flush().await?;
        let request = json!({"deliver_subject": deliver, "no_consumers": true, "chunk_size": CHUNK_SIZE});
        let mut reply = api(client, &format!("STREAM.SNAPSHOT.{stream}"), &request).await?;
        let mut chunks = Vec::new();
        loop {
            let next = tokio::time::timeout(CHUNK_WITHIN, delivered.next()).await.context("no chunk came")?;
            let chunk = next.context("the subscription ended")?;
            if chunk.payload.is_empty() {
                let good = chunk.status.is_none_or(|status| status == StatusCode::from_u16(204).unwrap_or_default());
                ensure!(good, "the backup of {stream} ended with {:?} {:?}", chunk.status, chunk.description);
                break;
            }
            // The server sends on as its chunks are acknowledged.
            if let Some(ack) = chunk.reply {
                client.nats.publish(ack, Bytes::new()).await?;
            }
            chunks.push(chunk.payload);
        }
        ensure!(!chunks.is_empty(), "an empty backup of {stream}");
        Ok(Self { stream: stream.into(), config: reply["config"].take(), state: reply["state"].take(), chunks })
    }

    /// The last sequence that is in it.
    pub fn last_seq(&self) -> u64 {
        self.state["last_seq"].as_u64().unwrap_or_default()
    }

    /// Deletes the stream, and makes it from the backup.
    pub async fn restore(&self, client: &Client) -> Result<()> {
        client.js.delete_stream(&self.stream).await.with_context(|| format!("cannot delete {}", self.stream))?;
        let request = json!({"config": self.config, "state": self.state});
        let reply = api(client, &format!("STREAM.RESTORE.{}", self.stream), &request).await?;
        let to = reply["deliver_subject"].as_str().context("nowhere to send the backup to")?.to_owned();
        for chunk in &self.chunks {
            let answer = send(client, &to, chunk.clone()).await?;
            ensure!(answer.is_empty(), "a chunk was refused: {}", String::from_utf8_lossy(&answer));
        }
        // Answered when the stream is there.
        let answer: Value = serde_json::from_slice(&send(client, &to, Bytes::new()).await?)?;
        ensure!(answer["error"].is_null(), "{} was not restored: {answer}", self.stream);
        ensure!(answer["state"]["last_seq"] == self.state["last_seq"], "{} is another one: {answer}", self.stream);
        Ok(())
    }
}

/// A copy of a stream's files.
pub struct OldFiles {
    stream: String,
    kept: PathBuf,
}

impl OldFiles {
    /// Of a stream as it is now; the server is killed and started again for it.
    pub async fn take(cluster: &mut Cluster, client: &Client, stream: &str, name: &str) -> Result<Self> {
        let kept = cluster.path().join(name);
        if kept.exists() {
            std::fs::remove_dir_all(&kept)?;
        }
        cluster.nats().kill();
        files::copy(&cluster.nats().stream_dir(stream), &kept)?;
        cluster.nats().start_again()?;
        there(client, stream).await?;
        Ok(Self { stream: stream.into(), kept })
    }

    /// Kills the server, and starts it with these files instead of the stream's.
    pub async fn put_back(&self, cluster: &mut Cluster, client: &Client) -> Result<()> {
        cluster.nats().kill();
        files::put_back(&self.kept, &cluster.nats().stream_dir(&self.stream))?;
        cluster.nats().start_again()?;
        there(client, &self.stream).await
    }
}

/// Waits until NATS is there with a stream.
pub async fn there(client: &Client, stream: &str) -> Result<()> {
    until(&format!("{stream} is there"), THERE_WITHIN, async || {
        client.js.get_stream(stream).await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await
}

async fn send(client: &Client, to: &str, chunk: Bytes) -> Result<Bytes> {
    let request = async_nats::Request::new().payload(chunk).timeout(Some(CHUNK_WITHIN));
    let reply = client.nats.send_request(to.to_owned(), request).await;
    Ok(reply.context("a chunk was not answered")?.payload)
}

async fn api(client: &Client, subject: &str, request: &Value) -> Result<Value> {
    let subject = format!("$JS.API.{subject}");
    let reply = client.nats.request(subject.clone(), request.to_string().into()).await?;
    let reply: Value = serde_json::from_slice(&reply.payload)?;
    if !reply["error"].is_null() {
        bail!("{subject}: {}", reply["error"]);
    }
    Ok(reply)
}
