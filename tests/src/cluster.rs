//! A nats-server, or a cluster of them, and Highwater's services, each a process of its own, in one temporary directory.
//!
//! When it is dropped by a panic or a failed test ([`Cluster::run`]), the end of every log is printed. Nothing is left behind.

use crate::{binaries, child::Child, client::Client, nats::NatsServer, rounds, wait::until};
use anyhow::{Context, Result, bail, ensure};
use async_nats::ConnectOptions;
use highwater_schemas::subjects;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// One of each service, in the order of their start.
pub const SERVICES: [&str; 5] = [MANAGER, "coordinator-1", "projector-1", "indexer-1", "catalog-1"];
const MANAGER: &str = "cluster-manager-1";
const CONFIGURATION: &str = "nats.conf";
const READY: &str = "highwater ready";
const READY_WITHIN: Duration = Duration::from_secs(30);
const ENDED_WITHIN: Duration = Duration::from_secs(60);
/// A test that takes longer than this hangs; where rounds are repeated more often, so many times as long.
const OVER_WITHIN: Duration = Duration::from_secs(1_200);
const LONGER: u64 = 10;
/// Servers of a cluster: the fewest of which one can go.
const SERVERS: usize = 3;

/// The service that a node runs: the node's name without the number.
pub fn service_of(node: &str) -> &str {
    node.rsplit_once('-').map_or(node, |(service, _)| service)
}

/// The processes of one test.
pub struct Cluster {
    // Dropped in this order: the services before their server, the directory last.
    services: Vec<Child>,
    servers: Vec<NatsServer>,
    url: String,
    /// By service, further arguments of every start.
    arguments: BTreeMap<String, Vec<String>>,
    /// By node, where it finds NATS if not at the server itself.
    detours: BTreeMap<String, String>,
    trusted: Option<PathBuf>,
    /// By which every node and command is let in.
    access: Vec<String>,
    /// How the tests' own clients connect.
    options: ConnectOptions,
    directory: TempDir,
}

impl Cluster {
    /// A nats-server and one of each service, ready.
    pub async fn start() -> Result<Self> {
        Self::start_nodes(&SERVICES).await
    }

    /// A nats-server and these nodes, which have found each other; a node is called after its service and a number, as in
    /// `indexer-2`. With index managers there is a cluster manager, named or not.
    pub async fn start_nodes(nodes: &[&str]) -> Result<Self> {
        Self::without_services()?.with_nodes(nodes).await
    }

    /// These nodes beside what there is.
    pub async fn with_nodes(mut self, nodes: &[&str]) -> Result<Self> {
        let managed = nodes.iter().any(|node| node.starts_with("coordinator"));
        let named = nodes.iter().any(|node| node.starts_with("cluster-manager"));
        let nodes: Vec<&str> =
            (managed && !named).then_some(MANAGER).into_iter().chain(nodes.iter().copied()).collect();
        for node in &nodes {
            self.spawn(node)?;
        }
        for node in &nodes {
            self.wait_ready(node).await?;
        }
        if managed {
            let client = self.client().await?;
            let formed = client.wait_formed(&nodes).await;
            if formed.is_err() {
                self.print_logs();
            }
            formed?;
        }
        Ok(self)
    }

    /// Only a nats-server.
    pub fn without_services() -> Result<Self> {
        let directory = temporary()?;
        let nats = NatsServer::start(&directory.path().join("nats"))?;
        Ok(Self::new(vec![nats], directory))
    }

    /// Only a nats-server, with a configuration that enables JetStream.
    pub fn configured(configuration: &str) -> Result<Self> {
        Self::configured_by(|_| Ok(configuration.to_owned()))
    }

    /// The same, with files that the configuration names in this directory.
    pub fn configured_by(configuration: impl FnOnce(&Path) -> Result<String>) -> Result<Self> {
        let directory = temporary()?;
        let file = directory.path().join(CONFIGURATION);
        fs::write(&file, configuration(directory.path())?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let nats = NatsServer::start_with(&directory.path().join("nats"), &["-c", &file.to_string_lossy()])?;
        Ok(Self::new(vec![nats], directory))
    }

    /// Has that server take another configuration.
    pub fn reconfigure(&mut self, configuration: &str) -> Result<()> {
        fs::write(self.path().join(CONFIGURATION), configuration).context("cannot write the configuration")?;
        self.nats().child().reload()
    }

    /// Only nats-servers, three of them, which form a cluster; services will keep three replicas of their streams.
    pub async fn replicated() -> Result<Self> {
        let directory = temporary()?;
        let servers = NatsServer::start_cluster(directory.path(), SERVERS)?;
        let replicas = ["--stream-replicas", "3"];
        let cluster = Self::new(servers, directory)
            .with_arguments("coordinator", &replicas)
            .with_arguments("cluster-manager", &replicas);
        // JetStream answers once the servers have a leader among them.
        let client = cluster.client().await?;
        until("the servers form a cluster", READY_WITHIN, async || {
            client.js.query_account().await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await?;
        Ok(cluster)
    }

    /// Only a leaf node and its hub, in this order; nodes and clients are at the leaf node and use the hub's JetStream.
    pub fn leaf() -> Result<Self> {
        let directory = temporary()?;
        let (hub, leaf) = NatsServer::start_leaf(directory.path())?;
        let url = leaf.url().to_owned();
        let mut cluster = Self::new(vec![leaf, hub], directory);
        cluster.url = url;
        Ok(cluster.with_access(vec!["--js-domain".into(), "hub".into()]))
    }

    fn new(servers: Vec<NatsServer>, directory: TempDir) -> Self {
        let urls: Vec<&str> = servers.iter().map(NatsServer::url).collect();
        let url = urls.join(",");
        Self {
            services: Vec::new(),
            servers,
            url,
            arguments: BTreeMap::new(),
            detours: BTreeMap::new(),
            trusted: None,
            access: Vec::new(),
            options: ConnectOptions::new(),
            directory,
        }
    }

    /// Every node of this service is started with these arguments too, each time.
    #[must_use]
    pub fn with_arguments(mut self, service: &str, arguments: &[&str]) -> Self {
        let all = self.arguments.entry(service.into()).or_default();
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Every node takes the certificates of this file for those of the system.
    #[must_use]
    pub fn trusting(mut self, certificates: &Path) -> Self {
        self.trusted = Some(certificates.to_path_buf());
        self
    }

    /// Every node gets these arguments, and every command that is to reach NATS.
    #[must_use]
    pub fn with_access(mut self, arguments: Vec<String>) -> Self {
        self.access = arguments;
        self
    }

    /// The arguments by which a command reaches NATS.
    pub fn reach(&self) -> Vec<&str> {
        ["--nats-url", self.url()].into_iter().chain(self.access.iter().map(String::as_str)).collect()
    }

    /// The tests' own clients connect like that.
    #[must_use]
    pub fn with_options(mut self, options: ConnectOptions) -> Self {
        self.options = options;
        self
    }

    /// A node finds NATS there.
    #[must_use]
    pub fn with_detour(mut self, node: &str, url: &str) -> Self {
        self.detours.insert(node.into(), url.into());
        self
    }

    /// These nodes can be made to fail from within; see [`crate::faults`].
    pub fn breakable(self, nodes: &[&str]) -> Result<Self> {
        for node in nodes {
            fs::create_dir_all(self.faults_of(node).1).context("no directory for faults")?;
        }
        Ok(self)
    }

    /// Of all servers, separated by commas.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The server, or the first of them.
    pub fn nats(&mut self) -> &mut NatsServer {
        &mut self.servers[0]
    }

    pub fn servers(&mut self) -> &mut [NatsServer] {
        &mut self.servers
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, node: &str) -> PathBuf {
        self.path().join("data").join(node)
    }

    /// A connection of its own.
    pub async fn client(&self) -> Result<Client> {
        Client::connect_with(self.url(), self.options.clone()).await
    }

    /// The process of a node.
    pub fn node(&mut self, node: &str) -> Result<&mut Child> {
        self.services.iter_mut().find(|s| s.name() == node).with_context(|| format!("there is no node {node}"))
    }

    /// The command that runs a node here: `highwater <service> --node-id … --data-dir … --nats-url …`.
    pub fn command(&self, node: &str) -> Result<Command> {
        let service = service_of(node);
        let data = self.data_dir(node);
        fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        let mut command = binaries::command()?;
        let url = self.detours.get(node).map_or(self.url(), String::as_str);
        command.args([service, "--node-id", node, "--nats-url", url, "--data-dir"]).arg(data).args(&self.access);
        command.args(self.arguments.get(service).into_iter().flatten());
        if let Some(certificates) = &self.trusted {
            command.env("SSL_CERT_FILE", certificates);
        }
        let (variable, faults) = self.faults_of(node);
        if faults.exists() {
            command.env(variable, faults);
        }
        Ok(command)
    }

    /// Starts a node without waiting until it serves.
    pub fn spawn(&mut self, node: &str) -> Result<()> {
        self.spawn_prepared(node, |_| ())
    }

    /// The same, with further arguments.
    pub fn spawn_with(&mut self, node: &str, arguments: &[&str]) -> Result<()> {
        self.spawn_prepared(node, |command| {
            command.args(arguments);
        })
    }

    /// The same, with whatever else is to be set.
    pub fn spawn_prepared(&mut self, node: &str, prepare: impl FnOnce(&mut Command)) -> Result<()> {
        let mut command = self.command(node)?;
        prepare(&mut command);
        self.services.push(Child::start(node, command, self.directory.path())?);
        Ok(())
    }

    /// Starts a node and waits until it serves.
    pub async fn start_node(&mut self, node: &str) -> Result<()> {
        self.spawn(node)?;
        self.wait_ready(node).await
    }

    /// Waits until a node has said that it serves.
    pub async fn wait_ready(&mut self, node: &str) -> Result<()> {
        self.node(node)?.wait_said(READY, READY_WITHIN).await?;
        Ok(())
    }

    /// SIGKILL; the node's data and log stay.
    pub fn kill(&mut self, node: &str) -> Result<()> {
        self.node(node)?.kill();
        self.services.retain(|service| service.name() != node);
        Ok(())
    }

    /// SIGTERM, and waits for a good end; the node's data and log stay.
    pub async fn stop(&mut self, node: &str) -> Result<()> {
        self.node(node)?.terminate()?;
        self.ended(node, 0, ENDED_WITHIN).await
    }

    /// Waits until a node has ended with this code; its data and log stay.
    pub async fn ended(&mut self, node: &str, code: i32, within: Duration) -> Result<()> {
        let child = self.node(node)?;
        let status = child.ended(within).await?;
        ensure!(status.code() == Some(code), "{node} ended with {status}, not {code}\n{}", child.log_tail());
        self.services.retain(|service| service.name() != node);
        Ok(())
    }

    /// The nodes that run, in the order of their start.
    pub fn nodes(&self) -> Vec<String> {
        self.services.iter().map(|service| service.name().to_owned()).collect()
    }

    /// SIGKILL, and the same node again on its data.
    pub async fn restart(&mut self, node: &str) -> Result<()> {
        self.kill(node)?;
        self.start_node(node).await
    }

    /// Fails when a service has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        for service in &mut self.services {
            if let Some(status) = service.exited() {
                bail!("{} ended ({status})", service.name());
            }
        }
        Ok(())
    }

    /// Prints the end of every log.
    pub fn print_logs(&self) {
        for service in &self.services {
            eprintln!("{}", service.log_tail());
        }
    }

    /// Runs a test on this cluster: checks at its end that every service still runs, and prints the logs if it fails.
    pub async fn run<F: AsyncFnOnce(&mut Self) -> Result<()>>(mut self, test: F) -> Result<()> {
        let within = OVER_WITHIN * rounds(1, LONGER) as u32;
        let ended = tokio::time::timeout(within, test(&mut self)).await;
        let mut outcome = ended.unwrap_or_else(|_| Err(anyhow::anyhow!("the test is not over after {within:?}")));
        let alive = self.check();
        if outcome.is_ok() {
            outcome = alive;
        } else if let Err(ended) = alive {
            eprintln!("{ended}");
        }
        if outcome.is_err() {
            self.print_logs();
            self.print_state().await;
        }
        outcome
    }

    /// Prints what the services say about themselves.
    async fn print_state(&self) {
        let Ok(client) = self.client().await else { return };
        let nodes = self.services.iter().map(|service| subjects::node(service.name(), "status"));
        for subject in ["hw.cluster.members", "hw.query.list"].map(str::to_owned).into_iter().chain(nodes) {
            match client.request_within(&subject, &json!({}), ENDED_WITHIN).await {
                Ok(reply) => eprintln!("--- {subject}: {reply:#}"),
                Err(refused) => eprintln!("--- {subject}: {refused}"),
            }
        }
    }
}

fn temporary() -> Result<TempDir> {
    tempfile::Builder::new().prefix("highwater-test-").tempdir().context("no temporary directory")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}
