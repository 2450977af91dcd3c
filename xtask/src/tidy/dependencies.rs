//! Rules of what the workspace depends on: from the registry only, under licences that fit, without what is banned.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xtask::workspace::{cargo, host, last_line};

/// Licences that a dependency may ask for (SPDX).
const LICENCES: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OLDAP-2.8",
    "Unicode-3.0",
    "Zlib",
];
/// Crates that must not come in by any way, and why.
const BANNED: [(&str, &str); 3] = [
    ("openssl-sys", "TLS is rustls'; a system library would be one more thing to install"),
    ("native-tls", "TLS is rustls'"),
    ("bincode", "the wire and disk formats are rkyv and JSON"),
];

/// Checks every crate that is built on this platform.
pub fn check(offences: &mut Vec<String>) -> Result<()> {
    let metadata = metadata()?;
    let built: Vec<&Value> = list(&metadata["resolve"]["nodes"])?.iter().map(|node| &node["id"]).collect();
    for package in list(&metadata["packages"])?.iter().filter(|package| built.contains(&&package["id"])) {
        check_package(package, offences);
    }
    Ok(())
}

fn metadata() -> Result<Value> {
    let host = host()?;
    let arguments = ["metadata", "--format-version", "1", "--filter-platform", &host];
    let output = cargo().args(arguments).output().context("cargo does not start")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", last_line(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("cargo metadata is not as expected")
}

fn check_package(package: &Value, offences: &mut Vec<String>) {
    // A crate of the workspace has no source.
    let Some(source) = package["source"].as_str() else { return };
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    let name = format!("{} {}", text("name"), text("version"));
    if !source.starts_with("registry+") {
        offences.push(format!("dependency {name}: not from the registry"));
    }
    if let Some((_, why)) = BANNED.iter().find(|(banned, _)| text("name") == *banned) {
        offences.push(format!("dependency {name}: banned: {why}"));
    }
    match package["license"].as_str() {
        Some(licence) if allowed(licence) => {}
        Some(licence) => offences.push(format!("dependency {name}: the licence {licence} is not on the list")),
        None => offences.push(format!("dependency {name}: it names no licence")),
    }
}

/// Whether an SPDX expression can be met with the listed licences. `AND` binds closer than `OR`; `/` is an old `OR`.
fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest) && rest.is_empty()
}

fn any_of(words: &mut &[&str]) -> bool {
    let mut holds = all_of(words);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        holds |= all_of(words);
    }
    holds
}

fn all_of(words: &mut &[&str]) -> bool {
    let mut holds = term(words);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        holds &= term(words);
    }
    holds
}

fn term(words: &mut &[&str]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let holds = any_of(words);
            if let [")", rest @ ..] = *words {
                *words = rest;
            }
            holds
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            LICENCES.contains(licence) || LICENCES.contains(&format!("{licence} WITH {exception}").as_str())
        }
        [licence, rest @ ..] => {
            *words = rest;
            LICENCES.contains(licence)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_are_understood() {
        for good in ["MIT", "MIT OR GPL-3.0", "MIT/Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
            assert!(allowed(good), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 OR (MIT AND AGPL-3.0)", ""] {
            assert!(!allowed(bad), "{bad}");
        }
    }
}
