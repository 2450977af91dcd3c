//! SIGTERM ends every service, whatever hangs. The exit code tells how: 0 says that it ended by itself within the time that it
//! has, 1 that it was ended when that time was up.

use highwater_tests::{
    binaries,
    child::Child,
    cluster::{SERVICES, service_of},
    load,
    prelude::*,
};
use tokio::{net::TcpListener, time::timeout};

const WITHIN: Duration = Duration::from_secs(30);

/// SIGTERM, and waits for the end with this code.
async fn terminated(cluster: &mut Cluster, node: &str, code: i32) -> Result<()> {
    let began = Instant::now();
    cluster.node(node)?.terminate()?;
    cluster.ended(node, code, WITHIN).await?;
    println!("{node} ended after {:.1?}", began.elapsed());
    Ok(())
}

async fn with_documents(cluster: &Cluster, rng: &mut Rng) -> Result<(Client, Source, Vec<Index>)> {
    let client = cluster.client().await?;
    let indexes = documents::indexes(2);
    let source = load::indexed(&client, "orders", 500, &indexes, rng, WITHIN).await?;
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
                terminated(cluster, node, 0).await?;
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
        let kind = service_of(node);
        let mut command = binaries::command()?;
        command.args([kind, "--nats-url", &url, "--data-dir"]).arg(directory.path().join("data"));
        if kind != node {
            command.args(["--node-id", node]);
        }
        let mut child = Child::start(node, command, directory.path())?;
        let connected =
            timeout(WITHIN, silent.accept()).await.with_context(|| format!("{node} does not connect"))??;
        child.terminate()?;
        let status = child.ended(WITHIN).await?;
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
                ("indexer-1", "build", 0),
                ("indexer-1", "worker.orders", 0),
                ("coordinator-1", "keep", 0),
                ("projector-1", "vbucket.orders", 0),
                ("coordinator-1", "ddl.index.create", 1),
            ] {
                cluster.hang_at(node, fault)?;
                let name = format!("{}-{}", node.replace("-1", ""), fault.replace('.', "-"));
                let create = json!(documents::passing(&name).definition("orders"));
                // It may not be answered any more.
                let _ = client.request_within("hw.admin.index.create", &create, Duration::from_secs(1)).await;
                source.write([documents::write(&mut rng, 1, 500)]).await?;
                cluster.hit(node, fault).await?;
                terminated(cluster, node, code).await.context(fault)?;
                cluster.start_node(node).await?;
                ask::each_again(&client, &source, &indexes, WITHIN).await?;
            }
            Ok(())
        })
        .await
}
