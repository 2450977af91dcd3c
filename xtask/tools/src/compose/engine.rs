//! A Docker engine and Compose: the engine that answers, else a dockerd of our own, with what is missing from Debian.
//!
//! Our own dockerd keeps its socket, its data and its state in a temporary directory: it touches no image, container or volume
//! of another, and it ends with the test.

use super::NotRun;
use crate::{child::Child, shell};
use anyhow::{Context, Result, bail};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long dockerd may take to end; killed, it would leave mounts and a containerd behind.
const END_WITHIN: Duration = Duration::from_secs(60);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(200);
/// Where programs of administrators are, for a PATH without them.
const ADMINISTRATORS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// A developer's settings of Docker and Compose that are not meant for the test.
const FOREIGN: [&str; 5] =
    ["COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES", "COMPOSE_PATH_SEPARATOR", "COMPOSE_ENV_FILES"];

/// An engine that answers, with the commands to reach it.
pub struct Engine {
    /// Program and first words of Compose.
    compose: &'static [&'static str],
    version: String,
    own: Option<Own>,
}

/// A dockerd that was started here.
struct Own {
    dockerd: Child,
    host: String,
    directory: TempDir,
}

impl Engine {
    /// Finds an engine and Compose, or with `obtain` installs what is missing and starts an engine.
    pub async fn find(obtain: bool) -> Result<Self> {
        let mut answers = version(None).await;
        if obtain {
            install(&missing(answers.is_ok())).await?;
            // Its package may have started it.
            if answers.is_err() {
                answers = version(None).await;
            }
        }
        let Some(compose) = compose() else {
            bail!("neither `docker compose` nor `docker-compose` works");
        };
        match answers {
            Ok(version) => Ok(Self { compose, version, own: None }),
            Err(_) if obtain => {
                let (own, version) = Own::start().await?;
                Ok(Self { compose, version, own: Some(own) })
            }
            Err(error) => Err(error),
        }
    }

    /// What was found, for people.
    pub fn describe(&self) -> String {
        let origin = if self.own.is_some() { "started for this test" } else { "it was running" };
        format!("Docker engine {} ({origin}), {}", self.version, self.compose.join(" "))
    }

    /// How many files a container's process may have open at most, where the engine cannot give it more than we have.
    pub fn open_files(&self) -> Option<u64> {
        self.own.as_ref()?;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// A `docker` command.
    pub fn docker<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = docker(self.own.as_ref().map(|own| own.host.as_str()));
        command.args(arguments);
        command
    }

    /// A Compose command.
    pub fn compose(&self) -> Command {
        let mut command = Command::new(self.compose[0]);
        command.args(&self.compose[1..]);
        reach(&mut command, self.own.as_ref().map(|own| own.host.as_str()));
        command
    }
}

impl Own {
    async fn start() -> Result<(Self, String)> {
        let Some(program) = program("dockerd") else {
            bail!(NotRun("no Docker engine answers, and there is no dockerd to start".into()));
        };
        if !is_root() {
            bail!(NotRun("no Docker engine answers, and dockerd is only started as root".into()));
        }
        let directory =
            tempfile::Builder::new().prefix("highwater-docker-").tempdir().context("no temporary directory")?;
        let at = |name: &str| directory.path().join(name);
        let host = format!("unix://{}", at("docker.sock").display());
        let mut command = Command::new(program);
        command.env("PATH", path()).args(["--host", &host]);
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec")).arg("--pidfile").arg(at("pid"));
        // The stacks have networks of their own; what this machine forwards stays as it is.
        command.args(["--bridge", "none", "--ip-forward=false", "--ip-masq=false"]);
        let dockerd = Child::start("dockerd", command, directory.path())?;
        let mut own = Self { dockerd, host, directory };
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = own.dockerd.exited()? {
                bail!(NotRun(format!("dockerd ended at once ({status}): {}", own.last_words())));
            }
            match version(Some(&own.host)).await {
                Ok(version) => return Ok((own, version)),
                Err(error) if Instant::now() > deadline => {
                    let words = own.last_words();
                    bail!(NotRun(format!(
                        "dockerd did not answer within {} s ({error:#}): {words}",
                        READY_WITHIN.as_secs()
                    )));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn last_words(&self) -> String {
        self.dockerd.log_tail().lines().last().unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.dockerd.stop_within(END_WITHIN);
        unmount(self.directory.path());
    }
}

/// What an engine may have left mounted under its directory would keep that from being removed.
fn unmount(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let inside =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(directory));
    // The innermost come last.
    for mounted in inside.collect::<Vec<_>>().into_iter().rev() {
        let mut command = Command::new("umount");
        command.arg(mounted);
        if let Err(error) = shell::run_blocking(command) {
            eprintln!("note: {error:#}");
        }
    }
}

fn docker(host: Option<&str>) -> Command {
    let mut command = Command::new("docker");
    reach(&mut command, host);
    command
}

fn reach(command: &mut Command, host: Option<&str>) {
    for variable in FOREIGN {
        command.env_remove(variable);
    }
    if let Some(host) = host {
        command.env("DOCKER_HOST", host);
        for variable in ["DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"]
        {
            command.env_remove(variable);
        }
    }
}

/// The version of the engine that answers.
async fn version(host: Option<&str>) -> Result<String> {
    let mut command = docker(host);
    command.args(["info", "--format", "{{.ServerVersion}}"]);
    let answer = tokio::time::timeout(ANSWER_WITHIN, shell::run(command)).await.context("docker info hangs")??;
    match answer.trim() {
        // Clients before 23 report a failure in the text alone.
        "" => bail!("no Docker engine answers"),
        version => Ok(version.to_owned()),
    }
}

/// Compose v2 where it is installed, else docker-compose 1.
fn compose() -> Option<&'static [&'static str]> {
    const KNOWN: [&[&str]; 2] = [&["docker", "compose"], &["docker-compose"]];
    KNOWN.into_iter().find(|words| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("version");
        shell::run_blocking(command).is_ok()
    })
}

/// Debian's packages of what is not here.
fn missing(engine: bool) -> Vec<&'static str> {
    let mut packages = Vec::new();
    if program("docker").is_none() || (!engine && program("dockerd").is_none()) {
        packages.push("docker.io");
    }
    if compose().is_none() {
        packages.push("docker-compose");
    }
    if !engine && program("iptables").is_none() {
        packages.push("iptables");
    }
    packages
}

async fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let wanted = packages.join(", ");
    if !is_root() || program("apt-get").is_none() {
        bail!(NotRun(format!("{wanted} would have to be installed, which takes root and apt-get")));
    }
    println!("  installing {wanted}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        shell::run(command)
    };
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    if apt(&arguments).await.is_err() {
        // Its lists may be missing or old.
        let again = async {
            apt(&["update"]).await?;
            apt(&arguments).await
        };
        again.await.map_err(|error| NotRun(format!("{wanted} cannot be installed: {error:#}")))?;
    }
    Ok(())
}

fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&path()).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// PATH, and where programs of administrators are.
fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for directory in ADMINISTRATORS {
        path.push(":");
        path.push(directory);
    }
    path
}

#[allow(unsafe_code)]
fn is_root() -> bool {
    // SAFETY: geteuid(2) has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}
