//! A panic in what cluster managers and index managers do beside their loops: it counts as having failed, and is done again.

use highwater_schemas::subjects;
use highwater_tests::{cluster::SERVICES, load, prelude::*};

const BUCKET: &str = "people";
const MANAGER: &str = "cluster-manager-1";
const WITHIN: Duration = Duration::from_secs(40);

async fn is_stated(client: &Client, node: &str, what: &str) -> Result<()> {
    until(&format!("{node} states that {what:?} panicked"), WITHIN, async || {
        let members = client.members().await.map_err(|refused| refused.to_string())?;
        let mut all = members["members"].as_array().into_iter().flatten().filter(|member| member["node"] == node);
        let stated = all.any(|member| {
            let mut troubles = member["troubles"].as_array().into_iter().flatten();
            troubles.any(|t| t["what"] == what && t["error"].as_str().is_some_and(|e| e.contains("panicked")))
        });
        if stated { Ok(()) } else { Err(members.to_string()) }
    })
    .await
}

/// Indexes are made, and follow their source.
async fn works(client: &Client, rng: &mut Rng) -> Result<()> {
    let source = Source::key_value(client, BUCKET).await?;
    load::write(&source, 200, rng).await?;
    let indexes = documents::indexes(1);
    client.create_indexes(BUCKET, &indexes, WITHIN).await?;
    load::write(&source, 200, rng).await?;
    ask::each(client, &source, &indexes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_though_everything_that_it_takes_panics_once() -> Result<()> {
    let mut rng = Rng::seeded("panics of an election");
    let cluster = Cluster::without_services()?.breakable(&[MANAGER, "coordinator-1"])?;
    let errands = [
        (MANAGER, "looking at the lease"),
        (MANAGER, "writing the lease"),
        (MANAGER, "listing index managers"),
        (MANAGER, "registering an index manager"),
        (MANAGER, "nominating an index manager"),
        ("coordinator-1", "reading the log"),
        ("coordinator-1", "appending to the log"),
    ];
    for (node, what) in errands {
        cluster.panic_at(node, &format!("errand.{what}"))?;
    }
    cluster
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            for (node, what) in errands {
                cluster.hit(node, &format!("errand.{what}")).await?;
                is_stated(&client, node, what).await?;
            }
            // Looked at now and then.
            cluster.panic_at("coordinator-1", "errand.reading a record")?;
            cluster.hit("coordinator-1", "errand.reading a record").await?;
            is_stated(&client, "coordinator-1", "reading a record").await?;
            works(&client, &mut rng).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_not_given_up_for_a_panic_runs_out() -> Result<()> {
    let mut rng = Rng::seeded("panics of a lease");
    let cluster = Cluster::without_services()?.breakable(&[MANAGER])?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let client = cluster.client().await?;
            cluster.panic_at(MANAGER, "errand.making the bucket of the lease")?;
            client.js.delete_stream(subjects::CLUSTER_STREAM).await.context("no bucket of the lease")?;
            cluster.hit(MANAGER, "errand.making the bucket of the lease").await?;
            is_stated(&client, MANAGER, "making the bucket of the lease").await?;
            cluster.panic_at(MANAGER, "errand.giving up the lease")?;
            cluster.stop(MANAGER).await?;
            cluster.hit(MANAGER, "errand.giving up the lease").await?;
            cluster.start_node(MANAGER).await?;
            client.wait_formed(&SERVICES).await?;
            works(&client, &mut rng).await
        })
        .await
}
