//! `highwater-simulation --seeds N --from S`: runs simulated deployments, one per seed, and says which fail.

use clap::Parser;
use highwater_simulation::{Campaign, DataLimits, Limits};
use std::process::ExitCode;

/// Runs simulated deployments, one per seed.
#[derive(Parser)]
#[command(name = "highwater-simulation")]
struct Cli {
    /// How many seeds
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Virtual minutes with faults, per seed
    #[arg(long)]
    minutes_virtual: Option<f64>,
    /// Tells everything that happens; for one seed
    #[arg(long)]
    verbose: bool,
    /// Goes on after a seed that fails
    #[arg(long)]
    all: bool,
    /// Also lets appends in that were decided before the log lost something
    #[arg(long)]
    stale_appends: bool,
    /// The data path instead of the index managers
    #[arg(long)]
    data: bool,
    /// Steps with faults, per seed of the data path
    #[arg(long)]
    steps: Option<u64>,
    /// Without faults; the data path only
    #[arg(long)]
    calm: bool,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut limits = Limits::default();
    if let Some(minutes) = cli.minutes_virtual {
        limits.faulty = (minutes * 60_000.0) as u64;
    }
    limits.stale = cli.stale_appends;
    let threads = if cli.verbose { 1 } else { cli.threads };
    let campaign =
        Campaign { from: cli.from, seeds: cli.seeds, threads, limits, verbose: cli.verbose, first: !cli.all };
    let summary = if cli.data {
        let default = DataLimits::default();
        campaign.run_data(DataLimits { steps: cli.steps.unwrap_or(default.steps), calm: cli.calm })
    } else {
        campaign.run()
    };
    for (what, n) in &summary.stats {
        println!("{n:>12} {what}");
    }
    println!("{} runs, {} failed", summary.runs, summary.failures.len());
    for (seed, why) in &summary.failures {
        println!(
            "seed {seed} fails {why}\n    again: cargo xtask simulate {}--seeds 1 --from {seed} --verbose",
            if cli.data { "--data " } else { "" }
        );
    }
    if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
