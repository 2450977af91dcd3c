//! Services and commands at a leaf node, whose JetStream is in the hub's domain: every subject reaches it, also those that servers
//! do not pass from one domain to another, and restarts of either server are noticed.

use highwater_tests::{cli, cluster::SERVICES, load, prelude::*};

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(60);

/// What a command at the leaf node prints.
fn at_leaf(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    cli::json_of(&[arguments, &cluster.reach()[..]].concat(), 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_at_a_leaf_node_use_the_jetstream_of_the_hub() -> Result<()> {
    Cluster::leaf()?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let hub = Client::connect(cluster.servers()[1].url()).await?;
            let mut rng = Rng::seeded("leaf node");
            let indexes = &documents::indexes(2)[..2];
            // Documents are written at the hub, and asked for from both.
            let source = load::indexed(&hub, BUCKET, 500, indexes, &mut rng, WITHIN).await?.patient(WITHIN);
            let leaf = cluster.client().await?;
            ask::each(&leaf, &source, indexes).await?;
            let shown = at_leaf(cluster, &["index", "list"])?;
            ensure!(shown["indexes"].as_array().is_some_and(|all| all.len() == indexes.len()), "{shown}");
            // The bucket of the cluster managers is written by the API of the hub's domain.
            ensure!(hub.lease_holder().await?.as_deref() == Some(SERVICES[0]), "the hub has no lease");
            let here = leaf.js.stream_names();
            let here: Vec<String> = futures_util::TryStreamExt::try_collect(here).await?;
            ensure!(here.is_empty(), "streams at the leaf node: {here:?}");
            for server in [1, 0] {
                cluster.servers()[server].kill();
                cluster.servers()[server].start_again()?;
                hub.wait_formed(&SERVICES).await?;
                load::write(&source, 200, &mut rng).await?;
                ask::each_again(&hub, &source, indexes, WITHIN)
                    .await
                    .with_context(|| format!("after restart of {server}"))?;
                ask::each_again(&leaf, &source, indexes, WITHIN).await?;
            }
            // Who coordinates and who leads the cluster managers may change too.
            cluster.restart("coordinator-1").await?;
            cluster.restart("cluster-manager-1").await?;
            hub.wait_formed(&SERVICES).await?;
            load::write(&source, 50, &mut rng).await?;
            ask::each_again(&leaf, &source, indexes, WITHIN).await
        })
        .await
}
