//! What static binaries are built for, and what that takes.
//!
//! glibc is the default: its allocator serves many threads, which musl's does not, and nothing has to be installed beside Rust and
//! a C compiler. Names are resolved from `/etc/hosts` and DNS in either case; glibc also asks other services of nsswitch.conf
//! where the machine has the same version of it.

use crate::workspace::host;
use anyhow::{Context, Result, bail, ensure};
use std::{path::Path, process::Command};

/// A target with a C library that can be linked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    triple: String,
    libc: Libc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Libc {
    Gnu,
    Musl,
}

/// The C compiler of musl, for LMDB.
const MUSL_CC: &str = "musl-gcc";

impl Target {
    /// This machine's own, or a named one of the same processor: what is built is also run.
    pub fn choose(named: Option<&str>) -> Result<Self> {
        let host = host()?;
        let target = Self::of(named.unwrap_or(&host))?;
        ensure!(
            target.processor() == host.split('-').next(),
            "{}: this is {host}, and what is packed is also tried: build it on such a machine",
            target.triple
        );
        Ok(target)
    }

    fn of(triple: &str) -> Result<Self> {
        let libc = match triple.rsplit("-linux-").next() {
            Some("gnu") => Libc::Gnu,
            Some("musl") => Libc::Musl,
            _ => bail!("{triple}: static binaries are made for Linux, with glibc (-linux-gnu) or musl (-linux-musl)"),
        };
        Ok(Self { triple: triple.into(), libc })
    }

    pub fn triple(&self) -> &str {
        &self.triple
    }

    fn processor(&self) -> Option<&str> {
        self.triple.split('-').next()
    }

    /// Variables for cargo that this target needs.
    pub fn variables(&self) -> Option<(String, &'static str)> {
        match self.libc {
            Libc::Gnu => None,
            Libc::Musl => Some((format!("CC_{}", self.triple.replace('-', "_")), MUSL_CC)),
        }
    }

    /// Says everything that is missing here, before minutes of compiling.
    pub fn check(&self) -> Result<()> {
        let mut missing = Vec::new();
        let library = said("rustc", &["--print", "target-libdir", "--target", &self.triple])?;
        if !Path::new(&library).is_dir() {
            missing.push(format!("Rust's library for {0}: rustup target add {0}", self.triple));
        }
        match self.libc {
            // A compiler that does not find the file says its bare name.
            Libc::Gnu if !Path::new(&said("cc", &["-print-file-name=libc.a"])?).is_absolute() => {
                missing.push("libc.a: Debian's libc6-dev, Fedora's glibc-static".into());
            }
            Libc::Musl if said(MUSL_CC, &["--version"]).is_err() => {
                missing.push(format!("{MUSL_CC}, which compiles LMDB: Debian's musl-tools, Fedora's musl-gcc"));
            }
            _ => {}
        }
        ensure!(missing.is_empty(), "what is missing for {}:\n  {}", self.triple, missing.join("\n  "));
        Ok(())
    }
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("{program} does not start"))?;
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_a_library_that_can_be_linked_in() {
        let gnu = Target::of("x86_64-unknown-linux-gnu").unwrap();
        assert_eq!((gnu.libc, gnu.variables()), (Libc::Gnu, None));
        let musl = Target::of("aarch64-unknown-linux-musl").unwrap();
        assert_eq!(musl.variables(), Some(("CC_aarch64_unknown_linux_musl".into(), "musl-gcc")));
        for other in ["x86_64-apple-darwin", "x86_64-unknown-linux-gnux32", "x86_64-pc-windows-gnu"] {
            assert!(Target::of(other).is_err(), "{other}");
        }
    }

    #[test]
    fn what_cannot_run_here_is_not_built() {
        let other = if cfg!(target_arch = "aarch64") { "x86_64" } else { "aarch64" };
        let error = Target::choose(Some(&format!("{other}-unknown-linux-gnu"))).unwrap_err().to_string();
        assert!(error.contains("build it on such a machine"), "{error}");
    }
}
