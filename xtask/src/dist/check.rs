//! Tries an archive: unpacks it as people are told to, and uses what is in it.

use super::{
    VERSION,
    archive::{STRIPPED, succeeds, sum_of},
    content::{BINARY, COMPLETIONS, File, PAGES},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Unpacks it into a directory that is removed again. Answers what was tried, and how long each took.
pub fn run(archive: &Path, files: &[File], directory: &Path) -> Result<Vec<(String, Duration)>> {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let outcome = try_all(archive, files, directory);
    fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    outcome
}

fn try_all(archive: &Path, files: &[File], at: &Path) -> Result<Vec<(String, Duration)>> {
    let mut tried = Vec::new();
    let mut step = |attempt: &dyn Fn() -> Result<String>| {
        let since = Instant::now();
        tried.push((attempt()?, since.elapsed()));
        anyhow::Ok(())
    };
    step(&|| unpacks(archive, files, at))?;
    step(&|| runs_alone(&at.join(BINARY)))?;
    step(&|| completions(at))?;
    step(&|| pages(files))?;
    step(&|| units(at, files))?;
    Ok(tried)
}

fn unpacks(archive: &Path, files: &[File], at: &Path) -> Result<String> {
    let sum = sum_of(archive);
    succeeds(
        Command::new("sha256sum").current_dir(archive.parent().unwrap_or(at)).args(["--check", "--quiet"]).arg(&sum),
    )?;
    succeeds(Command::new("tar").arg("-xzf").arg(archive).args([STRIPPED, "-C"]).arg(at))?;
    for file in files {
        let path = at.join(&file.path);
        let bytes = fs::read(&path).with_context(|| format!("{} is missing", file.path))?;
        let mode = fs::metadata(&path)?.permissions().mode();
        let executable = |mode: u32| mode & 0o100 > 0;
        ensure!(bytes == file.bytes && executable(mode) == executable(file.mode), "{} is another file", file.path);
    }
    Ok("its sum is right, and it unpacks".into())
}

/// No interpreter, no library, no environment.
fn runs_alone(binary: &Path) -> Result<String> {
    let mut readelf = Command::new("readelf");
    let read = succeeds(readelf.env("LC_ALL", "C").args(["--program-headers", "--dynamic"]).arg(binary))?;
    let text = String::from_utf8_lossy(&read.stdout);
    let needed = text.lines().find(|line| line.contains("INTERP") || line.contains("(NEEDED)"));
    ensure!(needed.is_none(), "the binary is not static: {}", needed.unwrap_or_default().trim());
    let said = succeeds(Command::new(binary).arg("--version").env_clear())?;
    let said = String::from_utf8_lossy(&said.stdout);
    ensure!(said.trim() == format!("highwater {VERSION}"), "highwater --version says {said}");
    Ok("the binary is static, and runs".into())
}

/// Each shell that is here reads its own.
fn completions(at: &Path) -> Result<String> {
    let (mut read, mut absent) = (Vec::new(), Vec::new());
    for (shell, path) in COMPLETIONS {
        match Command::new(shell).arg("--version").output() {
            Ok(_) => {
                succeeds(Command::new(shell).arg("-n").arg(at.join(path)))?;
                read.push(shell);
            }
            Err(_) => absent.push(shell),
        }
    }
    let absent = if absent.is_empty() { String::new() } else { format!("; not here: {}", absent.join(", ")) };
    Ok(format!("completions are read by {}{absent}", read.join(", ")))
}

fn pages(files: &[File]) -> Result<String> {
    let pages: Vec<&File> = files.iter().filter(|file| file.path.starts_with(PAGES)).collect();
    for name in ["highwater", "highwater-indexer", "highwater-index-create"] {
        let page = pages.iter().find(|page| page.path == format!("{PAGES}/{name}.1"));
        ensure!(page.is_some_and(|page| page.bytes.windows(3).any(|part| part == b".TH")), "no manual page {name}");
    }
    Ok(format!("{} manual pages", pages.len()))
}

/// systemd reads every unit, where it is here; the binary is not installed yet, so that of the archive stands for it.
fn units(at: &Path, files: &[File]) -> Result<String> {
    let units: Vec<&File> = files.iter().filter(|file| file.path.ends_with(".service")).collect();
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return Ok(format!("{} units of systemd, not tried: there is no systemd-analyze here", units.len()));
    }
    let binary = fs::canonicalize(at.join(BINARY))?;
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["verify", "--man=no"]);
    for unit in &units {
        let text = String::from_utf8_lossy(&unit.bytes);
        let path = at.join(unit.path.rsplit('/').next().unwrap_or_default());
        fs::write(&path, text.replace("/usr/local/bin/highwater", &binary.to_string_lossy()))?;
        analyze.arg(path);
    }
    let output = succeeds(&mut analyze)?;
    // What it does not know it complains of, and goes on.
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(complaint.trim().is_empty(), "systemd-analyze verify: {}", complaint.trim());
    Ok(format!("systemd understands its {} units", units.len()))
}
