//! Where the workspace is and how cargo is called in it.

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A cargo command in the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What the outer cargo says of this package is not for the inner one: build scripts that look at it, such as that of ring,
    // would run again, and everything behind them be compiled again.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_package(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// Whether cargo sets the variable for the package that it runs.
fn is_of_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|begins| variable.starts_with(begins))
}

/// Where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf> {
    match metadata()?["target_directory"].as_str() {
        Some(directory) => Ok(PathBuf::from(directory)),
        None => bail!("cargo metadata names no target_directory"),
    }
}

/// The names of the integration tests of the packages with these names.
pub fn test_targets(of: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let metadata = metadata()?;
    let Some(packages) = metadata["packages"].as_array() else { bail!("cargo metadata names no packages") };
    let chosen = packages.iter().filter(|package| package["name"].as_str().is_some_and(&of));
    let targets = chosen.filter_map(|package| package["targets"].as_array()).flatten();
    let tests = targets.filter(|target| target["kind"][0] == "test");
    Ok(tests.filter_map(|target| Some(target["name"].as_str()?.to_owned())).collect())
}

fn metadata() -> Result<serde_json::Value> {
    let output =
        cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output().context("cargo does not start")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", last_line(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// The target triple of this machine.
pub fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc does not start")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// What is compiled how; see the workspace's Cargo.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// That of the tests, the demo and this program.
    Dev,
    /// What is measured.
    Release,
}

impl Profile {
    /// Where cargo puts what it builds in it, under the target directory.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// An example that holds nothing. To build one beside binaries has cargo take the dependencies with the features that the tests
/// of the whole workspace ask for, so that these find them compiled.
const SAME_FEATURES: &str = "same_features";

/// Builds binaries of the workspace with cargo's own progress on the terminal; returns the directory they are in.
pub fn build(binaries: &[&str], profile: Profile) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--workspace", "--example", SAME_FEATURES]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    for binary in binaries {
        command.args(["--bin", binary]);
    }
    let status = command.status().context("cargo does not start")?;
    if !status.success() {
        bail!("{} does not build; cargo's messages are above", binaries.join(" and "));
    }
    Ok(target_dir()?.join(profile.directory()))
}

/// The binary of Highwater.
pub const HIGHWATER: &str = "highwater";
/// The environment variable that names a `highwater` binary; tests and tools are given it, and where it is set none is built.
pub const BINARY: &str = "HIGHWATER_BIN";

/// The `highwater` binary that the environment names.
pub fn named_highwater() -> Result<Option<PathBuf>> {
    match std::env::var_os(BINARY).filter(|value| !value.is_empty()) {
        Some(named) if Path::new(&named).is_file() => Ok(Some(named.into())),
        Some(named) => bail!("{BINARY} names {}, which does not exist", Path::new(&named).display()),
        None => Ok(None),
    }
}

/// How many threads run at once here.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// About how long it takes here to compile what took so long on two cores, for people.
pub fn compiled_within(on_two_cores: Duration) -> String {
    let cores = cores();
    format!("about {} min on {cores} cores", minutes_with(cores, on_two_cores))
}

/// With many cores one crate waits for the other, so more than eight count for no more than these.
fn minutes_with(cores: usize, on_two_cores: Duration) -> u64 {
    let seconds = on_two_cores.as_secs() * 2 / (cores as u64).clamp(1, 8);
    seconds.div_ceil(60).max(1)
}

/// The last line with text in what a program printed.
pub fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_cores_take_less_time() {
        let minutes = [1, 2, 4, 8, 64].map(|cores| minutes_with(cores, Duration::from_secs(240)));
        assert_eq!(minutes, [8, 4, 2, 1, 1]);
    }
}
