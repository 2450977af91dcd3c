//! `cargo xtask simulate`: builds the simulation, optimised, and runs it.

use anyhow::{Context, Result};
use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};
use xtask::workspace::{self, Profile};

const SIMULATION: &str = "highwater-simulation";

/// Ends only when it cannot begin: the simulation takes the place of this process.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let binary = workspace::build(&[SIMULATION], Profile::Release)?.join(SIMULATION);
    let error = Command::new(&binary).args(arguments).exec();
    Err(error).with_context(|| format!("{} does not start", binary.display()))
}
