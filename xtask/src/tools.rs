//! Builds the tools, and what they need, and becomes them.

use anyhow::{Context, Result, bail};
use std::{
    ffi::OsString,
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};
use xtask::{
    commands::{BENCH, DEMO, FIXTURES, SCHEMAS},
    nats_server,
    term::{bold, step},
    workspace::{self, BINARY, HIGHWATER, Profile, compiled_within},
};

const TOOLS: &str = "highwater-tools";
/// What compiling takes the first time on two cores.
const DEV_COMPILED: Duration = Duration::from_secs(4 * 60);
const RELEASE_COMPILED: Duration = Duration::from_secs(9 * 60);

/// What a command of the tools takes.
struct Needs {
    profile: Profile,
    /// The `highwater` binary that is tried: built here unless the environment names one.
    highwater: bool,
    nats_server: bool,
}

impl Needs {
    fn of(tool: &str, arguments: &[OsString]) -> Self {
        let given = |option: &str| arguments.iter().any(|argument| argument == option);
        let (demo, bench) = (tool == DEMO.name || tool == FIXTURES.name, tool == BENCH.name);
        let profile = if bench || demo && given("--release") { Profile::Release } else { Profile::Dev };
        let runs = (demo || bench) && !given("--help") && !given("-h");
        let store = given("--store-only");
        Self { profile, highwater: runs && !store && !given("--limits-only"), nats_server: runs && !store }
    }
}

/// Ends only when it cannot begin: the tool takes the place of this process.
pub fn run(tool: &str, arguments: &[OsString]) -> Result<()> {
    let error = ready(tool, arguments)?.exec();
    Err(error).with_context(|| format!("{TOOLS} does not start"))
}

/// Whether the generated documents are what the types say.
pub fn check_schemas() -> Result<()> {
    let status =
        ready(SCHEMAS.name, &["--check".into()])?.status().with_context(|| format!("{TOOLS} does not start"))?;
    if !status.success() {
        bail!("generated documents are not up to date");
    }
    Ok(())
}

/// The command that runs a tool, with all that it needs.
fn ready(tool: &str, arguments: &[OsString]) -> Result<Command> {
    let Needs { profile, highwater, nats_server } = Needs::of(tool, arguments);
    let named = workspace::named_highwater()?;
    let build_highwater = highwater && named.is_none();
    let target = workspace::target_dir()?;
    let binaries: &[&str] = if build_highwater { &[HIGHWATER, TOOLS] } else { &[TOOLS] };
    let there = binaries.iter().all(|binary| target.join(profile.directory()).join(binary).is_file());
    let compiled = if there { "what has changed is compiled".into() } else { first_time(profile) };
    if highwater {
        announce(tool, &binaries.join(" and "), &compiled);
    } else if !there {
        println!("{TOOLS}: {compiled}");
    }
    if nats_server {
        // Before minutes of compiling: without one there is nothing to do.
        let since = Instant::now();
        let server = nats_server::find(&target)?;
        step(&format!("nats-server {} (from {})", server.version, server.origin), since.elapsed());
    }
    let since = Instant::now();
    let directory = workspace::build(binaries, profile)?;
    if highwater {
        step(&format!("{} built", binaries.join(" and ")), since.elapsed());
    }
    let mut command = Command::new(directory.join(TOOLS));
    command.arg(tool).args(arguments);
    if build_highwater {
        command.env(BINARY, directory.join(HIGHWATER));
    }
    Ok(command)
}

/// Says what comes and how long it takes, before anything is done.
fn announce(tool: &str, binaries: &str, compiled: &str) {
    println!("{}", bold(&format!("cargo xtask {tool}")));
    println!("  1  a nats-server: a named one, one on PATH, else fetched once");
    println!("  2  {binaries}: {compiled}");
    println!("  3  the {tool} itself\n");
}

fn first_time(profile: Profile) -> String {
    let (which, took) = match profile {
        Profile::Dev => ("as the tests are, which then use what is compiled", DEV_COMPILED),
        Profile::Release => ("in the release profile", RELEASE_COMPILED),
    };
    format!("compiled {which}: {} the first time", compiled_within(took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_measured_is_not_built() {
        let needs = |tool: &str, arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            let needs = Needs::of(tool, &arguments);
            (needs.profile, needs.highwater, needs.nats_server)
        };
        assert_eq!(needs("demo", &["--keep"]), (Profile::Dev, true, true));
        assert_eq!(needs("demo", &["--release"]), (Profile::Release, true, true));
        assert_eq!(needs("demo", &["--help"]), (Profile::Dev, false, false));
        assert_eq!(needs("bench", &[]), (Profile::Release, true, true));
        assert_eq!(needs("bench", &["--limits-only"]), (Profile::Release, false, true));
        assert_eq!(needs("bench", &["--store-only"]), (Profile::Release, false, false));
        assert_eq!(needs("schemas", &["--check"]), (Profile::Dev, false, false));
    }
}
