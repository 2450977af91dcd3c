//! The command line, run to its end.

use crate::binaries;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Runs `highwater`: its exit code, what it printed, and what it complained of.
pub fn highwater(arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = binaries::command()?.args(arguments).output().context("highwater does not run")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

/// The same with `--json`: what it printed; any other exit code than `code` is an error.
pub fn json_of(arguments: &[&str], code: i32) -> Result<Value> {
    let (ended, out, err) = highwater(&[arguments, &["--json"]].concat())?;
    ensure!(ended == Some(code), "{arguments:?}: {ended:?}\n{out}\n{err}");
    serde_json::from_str(out.trim()).with_context(|| format!("{arguments:?}: not JSON: {out}"))
}
