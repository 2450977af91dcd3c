//! The master is killed, again and again: how long until the next one takes DDL, and whether scans notice.

use super::{Cluster, Sources, WITHIN, median_and_worst, step_done};
use crate::{
    bench::report::{Report, Takeover},
    client::{self, Highwater},
    fleet::REDUNDANT,
    term::{step, time},
};
use anyhow::{Result, ensure};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

const BUCKET: &str = "places";
const INDEX: &str = "by_age";
const DOCUMENTS: usize = 1_000;
/// The shortest settings.
const QUICK: [&str; 4] = ["--heartbeat-ms", "100", "--lease-ms", "1000"];
/// Between two counts.
const PAUSE: Duration = Duration::from_millis(1);
/// Between a bootstrap and the next crash.
const REST: Duration = Duration::from_millis(700);

pub(super) async fn measure(sources: &Sources<'_>, rounds: u64, report: &mut Report) -> Result<()> {
    report.takeover("default settings", 5.0, &crashes(sources, rounds, &[]).await?);
    report.takeover("100 ms heartbeat", 1.5, &crashes(sources, rounds, &QUICK).await?);
    Ok(())
}

async fn crashes(sources: &Sources<'_>, rounds: u64, arguments: &[&str]) -> Result<Takeover> {
    let began = Instant::now();
    let mut cluster = Cluster::start(sources, REDUNDANT, arguments).await?;
    let store = cluster.make_bucket(BUCKET).await?;
    for n in 0..DOCUMENTS {
        store.put(format!("p{n}"), json!({"age": n % 100}).to_string().into()).await?;
    }
    let partitioned = json!({"bucket": BUCKET, "name": INDEX, "keys": ["age"], "num_partition": 2});
    cluster.highwater.insist("hw.admin.index.create", &partitioned, WITHIN).await?;
    cluster.active(BUCKET, INDEX).await?;

    let counter = Counter::start(cluster.fleet.url()).await?;
    let (mut taken, mut opened) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        tokio::time::sleep(REST).await;
        let old = cluster.master().await?;
        let since = Instant::now();
        cluster.fleet.kill(&old)?;
        let name = cluster.create_after_crash(BUCKET, &format!("round_{round}")).await?;
        taken.push(since.elapsed());
        let new = cluster.master().await?;
        ensure!(new != old, "{old} coordinates though it was killed");
        cluster.fleet.start_again(sources.binary, &old).await?;
        opened.push(step_done(&cluster.formed().await?, 5)?);
        cluster.active(BUCKET, &name).await?;
        cluster.drop_index(BUCKET, &name).await?;
    }
    let counts = counter.stop().await?;
    let (median, worst) = median_and_worst(taken);
    let (_, opened) = median_and_worst(opened);
    let text = format!(
        "{rounds} crashes of the master: DDL after {}, at worst {}; {} counts, {} failed, at most {} apart",
        time(median),
        time(worst),
        counts.answered,
        counts.failed,
        time(counts.gap)
    );
    step(&text, began.elapsed());
    if let Some(why) = counts.first {
        println!("  the first count that failed: {why}");
    }
    Ok(Takeover { median, worst, opened, gap: counts.gap, failed: counts.failed })
}

/// Counts with `any`, one after the other, on a connection of its own.
struct Counter {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Counts>,
}

/// What the counter saw.
#[derive(Default)]
struct Counts {
    answered: u64,
    failed: u64,
    /// Why the first one failed.
    first: Option<String>,
    /// The longest time between two right answers.
    gap: Duration,
}

impl Counter {
    async fn start(url: &str) -> Result<Self> {
        let highwater = Highwater::new(client::connect(url).await?);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let request = json!({"bucket": BUCKET, "index": INDEX, "consistency": "any"});
            let mut counts = Counts::default();
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let why = match highwater.call("hw.query.count", &request).await {
                    Ok(reply) if reply["count"] == DOCUMENTS => None,
                    Ok(reply) => Some(reply.to_string()),
                    Err(error) => Some(format!("{error:#}")),
                };
                if why.is_some() {
                    counts.failed += 1;
                    counts.first = counts.first.or(why);
                } else {
                    counts.answered += 1;
                    counts.gap = counts.gap.max(last.elapsed());
                    last = Instant::now();
                }
                tokio::time::sleep(PAUSE).await;
            }
            counts.gap = counts.gap.max(last.elapsed());
            counts
        });
        Ok(Self { stop, task })
    }

    async fn stop(self) -> Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}
