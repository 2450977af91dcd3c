//! Where the tested programs are.

use anyhow::{Context, Result, bail};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the `highwater` binary.
pub const HIGHWATER: &str = "HIGHWATER_BIN";
/// Names a nats-server, 2.11 or newer.
pub const NATS_SERVER: &str = "HIGHWATER_NATS_SERVER";

/// The `highwater` binary: from the environment, else the one that cargo built in the profile of this test.
pub fn highwater() -> Result<PathBuf> {
    if let Some(path) = named(HIGHWATER)? {
        return Ok(path);
    }
    let test = env::current_exe().context("the path of this test is unknown")?;
    // target/<profile>/deps/<test>
    let beside = test.parent().and_then(Path::parent).map(|profile| profile.join("highwater"));
    match beside.filter(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "there is no highwater binary: set {HIGHWATER}, or run `cargo build -p highwater` in the same profile"
        ),
    }
}

/// A run of `highwater`: the developer's own settings and contexts of the nats CLI are not meant for what is tested.
pub fn command() -> Result<Command> {
    let mut command = Command::new(highwater()?);
    for (variable, _) in env::vars_os() {
        let text = variable.to_string_lossy();
        if text.starts_with("NATS_") || text == "HIGHWATER_DATA_DIR" || text == "NOTIFY_SOCKET" {
            command.env_remove(&variable);
        }
    }
    command.env("XDG_CONFIG_HOME", "/dev/null");
    Ok(command)
}

/// The nats-server: from the environment, else from PATH.
pub fn nats_server() -> Result<PathBuf> {
    if let Some(path) = named(NATS_SERVER)? {
        return Ok(path);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join("nats-server")).find(|path| path.is_file());
    found.with_context(|| format!("there is no nats-server: set {NATS_SERVER}, or put one into PATH"))
}

fn named(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from) else {
        return Ok(None);
    };
    if !path.is_file() {
        bail!("{variable} names {}, which is no file", path.display());
    }
    Ok(Some(path))
}
