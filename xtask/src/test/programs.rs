//! Builds the test programs, and lists their tests.

use super::run::Job;
use crate::workspace::cargo;
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

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

/// The jobs of units, each a program, and those of processes, each a test; those that take long first. Without the latter when
/// it has to be quick.
pub fn build(quick: bool) -> Result<(Vec<Job>, Vec<Job>)> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"]);
    if quick {
        command.args(["--exclude", PROCESSES]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cargo does not start")?;
    if !output.status.success() {
        bail!("the tests do not build; cargo's messages are above");
    }
    let (mut units, mut processes) = (Vec::new(), Vec::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message = serde_json::from_str(line).with_context(|| format!("cargo says {line}"))?;
        match program(&message) {
            Some(program) if program.processes => processes.extend(tests(&program)?),
            Some(program) => units.push(Job::program(program.name, program.path, program.directory)),
            None => {}
        }
    }
    units.sort_by_key(|job| !LONG_UNITS.iter().any(|long| job.name.ends_with(long)));
    processes.sort_by_key(|job| LONG.iter().position(|long| job.name.starts_with(long)).unwrap_or(LONG.len()));
    Ok((units, processes))
}

/// The test program that a message of cargo's names.
fn program(message: &serde_json::Value) -> Option<Program> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let path = PathBuf::from(message["executable"].as_str()?);
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
