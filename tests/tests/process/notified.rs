//! What a service manager is told (`Type=notify`): `READY=1` when a service serves, `STOPPING=1` when it was asked to end.

use highwater_tests::{binaries, child::Child, cluster::SERVICES, prelude::*};
use std::path::Path;
use tokio::{net::UnixDatagram, time::timeout};

const VARIABLE: &str = "NOTIFY_SOCKET";
const READY: &str = "highwater ready";
const WITHIN: Duration = Duration::from_secs(60);

/// A service manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> Result<Self> {
        Ok(Self(UnixDatagram::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?))
    }

    /// The next thing that it is told.
    async fn told(&self) -> Result<String> {
        let mut message = [0; 4_096];
        let length = timeout(WITHIN, self.0.recv(&mut message)).await.context("nothing is told")??;
        Ok(String::from_utf8_lossy(&message[..length]).trim().to_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_tell_when_they_serve_and_when_they_end() -> Result<()> {
    Cluster::without_services()?
        .run(async |cluster| {
            let mut managers = Vec::new();
            for node in SERVICES {
                let path = cluster.path().join(format!("{node}.notify"));
                let manager = Manager::listen(&path)?;
                cluster.spawn_prepared(node, |command| {
                    command.env(VARIABLE, &path);
                })?;
                managers.push((node, manager));
            }
            for (node, manager) in &managers {
                let told = manager.told().await?;
                ensure!(told == "READY=1", "{node} tells {told}");
                ensure!(cluster.node(node)?.said(READY).is_some(), "{node} tells it before it serves");
            }
            for (node, manager) in managers.iter().rev() {
                cluster.stop(node).await?;
                let told = manager.told().await?;
                ensure!(told == "STOPPING=1", "{node} tells {told}");
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_that_does_not_listen_is_none_of_our_business() -> Result<()> {
    Cluster::without_services()?
        .run(async |cluster| {
            let nowhere = cluster.path().join("nowhere");
            cluster.spawn_prepared("cluster-manager-1", |command| {
                command.env(VARIABLE, nowhere);
            })?;
            cluster.wait_ready("cluster-manager-1").await?;
            cluster.stop("cluster-manager-1").await
        })
        .await
}

/// Its socket may be full, and whoever tells it something may panic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_that_cannot_be_told_holds_nobody_up() -> Result<()> {
    Cluster::without_services()?
        .breakable(&["cluster-manager-1"])?
        .run(async |cluster| {
            for panics in [true, false] {
                if panics {
                    cluster.panic_at("cluster-manager-1", "notify")?;
                } else {
                    cluster.hang_at("cluster-manager-1", "notify")?;
                }
                cluster.spawn("cluster-manager-1")?;
                cluster.hit("cluster-manager-1", "notify").await?;
                cluster.wait_ready("cluster-manager-1").await?;
                let named = cluster.node("cluster-manager-1")?.log().contains("service manager");
                ensure!(named || !panics, "{}", cluster.node("cluster-manager-1")?.log_tail());
                cluster.stop("cluster-manager-1").await?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_services_in_one_process_tell_it_once() -> Result<()> {
    Cluster::without_services()?
        .run(async |cluster| {
            let path = cluster.path().join("dev.notify");
            let manager = Manager::listen(&path)?;
            let mut command = binaries::command()?;
            command.args(["dev", "--nats-url", cluster.url(), "--data-dir"]).arg(cluster.path().join("dev"));
            command.env(VARIABLE, &path);
            let mut dev = Child::start("dev", command, cluster.path())?;
            let told = manager.told().await?;
            ensure!(told == "READY=1" && dev.said(READY).is_some(), "{told}\n{}", dev.log_tail());
            dev.terminate()?;
            let told = manager.told().await?;
            ensure!(told == "STOPPING=1", "{told}");
            let ended =
                until("dev ends", WITHIN, || std::future::ready(dev.exited().ok_or_else(|| dev.log_tail()))).await?;
            ensure!(ended.success(), "{ended}\n{}", dev.log_tail());
            Ok(())
        })
        .await
}
