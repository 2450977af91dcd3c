//! The slice store by itself, few entries and many: what a document costs, memory, restart.

use super::report::{Report, Store};
use crate::{
    term::{group, step},
    workspace,
};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// The measuring program: an example of the crate that has the store.
const EXAMPLE: &str = "store_speed";
/// What many entries are set beside.
const FEW: u64 = 500_000;

/// What the program prints.
#[derive(Debug, Deserialize)]
struct Printed {
    entries: u64,
    phases: Vec<Phase>,
    rss_anon: u64,
    live: u64,
    quota: u64,
}

#[derive(Debug, Deserialize)]
struct Phase {
    #[serde(rename = "phase")]
    name: String,
    n: u64,
    seconds: f64,
}

impl Printed {
    fn phase(&self, name: &str) -> Result<&Phase> {
        self.phases.iter().find(|phase| phase.name == name).with_context(|| format!("no phase {name:?}"))
    }

    /// Microseconds for each, over some phases.
    fn each(&self, names: &[&str]) -> Result<f64> {
        names.iter().try_fold(0.0, |sum, name| {
            let phase = self.phase(name)?;
            Ok(sum + phase.seconds * 1e6 / phase.n.max(1) as f64)
        })
    }

    fn store(&self) -> Result<Store> {
        Ok(Store {
            entries: self.entries,
            built: self.each(&["collect and spool", "merge and append"])?,
            updated: self.each(&["replace", "replace, made durable"])?,
            rolled_back: self.each(&["rolled back"])?,
            memory: self.rss_anon,
            quota: self.quota,
            restart: self.phase("restart to serving")?.seconds,
            bytes: self.live as f64 / self.entries.max(1) as f64,
        })
    }
}

/// Runs the program with few entries and with `entries`, in as many slices each.
pub fn measure(entries: u64, slices: u64, directory: &Path, report: &mut Report) -> Result<()> {
    let program = build()?;
    let few = run(&program, FEW.min(entries), slices, directory)?;
    let many = run(&program, entries, slices, directory)?;
    report.store(&few.store()?, &many.store()?);
    Ok(())
}

fn build() -> Result<PathBuf> {
    let status = workspace::cargo()
        .args(["build", "--release", "--workspace", "--example", EXAMPLE])
        .status()
        .context("cargo does not start")?;
    if !status.success() {
        bail!("{EXAMPLE} does not build; cargo's messages are above");
    }
    Ok(workspace::target_dir()?.join("release").join("examples").join(EXAMPLE))
}

fn run(program: &Path, entries: u64, slices: u64, directory: &Path) -> Result<Printed> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let since = Instant::now();
    let output = Command::new(program)
        .args(["--entries", &entries.to_string(), "--slices", &slices.to_string(), "--json", "--directory"])
        .arg(directory)
        .output()
        .with_context(|| format!("{} does not start", program.display()))?;
    if !output.status.success() {
        bail!("{EXAMPLE} failed: {}", workspace::last_line(&output.stderr));
    }
    step(&format!("store with {} entries in {slices} slices", group(entries)), since.elapsed());
    serde_json::from_slice(&output.stdout).with_context(|| format!("{EXAMPLE} printed something else than its results"))
}
