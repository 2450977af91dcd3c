//! One stack under a project name of its own, on free ports; all of it is gone when it is dropped.

use super::{engine::Engine, images::Images};
use crate::{shell, workspace::root};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

/// How long the containers may take to be healthy.
const HEALTHY_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(500);
/// The label with which Compose marks what belongs to a project.
const PROJECT: &str = "com.docker.compose.project";
/// Seconds that a container may take to end when its stack is taken down; its data goes as well.
const END_WITHIN_S: &str = "10";
/// Lines of each container's log that a failure shows.
const LOG_LINES: &str = "15";
/// The port of nats-server in its container.
const NATS_PORT: &str = "4222/tcp";

/// Files that an indexer of the stacks may have open, unless it is set.
const INDEXER_FILES: u64 = 65_536;

/// The stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One nats-server
    OneServer,
    /// Three nats-servers, three replicas
    Cluster,
}

impl Kind {
    pub fn title(self) -> &'static str {
        match self {
            Self::OneServer => "one nats-server",
            Self::Cluster => "a cluster of three nats-servers",
        }
    }

    /// The name of its files.
    fn name(self) -> &'static str {
        match self {
            Self::OneServer => "one-server",
            Self::Cluster => "cluster",
        }
    }

    /// The nats-server that the outside talks to.
    fn nats(self) -> &'static str {
        match self {
            Self::OneServer => "nats",
            Self::Cluster => "nats-1",
        }
    }

    /// Of each stream.
    pub fn replicas(self) -> usize {
        match self {
            Self::OneServer => 1,
            Self::Cluster => 3,
        }
    }
}

/// A container as `docker ps` shows it.
#[derive(Debug, Clone)]
struct Container {
    id: String,
    service: String,
    status: String,
}

impl Container {
    fn is_healthy(&self) -> bool {
        self.status.contains("(healthy)")
    }
}

/// The containers, networks and volumes of one project.
pub struct Stack<'a> {
    engine: &'a Engine,
    images: &'a Images<'a>,
    kind: Kind,
    project: String,
    down: bool,
}

impl<'a> Stack<'a> {
    pub fn new(engine: &'a Engine, images: &'a Images<'a>, kind: Kind) -> Self {
        let project = format!("highwater-test-{}-{}", kind.name(), std::process::id());
        Self { engine, images, kind, project, down: false }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Creates and starts everything and waits until all of it is healthy; returns how many containers there are.
    pub async fn up(&self) -> Result<usize> {
        let mut command = self.compose();
        command.args(["up", "-d", "--no-build"]);
        shell::run(command).await?;
        self.wait_healthy().await
    }

    /// Waits until every container is healthy; returns how many there are.
    pub async fn wait_healthy(&self) -> Result<usize> {
        let deadline = Instant::now() + HEALTHY_WITHIN;
        loop {
            let containers = self.containers().await?;
            ensure!(!containers.is_empty(), "the stack has no containers");
            let sick: Vec<String> = containers
                .iter()
                .filter(|container| !container.is_healthy())
                .map(|container| format!("{} ({})", container.service, container.status))
                .collect();
            if sick.is_empty() {
                return Ok(containers.len());
            }
            if Instant::now() > deadline {
                bail!("not healthy within {} s: {}", HEALTHY_WITHIN.as_secs(), sick.join(", "));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The URL of a nats-server for clients outside.
    pub async fn nats_url(&self) -> Result<String> {
        let id = self.id_of(self.kind.nats()).await?;
        let ports = shell::run(self.engine.docker(["port", &id, NATS_PORT])).await?;
        let address = ports.lines().next().context("nats-server has no port outside")?;
        Ok(format!("nats://{}", address.trim()))
    }

    /// Stops a container as an operator does.
    pub async fn stop(&self, service: &str) -> Result<()> {
        let id = self.id_of(service).await?;
        shell::run(self.engine.docker(["stop", &id])).await.map(drop)
    }

    pub async fn start(&self, service: &str) -> Result<()> {
        let id = self.id_of(service).await?;
        shell::run(self.engine.docker(["start", &id])).await.map(drop)
    }

    /// Takes a container's network away while it runs on.
    pub async fn disconnect(&self, service: &str) -> Result<()> {
        let id = self.id_of(service).await?;
        shell::run(self.engine.docker(["network", "disconnect", &self.network(), &id])).await.map(drop)
    }

    pub async fn connect(&self, service: &str) -> Result<()> {
        let id = self.id_of(service).await?;
        let network = self.network();
        shell::run(self.engine.docker(["network", "connect", "--alias", service, &network, &id])).await.map(drop)
    }

    /// The services whose containers have ended by themselves and were started again.
    pub async fn restarted(&self) -> Result<Vec<String>> {
        let mut restarted = Vec::new();
        for Container { id, service, .. } in self.containers().await? {
            let count = shell::run(self.engine.docker(["inspect", "--format", "{{.RestartCount}}", &id])).await?;
            if count.trim() != "0" {
                restarted.push(format!("{service} ({} times)", count.trim()));
            }
        }
        Ok(restarted)
    }

    /// Shows the end of every log on stderr.
    pub async fn print_logs(&self) {
        let mut command = self.compose();
        command.args(["logs", "--no-color", "--tail", LOG_LINES]);
        match shell::run(command).await {
            Ok(text) => eprintln!("{text}"),
            Err(error) => eprintln!("note: no logs: {error:#}"),
        }
    }

    /// Takes it down and fails when anything of it is left.
    pub fn down_and_check(mut self) -> Result<()> {
        self.take_down()?;
        let label = format!("label={PROJECT}={}", self.project);
        let lists = [
            ("containers", self.engine.docker(["ps", "--all", "--quiet", "--filter", &label])),
            ("networks", self.engine.docker(["network", "ls", "--quiet", "--filter", &label])),
            ("volumes", self.engine.docker(["volume", "ls", "--quiet", "--filter", &label])),
        ];
        for (what, list) in lists {
            let left = shell::run_blocking(list)?;
            ensure!(left.trim().is_empty(), "{what} are left: {left}");
        }
        Ok(())
    }

    fn take_down(&mut self) -> Result<()> {
        self.down = true;
        let mut command = self.compose();
        command.args(["down", "--volumes", "--remove-orphans", "--timeout", END_WITHIN_S]);
        shell::run_blocking(command).map(drop)
    }

    async fn containers(&self) -> Result<Vec<Container>> {
        let label = format!("label={PROJECT}={}", self.project);
        let format = "{{.ID}}\t{{.Label \"com.docker.compose.service\"}}\t{{.Status}}";
        let text = shell::run(self.engine.docker(["ps", "--all", "--filter", &label, "--format", format])).await?;
        let lines = text.lines().map(|line| line.splitn(3, '\t').map(str::to_owned).collect::<Vec<_>>());
        lines
            .map(|columns| match <[String; 3]>::try_from(columns) {
                Ok([id, service, status]) => Ok(Container { id, service, status }),
                Err(columns) => bail!("docker ps says {columns:?}"),
            })
            .collect()
    }

    async fn id_of(&self, service: &str) -> Result<String> {
        let containers = self.containers().await?;
        let found = containers.into_iter().find(|container| container.service == service);
        found.map(|container| container.id).with_context(|| format!("the stack has no container of {service}"))
    }

    /// The network that Compose makes for a project that names none.
    fn network(&self) -> String {
        format!("{}_default", self.project)
    }

    fn compose(&self) -> Command {
        let directory = root().join("compose");
        let mut files: Vec<PathBuf> = vec![directory.join(format!("{}.yml", self.kind.name()))];
        if self.images.scratch {
            files.push(directory.join(format!("{}.scratch.yml", self.kind.name())));
        }
        let mut command = self.engine.compose();
        command.args(["-p", &self.project]);
        for file in files {
            command.arg("-f").arg(file);
        }
        command.envs(self.images.variables());
        // Empty: free ports.
        command.envs(["NATS_PORT", "NATS_PORT_1", "NATS_PORT_2", "NATS_PORT_3"].map(|port| (port, "")));
        if let Some(files) = self.engine.open_files().filter(|files| *files < INDEXER_FILES) {
            command.env("INDEXER_NOFILE", files.to_string());
        }
        command
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        if !self.down
            && let Err(error) = self.take_down()
        {
            eprintln!("note: {error:#}");
        }
    }
}
