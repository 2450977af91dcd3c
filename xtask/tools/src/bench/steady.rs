//! Steady updates at half the raw publish rate: how far the indexes fall behind, and what it costs.

use super::{
    BUCKET, Bench, STREAM,
    build::{BY_AGE, BY_CITY},
    pace::Paced,
    process::{cpu_of_all, cpu_since},
    report::{Report, Steady},
};
use crate::{
    fleet::Fleet,
    term::{group, step, time},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The writer's share of the raw acked publish rate.
const SHARE: f64 = 0.5;
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(2);
/// How long the indexes may take to catch up before the run fails.
const PATIENCE: Duration = Duration::from_secs(120);

pub async fn measure(bench: &Bench, fleet: &Fleet, report: &mut Report) -> Result<()> {
    let seconds = bench.options.steady_seconds;
    let before = cpu_of_all(fleet);
    let since = Instant::now();
    let writer = Paced::start(fleet.url(), bench.documents, bench.limits.publish * SHARE, 0x57ea).await?;
    let mut most = 0;
    while since.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(SAMPLE_EVERY).await;
        most = most.max(lag(bench).await?);
    }
    let written = writer.stop().await?;
    let stopped = Instant::now();
    let last = last_sequence(bench).await?;
    let lag = last.saturating_sub(indexed(bench).await?);
    while indexed(bench).await? < last {
        if stopped.elapsed() > PATIENCE {
            bail!("the indexes did not catch up within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    let caught_up = stopped.elapsed();
    let took = since.elapsed();
    let cpu = cpu_since(fleet, before).into_iter().map(|(name, used)| (name, used / took.as_secs_f64())).collect();
    let text = format!(
        "steady updates at {}/s: {} behind at the end, caught up in {}",
        group(written.rate() as u64),
        group(lag),
        time(caught_up)
    );
    step(&text, took);
    check(bench).await?;
    let asked = bench.limits.publish * SHARE;
    report.steady(&Steady { rate: written.rate(), asked, raw: bench.limits.update, lag, most, caught_up, cpu });
    Ok(())
}

/// Every document is still in both indexes.
async fn check(bench: &Bench) -> Result<()> {
    for name in [BY_CITY, BY_AGE] {
        let request = json!({"bucket": BUCKET, "index": name, "consistency": "request_plus"});
        let reply = bench.highwater.call("hw.query.count", &request).await?;
        let documents = bench.documents;
        ensure!(reply["count"] == documents, "{name} counts {} of {documents} documents", reply["count"]);
    }
    Ok(())
}

async fn lag(bench: &Bench) -> Result<u64> {
    let indexed = indexed(bench).await?;
    Ok(last_sequence(bench).await?.saturating_sub(indexed))
}

/// The seqno up to which both indexes answer now.
async fn indexed(bench: &Bench) -> Result<u64> {
    let mut least = u64::MAX;
    for name in [BY_CITY, BY_AGE] {
        let request = json!({"bucket": BUCKET, "index": name, "limit": 1, "consistency": "any"});
        let reply = bench.highwater.call("hw.query.scan", &request).await?;
        let seqno = reply["timestamp"][STREAM]["seqno"].as_u64();
        least =
            least.min(seqno.with_context(|| format!("the reply has no seqno of {STREAM}: {}", reply["timestamp"]))?);
    }
    Ok(least)
}

async fn last_sequence(bench: &Bench) -> Result<u64> {
    let reply = bench.nats.request(format!("$JS.API.STREAM.INFO.{STREAM}"), "".into()).await?;
    let info: Value = serde_json::from_slice(&reply.payload).context("the stream's state is not JSON")?;
    info["state"]["last_seq"].as_u64().context("the stream's state has no last_seq")
}
