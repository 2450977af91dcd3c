//! A nats-server of its own on a free port, or several as a cluster.

use crate::{binaries, child::Child, wait::deadline};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const READY_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// Times that free ports are looked for: someone else may take one before the servers do.
const ATTEMPTS: usize = 5;

/// A running nats-server with JetStream, killed when dropped.
pub struct NatsServer {
    name: String,
    child: Child,
    directory: PathBuf,
    arguments: Vec<String>,
    url: String,
}

impl NatsServer {
    /// Starts one with its store in `directory` and waits until it accepts connections.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_with(directory, &["-js"])
    }

    /// As [`Self::start`] with other arguments; JetStream is on only where they say so.
    pub fn start_with(directory: &Path, arguments: &[&str]) -> Result<Self> {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut server = Self::spawn("nats-server", directory, "-1", arguments)?;
        server.url = server.ready()?;
        Ok(server)
    }

    /// Starts some that form a cluster; each is named after its number, as in `nats-2`, and has a directory of that name.
    pub fn start_cluster(directory: &Path, count: usize) -> Result<Vec<Self>> {
        let mut outcome = Err(anyhow::anyhow!("no attempt was made"));
        for _ in 0..ATTEMPTS {
            outcome = Self::try_cluster(directory, count);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn try_cluster(directory: &Path, count: usize) -> Result<Vec<Self>> {
        let ports = free_ports(count * 2)?;
        let (clients, routes) = ports.split_at(count);
        let listed: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let listed = listed.join(",");
        let mut servers = Vec::new();
        for (number, (client, route)) in (1..).zip(clients.iter().zip(routes)) {
            let name = format!("nats-{number}");
            let listen = format!("nats://127.0.0.1:{route}");
            let arguments = ["-js", "-n", &name, "--cluster_name", "tested", "--cluster", &listen, "--routes", &listed];
            let arguments = arguments.map(str::to_owned).to_vec();
            servers.push(Self::spawn(&name, &directory.join(&name), &client.to_string(), arguments)?);
        }
        for server in &mut servers {
            server.url = server.ready()?;
        }
        Ok(servers)
    }

    /// Starts a hub, and a leaf node of it. Each has a JetStream of its own, in a domain of that name.
    pub fn start_leaf(directory: &Path) -> Result<(Self, Self)> {
        let mut outcome = Err(anyhow::anyhow!("no attempt was made"));
        for _ in 0..ATTEMPTS {
            outcome = Self::try_leaf(directory);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn try_leaf(directory: &Path) -> Result<(Self, Self)> {
        let port = free_ports(1)?.first().copied().context("no port")?;
        let start = |name: &str, leafnodes: &str| -> Result<Self> {
            let file = directory.join(format!("{name}.conf"));
            let configuration =
                format!("server_name: {name}\njetstream {{ domain: {name} }}\nleafnodes {{ {leafnodes} }}\n");
            fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
            let arguments = vec!["-c".to_owned(), file.to_string_lossy().into_owned()];
            let mut server = Self::spawn(name, &directory.join(name), "-1", arguments)?;
            server.url = server.ready()?;
            Ok(server)
        };
        let hub = start("hub", &format!("listen: \"127.0.0.1:{port}\""))?;
        let remote = format!("remotes: [ {{ url: \"nats-leaf://127.0.0.1:{port}\" }} ], reconnect: \"200ms\"");
        Ok((hub, start("leaf", &remote)?))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default()
    }

    /// What it has counted since its start: `total_connections`, `slow_consumers`. Its configuration must have
    /// `http: "127.0.0.1:-1"`.
    pub fn counted(&self, what: &str) -> Result<u64> {
        let told = self.monitored("varz")?;
        told[what].as_u64().with_context(|| format!("no {what}"))
    }

    /// A page of its monitoring, as in `connz`. Its configuration must have `http: "127.0.0.1:-1"`.
    pub fn monitored(&self, page: &str) -> Result<serde_json::Value> {
        let url = read_ports(&self.directory, self.child.id(), "monitoring").context("it is not monitored")?;
        let address = url.strip_prefix("http://").context("no address")?;
        let mut stream = TcpStream::connect(address).context("no monitoring")?;
        stream.set_read_timeout(Some(READY_WITHIN))?;
        write!(stream, "GET /{page} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let body = text.split_once("\r\n\r\n").context("no body")?.1;
        serde_json::from_str(body).context("no JSON")
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// SIGKILL; what it stored stays.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) -> Result<()> {
        self.child.terminate()?;
        let deadline = deadline(READY_WITHIN);
        while self.child.exited().is_none() {
            ensure!(Instant::now() < deadline, "{} does not end\n{}", self.name, self.child.log_tail());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The same one again, on its port and its store, after it was killed or stopped.
    pub fn start_again(&mut self) -> Result<()> {
        let port = self.port().to_string();
        let again = Self::spawn(&self.name, &self.directory, &port, self.arguments.clone())?;
        self.child = again.child;
        self.url = self.ready()?;
        Ok(())
    }

    /// Where it keeps a stream.
    pub fn stream_dir(&self, stream: &str) -> PathBuf {
        self.directory.join("store/jetstream/$G/streams").join(stream)
    }

    fn spawn(name: &str, directory: &Path, port: &str, arguments: Vec<String>) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let mut command = Command::new(binaries::nats_server()?);
        command.args(["-a", "127.0.0.1", "-p", port, "-sd"]).arg(directory.join("store"));
        command.arg("--ports_file_dir").arg(directory).args(&arguments);
        let child = Child::start(name, command, directory)?;
        Ok(Self { name: name.into(), child, directory: directory.to_path_buf(), arguments, url: String::new() })
    }

    fn ready(&mut self) -> Result<String> {
        let deadline = deadline(READY_WITHIN);
        loop {
            if let Some(status) = self.child.exited() {
                bail!("{} ended ({status})\n{}", self.name, self.child.log_tail());
            }
            let url = read_ports(&self.directory, self.child.id(), "nats").filter(|url| accepts(url));
            if let Some(url) = url {
                return Ok(url);
            }
            if Instant::now() > deadline {
                bail!("{} does not accept connections\n{}", self.name, self.child.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Ports that nobody listens at now, all different.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().context("no free port")?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// The first URL of a kind in the ports file, which is named after the binary, whatever that is called, and the process.
fn read_ports(directory: &Path, id: u32, kind: &str) -> Option<String> {
    let ending = format!("_{id}.ports");
    let mut files = fs::read_dir(directory).ok()?.flatten();
    let file = files.find(|file| file.file_name().to_string_lossy().ends_with(&ending))?;
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    ports[kind][0].as_str().map(str::to_owned)
}

/// One that demands TLS says so in its URL.
fn accepts(url: &str) -> bool {
    url.split_once("://").is_some_and(|(_, address)| TcpStream::connect(address).is_ok())
}
