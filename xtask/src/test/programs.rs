//! Builds the test programs and the binary that they start, and lists the tests.

use super::run::Job;
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use xtask::workspace::{HIGHWATER, cargo, test_targets};

/// Its package's tests start processes.
const PROCESSES: &str = "highwater-tests";
/// Tests of processes that take long, by the beginning of their names: these begin first, so that none is left over at the end.
const LONG: [&str; 13] = [
    "nats_faults::",
    "replicated::",
    "hidden_revisions::",
    "kills::",
    "coordination::",
    "coordination_",
    "removals::",
    "restarts::",
    "rollback_",
    "rollback::",
    "topics_lost::",
    "oracle::",
    "lists::",
];
/// Programs of units that take long.
const LONG_UNITS: [&str; 3] = ["disk", "data", "seeds"];

/// A program as cargo built it.
struct Program {
    name: String,
    path: PathBuf,
    /// Where its package is, from which it is run.
    directory: PathBuf,
    /// Its tests are run one by one.
    processes: bool,
}

/// What there is to run; of each, what takes long comes first.
#[derive(Default)]
pub struct Built {
    /// Each is a program.
    pub units: Vec<Job>,
    /// Each is a test. None when it has to be quick.
    pub processes: Vec<Job>,
    /// The `highwater` binary, for these.
    pub binary: PathBuf,
}

/// Builds everything in one call of cargo: a further one with another selection of packages would build the dependencies again, with
/// other features.
pub fn build(quick: bool) -> Result<Built> {
    let mut command = cargo();
    if quick {
        // The units of all packages, and what further tests they have, but for those that start processes.
        command.args(["test", "--no-run", "--workspace", "--lib", "--bins"]);
        for name in test_targets(|package| package != PROCESSES)? {
            command.args(["--test", &name]);
        }
    } else {
        command.args(["build", "--workspace", "--bins", "--tests"]);
    }
    command.args(["--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("cargo does not start")?;
    if !output.status.success() {
        bail!("the tests do not build; cargo's messages are above");
    }
    let mut built = Built::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message = serde_json::from_str(line).with_context(|| format!("cargo says {line}"))?;
        match program(&message) {
            Some(program) if program.processes => built.processes.extend(tests(&program)?),
            Some(program) => built.units.push(Job::program(program.name, program.path, program.directory)),
            None => {}
        }
        if let Some(path) = executable(&message).filter(|_| message["profile"]["test"] == false)
            && message["target"]["name"] == HIGHWATER
            && message["target"]["kind"][0] == "bin"
        {
            built.binary = path;
        }
    }
    built.units.sort_by_key(|job| !LONG_UNITS.iter().any(|long| job.name.ends_with(long)));
    built.processes.sort_by_key(|job| LONG.iter().position(|long| job.name.starts_with(long)).unwrap_or(LONG.len()));
    if !quick && built.binary.as_os_str().is_empty() {
        bail!("cargo built no binary highwater");
    }
    Ok(built)
}

/// What a message of cargo's says was built and can be run.
fn executable(message: &serde_json::Value) -> Option<PathBuf> {
    let path = message["executable"].as_str().filter(|_| message["reason"] == "compiler-artifact")?;
    Some(PathBuf::from(path))
}

/// The test program that a message of cargo's names.
fn program(message: &serde_json::Value) -> Option<Program> {
    let path = executable(message).filter(|_| message["profile"]["test"] == true)?;
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let target = &message["target"];
    let kind = target["kind"][0].as_str()?;
    let package = message["package_id"].as_str()?;
    let of_processes = package.contains(&format!("#{PROCESSES}@")) || package.ends_with("/tests#0.1.0");
    let name = format!("{} {}", target["name"].as_str()?, kind);
    let name = name.strip_suffix(" test").map_or_else(|| name.clone(), str::to_owned);
    Some(Program { name, path, directory, processes: of_processes && kind == "test" })
}

/// Each test of a program as a job of its own.
fn tests(program: &Program) -> Result<Vec<Job>> {
    let mut command = Command::new(&program.path);
    let output = command.args(["--list", "--format", "terse"]).output().context("a test program does not start")?;
    if !output.status.success() {
        bail!("{} does not list its tests", program.name);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(|name| Job::test(name.to_owned(), program.path.clone(), program.directory.clone())).collect())
}
