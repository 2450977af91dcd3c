//! Static binaries: they need no interpreter and no library beside them.

use super::target::Target;
use crate::workspace::{cargo, compiled_within, root, target_dir};
use anyhow::{Context, Result};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// What is shipped; see the workspace's Cargo.toml.
const PROFILE: &str = "dist";
/// What compiling takes the first time on two cores.
const COMPILED: Duration = Duration::from_secs(10 * 60);
/// Between the flags in cargo's variable.
const BETWEEN: &str = "\u{1f}";

/// The command that builds the binaries of packages that are called after them, and the directory where they will be. Says how
/// long it takes the first time.
pub fn static_binaries(packages: &[&str], target: &Target) -> Result<(Command, PathBuf)> {
    // A directory of its own: other flags would build everything anew each time.
    let directory = target_dir()?.join("static");
    let built = directory.join(target.triple()).join(PROFILE);
    if !packages.iter().all(|package| built.join(package).is_file()) {
        println!("  {}: compiling takes {} the first time", packages.join(" and "), compiled_within(COMPILED));
    }
    let mut command = cargo();
    // With --target the flags are not those of build scripts and macros, which cannot be static.
    command.args(["build", "--locked", "--profile", PROFILE, "--target", target.triple()]);
    command.arg("--target-dir").arg(&directory);
    for package in packages {
        command.args(["--package", package]);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags()?.join(BETWEEN)).env_remove("RUSTFLAGS").envs(target.variables());
    Ok((command, built))
}

/// Panics tell places in the code without naming directories of the machine that built it.
fn flags() -> Result<Vec<String>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo"))).context("there is no home directory")?;
    let renamed = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    Ok(vec![
        "-Ctarget-feature=+crt-static".into(),
        renamed(&home.join("registry/src"), "registry"),
        renamed(&root(), "highwater"),
    ])
}
