//! Where the workspace is and how cargo is called in it.

use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A cargo command in the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
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

/// Builds binaries of the workspace with cargo's own progress on the terminal; returns the directory they are in.
pub fn build(packages: &[&str], release: bool) -> Result<PathBuf> {
    let mut command = cargo();
    command.arg("build");
    if release {
        command.arg("--release");
    }
    for package in packages {
        command.args(["--package", package]);
    }
    let status = command.status().context("cargo does not start")?;
    if !status.success() {
        bail!("{} does not build; cargo's messages are above", packages.join(" and "));
    }
    Ok(target_dir()?.join(if release { "release" } else { "debug" }))
}

/// The environment variable that names a `highwater` binary; tests are given it, and where it is set nothing is built.
pub const BINARY: &str = "HIGHWATER_BIN";

/// The `highwater` binary in release: the one that is named in the environment, else built now.
pub fn highwater() -> Result<PathBuf> {
    match std::env::var_os(BINARY).filter(|value| !value.is_empty()) {
        Some(named) if Path::new(&named).is_file() => Ok(named.into()),
        Some(named) => bail!("{BINARY} names {}, which does not exist", Path::new(&named).display()),
        None => Ok(build(&["highwater"], true)?.join("highwater")),
    }
}

/// The last line with text in what a program printed.
pub fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message").to_owned()
}
