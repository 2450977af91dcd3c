//! Creates the demo's indexes and shows how they build.

use super::{BUCKET, cities::bar};
use crate::{
    client::Highwater,
    term::{dim, group, step},
};
use anyhow::{Result, bail};
use indicatif::{MultiProgress, ProgressBar};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long the services may take to take the first request.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// How long the builds may take.
const BUILT_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

fn definitions() -> [Value; 3] {
    [
        json!({"bucket": BUCKET, "name": "by_country", "keys": ["country", "population DESC"], "include": ["name"]}),
        json!({"bucket": BUCKET, "name": "million", "keys": ["population"], "where": "population > 1000000",
               "include": ["name", "country"]}),
        json!({"bucket": BUCKET, "name": "by_timezone", "keys": ["timezone", "name"]}),
    ]
}

/// Creates the three indexes and waits until they are active.
pub async fn create_all(highwater: &Highwater, documents: u64) -> Result<()> {
    let since = Instant::now();
    let bars = MultiProgress::new();
    let mut shown: Vec<(String, ProgressBar, bool)> = Vec::new();
    for definition in definitions() {
        println!("  {}", dim(&format!("hw.admin.index.create {definition}")));
        highwater.insist("hw.admin.index.create", &definition, FIRST_ANSWER).await?;
        shown.push((definition["name"].as_str().unwrap_or_default().to_owned(), ProgressBar::hidden(), false));
    }
    for (name, progress, _) in &mut shown {
        *progress = bars.add(bar(documents, name));
    }
    let deadline = since + BUILT_WITHIN;
    while !shown.iter().all(|(_, _, active)| *active) {
        if Instant::now() > deadline {
            bail!("the indexes were not active within {} s", BUILT_WITHIN.as_secs());
        }
        tokio::time::sleep(POLL).await;
        for index in highwater.indexes(BUCKET).await? {
            let Some((name, progress, active)) = shown.iter_mut().find(|(name, _, _)| index["name"] == name.as_str())
            else {
                continue;
            };
            if *active {
                continue;
            }
            progress.set_position((index["progress"].as_f64().unwrap_or(0.0) * documents as f64) as u64);
            match index["state"].as_str() {
                Some("active") => {
                    progress.finish_and_clear();
                    *active = true;
                    let items = index["items"].as_u64().unwrap_or(0);
                    // Through the bars, or the line would be drawn over.
                    bars.suspend(|| step(&format!("{name} is active: {} entries", group(items)), since.elapsed()));
                }
                Some("error") => bail!("index {name} failed: {}", index["error"]),
                _ => {}
            }
        }
    }
    Ok(())
}
