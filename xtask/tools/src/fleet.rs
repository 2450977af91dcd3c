//! A nats-server and the Highwater services as separate processes in one directory; nothing is left when it is dropped.

use crate::{child::Child, nats_process::NatsProcess, nats_server::NatsServer};
use anyhow::{Context, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How many of each service, in the order of their start.
pub type Size = [(&'static str, usize); 5];
/// One of each.
pub const SMALLEST: Size = size(1, 1, 1, 1, 1);
/// Nothing in it is alone but the catalog.
pub const REDUNDANT: Size = size(2, 3, 2, 2, 1);

/// So many cluster managers, index managers, projectors, indexers and catalogs.
const fn size(managers: usize, coordinators: usize, projectors: usize, indexers: usize, catalogs: usize) -> Size {
    [
        ("cluster-manager", managers),
        ("coordinator", coordinators),
        ("projector", projectors),
        ("indexer", indexers),
        ("catalog", catalogs),
    ]
}

/// The line on stdout that says a service serves.
const READY: &str = "highwater ready";
const READY_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// One service process.
pub struct Service {
    /// Its node's name, such as `indexer-1`.
    pub name: String,
    child: Child,
}

impl Service {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

/// The processes of one run.
pub struct Fleet {
    services: Vec<Service>,
    nats: NatsProcess,
    directory: Option<TempDir>,
    path: PathBuf,
}

impl Fleet {
    /// Starts a nats-server in a new directory: under `parent`, or where temporary directories go.
    pub fn start(server: &NatsServer, parent: Option<&Path>) -> Result<Self> {
        Self::start_with(server, parent, "")
    }

    /// The same, with a configuration of the server.
    pub fn start_with(server: &NatsServer, parent: Option<&Path>, configuration: &str) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("highwater-");
        let directory = match parent {
            Some(parent) => {
                std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
                builder.tempdir_in(parent)
            }
            None => builder.tempdir(),
        }
        .context("cannot create a temporary directory")?;
        let path = directory.path().to_path_buf();
        let file = path.join("nats.conf");
        std::fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
        let nats = NatsProcess::start(&server.path, &path.join("nats"), &["-c", &file.to_string_lossy()])?;
        Ok(Self { services: Vec::new(), nats, directory: Some(directory), path })
    }

    /// Stops the nats-server, has something done meanwhile, and starts it again.
    pub fn restart_nats(&mut self, server: &NatsServer, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        self.nats.stop();
        meanwhile()?;
        let file = self.path.join("nats.conf");
        self.nats.start_again(&server.path, &self.path.join("nats"), &["-c", &file.to_string_lossy()])
    }

    /// Starts services of the `highwater` binary and waits until all of them serve.
    pub async fn start_services(&mut self, binary: &Path, size: &Size) -> Result<()> {
        self.start_services_with(binary, size, &[]).await
    }

    /// The same, with further arguments for the cluster managers.
    pub async fn start_services_with(&mut self, binary: &Path, size: &Size, managers: &[&str]) -> Result<()> {
        if !binary.is_file() {
            bail!("there is no {}", binary.display());
        }
        for (kind, count) in size {
            for number in 1..=*count {
                let extra = if *kind == "cluster-manager" { managers } else { &[] };
                self.spawn(binary, kind, number, extra)?;
            }
        }
        let deadline = Instant::now() + READY_WITHIN;
        for service in &mut self.services {
            wait_ready(service, deadline).await?;
        }
        Ok(())
    }

    fn spawn(&mut self, binary: &Path, kind: &str, number: usize, extra: &[&str]) -> Result<()> {
        let name = format!("{kind}-{number}");
        let data = self.data_dir(&name);
        std::fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        let mut command = Command::new(binary);
        // A developer's own NATS settings and contexts are not meant for this server.
        for (variable, _) in std::env::vars_os().filter(|(name, _)| is_foreign(&name.to_string_lossy())) {
            command.env_remove(variable);
        }
        command.env("XDG_CONFIG_HOME", "/dev/null");
        command
            .arg(kind)
            .args(["--node-id", &name, "--nats-url", self.nats.url(), "--data-dir"])
            .arg(&data)
            .args(extra);
        let child = Child::start(&name, command, &self.path)?;
        self.services.push(Service { name, child });
        Ok(())
    }

    /// Ends a service with SIGKILL.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.services.iter().position(|service| service.name == name);
        let mut service = self.services.remove(at.with_context(|| format!("there is no {name}"))?);
        service.child.kill();
        Ok(())
    }

    /// Starts a service that was ended, on its data.
    pub async fn start_again(&mut self, binary: &Path, name: &str) -> Result<()> {
        let (kind, number) = name.rsplit_once('-').context("a node is called after its service and a number")?;
        self.spawn(binary, kind, number.parse()?, &[])?;
        let Some(service) = self.services.last_mut() else { bail!("nothing was started") };
        wait_ready(service, Instant::now() + READY_WITHIN).await
    }

    /// Fails with the log of a service that has ended.
    pub fn check(&mut self) -> Result<()> {
        for service in &mut self.services {
            if let Some(status) = service.child.exited()? {
                bail!("highwater {} ended ({status}); its log says:\n    {}", service.name, service.child.log_tail());
            }
        }
        Ok(())
    }

    pub fn url(&self) -> &str {
        self.nats.url()
    }

    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The process id of a node.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.services.iter().find(|service| service.name == name).map(Service::id)
    }

    /// The process id of the nats-server.
    pub fn nats_id(&self) -> u32 {
        self.nats.id()
    }

    /// Where a service keeps its data.
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory of this run: logs and data.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All process ids, in the order in which they should be ended.
    pub fn ids(&self) -> Vec<u32> {
        let services = self.services.iter().rev().map(Service::id);
        services.chain([self.nats.id()]).collect()
    }

    /// Leaves everything running, and its directory in place, when this is dropped.
    pub fn keep(&mut self) {
        for service in &mut self.services {
            service.child.keep();
        }
        self.nats.keep();
        if let Some(directory) = self.directory.take() {
            let _ = directory.keep();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.directory.is_none() {
            return;
        }
        // All are told first, so that their ends overlap; the fields' own drops wait.
        for service in self.services.iter_mut().rev() {
            service.child.terminate();
        }
        for service in &mut self.services {
            service.child.stop();
        }
        self.nats.stop();
    }
}

/// Whether a variable is of whoever started us, and not meant for the services.
fn is_foreign(variable: &str) -> bool {
    variable.starts_with("NATS_") || variable == "NOTIFY_SOCKET"
}

async fn wait_ready(service: &mut Service, deadline: Instant) -> Result<()> {
    let name = service.name.clone();
    while service.child.said(READY).is_none() {
        if let Some(status) = service.child.exited()? {
            bail!("highwater {name} ended at once ({status}); its log says:\n    {}", service.child.log_tail());
        }
        if Instant::now() > deadline {
            let log = service.child.log_tail();
            bail!("highwater {name} was not ready within {} s; its log says:\n    {log}", READY_WITHIN.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
