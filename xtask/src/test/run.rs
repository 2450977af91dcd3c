//! Runs test programs and tests, some at a time.

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use xtask::term::{green, red, time};

/// A program, or one test of it, run in a process of its own.
pub struct Job {
    pub name: String,
    program: PathBuf,
    directory: PathBuf,
    arguments: Vec<String>,
}

/// How a job went.
struct Outcome {
    passed: usize,
    failed: Vec<String>,
    /// What it printed.
    output: String,
    took: Duration,
}

impl Job {
    /// All tests of a program.
    pub fn program(name: String, program: PathBuf, directory: PathBuf) -> Self {
        Self { name, program, directory, arguments: Vec::new() }
    }

    /// One of them.
    pub fn test(name: String, program: PathBuf, directory: PathBuf) -> Self {
        let arguments = vec!["--exact".into(), name.clone(), "--nocapture".into()];
        Self { name, program, directory, arguments }
    }

    fn run(&self, prepare: &dyn Fn(&mut Command)) -> Outcome {
        let since = Instant::now();
        let mut command = Command::new(&self.program);
        command.current_dir(&self.directory).args(&self.arguments).stdin(Stdio::null());
        prepare(&mut command);
        let outcome = captured(command);
        let took = since.elapsed();
        match outcome {
            Ok((success, output)) => {
                let (passed, mut failed) = (counted(&output), failures(&output));
                // What ends badly has failed whatever it says, and a test that was not found has not passed.
                if failed.is_empty() && (!success || passed == 0 && !self.arguments.is_empty()) {
                    failed.push(self.name.clone());
                }
                Outcome { passed, failed, output, took }
            }
            Err(error) => Outcome { passed: 0, failed: vec![self.name.clone()], output: error.to_string(), took },
        }
    }
}

/// Runs jobs in their order, so many at a time; what failed is shown when it is over. Answers how many tests passed, and which
/// failed.
pub fn all(jobs: &[Job], at_a_time: usize, prepare: &(dyn Fn(&mut Command) + Sync)) -> (usize, Vec<String>) {
    let total = jobs.len();
    let waiting = Mutex::new(jobs.iter());
    let done = Mutex::new((0, 0, Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_a_time.max(1) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(job) = next else { return };
                    let outcome = job.run(prepare);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    let (jobs, passed, failed) = &mut *done;
                    *jobs += 1;
                    *passed += outcome.passed;
                    show(job, &outcome, *jobs, total);
                    failed.extend(outcome.failed);
                }
            });
        }
    });
    let (_, passed, failed) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    (passed, failed)
}

fn show(job: &Job, outcome: &Outcome, number: usize, total: usize) {
    let mark = if outcome.failed.is_empty() { green("passed") } else { red("FAILED") };
    println!("  {mark} {number:>3}/{total} {:>12}  {} ({})", time(outcome.took), job.name, outcome.passed);
    if !outcome.failed.is_empty() {
        println!("{}\n  {mark}  {}", outcome.output, outcome.failed.join(", "));
    }
    let _ = std::io::stdout().flush();
}

/// Runs a command to its end; whether it ended well, and all that it printed, in the order in which it did.
fn captured(mut command: Command) -> std::io::Result<(bool, String)> {
    let (mut out, into) = std::io::pipe()?;
    let mut child = command.stdout(into.try_clone()?).stderr(into).spawn()?;
    // Or the pipe would never end: the command holds its own two ends of it.
    drop(command);
    let mut bytes = Vec::new();
    out.read_to_end(&mut bytes)?;
    Ok((child.wait()?.success(), String::from_utf8_lossy(&bytes).into_owned()))
}

/// How many tests a program says have passed.
fn counted(output: &str) -> usize {
    let result = output.lines().rev().find_map(|line| line.strip_prefix("test result: "));
    let passed = result.and_then(|result| result.split(' ').find_map(|word| word.parse().ok()));
    passed.unwrap_or(0)
}

/// The tests that a program says have failed.
fn failures(output: &str) -> Vec<String> {
    let failed = |line: &str| Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned());
    output.lines().filter_map(failed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Job {
        let arguments = vec!["-c".into(), script.into()];
        Job { name: script.into(), program: "/bin/sh".into(), directory: "/".into(), arguments }
    }

    #[test]
    fn what_passed_and_failed_is_counted() {
        let jobs = vec![
            shell("echo 'test result: ok. 3 passed; 0 failed; 0 ignored'"),
            shell(
                "echo 'test one ... ok'; echo 'test two ... FAILED'; echo 'test result: FAILED. 1 passed; 1 failed'; exit 101",
            ),
        ];
        assert_eq!(all(&jobs, 2, &|_| ()), (4, vec!["two".to_owned()]));
    }

    #[test]
    fn what_ends_without_a_word_has_failed() {
        for script in ["exit 101", "exit 0", "kill -9 $$"] {
            assert_eq!(all(&[shell(script)], 1, &|_| ()), (0, vec![script.to_owned()]), "{script}");
        }
        let nowhere = Job::program("gone".into(), "/nonexistent".into(), "/".into());
        assert_eq!(all(&[nowhere], 1, &|_| ()), (0, vec!["gone".to_owned()]));
    }
}
