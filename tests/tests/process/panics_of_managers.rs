//! A panic in what cluster managers and index managers do beside their loops: it counts as having failed, and is done again, or
//! whoever asked for it hears of it.

use highwater_schemas::subjects;
use highwater_tests::{cluster::SERVICES, load, prelude::*, stated::panicked, trial::cluster_manager};

const BUCKET: &str = "people";
const MANAGER: &str = "cluster-manager-1";
const WITHIN: Duration = Duration::from_secs(40);

/// Indexes are made, and follow their source.
async fn works(client: &Client, rng: &mut Rng) -> Result<()> {
    let indexes = documents::indexes(1);
    let source = load::indexed(client, BUCKET, 200, &indexes, rng, WITHIN).await?;
    load::write(&source, 200, rng).await?;
    ask::each(client, &source, &indexes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_though_everything_that_it_takes_panics_once() -> Result<()> {
    let mut rng = Rng::seeded("panics of an election");
    let cluster = Cluster::without_services()?.breakable(&[MANAGER, "coordinator-1"])?;
    let errands = [
        (MANAGER, "errand.looking at the lease"),
        (MANAGER, "errand.writing the lease"),
        (MANAGER, "errand.listing index managers"),
        (MANAGER, "errand.registering an index manager"),
        (MANAGER, "errand.nominating an index manager"),
        ("coordinator-1", "errand.reading the log"),
        ("coordinator-1", "errand.appending to the log"),
    ];
    for (node, place) in errands {
        cluster.panic_at(node, place)?;
    }
    cluster
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            for (node, place) in errands {
                cluster.hit(node, place).await?;
                let what = place.strip_prefix("errand.").context("no errand")?;
                panicked(&client, node, what, WITHIN).await?;
            }
            // The index manager reads this record from time to time, without a request.
            cluster.panic_at("coordinator-1", "errand.reading a record")?;
            cluster.hit("coordinator-1", "errand.reading a record").await?;
            panicked(&client, "coordinator-1", "reading a record", WITHIN).await?;
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
            panicked(&client, MANAGER, "making the bucket of the lease", WITHIN).await?;
            cluster.panic_at(MANAGER, "errand.giving up the lease")?;
            cluster.stop(MANAGER).await?;
            cluster.hit(MANAGER, "errand.giving up the lease").await?;
            cluster.start_node(MANAGER).await?;
            client.wait_formed(&SERVICES).await?;
            works(&client, &mut rng).await
        })
        .await
}

/// Has a standby panic where it passes a request on, and asks until it is the one that is asked; it answers with an error, and
/// answers the next ones.
async fn passing_on_panics(
    cluster: &Cluster,
    client: &Client,
    standby: &str,
    subject: &str,
    request: &Value,
) -> Result<()> {
    let (place, what) = ("errand.passing a request on", "passing a request on");
    cluster.panic_at(standby, place)?;
    // All instances take such requests in turn.
    until("the standby is asked", WITHIN, async || match client.request(subject, request).await {
        Err(refused) if refused.code == "internal" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;
    cluster.hit(standby, place).await?;
    panicked(client, standby, what, WITHIN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_manager_answers_where_passing_a_request_on_panics() -> Result<()> {
    let mut rng = Rng::seeded("panics of index managers that stand by");
    let managers = ["coordinator-1", "coordinator-2"];
    let nodes = [MANAGER, "coordinator-1", "coordinator-2", "projector-1", "indexer-1", "catalog-1"];
    Cluster::without_services()?
        .breakable(&managers)?
        .with_nodes(&nodes)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            works(&client, &mut rng).await?;
            let (master, _) = client.wait_term(0, WITHIN).await?;
            let standby = managers.into_iter().find(|node| **node != *master).context("nobody stands by")?;
            let unknown = json!({"bucket": BUCKET, "name": "unknown"});
            passing_on_panics(cluster, &client, standby, "hw.admin.index.drop", &unknown).await?;
            client.create_indexes(BUCKET, &[documents::passing("late")], WITHIN).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_manager_answers_where_passing_a_request_on_panics() -> Result<()> {
    let managers = [MANAGER, "cluster-manager-2"];
    // Without index managers an operator may ask to go on without those that are missing.
    Cluster::without_services()?
        .breakable(&managers)?
        .with_nodes(&managers)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let active = cluster_manager(&client).await?;
            let standby = managers.into_iter().find(|node| **node != *active).context("nobody stands by")?;
            let force = json!({"force": true});
            passing_on_panics(cluster, &client, standby, subjects::CLUSTER_RECOVER, &force).await?;
            client.insist(subjects::CLUSTER_RECOVER, &force, WITHIN).await?;
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_purge_that_panics_leaves_of_a_session_is_removed_later() -> Result<()> {
    let mut rng = Rng::seeded("panics of purges");
    let cluster = Cluster::without_services()?.breakable(&["coordinator-1"])?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let client = cluster.client().await?;
            let (place, what) = ("errand.purging a session", "purging a session");
            cluster.panic_at("coordinator-1", place)?;
            works(&client, &mut rng).await?;
            cluster.hit("coordinator-1", place).await?;
            panicked(&client, "coordinator-1", what, WITHIN).await?;
            client.create_indexes(BUCKET, &[documents::passing("late")], WITHIN).await?;
            // By the next look for what nobody needs, at the latest.
            until("nothing is left of any session", WITHIN, async || {
                let stream = client.js.get_stream(subjects::catchup_stream(BUCKET)).await;
                let left = stream.map_err(|error| error.to_string())?.cached_info().state.messages;
                if left == 0 { Ok(()) } else { Err(format!("{left} messages")) }
            })
            .await
        })
        .await
}
