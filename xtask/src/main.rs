//! Developer commands: `cargo xtask demo | test | compose-test | compose-images | simulate | bench | dist | tidy | schemas | nats`.
//!
//! This program is built before the first line is printed, so it is small. What needs a NATS client or Highwater's own crates is
//! done by [tools](../tools/src/main.rs), which it builds when they are asked for.
//!
//! # Layout
//! - `tools`: builds the tools and becomes them; `simulate`: the same for the simulation
//! - `test`, `tidy`, and [`xtask::dist`]: done here

mod simulate;
mod test;
mod tidy;
mod tools;

use anyhow::Result;
use clap::{Arg, ArgMatches, Command, value_parser};
use std::{ffi::OsString, process::ExitCode};
use xtask::{
    commands::{TOOLS, Tool},
    dist, nats_server, workspace,
};

/// What a command is given that hands all of it on.
const ARGUMENTS: &str = "arguments";

fn main() -> ExitCode {
    match run(&command().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let tools = TOOLS.map(|Tool { name, about }| handing_on(name, about));
    Command::new("cargo xtask")
        .bin_name("cargo xtask")
        .about("Developer commands of Highwater")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(tools)
        .subcommand(handing_on(
            "simulate",
            "Runs simulated deployments: `--seeds N`, `--from S`; `--help` says what else",
        ))
        .subcommand(test::command())
        .subcommand(dist::command())
        .subcommand(Command::new("tidy").about("Checks the house rules"))
        .subcommand(
            Command::new("nats")
                .about("Prints the path of a nats-server that is new enough, fetching it when there is none"),
        )
}

/// A command that another program carries out, whose options are that program's to know.
fn handing_on(name: &'static str, about: &'static str) -> Command {
    let arguments = Arg::new(ARGUMENTS).num_args(0..).trailing_var_arg(true).allow_hyphen_values(true).hide(true);
    Command::new(name).about(about).disable_help_flag(true).arg(arguments.value_parser(value_parser!(OsString)))
}

fn run(matches: &ArgMatches) -> Result<()> {
    let Some((name, given)) = matches.subcommand() else { return Ok(()) };
    match name {
        "test" => test::run(&test::Options::read(given)),
        "dist" => dist::run(&dist::Options::read(given)),
        "tidy" => tidy::run(),
        "nats" => {
            println!("{}", nats_server::find(&workspace::target_dir()?)?.path.display());
            Ok(())
        }
        "simulate" => simulate::run(&handed_on(given)),
        tool => tools::run(tool, &handed_on(given)),
    }
}

fn handed_on(given: &ArgMatches) -> Vec<OsString> {
    given.get_many(ARGUMENTS).into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn options_of_other_programs_are_handed_on() {
        let matches = command().get_matches_from(["cargo xtask", "demo", "--keep", "-x", "--help", "7"]);
        let (name, given) = matches.subcommand().unwrap();
        assert_eq!((name, handed_on(given)), ("demo", ["--keep", "-x", "--help", "7"].map(OsString::from).to_vec()));
    }
}
