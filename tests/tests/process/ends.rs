//! SIGTERM ends every service, whatever hangs. The exit code tells how: 0 says that it ended by itself within the time that it
//! has, 1 that it was ended when that time was up.

use highwater_tests::{binaries, child::Child, cluster::SERVICES, prelude::*};
use std::process::Command;
use tokio::{net::TcpListener, time::timeout};

const WITHIN: Duration = Duration::from_secs(30);

/// SIGTERM, and waits for the end; answers the code.
async fn terminated(cluster: &mut Cluster, node: &str) -> Result<Option<i32>> {
    let began = Instant::now();
    cluster.node(node)?.terminate()?;
    let status = until(&format!("{node} ends"), WITHIN, || {
        let child = cluster.node(node).map_err(|error| error.to_string());
        std::future::ready(child.and_then(|child| child.exited().ok_or_else(|| "it runs".to_owned())))
    })
    .await?;
    println!("{node} ended after {:.1?} ({status})", began.elapsed());
    cluster.kill(node)?;
    Ok(status.code())
}

async fn with_documents(cluster: &Cluster, rng: &mut Rng) -> Result<(Client, Source, Vec<Index>)> {
    let client = cluster.client().await?;
    let source = Source::key_value(&client, "orders").await?;
    source.write((0..500).map(|_| documents::write(rng, 1, 500))).await?;
    let indexes = documents::indexes(2);
    client.create_indexes("orders", &indexes, WITHIN).await?;
    Ok((client, source, indexes))
}

/// What is wrong with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// It keeps its connections, and neither takes nor says anything.
    StandsStill,
    /// It has ended, and takes no connections.
    IsGone,
}

/// Each service ends well while its server is like that, and goes on with the server.
async fn services_end_while(server: Server) -> Result<()> {
    let mut rng = Rng::seeded(&format!("ends while the server {server:?}"));
    Cluster::start()
        .await?
        .run(async |cluster| {
            let (_, source, indexes) = with_documents(cluster, &mut rng).await?;
            match server {
                Server::StandsStill => cluster.nats().child().freeze()?,
                Server::IsGone => cluster.nats().kill(),
            }
            for node in SERVICES.into_iter().rev() {
                let code = terminated(cluster, node).await?;
                ensure!(code == Some(0), "{node} ended with {code:?}");
            }
            match server {
                Server::StandsStill => cluster.nats().child().thaw()?,
                Server::IsGone => cluster.nats().start_again()?,
            }
            for node in SERVICES {
                cluster.start_node(node).await?;
            }
            let client = cluster.client().await?;
            ask::each_again(&client, &source, &indexes, WITHIN).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_end_while_their_server_stands_still() -> Result<()> {
    services_end_while(Server::StandsStill).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_end_while_their_server_is_gone() -> Result<()> {
    services_end_while(Server::IsGone).await
}

/// Every kind of process, while it waits for the first words of a server that takes connections and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_end_while_they_wait_for_a_server_to_answer() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("highwater-test-").tempdir()?;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("nats://{}", silent.local_addr()?);
    for node in SERVICES.into_iter().chain(["dev"]) {
        let kind = node.rsplit_once('-').map_or(node, |(kind, _)| kind);
        let mut command = Command::new(binaries::highwater()?);
        command.args([kind, "--nats-url", &url, "--data-dir"]).arg(directory.path().join("data"));
        if kind != node {
            command.args(["--node-id", node]);
        }
        let mut child = Child::start(node, command, directory.path())?;
        let connected =
            timeout(WITHIN, silent.accept()).await.with_context(|| format!("{node} does not connect"))??;
        child.terminate()?;
        let status = until(&format!("{node} ends"), WITHIN, || {
            std::future::ready(child.exited().ok_or_else(|| "it runs".to_owned()))
        })
        .await?;
        ensure!(status.code() == Some(0), "{node} ended badly ({status})\n{}", child.log_tail());
        drop(connected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_end_while_work_of_theirs_hangs() -> Result<()> {
    let mut rng = Rng::seeded("ends while work hangs");
    let nodes = ["indexer-1", "coordinator-1", "projector-1"];
    let cluster = Cluster::without_services()?.breakable(&nodes)?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let (client, source, indexes) = with_documents(cluster, &mut rng).await?;
            // A build, a worker, a disk, a task that blocks its thread, and the whole of a service.
            for (node, fault, code) in [
                ("indexer-1", "build", Some(0)),
                ("indexer-1", "worker.orders", Some(0)),
                ("coordinator-1", "keep", Some(0)),
                ("projector-1", "vbucket.orders", Some(0)),
                ("coordinator-1", "ddl.index.create", Some(1)),
            ] {
                cluster.hang_at(node, fault)?;
                let name = format!("{}-{}", node.replace("-1", ""), fault.replace('.', "-"));
                let create = json!(documents::passing(&name).definition("orders"));
                // It may not be answered any more.
                let _ = client.request_within("hw.admin.index.create", &create, Duration::from_secs(1)).await;
                source.write([documents::write(&mut rng, 1, 500)]).await?;
                cluster.hit(node, fault).await?;
                let ended = terminated(cluster, node).await?;
                ensure!(ended == code, "{node}: {fault}: ended with {ended:?}");
                cluster.start_node(node).await?;
                until("everything goes on", WITHIN, async || {
                    ask::newest(&client, &source, &indexes[0]).await.map_err(|error| format!("{error:#}"))
                })
                .await?;
            }
            Ok(())
        })
        .await
}
