//! Many indexes: what they cost DDL, and how fast an index manager has them all when it starts and when it takes over.

use super::{Cluster, Created, POLL, Sources, WITHIN, ddl, definition, median_and_worst, step_done};
use crate::{
    bench::{
        process::{cpu_of_all, cpu_since},
        report::{Many, Report},
    },
    fleet::REDUNDANT,
    term::{group, step, time},
};
use anyhow::{Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How many there are at first.
const FEW: u64 = 10;
const BUCKETS: u64 = 50;
/// Creates whose time is compared.
const CREATES: u64 = 23;
/// Requests under way at once while the many are made.
const AT_ONCE: usize = 16;
/// Nothing is asked for so long before DDL is measured.
const SETTLE: Duration = Duration::from_secs(5);
/// How long the use of CPU at rest is looked at.
const REST: Duration = Duration::from_secs(10);

pub(super) async fn measure(sources: &Sources<'_>, indexes: u64, report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::start(sources, REDUNDANT, &[]).await?;
    for bucket in 0..BUCKETS.min(indexes) {
        cluster.make_bucket(&bucket_of(bucket)).await?;
    }
    make(&cluster, 0..FEW.min(indexes)).await?;
    let began = Instant::now();
    tokio::time::sleep(SETTLE).await;
    let few = probe(&cluster, "few").await?;
    step(&format!("with {FEW} indexes: a further one is active {}", ddl::active(&few)), began.elapsed());

    let began = Instant::now();
    make(&cluster, FEW.min(indexes)..indexes).await?;
    let made = began.elapsed();
    let per_second = indexes.saturating_sub(FEW) as f64 / made.as_secs_f64();
    step(&format!("{} indexes over {BUCKETS} buckets, {} a second", group(indexes), per_second.round()), made);

    let began = Instant::now();
    tokio::time::sleep(SETTLE).await;
    let many = probe(&cluster, "many").await?;
    step(&format!("with {}: a further one is active {}", group(indexes), ddl::active(&many)), began.elapsed());
    let before = cpu_of_all(&cluster.fleet);
    tokio::time::sleep(REST).await;
    let mut cpu: BTreeMap<String, f64> = BTreeMap::new();
    for (name, used) in cpu_since(&cluster.fleet, before) {
        let kind = name.rsplit_once('-').filter(|(_, number)| number.parse::<u32>().is_ok()).map_or(&*name, |n| n.0);
        *cpu.entry(kind.to_owned()).or_default() += used / REST.as_secs_f64();
    }

    let began = Instant::now();
    let loaded = load(&mut cluster, sources, indexes).await?;
    let text = format!(
        "{} indexes known {} after a start, {} after a nomination; DDL {} after a crash",
        group(indexes),
        time(loaded.started),
        time(loaded.opened),
        time(loaded.taken)
    );
    step(&text, began.elapsed());
    report.many(&Many {
        indexes,
        per_second,
        before: ddl::active(&few),
        after: ddl::active(&many),
        started: loaded.started,
        opened: loaded.opened,
        taken: loaded.taken,
        cpu: cpu.into_iter().filter(|(name, _)| name != "bench client").collect(),
    });
    Ok(())
}

fn bucket_of(index: u64) -> String {
    format!("bucket{:02}", index % BUCKETS)
}

/// Creates indexes, several at a time, and waits until all are active.
async fn make(cluster: &Cluster, numbers: std::ops::Range<u64>) -> Result<()> {
    let create = |number: u64| async move {
        let definition = definition(&bucket_of(number), &format!("index{number:04}"));
        cluster.highwater.insist("hw.admin.index.create", &definition, WITHIN).await.map(|_| ())
    };
    let wanted = numbers.end;
    stream::iter(numbers).map(create).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let since = Instant::now();
    loop {
        let listed = cluster.highwater.all_indexes().await?;
        let active = listed.iter().filter(|index| index["state"] == "active").count() as u64;
        if active >= wanted {
            return Ok(());
        }
        ensure!(since.elapsed() < WITHIN, "only {active} of {wanted} indexes became active");
        tokio::time::sleep(POLL * 20).await;
    }
}

/// Creates one index after the other, each dropped before the next.
async fn probe(cluster: &Cluster, name: &str) -> Result<Vec<Created>> {
    let (bucket, mut created) = (bucket_of(0), Vec::new());
    for n in 0..CREATES {
        let name = format!("{name}{n}");
        created.push(cluster.create(&bucket, &name).await?);
        cluster.drop_index(&bucket, &name).await?;
    }
    Ok(created)
}

/// How fast the many are known.
struct Loaded {
    /// From the start of an index manager until it takes part; the worst.
    started: Duration,
    /// From the nomination of a new master until its term is open.
    opened: Duration,
    /// From a crash of the master until DDL is acknowledged.
    taken: Duration,
}

async fn load(cluster: &mut Cluster, sources: &Sources<'_>, indexes: u64) -> Result<Loaded> {
    let old = cluster.master().await?;
    let others = ["coordinator-1", "coordinator-2", "coordinator-3"].into_iter().filter(|name| *name != old);
    let mut starts = Vec::new();
    for name in others {
        cluster.fleet.kill(name)?;
        let since = Instant::now();
        cluster.fleet.start_again(sources.binary, name).await?;
        starts.push(since.elapsed());
        cluster.formed().await?;
    }
    let since = Instant::now();
    cluster.fleet.kill(&old)?;
    cluster.create_after_crash(&bucket_of(0), "after").await?;
    let taken = since.elapsed();
    let since = Instant::now();
    cluster.fleet.start_again(sources.binary, &old).await?;
    starts.push(since.elapsed());
    let opened = step_done(&cluster.formed().await?, 5)?;
    let listed = cluster.highwater.all_indexes().await?.len() as u64;
    ensure!(listed > indexes, "{listed} of {} indexes are there after the crash", indexes + 1);
    Ok(Loaded { started: median_and_worst(starts).1, opened, taken })
}
