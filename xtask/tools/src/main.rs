//! The tools behind `cargo xtask`: what needs a NATS client, or Highwater's own crates. `cargo xtask` builds and starts them.
//!
//! # Layout
//! - [`demo`], [`bench`], [`compose`], [`schemas`], [`fixtures`]: the commands
//! - [`fleet`]: a nats-server ([`nats_process`]) and services as processes ([`child`]) in one directory
//! - [`client`], [`writer`]: a client that shares no code with the services
//! - [`shell`]: commands that run to their end

mod bench;
mod child;
mod client;
mod compose;
mod demo;
mod fixtures;
mod fleet;
mod nats_process;
mod schemas;
mod shell;
mod writer;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::{future::Future, process::ExitCode};
use xtask::{commands, dist, nats_server, term, workspace};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(about = commands::DEMO.about)]
    Demo(demo::Options),
    #[command(about = commands::COMPOSE_TEST.about)]
    ComposeTest(compose::Options),
    #[command(about = commands::COMPOSE_IMAGES.about)]
    ComposeImages,
    #[command(about = commands::BENCH.about)]
    Bench(bench::Options),
    #[command(about = commands::SCHEMAS.about)]
    Schemas {
        /// Only say whether they are up to date
        #[arg(long)]
        check: bool,
    },
    #[command(about = commands::FIXTURES.about)]
    Fixtures(fixtures::Options),
    /// Echoes requests; `bench` starts it
    #[command(hide = true)]
    Echo { url: String },
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
        Command::Demo(options) => until_interrupted(demo::run(&options)),
        Command::ComposeTest(options) => until_interrupted(compose::test(options)),
        Command::ComposeImages => until_interrupted(compose::images()),
        Command::Bench(options) => until_interrupted(bench::run(options)),
        Command::Fixtures(options) => until_interrupted(fixtures::make(options)),
        Command::Echo { url } => until_interrupted(bench::echo(&url)),
        Command::Schemas { check: true } => schemas::check(),
        Command::Schemas { check: false } => schemas::write(),
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

/// The `highwater` binary that `cargo xtask` has built, or that the environment names.
fn highwater() -> Result<std::path::PathBuf> {
    workspace::named_highwater()?.with_context(|| format!("{} names no binary: use cargo xtask", workspace::BINARY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn cargo_xtask_knows_every_command() {
        let command = Cli::command();
        command.clone().debug_assert();
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        let names: Vec<&str> = shown.map(clap::Command::get_name).collect();
        assert_eq!(names, commands::TOOLS.map(|tool| tool.name));
    }
}
