//! Creates the demo's indexes and shows how they build.

use super::{
    BUCKET,
    cities::{City, bar},
};
use crate::{
    client::Highwater,
    term::{dim, group, step},
};
use anyhow::{Context, Result, bail, ensure};
use indicatif::{MultiProgress, ProgressBar};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long the services may take to take the first request.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// How long the builds may take.
const BUILT_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// An index of the demo. Its definition is text, so that it is shown in the order in which people write it.
struct Wanted {
    name: &'static str,
    rest: &'static str,
    /// Whether a city has an entry.
    takes: fn(&City) -> bool,
}

const INDEXES: [Wanted; 3] = [
    Wanted { name: "by_country", rest: r#""keys":["country","population DESC"],"include":["name"]"#, takes: |_| true },
    Wanted {
        name: "million",
        rest: r#""keys":["population"],"where":"population > 1000000","include":["name","country"]"#,
        takes: |city| city.population > 1_000_000,
    },
    Wanted { name: "by_timezone", rest: r#""keys":["timezone","name"]"#, takes: |_| true },
];

/// Creates the three indexes and waits until they are active.
pub async fn create_all(highwater: &Highwater, cities: &BTreeMap<String, City>) -> Result<()> {
    let since = Instant::now();
    let documents = cities.len() as u64;
    let bars = MultiProgress::new();
    let mut shown: Vec<(&Wanted, ProgressBar, bool)> = Vec::new();
    for wanted in &INDEXES {
        let definition = format!(r#"{{"bucket":"{BUCKET}","name":"{}",{}}}"#, wanted.name, wanted.rest);
        println!("  {}", dim(&format!("hw.admin.index.create {definition}")));
        highwater.insist("hw.admin.index.create", &definition, FIRST_ANSWER).await?;
        shown.push((wanted, ProgressBar::hidden(), false));
    }
    for (wanted, progress, _) in &mut shown {
        *progress = bars.add(bar(documents, wanted.name));
    }
    let deadline = since + BUILT_WITHIN;
    while !shown.iter().all(|(_, _, active)| *active) {
        if Instant::now() > deadline {
            bail!("the indexes were not active within {} s", BUILT_WITHIN.as_secs());
        }
        tokio::time::sleep(POLL).await;
        for index in highwater.indexes(BUCKET).await? {
            let found = shown.iter_mut().find(|(wanted, _, _)| index["name"] == wanted.name);
            let Some((wanted, progress, active)) = found else { continue };
            if *active {
                continue;
            }
            progress.set_position((index["progress"].as_f64().unwrap_or(0.0) * documents as f64) as u64);
            match index["state"].as_str() {
                Some("active") => {
                    progress.finish_and_clear();
                    *active = true;
                    let entries = count(highwater, wanted, cities).await?;
                    let text = format!("{} is active: {} entries", wanted.name, group(entries));
                    // Through the bars, or the line would be drawn over.
                    bars.suspend(|| step(&text, since.elapsed()));
                }
                Some("error") => bail!("index {} failed: {}", wanted.name, index["error"]),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The entries of an active index, which must be all that the documents call for.
async fn count(highwater: &Highwater, wanted: &Wanted, cities: &BTreeMap<String, City>) -> Result<u64> {
    let request = format!(r#"{{"bucket":"{BUCKET}","index":"{}","consistency":"request_plus"}}"#, wanted.name);
    let reply = highwater.call("hw.query.count", &request).await?;
    let expected = cities.values().filter(|city| (wanted.takes)(city)).count() as u64;
    let entries = reply["count"].as_u64().context("the reply has no count")?;
    ensure!(entries == expected, "{} counts {entries} entries, the documents {expected}", wanted.name);
    Ok(entries)
}
