//! `cargo xtask bench`: the limits of this machine, and Highwater beside them, in one run.

mod build;
mod coordination;
mod documents;
mod freshness;
mod limits;
mod machine;
mod pace;
mod process;
mod reads;
mod recovery;
mod report;
mod steady;
mod store;

use crate::{
    client::{self, Highwater},
    fleet::{Fleet, SMALLEST},
    highwater, nats_server,
    term::{bold, group, step},
    workspace,
};
use anyhow::{Result, bail};
use async_nats::Client;
use coordination::Sources;
use limits::Limits;
pub use limits::echo;
use process::Watch;
use report::Report;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The key-value bucket of the bench.
const BUCKET: &str = "users";
/// The services find each other within this.
const JOINED_WITHIN: Duration = Duration::from_secs(10);
/// Its stream.
const STREAM: &str = "KV_users";

/// What to measure, and how much of it.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Documents of about 200 bytes
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1_000..=50_000_000))]
    docs: u64,
    /// Also write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes per second while freshness is measured
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Probes of freshness
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    probes: u64,
    /// How long the writer of the steady updates writes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    steady_seconds: u64,
    /// Measure only the limits of the machine, without Highwater
    #[arg(long)]
    limits_only: bool,
    /// Measure only the store of the indexer, without NATS, with few entries and with many
    #[arg(long, conflicts_with = "limits_only")]
    store_only: bool,
    /// Measure only coordination: crashes of the master, DDL, many indexes
    #[arg(long, conflicts_with_all = ["limits_only", "store_only"])]
    coordination_only: bool,
    /// Measure only the limits of the machine and the initial build
    #[arg(long, conflicts_with_all = ["limits_only", "store_only", "coordination_only", "recovery_only"])]
    build_only: bool,
    /// Measure only recovery: restart and catchup of an indexer, a rollback
    #[arg(long, conflicts_with_all = ["limits_only", "store_only", "coordination_only"])]
    recovery_only: bool,
    /// Crashes of the master, with each of two settings
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    takeovers: u64,
    /// Indexes created while DDL is measured, of each of two kinds of buckets
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    creates: u64,
    /// The many indexes
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    indexes: u64,
    /// The many entries
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    entries: u64,
    /// Slices that share them
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
    slices: u64,
}

/// What every measurement needs.
struct Bench {
    options: Options,
    nats: Client,
    highwater: Highwater,
    documents: u64,
    limits: Limits,
}

/// Measures, prints the table, and writes the file when one is named.
pub async fn run(options: Options) -> Result<()> {
    let target = workspace::target_dir()?;
    // The client's work counts too.
    if cfg!(debug_assertions) {
        bail!("a build with debug assertions measures nothing: use cargo xtask bench");
    }
    if options.store_only {
        return store_only(&options, &target);
    }
    let binary = if options.limits_only { None } else { Some(highwater()?) };
    let server = nats_server::find(&target)?;
    let directory = target.join("bench");
    if let (true, Some(binary)) = (options.coordination_only, &binary) {
        let mut report = Report::new(machine::describe(&server.version.to_string()), &options);
        println!("{}", bold("Highwater bench: coordination"));
        let sources = Sources { server: &server, binary, directory: &directory };
        coordination::measure(&sources, &options, &mut report).await?;
        return finish(&report, &options);
    }
    if let (true, Some(binary)) = (options.recovery_only, &binary) {
        let mut report = Report::new(machine::describe(&server.version.to_string()), &options);
        println!("{}", bold(&format!("Highwater bench: recovery, {} documents", group(options.docs))));
        let sources = Sources { server: &server, binary, directory: &directory };
        recovery::measure(&sources, &options, &mut report).await?;
        return finish(&report, &options);
    }
    let mut fleet = Fleet::start(&server, Some(&directory))?;
    let mut report = Report::new(machine::describe(&server.version.to_string()), &options);
    println!("{}", bold(&format!("Highwater bench: {} documents", group(options.docs))));

    let nats = client::connect(fleet.url()).await?;
    let limits = limits::measure(&nats, fleet.url(), options.docs, fleet.path()).await?;
    limits.add_to(&mut report);
    if let Some(binary) = &binary {
        let since = Instant::now();
        fleet.start_services(binary, &SMALLEST).await?;
        let asked = Highwater::new(nats.clone());
        asked.formed(&SMALLEST, JOINED_WITHIN).await?;
        step("services, each a process of its own", since.elapsed());
        let bench = Bench { options: options.clone(), nats, highwater: asked, documents: options.docs, limits };
        let outcome = measure_highwater(&bench, &fleet, &mut report).await;
        if outcome.is_err() {
            fleet.check()?;
        }
        outcome?;
    }
    drop(fleet);
    if let Some(binary) = binary.as_ref().filter(|_| !options.build_only) {
        let sources = Sources { server: &server, binary, directory: &directory };
        recovery::measure(&sources, &options, &mut report).await?;
        coordination::measure(&sources, &options, &mut report).await?;
    }
    finish(&report, &options)
}

/// Prints the table, and writes the file when one is named.
fn finish(report: &Report, options: &Options) -> Result<()> {
    report.print();
    if let Some(path) = &options.json {
        report.write(path)?;
        println!("written to {}", path.display());
    }
    Ok(())
}

fn store_only(options: &Options, target: &Path) -> Result<()> {
    let mut report = Report::new(machine::describe("not used"), options);
    println!("{}", bold(&format!("Highwater bench: the store, {} entries", group(options.entries))));
    store::measure(options.entries, options.slices, &target.join("bench"), &mut report)?;
    report.print();
    match &options.json {
        Some(path) => report.write(path),
        None => Ok(()),
    }
}

async fn measure_highwater(bench: &Bench, fleet: &Fleet, report: &mut Report) -> Result<()> {
    let Some(indexer) = fleet.id_of("indexer-1") else { bail!("there is no indexer") };
    let watch = Watch::start(indexer);
    build::measure(bench, fleet, report).await?;
    if bench.options.build_only {
        report.memory(watch.stop());
        return Ok(());
    }
    reads::measure(bench, report).await?;
    freshness::measure(bench, fleet.url(), report).await?;
    steady::measure(bench, fleet, report).await?;
    report.memory(watch.stop());
    Ok(())
}
