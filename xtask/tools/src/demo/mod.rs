//! `cargo xtask demo`: real documents, a real nats-server, every service a process of its own, from nothing to answers.

mod build;
pub mod cities;
mod failover;
mod queries;

use crate::{
    client::{self, Highwater},
    fleet::{Fleet, REDUNDANT},
    highwater, nats_server,
    term::{bold, dim, step, time},
    workspace,
};
use anyhow::Result;
use std::{path::Path, time::Instant};

/// How to show it.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave nats-server and the services running, and say how to reach them
    #[arg(long)]
    keep: bool,
    /// Build and show it optimised, which takes longer to compile
    #[arg(long)]
    #[allow(dead_code, reason = "cargo xtask has looked at it")]
    release: bool,
}

/// The key-value bucket of the demo.
pub const BUCKET: &str = "cities";

/// Runs the demo to its end; everything goes on running afterwards when it is to be kept.
pub async fn run(options: &Options) -> Result<()> {
    let binary = highwater()?;
    println!("\n{}", bold("Highwater: secondary indexes for JSON documents that live in NATS"));
    if cfg!(debug_assertions) {
        println!(
            "{}",
            dim("The times below are of a build that compiles quickly and checks itself. How fast Highwater is:")
        );
        println!("{}", dim("cargo xtask bench, or cargo xtask demo --release"));
    }

    let demo = Instant::now();
    heading("Starting");
    let since = Instant::now();
    let server = nats_server::find(&workspace::target_dir()?)?;
    let mut fleet = Fleet::start(&server, None)?;
    step(&format!("nats-server {} (from {}) on {}", server.version, server.origin, fleet.url()), since.elapsed());
    let since = Instant::now();
    fleet.start_services(&binary, &REDUNDANT).await?;
    let nodes: Vec<String> = REDUNDANT.iter().map(|(kind, n)| format!("{n} {}", kinds(kind, *n))).collect();
    step(&format!("{}, each a process of its own", nodes.join(", ")), since.elapsed());

    let outcome = show(&mut fleet, &binary).await;
    if outcome.is_err() {
        fleet.check()?;
    }
    outcome?;

    println!();
    println!("  All of it took {} after the build.", bold(&time(demo.elapsed())));
    if options.keep {
        print_kept(&fleet, &binary);
        fleet.keep();
    } else {
        let since = Instant::now();
        drop(fleet);
        println!("  Everything is stopped and the temporary directory is gone ({}).", time(since.elapsed()));
        print_next(&binary);
    }
    Ok(())
}

fn kinds(kind: &str, n: usize) -> String {
    match kind {
        "coordinator" if n > 1 => "index managers".into(),
        "coordinator" => "index manager".into(),
        kind if n > 1 => format!("{}s", kind.replace('-', " ")),
        kind => kind.replace('-', " "),
    }
}

async fn show(fleet: &mut Fleet, binary: &Path) -> Result<()> {
    let nats = client::connect(fleet.url()).await?;
    let highwater = Highwater::new(nats.clone());
    failover::formed(&highwater).await?;

    heading("Loading");
    let mut cities = cities::load()?;
    let bucket = cities::put_all(&nats, &cities, 1).await?;

    heading("Indexing");
    build::create_all(&highwater, &cities).await?;

    heading("Asking");
    queries::ask(&highwater, &cities).await?;

    heading("Changing");
    queries::change(&highwater, &bucket, &mut cities).await?;

    heading("Losing the coordinator");
    failover::kill_master(fleet, binary, &highwater, &cities).await
}

fn heading(text: &str) {
    println!("\n{}", bold(text));
}

fn print_kept(fleet: &Fleet, binary: &Path) {
    let (url, binary) = (fleet.url(), binary.display());
    let ids: Vec<String> = fleet.ids().iter().map(u32::to_string).collect();
    println!("\n{}", bold("It goes on running"));
    println!("  NATS             {url}");
    println!("  logs and data    {}", fleet.path().display());
    for service in fleet.services() {
        println!("  {:16} process {}", service.name, service.id());
    }
    println!("\n  Ask with Highwater's command line, or with any NATS client:");
    println!("    export NATS_URL={url}");
    println!("    {binary} status");
    println!("    {binary} index list {BUCKET}");
    println!("    {binary} scan {BUCKET} by_country --equal '[\"FR\"]' --limit 5");
    println!("    nats req hw.query.scan \\");
    println!(
        "      '{{\"bucket\":\"{BUCKET}\",\"index\":\"by_country\",\"spans\":[{{\"equal\":[\"FR\"]}}],\"limit\":5}}'"
    );
    println!("    nats kv put {BUCKET} 1 '{{\"name\":\"Atlantis\",\"country\":\"FR\",\"population\":9000000}}'");
    println!("\n  Stop it, and remove what it wrote:");
    println!("    kill {}; sleep 1; rm -r {}", ids.join(" "), fleet.path().display());
}

fn print_next(binary: &Path) {
    println!("\n{}", bold("What to try next"));
    for (command, what) in [
        ("cargo xtask demo --keep", "the same, left running, with commands to ask it yourself"),
        (
            "HIGHWATER_NATS_SERVER=$(cargo xtask nats) {highwater} dev",
            "all services in one process, beside a nats-server on the usual port, for your own documents",
        ),
        ("{highwater} --help", "the command line"),
        ("cargo xtask test", "the tests"),
        ("cargo xtask dist", "an archive to install: a static binary, completions, manual pages, systemd units"),
        ("cargo xtask bench", "how fast it is beside the limits of this machine"),
    ] {
        println!("  {}\n      {}", command.replace("{highwater}", &binary.display().to_string()), dim(what));
    }
}
