//! Coordination: a crash of the master, the round trip of DDL, and a thousand indexes; each with processes of its own.

mod ddl;
mod many;
mod takeover;

use super::{Options, report::Report};
use crate::{
    client::{self, Highwater},
    fleet::{Fleet, Size},
    nats_server::NatsServer,
};
use anyhow::{Context, Result, ensure};
use async_nats::{Client, jetstream::kv};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Requests are repeated, and states waited for, this long.
const WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(1);
/// A request that has no answer for so long is followed by another one.
const AGAIN: Duration = Duration::from_millis(300);
/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(20);

/// What the topics of many buckets may take at most is more than the server grants by itself: three quarters of the free disk.
const ROOMY: &str = "jetstream { max_file_store: 1TB }\n";

/// Where the processes of a part come from.
pub(super) struct Sources<'a> {
    pub(super) server: &'a NatsServer,
    pub(super) binary: &'a Path,
    pub(super) directory: &'a Path,
}

/// Processes, and who talks to them.
struct Cluster {
    fleet: Fleet,
    nats: Client,
    highwater: Highwater,
    size: Size,
}

/// Measures all parts.
pub(super) async fn measure(sources: &Sources<'_>, options: &Options, report: &mut Report) -> Result<()> {
    takeover::measure(sources, options.takeovers, report).await?;
    ddl::measure(sources, options.creates, report).await?;
    many::measure(sources, options.indexes, report).await
}

impl Cluster {
    /// Starts the processes, the cluster managers with `arguments`, and waits until everyone knows everyone.
    async fn start(sources: &Sources<'_>, size: Size, arguments: &[&str]) -> Result<Self> {
        let mut fleet = Fleet::start_with(sources.server, Some(sources.directory), ROOMY)?;
        fleet.start_services_with(sources.binary, &size, arguments).await?;
        let nats = client::connect(fleet.url()).await?;
        let highwater = Highwater::new(nats.clone());
        let cluster = Self { fleet, nats, highwater, size };
        cluster.formed().await?;
        Ok(cluster)
    }

    /// Waits until somebody coordinates, has done every step to it, and all nodes are alive; answers what the cluster says then.
    async fn formed(&self) -> Result<Value> {
        let since = Instant::now();
        loop {
            let status = self.status().await?;
            let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
            let alive = |kind: &str| members.iter().filter(|m| m["kind"] == kind && m["alive"] == true).count();
            let steps = status["bootstrap"].as_array().map(Vec::as_slice).unwrap_or_default();
            let done = !steps.is_empty() && steps.iter().all(|step| step["done_ms"].is_u64());
            let all = self.size.iter().all(|(kind, count)| alive(&kind.replace('-', "_")) == *count);
            if done && all && status["coordinator"] != "" {
                return Ok(status);
            }
            ensure!(since.elapsed() < WITHIN, "the nodes do not find each other: {status}");
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn status(&self) -> Result<Value> {
        self.highwater.insist("hw.cluster.members", &"{}", WITHIN).await
    }

    /// The name of who coordinates.
    async fn master(&self) -> Result<String> {
        let status = self.status().await?;
        let master = status["coordinator"].as_str().filter(|name| !name.is_empty());
        master.map(str::to_owned).context("nobody coordinates")
    }

    /// Makes an empty key-value bucket.
    async fn make_bucket(&self, name: &str) -> Result<kv::Store> {
        let config = kv::Config { bucket: name.into(), history: 1, ..kv::Config::default() };
        let made = async_nats::jetstream::new(self.nats.clone()).create_key_value(config).await;
        made.with_context(|| format!("cannot create the bucket {name}"))
    }

    /// Creates an index: how long its acknowledgement took, and how long it took until a list shows it active.
    async fn create(&self, bucket: &str, name: &str) -> Result<Created> {
        let since = Instant::now();
        self.highwater.call("hw.admin.index.create", &definition(bucket, name)).await?;
        let acknowledged = since.elapsed();
        self.active(bucket, name).await?;
        Ok(Created { acknowledged, active: since.elapsed() })
    }

    /// Waits until a list shows an index active.
    async fn active(&self, bucket: &str, name: &str) -> Result<()> {
        let since = Instant::now();
        loop {
            // The catalog may not have heard of the bucket yet.
            let request = json!({"bucket": bucket});
            let listed = self.highwater.call("hw.query.list", &request).await;
            let shown = |reply: &Value| {
                let indexes = reply["indexes"].as_array().map(Vec::as_slice).unwrap_or_default();
                indexes.iter().any(|index| index["name"] == name && index["state"] == "active")
            };
            if listed.as_ref().is_ok_and(shown) {
                return Ok(());
            }
            ensure!(since.elapsed() < WITHIN, "index {name} of {bucket} does not become active: {listed:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Creates an index after a crash: a request that went to the dead is lost, so further ones follow, each with a name of its
    /// own. Answers the name of the one that was acknowledged first.
    async fn create_after_crash(&self, bucket: &str, name: &str) -> Result<String> {
        let attempt = |n: u32| async move {
            let name = format!("{name}_{n}");
            let reply = self.highwater.insist("hw.admin.index.create", &definition(bucket, &name), WITHIN).await;
            reply.map(|_| name)
        };
        let (mut n, mut attempts) = (0, FuturesUnordered::new());
        let mut again = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                Some(Ok(name)) = attempts.next() => return Ok(name),
                _ = again.tick() => {
                    attempts.push(attempt(n));
                    n += 1;
                }
            }
            ensure!(AGAIN * n < WITHIN, "no index can be created after the crash");
        }
    }

    async fn drop_index(&self, bucket: &str, name: &str) -> Result<()> {
        let request = json!({"bucket": bucket, "name": name});
        self.highwater.insist("hw.admin.index.drop", &request, WITHIN).await.map(|_| ())
    }
}

/// How long an index took to come.
struct Created {
    acknowledged: Duration,
    active: Duration,
}

fn definition(bucket: &str, name: &str) -> Value {
    json!({"bucket": bucket, "name": name, "keys": ["age"]})
}

/// The middle one of some times, and the longest.
fn median_and_worst(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times.get(times.len() / 2).copied().unwrap_or_default(), times.last().copied().unwrap_or_default())
}

/// When a step of the last bootstrap was done, after the nomination.
fn step_done(status: &Value, step: u64) -> Result<Duration> {
    let steps = status["bootstrap"].as_array().map(Vec::as_slice).unwrap_or_default();
    let done = steps.iter().find(|s| s["step"] == step).and_then(|s| s["done_ms"].as_u64());
    done.map(Duration::from_millis).with_context(|| format!("step {step} of the bootstrap is not done"))
}
