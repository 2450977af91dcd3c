//! Developer commands: `cargo xtask demo | test | compose-test | compose-images | simulate | bench | tidy | schemas | nats`.

mod bench;
mod child;
mod client;
mod compose;
mod demo;
mod fleet;
mod nats_server;
mod python;
mod schemas;
mod simulate;
mod term;
mod test;
mod tidy;
mod workspace;
mod writer;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::{ffi::OsString, future::Future, process::ExitCode};

/// Developer commands of Highwater.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows Highwater at work: 34,006 cities in a NATS bucket, three indexes, some questions
    Demo {
        /// Leave nats-server and the services running, and say how to reach them
        #[arg(long)]
        keep: bool,
    },
    /// Formatting, lints, house rules and every test, with all they need
    Test(test::Options),
    /// Brings the stacks of compose/ up for real, disturbs them, and compares what they answer with the documents
    ComposeTest(compose::Options),
    /// Builds images for the stacks of compose/ without pulling any
    ComposeImages,
    /// Runs simulated deployments: `--seeds N`, `--from S`; `--help` says what else
    #[command(disable_help_flag = true)]
    Simulate {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measures Highwater beside the limits of this machine
    Bench(bench::Options),
    /// Checks the house rules
    Tidy,
    /// Writes the JSON Schemas and docs/errors.md from the types
    Schemas {
        /// Only say whether they are up to date
        #[arg(long)]
        check: bool,
    },
    /// Echoes requests; `bench` starts it
    #[command(hide = true)]
    Echo { url: String },
    /// Prints the path of a nats-server that is new enough, fetching it when there is none
    Nats,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { keep } => until_interrupted(demo::run(keep)),
        Command::Test(options) => test::run(&options),
        Command::ComposeTest(options) => until_interrupted(compose::test(options)),
        Command::ComposeImages => until_interrupted(compose::images()),
        Command::Simulate { arguments } => simulate::run(&arguments),
        Command::Bench(options) if bench::is_measurable() => until_interrupted(bench::run(options)),
        Command::Bench(_) => bench::rerun_in_release(),
        Command::Echo { url } => until_interrupted(bench::echo(&url)),
        Command::Tidy => tidy::run(),
        Command::Schemas { check: true } => schemas::check(),
        Command::Schemas { check: false } => schemas::write(),
        Command::Nats => {
            println!("{}", nats_server::find(&workspace::target_dir()?)?.path.display());
            Ok(())
        }
    }
}

/// Runs `work` to its end, or drops it, and with it every process it started, when a signal comes.
fn until_interrupted(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        // Before the work begins: from here on no signal ends this process without its children.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let name = tokio::select! {
            outcome = work => return outcome,
            _ = interrupt.recv() => "interrupted",
            _ = terminate.recv() => "terminated",
            _ = hangup.recv() => "the terminal is gone",
        };
        bail!("{name}; everything that was started is stopped")
    })
}
