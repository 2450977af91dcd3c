//! `cargo xtask test`: formatting, lints, house rules, every Rust test, and a foreign client in Python.

use crate::{
    nats_server::{self, VARIABLE},
    python,
    term::{bold, green, red, time},
    tidy,
    workspace::{BINARY, build, cargo, root, target_dir},
};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// The stock client that the foreign test uses, pinned.
const NATS_PY: &str = "nats-py==2.16.0 --hash=sha256:aeb1ff123966c05833d26c7df7e1d54c1c6d32b612428b21677a2e921f1fecae";
const FOREIGN: &str = "tests/foreign/test_stock_client.py";

/// Tells the tests to repeat their rounds more often.
const LONG: &str = "HIGHWATER_LONG";

/// What the tests need besides the sources.
struct Needs {
    binary: PathBuf,
    nats_server: PathBuf,
}

/// One step and how it went.
struct Step {
    name: &'static str,
    outcome: Result<()>,
    took: Duration,
}

/// Runs every step; the later ones also when an earlier one fails.
pub fn run(long: bool) -> Result<()> {
    let target = target_dir()?;
    let mut steps = Vec::new();
    step(&mut steps, "format", || passes(cargo().args(["fmt", "--all", "--check"]), "cargo fmt changes files"));
    step(&mut steps, "clippy", || {
        let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        passes(cargo().args(arguments), "clippy has warnings")
    });
    step(&mut steps, "house rules", tidy::run);
    let mut needs = None;
    step(&mut steps, "binary and nats-server", || {
        let binary = build(&["highwater"], false)?.join("highwater");
        let server = nats_server::find(&target)?;
        println!("nats-server {} (from {}), {}", server.version, server.origin, binary.display());
        needs = Some(Needs { binary, nats_server: server.path });
        Ok(())
    });
    if let Some(needs) = &needs {
        step(&mut steps, "cargo test", || {
            let mut tests = cargo();
            if long {
                tests.env(LONG, "1");
            }
            passes(needs.give(tests.args(["test", "--workspace", "--no-fail-fast"])), "tests failed")
        });
        step(&mut steps, "foreign client (nats-py)", || foreign(&target, needs));
    }
    summary(&steps)
}

impl Needs {
    fn give<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(BINARY, &self.binary).env(VARIABLE, &self.nats_server)
    }
}

fn step(steps: &mut Vec<Step>, name: &'static str, work: impl FnOnce() -> Result<()>) {
    println!("\n{}", bold(&format!("== {name}")));
    let since = Instant::now();
    let outcome = work();
    if let Err(error) = &outcome {
        eprintln!("error: {error:#}");
    }
    steps.push(Step { name, outcome, took: since.elapsed() });
}

fn passes(command: &mut Command, failure: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("{} does not start", command.get_program().display()))?;
    if !status.success() {
        bail!("{failure}");
    }
    Ok(())
}

fn foreign(target: &Path, needs: &Needs) -> Result<()> {
    let test = root().join(FOREIGN);
    if !test.is_file() {
        bail!("{FOREIGN} is missing");
    }
    let python = python::install(target, NATS_PY)?;
    let mut command = Command::new(python);
    command.arg(&test).current_dir(root());
    passes(needs.give(&mut command), "the stock client's test failed")
}

fn summary(steps: &[Step]) -> Result<()> {
    println!("\n{}", bold("== summary"));
    for step in steps {
        let mark = if step.outcome.is_ok() { green("passed") } else { red("FAILED") };
        println!("  {mark}  {:28} {:>12}", step.name, time(step.took));
    }
    let failed = steps.iter().filter(|step| step.outcome.is_err()).count();
    println!("{} passed, {failed} failed", steps.len() - failed);
    if failed > 0 {
        bail!("{failed} of {} steps failed", steps.len());
    }
    Ok(())
}
