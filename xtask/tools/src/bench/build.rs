//! Initial build: two deferred indexes, built in one pass, and what they take on disk.

use super::{BUCKET, Bench, documents::document, process, report::Report};
use crate::{
    fleet::Fleet,
    term::{group, step},
};
use anyhow::{Result, bail, ensure};
use highwater_schemas::collation::{encode_value, entry_suffix_len};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const BY_CITY: &str = "by_city";
pub const BY_AGE: &str = "by_age";
const FIRST_ANSWER: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);
/// How often the indexer reports, about.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// Equal reports in a row that count as settled.
const SETTLED: u32 = 4;
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// The slowest build that is waited for, documents per second.
const SLOWEST: u64 = 5_000;

/// Builds, checks that nothing is missing, and reports.
pub async fn measure(bench: &Bench, fleet: &Fleet, report: &mut Report) -> Result<()> {
    let documents = bench.documents;
    for definition in [
        json!({"bucket": BUCKET, "name": BY_CITY, "keys": ["city", "age DESC"], "defer_build": true}),
        json!({"bucket": BUCKET, "name": BY_AGE, "keys": ["age"], "include": ["name"], "defer_build": true}),
    ] {
        bench.highwater.insist("hw.admin.index.create", &definition, FIRST_ANSWER).await?;
    }
    let before = process::cpu_of_all(fleet);
    let since = Instant::now();
    let request = json!({"bucket": BUCKET, "names": [BY_CITY, BY_AGE]});
    bench.highwater.call("hw.admin.index.build", &request).await?;
    let patience = Duration::from_secs(60 + documents / SLOWEST);
    loop {
        let indexes = bench.highwater.indexes(BUCKET).await?;
        if let Some(index) = indexes.iter().find(|index| index["state"] == "error") {
            bail!("index {} failed: {}", index["name"], index["error"]);
        }
        if indexes.len() == 2 && indexes.iter().all(|index| index["state"] == "active") {
            break;
        }
        if since.elapsed() > patience {
            bail!("the build did not end within {} s: {}", patience.as_secs(), Value::Array(indexes));
        }
        tokio::time::sleep(POLL).await;
    }
    let mut st = 0;
    // Built means that everything is in it: an index may be active at an older stability timestamp.
    for name in [BY_CITY, BY_AGE] {
        let request = json!({"bucket": BUCKET, "index": name, "consistency": "request_plus", "timeout_ms": 60_000});
        let reply = bench.highwater.insist("hw.query.count", &request, patience).await?;
        ensure!(reply["count"] == documents, "{name} counts {} of {documents} documents", reply["count"]);
        st = reply["st"].as_u64().unwrap_or(0).max(st);
    }
    let took = since.elapsed();
    let rate = documents as f64 / took.as_secs_f64();
    step(&format!("initial build of two indexes: {} documents/s", group(rate as u64)), took);
    let cpu = process::cpu_since(fleet, before).into_iter().map(|(name, used)| (name, used * 1e6 / documents as f64));
    report.build(rate, bench.limits.read, cpu.collect());

    let since = Instant::now();
    let live = durable_bytes(bench, st).await?;
    step(&format!("durable: {} live bytes", group(live)), since.elapsed());
    let files = process::disk(&fleet.data_dir("indexer-1"));
    report.disk(live, files, encoded(bench));
    Ok(())
}

/// Bytes of the live pages, once stability timestamp `st` is durable and the indexer reports the same several times.
async fn durable_bytes(bench: &Bench, st: u64) -> Result<u64> {
    let since = Instant::now();
    let (mut last, mut same) = (0, 0);
    loop {
        let status = bench.highwater.call("hw.cluster.members", &"{}").await?;
        let buckets = status["buckets"].as_array().map(Vec::as_slice).unwrap_or_default();
        let durable =
            buckets.iter().find(|bucket| bucket["name"] == BUCKET).and_then(|bucket| bucket["durable"].as_u64());
        let indexes = bench.highwater.indexes(BUCKET).await?;
        let bytes: u64 = indexes.iter().filter_map(|index| index["bytes"].as_u64()).sum();
        same = if bytes == last { same + 1 } else { 0 };
        last = bytes;
        if durable >= Some(st) && bytes > 0 && same >= SETTLED {
            return Ok(bytes);
        }
        if since.elapsed() > SETTLED_WITHIN {
            bail!("what was built is not durable after {} s: ST {st}, durable {durable:?}", SETTLED_WITHIN.as_secs());
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
}

/// Bytes of both indexes' entries, before any structure of the store: the forward index has key, document and included fields;
/// the back index has the document, a seqno of eight bytes, and key and included fields again.
fn encoded(bench: &Bench) -> u64 {
    let (mut key, mut total) = (Vec::new(), 0);
    for number in 0..bench.documents {
        let one = document(number, 0);
        let (city, age) = (Value::from(one.city), Value::from(one.age));
        let name = one.name.len() + 2;
        let id = entry_suffix_len(&one.id);
        for (components, include) in [(vec![(&city, false), (&age, true)], 0), (vec![(&age, false)], name)] {
            key.clear();
            for (component, descending) in components {
                encode_value(Some(component), descending, &mut key);
            }
            total += (key.len() + id + include) + (id + 8 + key.len() + include);
        }
    }
    total as u64
}
