//! A nats-server and Highwater's services, each a process of its own, in one temporary directory.
//!
//! When it is dropped by a panic or a failed test ([`Cluster::run`]), the end of every log is printed. Nothing is left behind.

use crate::{binaries, child::Child, client::Client, nats::NatsServer};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// One of each service, in the order of their start.
pub const SERVICES: [&str; 5] = [MANAGER, "coordinator-1", "projector-1", "indexer-1", "catalog-1"];
const MANAGER: &str = "cluster-manager-1";
const READY: &str = "highwater ready";
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The processes of one test.
pub struct Cluster {
    // Dropped in this order: the services before their server, the directory last.
    services: Vec<Child>,
    nats: NatsServer,
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
        let directory =
            tempfile::Builder::new().prefix("highwater-test-").tempdir().context("no temporary directory")?;
        let nats = NatsServer::start(&directory.path().join("nats"))?;
        Ok(Self { services: Vec::new(), nats, directory })
    }

    pub fn url(&self) -> &str {
        self.nats.url()
    }

    pub fn nats(&mut self) -> &mut NatsServer {
        &mut self.nats
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
        Client::connect(self.url()).await
    }

    /// The process of a node.
    pub fn node(&mut self, node: &str) -> Result<&mut Child> {
        self.services.iter_mut().find(|s| s.name() == node).with_context(|| format!("there is no node {node}"))
    }

    /// The command that runs a node here: `highwater <service> --node-id … --data-dir … --nats-url …`.
    pub fn command(&self, node: &str) -> Result<Command> {
        let service = node.rsplit_once('-').map_or(node, |(service, _)| service);
        let data = self.data_dir(node);
        fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        let mut command = Command::new(binaries::highwater()?);
        command.args([service, "--node-id", node, "--nats-url", self.url(), "--data-dir"]).arg(data);
        Ok(command)
    }

    /// Starts a node without waiting until it serves.
    pub fn spawn(&mut self, node: &str) -> Result<()> {
        let child = Child::start(node, self.command(node)?, self.directory.path())?;
        self.services.push(child);
        Ok(())
    }

    /// The same, with further arguments.
    pub fn spawn_with(&mut self, node: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(node)?;
        command.args(arguments);
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
        let mut outcome = test(&mut self).await;
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
        for subject in ["hw.cluster.members", "hw.query.list"] {
            match client.request(subject, &json!({})).await {
                Ok(reply) => eprintln!("--- {subject}: {reply:#}"),
                Err(refused) => eprintln!("--- {subject}: {refused}"),
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}
