//! Licences of every crate that is linked in, which whoever passes a binary on has to pass on too.

use super::target::Target;
use crate::workspace::{HIGHWATER, cargo, last_line};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

/// How files with a licence's text begin, in capital letters.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// A text for each crate: name, version, licence, and the files that say so.
pub fn collect(target: &Target) -> Result<String> {
    let metadata = metadata(target)?;
    let mut out = String::from(
        "Highwater is linked with the crates below. Each is followed by the licence that it comes with.\n",
    );
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for package in linked(&metadata)? {
        let text = |field: &str| package[field].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        // Writing into a string cannot fail.
        let _ = write!(out, "\n{}\n{name}: {}\n", "=".repeat(80), text("license"));
        let directory = Path::new(text("manifest_path")).parent().context("a crate without a directory")?;
        for (file, text) in texts(directory)? {
            // Many crates have the very same text.
            let _ = match seen.get(&text) {
                Some(other) => writeln!(out, "\n{file}: as that of {other}"),
                None => writeln!(out, "\n{file}:\n\n{}", text.trim_end()),
            };
            seen.entry(text).or_insert_with(|| name.clone());
        }
    }
    Ok(out)
}

fn metadata(target: &Target) -> Result<Value> {
    let arguments = ["metadata", "--locked", "--format-version", "1", "--filter-platform", target.triple()];
    let output = cargo().args(arguments).output().context("cargo does not start")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", last_line(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// The crates that the binary depends on, however far away, without those of tests and of build scripts.
fn linked(metadata: &Value) -> Result<Vec<&Value>> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata names no nodes")?;
    let first = packages.iter().find(|package| package["name"] == HIGHWATER).context("there is no such package")?;
    let mut waiting = vec![first["id"].as_str().unwrap_or_default().to_owned()];
    let mut found = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !found.insert(id.clone()) {
            continue;
        }
        let node = nodes.iter().find(|node| node["id"] == *id).with_context(|| format!("{id} is not resolved"))?;
        for dependency in list(&node["deps"]) {
            // No kind: a usual dependency.
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                waiting.push(dependency["pkg"].as_str().unwrap_or_default().to_owned());
            }
        }
    }
    let foreign = packages.iter().filter(|package| !package["source"].is_null());
    let linked: Vec<&Value> =
        foreign.filter(|package| package["id"].as_str().is_some_and(|id| found.contains(id))).collect();
    ensure!(!linked.is_empty(), "{HIGHWATER} depends on nothing");
    Ok(linked)
}

/// Name and text of the files with licences, in the order of their names.
fn texts(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let upper = name.to_uppercase();
        if entry.file_type()?.is_file() && NAMES.iter().any(|start| upper.starts_with(start)) {
            texts.insert(name, String::from_utf8_lossy(&fs::read(entry.path())?).into_owned());
        }
    }
    Ok(texts)
}
