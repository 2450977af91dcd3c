//! A nats-server child process on a free port, stopped when dropped.

use crate::child::Child;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// How long a nats-server may take to accept connections.
const READY_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(5);

/// A running nats-server with JetStream.
pub struct NatsProcess {
    child: Child,
    url: String,
}

impl NatsProcess {
    /// Starts `binary` with its store in `directory` on a free port of 127.0.0.1 and waits until it serves.
    pub fn start(binary: &Path, directory: &Path, extra: &[&str]) -> Result<Self> {
        Self::start_at(binary, directory, "-1", extra)
    }

    /// The same one again on its port, after it was stopped.
    pub fn start_again(&mut self, binary: &Path, directory: &Path, extra: &[&str]) -> Result<()> {
        let port = self.url.rsplit(':').next().unwrap_or_default().to_owned();
        *self = Self::start_at(binary, directory, &port, extra)?;
        Ok(())
    }

    fn start_at(binary: &Path, directory: &Path, port: &str, extra: &[&str]) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let mut command = Command::new(binary);
        command.args(["-js", "-a", "127.0.0.1", "-p", port, "-sd"]).arg(directory.join("store"));
        command.arg("--ports_file_dir").arg(directory).args(extra);
        let mut child = Child::start("nats-server", command, directory)?;
        let ports = format!("_{}.ports", child.id());
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = child.exited()? {
                bail!("nats-server ended at once ({status}): {}", child.log_tail());
            }
            if let Some(url) = read_ports(directory, &ports).filter(|url| accepts(url)) {
                return Ok(Self { child, url });
            }
            if Instant::now() > deadline {
                bail!("nats-server was not ready within {} s: {}", READY_WITHIN.as_secs(), child.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it and waits for its end.
    pub fn stop(&mut self) {
        self.child.stop();
    }

    /// Leaves it running when this is dropped.
    pub fn keep(&mut self) {
        self.child.keep();
    }
}

/// The first client URL of the ports file, which is named after the binary, whatever that is called.
fn read_ports(directory: &Path, ending: &str) -> Option<String> {
    let mut files = fs::read_dir(directory).ok()?.flatten();
    let file = files.find(|file| file.file_name().to_string_lossy().ends_with(ending))?;
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    ports["nats"][0].as_str().map(str::to_owned)
}

fn accepts(url: &str) -> bool {
    url.strip_prefix("nats://").is_some_and(|address| TcpStream::connect(address).is_ok())
}
