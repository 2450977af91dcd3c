//! Python as a carrier of prebuilt packages: pip, and one virtual environment under the target directory.

use crate::workspace::last_line;
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
};

const MISSING: &str = "python3 is not on PATH; install Python 3.8 or later (Debian: apt install python3 python3-venv)";

/// An exclusive lock between processes that prepare the same thing; released when dropped, as its file is closed.
pub struct Turn {
    _file: File,
}

impl Turn {
    /// Waits until no other process prepares anything under `directory`.
    pub fn wait(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let path = directory.join(".lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// Runs a program and captures what it prints; fails with its last line.
pub fn run(command: &mut Command, what: &str) -> Result<Output> {
    let output = command.output().with_context(|| format!("{what}: the program does not start"))?;
    if !output.status.success() {
        let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        bail!("{what}: {}", last_line(said));
    }
    Ok(output)
}

fn works(program: &Path, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// A Python that has pip: the system's, else the virtual environment's.
pub fn with_pip(target: &Path) -> Result<PathBuf> {
    let system = PathBuf::from("python3");
    if works(&system, &["-m", "pip", "--version"]) { Ok(system) } else { venv(target) }
}

/// The virtual environment under the target directory, made when it is not there.
pub fn venv(target: &Path) -> Result<PathBuf> {
    let system = Path::new("python3");
    if !works(system, &["--version"]) {
        bail!(MISSING);
    }
    let directory = target.join("python");
    let python = directory.join("bin").join("python");
    let _turn = Turn::wait(&target.join("python-lock"))?;
    if works(&python, &["-m", "pip", "--version"]) {
        return Ok(python);
    }
    run(
        Command::new(system).args(["-m", "venv", "--clear"]).arg(&directory),
        "python3 -m venv failed (Debian: apt install python3-venv)",
    )?;
    if !works(&python, &["-m", "pip", "--version"]) {
        bail!("python3 -m venv made no pip (Debian: apt install python3-venv python3-pip)");
    }
    Ok(python)
}

/// Installs pinned requirements (`name==version --hash=…` lines) into the virtual environment; returns its Python.
pub fn install(target: &Path, requirements: &str) -> Result<PathBuf> {
    let python = venv(target)?;
    let _turn = Turn::wait(&target.join("python-lock"))?;
    let file = target.join("python").join("requirements.txt");
    if fs::read_to_string(&file).is_ok_and(|installed| installed == requirements) {
        return Ok(python);
    }
    let wanted = target.join("python").join("requirements.new");
    fs::write(&wanted, requirements).with_context(|| format!("cannot write {}", wanted.display()))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "-r"]);
    run(pip.arg(&wanted), &format!("pip cannot install {}", first_word(requirements)))?;
    fs::rename(&wanted, &file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(python)
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}
