//! Freshness: from a write's acknowledgement to the `request_plus` answer that has it, while others write.

use super::{
    BUCKET, Bench,
    build::BY_AGE,
    documents::subject,
    pace::Paced,
    report::{Report, Spread},
};
use crate::term::{group, step};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Documents that the probes rewrite in turn.
const MARKED: u64 = 100;
/// Ages from here on belong to probes.
const FIRST_AGE: u64 = 1_000_000;
/// Probes before the clock counts.
const WARM_UP: u64 = 20;
const VISIBLE_WITHIN: Duration = Duration::from_secs(5);

pub async fn measure(bench: &Bench, url: &str, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let writer = Paced::start(url, bench.documents, bench.options.rate as f64, 0xf2e5).await?;
    let mut times = Vec::with_capacity(bench.options.probes as usize);
    let mut stale = 0_u64;
    for number in 0..WARM_UP + bench.options.probes {
        let (took, asked) = probe(bench, number).await?;
        if number >= WARM_UP {
            times.push(took);
        }
        stale += asked - 1;
    }
    let written = writer.stop().await?;
    ensure!(stale == 0, "{stale} request_plus answers were older than an acknowledged write");
    let spread = Spread::of(times);
    let text = format!("freshness at {} writes/s: {spread}", group(written.rate() as u64));
    step(&text, began.elapsed());
    report.freshness(&spread, written.rate());
    forget(bench).await
}

/// Time until the answer that has the write, and how many scans that took.
async fn probe(bench: &Bench, number: u64) -> Result<(Duration, u64)> {
    let id = format!("probe{:03}", number % MARKED);
    let age = FIRST_AGE + number;
    let document = json!({"id": id, "name": "Probe", "age": age, "city": "Probeville", "tags": []});
    let request = json!({"bucket": BUCKET, "index": BY_AGE, "spans": [{"equal": [age]}], "limit": 10,
                         "consistency": "request_plus", "timeout_ms": 5_000});
    acknowledged(bench, &id, document.to_string().into()).await?;
    let since = Instant::now();
    let mut asked = 0;
    loop {
        let reply = bench.highwater.call("hw.query.scan", &request).await?;
        asked += 1;
        if reply["rows"][0]["id"] == id.as_str() {
            return Ok((since.elapsed(), asked));
        }
        if since.elapsed() > VISIBLE_WITHIN {
            bail!("{id} with age {age} was not visible within {} s", VISIBLE_WITHIN.as_secs());
        }
    }
}

async fn acknowledged(bench: &Bench, id: &str, payload: bytes::Bytes) -> Result<()> {
    let reply = bench.nats.request(subject(id), payload).await.context("a write was not acknowledged")?;
    let ack: Value = serde_json::from_slice(&reply.payload).context("an acknowledgement is not JSON")?;
    ensure!(ack["error"].is_null(), "a write was refused: {}", ack["error"]);
    Ok(())
}

/// Deletes the probes' documents, so that later counts are those of the documents.
async fn forget(bench: &Bench) -> Result<()> {
    let bucket = async_nats::jetstream::new(bench.nats.clone()).get_key_value(BUCKET).await?;
    for number in 0..MARKED.min(WARM_UP + bench.options.probes) {
        bucket.delete(format!("probe{number:03}")).await.context("cannot delete a probe")?;
    }
    Ok(())
}
