//! SIGTERM ends every service in bounded time, whatever hangs.

use highwater_tests::{cluster::SERVICES, prelude::*};

/// What `docs/operating.md` promises, and what a loaded machine may add.
const PROMISED: Duration = Duration::from_secs(25);
const SLACK: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(30);

/// SIGTERM, and waits for the end; answers the code.
async fn terminated(cluster: &mut Cluster, node: &str) -> Result<Option<i32>> {
    let child = cluster.node(node)?;
    let began = Instant::now();
    child.terminate()?;
    let status = loop {
        match child.exited() {
            Some(status) => break status,
            None if began.elapsed() > PROMISED + SLACK => bail!("{node} does not end\n{}", child.log_tail()),
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_end_while_their_server_stands_still() -> Result<()> {
    let mut rng = Rng::seeded("ends under a server that stands still");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let (_, source, indexes) = with_documents(cluster, &mut rng).await?;
            cluster.nats().child().freeze()?;
            for node in SERVICES.into_iter().rev() {
                let code = terminated(cluster, node).await?;
                ensure!(code == Some(0), "{node} ended with {code:?}");
            }
            cluster.nats().child().thaw()?;
            for node in SERVICES {
                cluster.start_node(node).await?;
            }
            let client = cluster.client().await?;
            until("everything is there", WITHIN, async || {
                ask::newest(&client, &source, &indexes[0]).await.map_err(|error| format!("{error:#}"))
            })
            .await?;
            ask::each(&client, &source, &indexes).await
        })
        .await
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
