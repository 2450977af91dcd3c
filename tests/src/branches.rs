//! The branches of a bucket's sources, its rollbacks and reconciles, as `highwater bucket history` shows them.

use crate::{cli, client::Client, source::Source, wait::until};
use anyhow::{Context, Result, ensure};
use highwater_schemas::{api::BucketHistoryReply, state::RollbackPhase};
use serde_json::json;
use std::time::Duration;

/// Has a bucket's indexes compared with their source, and waits until that is done.
pub async fn reconcile(client: &Client, bucket: &str, within: Duration) -> Result<()> {
    let reply = client.insist("hw.admin.bucket.reconcile", &json!({"name": bucket}), within).await?;
    let after = reply["after"].as_u64().context("no number")?;
    until("it is reconciled", within, async || {
        let history = client.request("hw.admin.bucket.history", &json!({"name": bucket})).await;
        let history = history.map_err(|e| e.to_string())?;
        let done = history["reconciled"]["id"].as_u64().is_some_and(|id| id > after);
        if done { Ok(()) } else { Err(history.to_string()) }
    })
    .await
}

/// What is known of a bucket's history.
#[derive(Debug, Clone)]
pub struct Branches(BucketHistoryReply);

impl Branches {
    /// Those of now.
    pub async fn of(client: &Client, bucket: &str) -> Result<Self, String> {
        let asked = client.request("hw.admin.bucket.history", &json!({"name": bucket})).await;
        let history = asked.map_err(|refused| refused.to_string())?;
        serde_json::from_value(history).map(Self).map_err(|e| e.to_string())
    }

    /// Those of now, however long nobody coordinates.
    pub async fn soon(client: &Client, bucket: &str, within: Duration) -> Result<Self> {
        until("the history is known", within, async || Self::of(client, bucket).await).await
    }

    /// How many a stream has had.
    pub fn count(&self, stream: usize) -> usize {
        self.0.streams.get(stream).map_or(0, |s| s.failover.len())
    }

    /// Up to which seqno a stream still has the history that it had `before`.
    pub fn common(&self, stream: usize, before: &Self) -> u64 {
        let newer = self.count(stream).saturating_sub(before.count(stream));
        let branches = self.0.streams.get(stream).into_iter().flat_map(|s| &s.failover);
        branches.take(newer).map(|branch| branch.start).min().unwrap_or(u64::MAX)
    }

    /// How many rollbacks there were, or are.
    pub fn rollbacks(&self) -> usize {
        self.0.rollbacks.len()
    }

    /// Some branch began with a loss.
    pub fn broken(&self) -> bool {
        self.0.streams.iter().flat_map(|s| &s.failover).any(|branch| branch.broken)
    }

    /// The phase of the rollback that is under way.
    pub fn phase(&self) -> Option<RollbackPhase> {
        self.0.rollbacks.last().map(|rollback| rollback.phase).filter(|phase| *phase != RollbackPhase::Resumed)
    }

    /// Waits until nothing is rolled back; answers what is there then.
    pub async fn at_rest(client: &Client, bucket: &str, within: Duration) -> Result<Self> {
        until("the bucket is in order", within, async || {
            let now = Self::of(client, bucket).await?;
            if now.phase().is_none() { Ok(now) } else { Err(format!("{now:?}")) }
        })
        .await
    }

    /// Waits until exactly these streams have new branches and nothing is rolled back any more; answers what is there then.
    pub async fn back(&self, client: &Client, bucket: &str, streams: &[usize], within: Duration) -> Result<Self> {
        let now = until("new branches, and the bucket in order", within, async || {
            let now = Self::of(client, bucket).await?;
            let new = streams.iter().all(|stream| now.count(*stream) > self.count(*stream));
            if new && now.phase().is_none() { Ok(now) } else { Err(format!("{now:?}, before {self:?}")) }
        })
        .await?;
        for stream in (0..now.0.streams.len()).filter(|stream| !streams.contains(stream)) {
            ensure!(now.count(stream) == self.count(stream), "stream {stream} has a new branch: {now:?}");
        }
        Ok(now)
    }

    /// What the command line shows agrees: every branch, and every past rollback with its streams.
    pub fn check_shown(&self, reach: &[&str], source: &Source) -> Result<()> {
        let arguments = [&["bucket", "history", &source.bucket][..], reach].concat();
        let shown: BucketHistoryReply = serde_json::from_value(cli::json_of(&arguments, 0)?)?;
        // Meanwhile it may be compared with its source, or no more.
        let same = (&shown.streams, &shown.rollbacks) == (&self.0.streams, &self.0.rollbacks);
        ensure!(same, "shown is {shown:?}, not {self:?}");
        let (code, text, error) = cli::highwater(&arguments)?;
        ensure!(code == Some(0), "{error}");
        let last = self.0.rollbacks.last().context("no rollback is known")?;
        ensure!(last.ended >= last.began && last.began > 0 && !last.reason.is_empty(), "an odd rollback {last:?}");
        ensure!(text.contains(&last.reason), "the last rollback is not shown:\n{text}");
        for (stream, (name, _)) in self.0.streams.iter().zip(&source.streams) {
            ensure!(stream.stream == *name, "{} is shown for {name}", stream.stream);
            for branch in &stream.failover {
                ensure!(text.contains(&branch.vbuuid), "branch {} is not shown:\n{text}", branch.vbuuid);
            }
            let (_, newer) = stream.failover.split_last().context("a stream without a branch")?;
            ensure!(newer.iter().all(|branch| !branch.reason.is_empty()), "a branch without a reason: {stream:?}");
        }
        Ok(())
    }
}
