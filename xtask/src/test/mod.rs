//! `cargo xtask test`: formatting, lints, house rules, every Rust test, and a foreign client in Python; `--quick` leaves out
//! what starts processes.
//!
//! # Layout
//! - [`programs`]: builds the test programs and what they start, and lists their tests
//! - [`run`]: runs them, some at a time
//! - [`seeds`]: what the tests draw their random numbers from

mod programs;
mod run;
mod seeds;

use crate::tidy;
use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use programs::Built;
use run::Job;
use seeds::Seeds;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use xtask::{
    busy::Busy,
    nats_server::{self, VARIABLE},
    python,
    term::{bold, dim, green, red, time},
    workspace::{BINARY, cargo, compiled_within, cores, root, target_dir},
};

/// The stock client that the foreign test uses, pinned.
const NATS_PY: &str = "nats-py==2.16.0 --hash=sha256:aeb1ff123966c05833d26c7df7e1d54c1c6d32b612428b21677a2e921f1fecae";
const FOREIGN: &str = "tests/foreign/test_stock_client.py";

/// Tells the tests to repeat their rounds more often.
const LONG: &str = "HIGHWATER_LONG";

/// What may be chosen.
#[derive(Debug)]
pub struct Options {
    quick: bool,
    long: bool,
    random_seeds: bool,
    seed: Option<u64>,
    jobs: Option<usize>,
    times: u32,
    busy: usize,
}

/// `test` on the command line.
pub fn command() -> clap::Command {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let number = |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("N").help(help);
    clap::Command::new("test").about("Formatting, lints, house rules and every test, with all they need").args([
        flag(QUICK, "Only formatting, house rules, units and the simulation: nothing that starts processes")
            .conflicts_with(LONGER),
        flag(
            LONGER,
            "Tests that repeat a round do it more often: 100 rounds of killed processes instead of 20, 3,000 lists instead of 300",
        ),
        flag(RANDOM, "Draw a seed for every random choice instead of the fixed one, and say which").conflicts_with(SEED),
        number(SEED, "The seed of every random choice").value_parser(value_parser!(u64)),
        number(JOBS, "Tests of processes that run at a time, which mostly wait; by default twice as many as the machine has cores")
            .value_parser(value_parser!(usize)),
        number(TIMES, "Run the tests so many times").value_parser(value_parser!(u32)).default_value("1"),
        number(BUSY, "Keep so many threads busy beside the tests").value_parser(value_parser!(usize)).default_value("0"),
    ])
}

const QUICK: &str = "quick";
const LONGER: &str = "long";
const RANDOM: &str = "random-seeds";
const SEED: &str = "seed";
const JOBS: &str = "jobs";
const TIMES: &str = "times";
const BUSY: &str = "busy";

impl Options {
    pub fn read(given: &ArgMatches) -> Self {
        Self {
            quick: given.get_flag(QUICK),
            long: given.get_flag(LONGER),
            random_seeds: given.get_flag(RANDOM),
            seed: given.get_one(SEED).copied(),
            jobs: given.get_one(JOBS).copied(),
            times: given.get_one(TIMES).copied().unwrap_or(1),
            busy: given.get_one(BUSY).copied().unwrap_or(0),
        }
    }
}

/// What the tests may take where nothing runs beside them, the compiler's time aside; a longer run is said in the summary.
const QUICK_WITHIN: Duration = Duration::from_secs(3 * 60);
const ALL_WITHIN: Duration = Duration::from_secs(20 * 60);

/// What compiling takes the first time on two cores, with the lints' own share in `ALL`.
const QUICK_COMPILED: Duration = Duration::from_secs(6 * 60);
const ALL_COMPILED: Duration = Duration::from_secs(9 * 60);

/// What is coming, before anything is done.
fn outlook(quick: bool) -> String {
    let (what, compiled, within) = if quick {
        ("formatting, house rules, units and the simulation", QUICK_COMPILED, QUICK_WITHIN)
    } else {
        ("formatting, lints, house rules and every test", ALL_COMPILED, ALL_WITHIN)
    };
    let tests = within.as_secs() / 60;
    format!("{what}: compiling takes {} the first time, the tests up to {tests} min", compiled_within(compiled))
}

/// What the tests need besides the sources.
struct Needs {
    binary: PathBuf,
    nats_server: PathBuf,
}

/// One step and how it went.
struct Step {
    name: String,
    outcome: Result<()>,
    took: Duration,
}

/// Every step so far, and the tests in them.
#[derive(Default)]
struct Steps {
    done: Vec<Step>,
    passed: usize,
    failed: Vec<String>,
    /// What the tests took, in the longest of the times that they ran.
    tests_took: Duration,
}

/// Runs every step; the later ones also when an earlier one fails.
pub fn run(options: &Options) -> Result<()> {
    let target = target_dir()?;
    let seeds = Seeds::choose(options.random_seeds, options.seed)?;
    let cores = cores();
    println!("{}", dim(&outlook(options.quick)));
    let mut steps = Steps::default();
    steps.step("format", |_| passes(cargo().args(["fmt", "--all", "--check"]), "cargo fmt changes files"));
    if !options.quick {
        steps.step("clippy", |_| {
            let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
            passes(cargo().args(arguments), "clippy has warnings")
        });
    }
    let mut built = Built::default();
    steps.step("binary and test programs", |_| {
        built = programs::build(options.quick)?;
        println!("{} programs of units, {} tests of processes", built.units.len(), built.processes.len());
        Ok(())
    });
    let is_built = steps.are_good();
    // They take one of the binaries.
    steps.step("house rules", |_| tidy::run());
    let mut needs = None;
    if !options.quick && is_built {
        steps.step("nats-server", |_| {
            let server = nats_server::find(&target)?;
            println!("nats-server {} (from {}), {}", server.version, server.origin, built.binary.display());
            needs = Some(Needs { binary: built.binary.clone(), nats_server: server.path });
            Ok(())
        });
    }
    let busy = Busy::start(options.busy);
    for number in 1..=options.times {
        let since = Instant::now();
        let named = |name: &str| if options.times > 1 { format!("{name}, time {number}") } else { name.to_owned() };
        steps.step(&named("units and simulation"), |steps| steps.tests(&built.units, cores, &seeds, &|_| ()));
        if let Some(needs) = &needs {
            let at_a_time = options.jobs.unwrap_or(2 * cores);
            steps.step(&named("processes"), |steps| {
                steps.tests(&built.processes, at_a_time, &seeds, &|command| {
                    needs.give(command);
                    if options.long {
                        command.env(LONG, "1");
                    }
                })
            });
            steps.step(&named("foreign client (nats-py)"), |_| foreign(&target, needs));
        }
        steps.tests_took = steps.tests_took.max(since.elapsed());
    }
    drop(busy);
    let within = if options.quick { QUICK_WITHIN } else { ALL_WITHIN };
    let alone = options.busy == 0 && !options.long;
    steps.summary(&seeds, within, alone)
}

impl Needs {
    fn give<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(BINARY, &self.binary).env(VARIABLE, &self.nats_server)
    }
}

impl Steps {
    fn are_good(&self) -> bool {
        self.done.last().is_none_or(|step| step.outcome.is_ok())
    }

    fn step(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<()>) {
        println!("\n{}", bold(&format!("== {name}")));
        let since = Instant::now();
        let outcome = work(self);
        if let Err(error) = &outcome {
            eprintln!("error: {error:#}");
        }
        self.done.push(Step { name: name.to_owned(), outcome, took: since.elapsed() });
    }

    fn tests(
        &mut self,
        jobs: &[Job],
        at_a_time: usize,
        seeds: &Seeds,
        prepare: &(dyn Fn(&mut Command) + Sync),
    ) -> Result<()> {
        let give = |command: &mut Command| {
            seeds.give(command);
            prepare(command);
        };
        let (passed, failed) = run::all(jobs, at_a_time, &give);
        self.passed += passed;
        println!("{passed} tests passed, {} failed", failed.len());
        let outcome = match failed.as_slice() {
            [] if passed > 0 => Ok(()),
            [] => Err(anyhow::anyhow!("no test has run")),
            failed => Err(anyhow::anyhow!("tests failed: {}", failed.join(", "))),
        };
        self.failed.extend(failed);
        outcome
    }

    fn summary(&self, seeds: &Seeds, within: Duration, alone: bool) -> Result<()> {
        println!("\n{}", bold("== summary"));
        for step in &self.done {
            let mark = if step.outcome.is_ok() { green("passed") } else { red("FAILED") };
            println!("  {mark}  {:28} {:>12}", step.name, time(step.took));
        }
        for test in &self.failed {
            println!("  {}  {test}  with {seeds}", red("FAILED"));
        }
        let took = self.tests_took;
        println!("  the tests took {}, of {} that are meant", time(took).trim(), time(within).trim());
        if alone && took > within {
            println!("  {}  that is too long, unless the machine has other work", red("SLOW"));
        }
        let good = self.done.iter().filter(|step| step.outcome.is_ok()).count();
        let bad = self.done.len() - good;
        println!("{} passed, {} failed", self.passed + good, self.failed.len() + bad);
        if bad > 0 {
            bail!("{bad} of {} steps failed", self.done.len());
        }
        Ok(())
    }
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
