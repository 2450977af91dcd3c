//! The demo's documents: cities of GeoNames (CC BY 4.0), put into a NATS key-value bucket.

use super::BUCKET;
use crate::{
    term::{group, step},
    workspace,
    writer::Writer,
};
use anyhow::{Context, Result, bail};
use async_nats::{Client, jetstream::kv};
use bytes::Bytes;
use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    time::Instant,
};

/// Publishes in flight.
const WINDOW: u32 = 1_000;

/// A city: the fields that the demo looks at, and the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct City {
    pub id: String,
    pub name: String,
    pub country: String,
    pub timezone: String,
    pub population: u64,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Reads the compressed cities of the tests' data, by id.
pub fn load() -> Result<BTreeMap<String, City>> {
    let path = workspace::root().join("tests/data/cities15000.jsonl.gz");
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut cities = BTreeMap::new();
    for (number, line) in BufReader::new(GzDecoder::new(file)).lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        let city: City = serde_json::from_str(&line).with_context(|| format!("{}:{}", path.display(), number + 1))?;
        cities.insert(city.id.clone(), city);
    }
    if cities.is_empty() {
        bail!("{} holds no documents", path.display());
    }
    Ok(cities)
}

/// Creates the bucket with so many replicas and puts every city into it, as any NATS client would.
pub async fn put_all(nats: &Client, cities: &BTreeMap<String, City>, replicas: usize) -> Result<kv::Store> {
    let config = kv::Config { bucket: BUCKET.into(), history: 1, num_replicas: replicas, ..Default::default() };
    let bucket = async_nats::jetstream::new(nats.clone())
        .create_key_value(config)
        .await
        .context("cannot create the key-value bucket")?;
    let since = Instant::now();
    let bar = bar(cities.len() as u64, "putting cities");
    let writer = Writer::new(nats.clone(), WINDOW).await?;
    for (id, city) in cities {
        let payload = serde_json::to_vec(city).context("a city does not serialize")?;
        writer.publish(format!("$KV.{BUCKET}.{id}"), Bytes::from(payload)).await?;
        bar.inc(1);
    }
    writer.flush().await?;
    bar.finish_and_clear();
    let text = format!("{} cities put into the NATS key-value bucket \"{BUCKET}\"", group(cities.len()));
    step(&text, since.elapsed());
    Ok(bucket)
}

/// A progress bar over `length` documents.
pub fn bar(length: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what.to_owned());
    let template = "    {msg:16} {bar:40.cyan/blue} {human_pos:>7} of {human_len}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
