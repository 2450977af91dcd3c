//! Highwater's one binary: a subcommand per service, `dev` (all of them in one process beside a child nats-server), and the CLI.
//!
//! Exit codes: 0 ok, 1 refused or failed, 2 usage.

mod args;
mod arguments;
mod bound;
mod cli;
mod connection;
mod generate;
mod limits;
mod serve;

use args::{Args, Command, With};
use clap::{CommandFactory, FromArgMatches, error::ErrorKind};
use connection::JoinedNats;
use highwater_bus::{Incidents, supervise};
use limits::Limits;
use serve::{Kind, one};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let matches = Args::command().get_matches_from(arguments::given());
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Err(message) = args.command.check().and_then(|()| JoinedNats::check(&matches)) {
        Args::command().error(ErrorKind::ValueValidation, message).exit();
    }
    let filter =
        EnvFilter::try_from_env("HIGHWATER_LOG").unwrap_or_else(|_| EnvFilter::new(args.command.default_log()));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Err(error) = supervise::prepare() {
        eprintln!("highwater: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("highwater: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    // On a worker, so that the service's own loop is woken where its messages arrive rather than on this thread.
    let running = async { supervise::task(&Incidents::default(), "highwater", run(args)).await.done() };
    let outcome = runtime.block_on(running).unwrap_or_else(|e| Err(e.into()));
    // Scans on blocking threads may still be under way.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("highwater: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Dev(dev) => serve::dev(dev).await,
        Command::ClusterManager(With { service, limits }) => one(Kind::ClusterManager, service, limits.into()).await,
        Command::Coordinator(With { service, limits }) => one(Kind::Coordinator, service, limits.into()).await,
        Command::Projector(service) => one(Kind::Projector, service, Limits::default()).await,
        Command::Indexer(With { service, limits }) => one(Kind::Indexer, service, limits.into()).await,
        Command::Catalog(With { service, limits }) => one(Kind::Catalog, service, limits.into()).await,
        Command::Bucket(command) => cli::bucket(command).await,
        Command::Index(command) => cli::index(command).await,
        Command::Slice(command) => cli::slice(command).await,
        Command::Topic(command) => cli::topic(command).await,
        Command::State(command) => cli::state(command).await,
        Command::Scan(command) => cli::scan(command).await,
        Command::Count(command) => cli::count(command).await,
        Command::Status(command) => cli::status(command).await,
        Command::Ping(command) => cli::ping(command).await,
        Command::Completions(command) => generate::completions(&command),
        Command::ManPages(command) => generate::man_pages(&command),
    }
}
