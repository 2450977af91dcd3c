//! The coordinator is killed, and nothing that asks notices.

use super::{BUCKET, queries::Cities};
use crate::{
    client::Highwater,
    fleet::Fleet,
    term::{dim, step, time},
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    path::Path,
    time::{Duration, Instant},
};

const WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Waits until somebody coordinates and hosts and readers have joined.
pub async fn formed(highwater: &Highwater) -> Result<()> {
    let since = Instant::now();
    loop {
        let status = highwater.insist("hw.cluster.members", &"{}", WITHIN).await?;
        let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let alive = |kind: &str| members.iter().filter(|m| m["kind"] == kind && m["alive"] == true).count();
        let term = status["term"].as_u64().unwrap_or_default();
        if let (Some(master), 2, 2) = (coordinator(&status), alive("indexer"), alive("projector")) {
            step(&format!("{master} was elected and coordinates in term {term}"), since.elapsed());
            return Ok(());
        }
        ensure!(since.elapsed() < WITHIN, "the nodes do not find each other: {status}");
        tokio::time::sleep(POLL).await;
    }
}

fn coordinator(status: &serde_json::Value) -> Option<String> {
    status["coordinator"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// SIGKILL for the master; scans go on, and the next definition is taken by the next master.
pub async fn kill_master(fleet: &mut Fleet, binary: &Path, highwater: &Highwater, cities: &Cities) -> Result<()> {
    let status = highwater.insist("hw.cluster.members", &"{}", WITHIN).await?;
    let old = coordinator(&status).context("nobody coordinates")?;
    fleet.kill(&old)?;
    println!("  {}", dim(&format!("kill -9 {old}")));
    let since = Instant::now();
    let definition = json!({"bucket": BUCKET, "name": "by_name", "keys": ["name"]});
    let count = json!({"bucket": BUCKET, "index": "by_country"});
    let (mut scans, mut slowest, mut created) = (0, Duration::ZERO, None);
    let creating = highwater.insist("hw.admin.index.create", &definition, WITHIN);
    tokio::pin!(creating);
    while created.is_none() {
        let asked = Instant::now();
        tokio::select! {
            reply = &mut creating => created = Some(reply?),
            reply = highwater.call("hw.query.count", &count) => {
                let counted = reply.context("a count while nobody coordinates")?;
                ensure!(counted["count"] == cities.len(), "{counted} of {} cities", cities.len());
                slowest = slowest.max(asked.elapsed());
                scans += 1;
                tokio::time::sleep(POLL).await;
            }
        }
    }
    let took = since.elapsed();
    let status = highwater.insist("hw.cluster.members", &"{}", WITHIN).await?;
    let (new, term) = (coordinator(&status).context("nobody coordinates")?, &status["term"]);
    ensure!(new != old, "{old} coordinates though it was killed");
    step(&format!("{new} coordinates in term {term}, and has taken the next definition"), took);
    println!("  meanwhile {scans} counts were answered, all of them right, the slowest in {}", time(slowest));
    fleet.start_again(binary, &old).await?;
    println!("  {}", dim(&format!("{old} was started again: it is a replica now")));
    Ok(())
}
