//! A nats-server of its own on a free port.

use crate::{binaries, child::Child};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const READY_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// A running nats-server with JetStream, killed when dropped.
pub struct NatsServer {
    child: Child,
    directory: PathBuf,
    url: String,
}

impl NatsServer {
    /// Starts one with its store in `directory` and waits until it accepts connections.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_with(directory, &["-js"])
    }

    /// As [`Self::start`] with other arguments; JetStream is on only where they say so.
    pub fn start_with(directory: &Path, arguments: &[&str]) -> Result<Self> {
        let child = spawn(directory, "-1", arguments)?;
        let mut server = Self { child, directory: directory.to_path_buf(), url: String::new() };
        server.url = server.ready()?;
        Ok(server)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    fn ready(&mut self) -> Result<String> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.child.exited() {
                bail!("nats-server ended ({status})\n{}", self.child.log_tail());
            }
            let url = read_ports(&self.directory, self.child.id()).filter(|url| accepts(url));
            if let Some(url) = url {
                return Ok(url);
            }
            if Instant::now() > deadline {
                bail!("nats-server does not accept connections\n{}", self.child.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }
}

fn spawn(directory: &Path, port: &str, arguments: &[&str]) -> Result<Child> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let mut command = Command::new(binaries::nats_server()?);
    command.args(["-a", "127.0.0.1", "-p", port, "-sd"]).arg(directory.join("store"));
    command.arg("--ports_file_dir").arg(directory).args(arguments);
    Child::start("nats-server", command, directory)
}

/// The client URL of the ports file, which is named after the binary, whatever that is called, and the process.
fn read_ports(directory: &Path, id: u32) -> Option<String> {
    let ending = format!("_{id}.ports");
    let mut files = fs::read_dir(directory).ok()?.flatten();
    let file = files.find(|file| file.file_name().to_string_lossy().ends_with(&ending))?;
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    ports["nats"][0].as_str().map(str::to_owned)
}

fn accepts(url: &str) -> bool {
    url.strip_prefix("nats://").is_some_and(|address| TcpStream::connect(address).is_ok())
}
