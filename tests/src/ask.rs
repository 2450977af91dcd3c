//! Random scans, and whether their answer is the oracle's.

use crate::{
    client::Client,
    oracle::{self, Index, Row},
    order::compare,
    rng::Rng,
    source::{Documents, Source},
    wait::{deadline, until},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    cmp::Ordering,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// A range of keys in value order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Span {
    low: Option<Vec<Option<Value>>>,
    high: Option<Vec<Option<Value>>>,
    with_low: bool,
    with_high: bool,
}

impl Span {
    /// The bounds are taken from rows and differ in their last component at most, so that they are contiguous in any index.
    pub(crate) fn random(index: &Index, rows: &[Row], rng: &mut Rng) -> Self {
        let mut low = index.components(rng.pick(rows));
        let length = 1 + rng.below(low.len() as u64) as usize;
        low.truncate(length);
        let mut high = low.clone();
        if rng.chance(80) {
            high[length - 1].clone_from(&index.components(rng.pick(rows))[length - 1]);
        }
        if order(&low, &high).is_gt() {
            std::mem::swap(&mut low, &mut high);
        }
        let mut span = Self { low: Some(low), high: Some(high), with_low: rng.chance(70), with_high: rng.chance(70) };
        // With one component, any end may be open.
        if length == 1 && rng.chance(30) {
            if rng.chance(50) { span.low = None } else { span.high = None }
        }
        span
    }

    pub(crate) fn contains(&self, key: &[Option<Value>]) -> bool {
        let order = |bound: &Vec<Option<Value>>| order(&key[..bound.len()], bound);
        let above = self.low.as_ref().map_or(Ordering::Greater, order);
        let below = self.high.as_ref().map_or(Ordering::Less, order);
        (above.is_gt() || above.is_eq() && self.with_low) && (below.is_lt() || below.is_eq() && self.with_high)
    }

    pub(crate) fn to_json(&self) -> Value {
        let bound = |bound: &[Option<Value>]| {
            let part = |part: &Option<Value>| part.clone().unwrap_or_else(|| json!({"$missing": true}));
            bound.iter().map(part).collect::<Value>()
        };
        let inclusion = match (self.with_low, self.with_high) {
            (true, true) => "both",
            (true, false) => "low",
            (false, true) => "high",
            (false, false) => "neither",
        };
        match (&self.low, &self.high) {
            (Some(low), Some(high)) if inclusion == "both" && order(low, high).is_eq() => json!({"equal": bound(low)}),
            (low, high) => {
                let mut span = json!({"inclusion": inclusion});
                if let Some(low) = low {
                    span["low"] = bound(low);
                }
                if let Some(high) = high {
                    span["high"] = bound(high);
                }
                span
            }
        }
    }
}

fn order(a: &[Option<Value>], b: &[Option<Value>]) -> Ordering {
    let unequal = a.iter().zip(b).map(|(a, b)| compare(a.as_ref(), b.as_ref())).find(|order| order.is_ne());
    unequal.unwrap_or(Ordering::Equal)
}

/// Scans the whole index and compares it with the oracle at the reply's own timestamp; the reply must be exact and no older
/// than what was acknowledged. Nothing may be written meanwhile.
pub async fn whole(client: &Client, source: &Source, index: &Index) -> Result<()> {
    let request = json!({"bucket": source.bucket, "index": index.name, "consistency": "request_plus"});
    let documents = source.log().now();
    compare_scan(client, source, index, &request, &documents, &index.rows(&documents)).await
}

/// The number of a stability timestamp that has everything acknowledged before.
pub async fn newest(client: &Client, source: &Source, index: &Index) -> Result<u64> {
    let request = json!({"bucket": source.bucket, "index": index.name, "consistency": "request_plus"});
    let reply = insist(|| client.request("hw.query.count", &request)).await?;
    reply["st"].as_u64().with_context(|| format!("no number in {reply}"))
}

/// [`whole`] of every index.
pub async fn each(client: &Client, source: &Source, indexes: &[Index]) -> Result<()> {
    for index in indexes {
        whole(client, source, index).await?;
    }
    Ok(())
}

/// [`each`], as soon as each index shows all that was acknowledged again: refusals are waited out, a wrong answer fails at once.
pub async fn each_again(client: &Client, source: &Source, indexes: &[Index], within: Duration) -> Result<()> {
    for index in indexes {
        until(&format!("{} shows all again", index.name), within, async || {
            newest(client, source, index).await.map_err(|error| format!("{error:#}"))
        })
        .await?;
    }
    each(client, source, indexes).await
}

/// A random scan and a random count, each compared as in [`whole`].
pub async fn random(client: &Client, source: &Source, index: &Index, rng: &mut Rng) -> Result<()> {
    let documents = source.log().now();
    let mut wanted = index.rows(&documents);
    let mut request = json!({"bucket": source.bucket, "index": index.name, "consistency": "request_plus"});
    if rng.chance(80) && !wanted.is_empty() {
        let spans: Vec<Span> = (0..=rng.below(3)).map(|_| Span::random(index, &wanted, rng)).collect();
        request["spans"] = spans.iter().map(Span::to_json).collect();
        wanted.retain(|row| spans.iter().any(|span| span.contains(&index.components(row))));
    }
    let counted = insist(|| client.count(&request)).await.with_context(|| format!("count {request}"))?;
    ensure!(counted == wanted.len() as u64, "count {request} is {counted}, not {}", wanted.len());
    if rng.chance(50) {
        request["reverse"] = true.into();
        wanted.reverse();
    }
    if rng.chance(30) {
        let offset = rng.below(wanted.len() as u64 + 2);
        request["offset"] = offset.into();
        wanted.drain(..wanted.len().min(offset as usize));
    }
    if rng.chance(40) {
        let limit = rng.below(wanted.len() as u64 + 2);
        request["limit"] = limit.into();
        wanted.truncate(limit as usize);
    }
    if rng.chance(60) {
        // Pages cost a request each.
        let least = wanted.len() as u64 / 30;
        request["page_size"] = (1 + least + rng.below(wanted.len() as u64 + 2)).into();
    }
    compare_scan(client, source, index, &request, &documents, &wanted).await
}

async fn compare_scan(
    client: &Client,
    source: &Source,
    index: &Index,
    request: &Value,
    documents: &Documents,
    wanted: &[Row],
) -> Result<()> {
    let what = || format!("{} with {request}", index.definition(&source.bucket));
    let reply = insist(|| client.scan(request)).await.with_context(what)?;
    let seqnos = source.seqnos(&reply)?;
    let complete = source.log().complete();
    ensure!(
        reply["exact"] == true && seqnos == complete,
        "{}: at {seqnos:?}, exact {}, not at {complete:?}",
        what(),
        reply["exact"]
    );
    let got = read_rows(&reply, source, index)?;
    if let Some(difference) = oracle::difference(&got, wanted) {
        anyhow::bail!("{} at {seqnos:?}: {difference}", what());
    }
    let unindexed = oracle::unindexed(documents);
    ensure!(reply["unindexed"] == unindexed, "{}: unindexed {}, not {unindexed}", what(), reply["unindexed"]);
    Ok(())
}

/// The rows of a scan's reply.
pub fn read_rows(reply: &Value, source: &Source, index: &Index) -> Result<Vec<Row>> {
    let rows = reply["rows"].as_array().context("a scan without rows")?;
    let read = |row| oracle::read_row(row, &source.streams, index.keys.len()).map_err(anyhow::Error::msg);
    rows.iter().map(read).collect()
}

/// Again while the refusal says that it may help.
async fn insist<T, F: Future<Output = Result<T, crate::client::Refused>>>(mut ask: impl FnMut() -> F) -> Result<T> {
    let deadline = deadline(PATIENCE);
    loop {
        match ask().await {
            Err(refused) if refused.retry && Instant::now() < deadline => tokio::time::sleep(RETRY_AFTER).await,
            outcome => return outcome.map_err(Into::into),
        }
    }
}
