//! Coordination: a crash of the master, the round trip of DDL, and a thousand indexes; each with processes of its own.

mod ddl;
mod many;
mod takeover;

use super::{Options, report::Report};
use crate::{
    client::{self, Highwater, coordinator},
    fleet::{Fleet, Size},
    nats_server::NatsServer,
};
use anyhow::{Context, Result};
use async_nats::{Client, jetstream::kv};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Requests are repeated, and states waited for, this long.
const WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(1);

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

    /// Waits until everyone knows everyone; answers what the cluster says then.
    async fn formed(&self) -> Result<Value> {
        self.highwater.formed(&self.size, WITHIN).await
    }

    /// The name of who coordinates.
    async fn master(&self) -> Result<String> {
        let status = self.highwater.status(WITHIN).await?;
        coordinator(&status).map(str::to_owned).context("nobody coordinates")
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
        self.highwater.active(bucket, name, WITHIN).await
    }

    /// Creates an index after a crash: what went to the dead is lost, so further requests follow, each with a name of its own.
    /// Answers the name of the one that was acknowledged first.
    async fn create_after_crash(&self, bucket: &str, name: &str) -> Result<String> {
        let name = |n: u32| format!("{name}_{n}");
        let request = |n: u32| definition(bucket, &name(n));
        self.highwater.insist_anew("hw.admin.index.create", request, None, WITHIN).await.map(name)
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
