//! The coordinator is killed, and nothing that asks notices.

use super::{BUCKET, queries::Cities};
use crate::{
    client::{Highwater, coordinator},
    fleet::{Fleet, REDUNDANT},
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

/// Waits until somebody coordinates and everyone has joined.
pub async fn formed(highwater: &Highwater) -> Result<()> {
    let since = Instant::now();
    let status = highwater.formed(&REDUNDANT, WITHIN).await?;
    let (master, term) = (coordinator(&status).context("nobody coordinates")?, &status["term"]);
    step(&format!("{master} was elected and coordinates in term {term}"), since.elapsed());
    Ok(())
}

/// SIGKILL for the master; scans go on, and the next definition is taken by the next master.
pub async fn kill_master(fleet: &mut Fleet, binary: &Path, highwater: &Highwater, cities: &Cities) -> Result<()> {
    let status = highwater.status(WITHIN).await?;
    let old = coordinator(&status).context("nobody coordinates")?;
    fleet.kill(old)?;
    println!("  {}", dim(&format!("kill -9 {old}")));
    let since = Instant::now();
    let name = "by_name";
    let definition = json!({"bucket": BUCKET, "name": name, "keys": ["name"]});
    let count = json!({"bucket": BUCKET, "index": "by_country"});
    let (mut scans, mut slowest, mut created) = (0, Duration::ZERO, false);
    let creating = highwater.insist_anew("hw.admin.index.create", |_| &definition, Some("index_exists"), WITHIN);
    tokio::pin!(creating);
    while !created {
        let asked = Instant::now();
        tokio::select! {
            taken = &mut creating => created = taken.map(|_| true)?,
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
    let status = highwater.status(WITHIN).await?;
    let (new, term) = (coordinator(&status).context("nobody coordinates")?, &status["term"]);
    ensure!(new != old, "{old} coordinates though it was killed");
    step(&format!("{new} coordinates in term {term}, and has taken the next definition"), took);
    println!("  meanwhile {scans} counts were answered, all of them right, the slowest in {}", time(slowest));
    highwater.active(BUCKET, name, WITHIN).await?;
    step(&format!("{name} is active"), since.elapsed());
    fleet.start_again(binary, old).await?;
    println!("  {}", dim(&format!("{old} was started again: it is a replica now")));
    Ok(())
}
