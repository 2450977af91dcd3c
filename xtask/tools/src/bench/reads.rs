//! Lookups, range scans and counts of a client, while nothing is written.

use super::{
    BUCKET, Bench,
    build::{BY_AGE, BY_CITY},
    documents::{AGES, Random, city, document},
    report::{Report, Spread},
};
use crate::term::{group, step, time};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, Instant},
};

const LOOKUPS: usize = 5_000;
/// Lookups before the clock starts.
const WARM_UP: usize = 200;
/// Rows that the range scan reads at least; a smaller index is read several times.
const SCANNED: u64 = 500_000;
const COUNTS: usize = 30;

/// A reply of `hw.query.scan` as a careful client reads it.
#[derive(Deserialize)]
struct Page<'a> {
    ok: bool,
    #[serde(borrow)]
    rows: Vec<Row<'a>>,
    #[serde(rename = "page_token")]
    token: Option<String>,
}

#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow)]
    include: Option<&'a RawValue>,
}

pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    lookups(bench, report).await?;
    range(bench, report).await?;
    counts(bench, report).await
}

async fn lookups(bench: &Bench, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let highwater = bench.highwater.clone();
    // On a worker, as the client of the round trips.
    let asking = tokio::spawn(async move {
        let mut random = Random::new(1);
        let mut times = Vec::with_capacity(LOOKUPS);
        let mut rows = 0;
        for number in 0..WARM_UP + LOOKUPS {
            let place = city(random.next());
            let request = json!({"bucket": BUCKET, "index": BY_CITY, "spans": [{"equal": [place]}], "limit": 10});
            let request = request.to_string();
            let since = Instant::now();
            let reply = highwater.raw("hw.query.scan", request.into()).await?;
            let page = read(&reply)?;
            if number >= WARM_UP {
                times.push(since.elapsed());
                rows += page.rows.len();
            }
        }
        anyhow::Ok((times, rows))
    });
    let (times, rows) = asking.await.context("the client panicked")??;
    ensure!(rows > 0, "the lookups found nothing");
    let spread = Spread::of(times);
    step(&format!("lookup of {} rows: {spread}", rows / LOOKUPS), began.elapsed());
    report.lookup(&spread, &bench.limits.round_trip);
    Ok(())
}

async fn range(bench: &Bench, report: &mut Report) -> Result<()> {
    let (mut rows, mut pages, mut bytes) = (0_u64, 0_u64, 0_usize);
    let since = Instant::now();
    while rows < SCANNED {
        let mut token: Option<String> = None;
        let mut here = 0;
        loop {
            let mut request = json!({"bucket": BUCKET, "index": BY_AGE});
            if let Some(token) = token {
                request["page_token"] = token.into();
            }
            let reply = bench.highwater.raw("hw.query.scan", request.to_string().into()).await?;
            let page = read(&reply)?;
            for row in &page.rows {
                let whole = !row.id.is_empty() && row.key.get().starts_with('[') && row.include.is_some();
                ensure!(whole, "a row is not complete: {}", row.id);
            }
            here += page.rows.len() as u64;
            pages += 1;
            bytes += reply.len();
            token = page.token;
            if token.is_none() {
                break;
            }
        }
        ensure!(here == bench.documents, "the scan had {here} of {} rows", bench.documents);
        rows += here;
    }
    let took = since.elapsed();
    let rate = rows as f64 / took.as_secs_f64();
    let text =
        format!("range scan: {} rows/s ({pages} pages of {} kB)", group(rate as u64), bytes as u64 / pages / 1000);
    step(&text, took);
    report.range(rate);
    Ok(())
}

async fn counts(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut by_age: BTreeMap<u64, u64> = BTreeMap::new();
    for number in 0..bench.documents {
        *by_age.entry(document(number, 0).age).or_default() += 1;
    }
    let began = Instant::now();
    let (mut times, mut counted) = (Vec::with_capacity(COUNTS), 0);
    for number in 0..COUNTS as u64 {
        // Never everything, and never the same twice: neither totals nor caches can answer.
        let (low, high) = (AGES.start() + 1 + number % 6, AGES.end() - 1 - number / 6);
        let request = json!({"bucket": BUCKET, "index": BY_AGE, "spans": [{"low": [low], "high": [high]}]});
        let since = Instant::now();
        let reply = bench.highwater.call("hw.query.count", &request).await?;
        times.push(since.elapsed());
        let expected: u64 = by_age.range(low..=high).map(|(_, count)| count).sum();
        ensure!(reply["count"] == expected, "the count is {}, not {expected}", reply["count"]);
        counted += expected;
    }
    let rate = counted as f64 / times.iter().sum::<Duration>().as_secs_f64();
    let spread = Spread::of(times);
    step(&format!("count of a range: {} rows/s (each {})", group(rate as u64), time(spread.p50)), began.elapsed());
    report.count(rate, bench.limits.cursor);
    Ok(())
}

fn read(reply: &[u8]) -> Result<Page<'_>> {
    let page: Page = serde_json::from_slice(reply).with_context(|| {
        format!("hw.query.scan answered {}", String::from_utf8_lossy(&reply[..reply.len().min(300)]))
    })?;
    ensure!(page.ok, "hw.query.scan failed");
    Ok(page)
}
