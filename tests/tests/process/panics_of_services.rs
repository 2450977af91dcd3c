//! A panic in what every service stands on ends it with code 1: in its loop, its connection for messages, what answers discovery.
//! What an indexer does once after its start may panic, and so may what it does at its end.

use crate::panics::goes_on;
use highwater_tests::{cluster::SERVICES, load, prelude::*, stated, trial::QUICK};
use std::fs;

const BUCKET: &str = "orders";
const DOCUMENTS: u64 = 500;
const WITHIN: Duration = Duration::from_secs(40);

/// In each round something of one name panics in several nodes: the name, and for each node the place where it panics. The
/// connection that all of a process shares passes `frames.`, with nothing behind the dot; one of a session passes `frames.apart`.
const ROUNDS: [(&str, &[(&str, &str)]); 5] = [
    (
        "highwater",
        &[
            ("cluster-manager-1", "service"),
            ("coordinator-1", "service"),
            ("projector-1", "service"),
            ("indexer-1", "service"),
            ("catalog-1", "service"),
        ],
    ),
    (
        "the connection for messages",
        &[
            ("cluster-manager-1", "frames."),
            ("coordinator-1", "frames."),
            ("projector-1", "frames."),
            ("indexer-1", "frames."),
            ("catalog-1", "frames."),
        ],
    ),
    // Each answers for one of the services that a node offers.
    (
        "service discovery",
        &[
            ("cluster-manager-1", "discovery.highwater-cluster-manager"),
            ("coordinator-1", "discovery.highwater-coordinator"),
            ("projector-1", "discovery.highwater-projector"),
            ("indexer-1", "discovery.highwater-indexer"),
            ("catalog-1", "discovery.highwater-catalog"),
        ],
    ),
    (
        "service discovery",
        &[
            ("cluster-manager-1", "discovery.highwater-cluster"),
            ("coordinator-1", "discovery.highwater-admin"),
            ("catalog-1", "discovery.highwater-query"),
        ],
    ),
    ("service discovery", &[("catalog-1", "discovery.highwater-admin")]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_services_loop_connection_or_discovery_ends_it_with_code_1() -> Result<()> {
    let mut rng = Rng::seeded("panics of what services stand on");
    let cluster = Cluster::without_services()?.with_arguments("cluster-manager", &QUICK);
    cluster
        .breakable(&SERVICES)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = documents::indexes(2);
            let source = load::indexed(&client, BUCKET, DOCUMENTS, &indexes, &mut rng, WITHIN).await?;
            for (what, places) in ROUNDS {
                for (node, place) in places {
                    cluster.panic_at(node, place)?;
                }
                // Everybody hears it.
                client.nats.publish("$SRV.PING", "".into()).await?;
                client.nats.flush().await?;
                for (node, place) in places {
                    cluster.hit(node, place).await.context(what)?;
                    cluster.ended(node, 1, WITHIN).await.with_context(|| format!("{what}: {place}"))?;
                }
                for (node, _) in places {
                    cluster.start_node(node).await?;
                }
                client.wait_formed(&SERVICES).await?;
                goes_on(&client, &source, &indexes, &mut rng).await.with_context(|| format!("after {what}"))?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_indexer_does_beside_its_buckets_may_panic() -> Result<()> {
    let mut rng = Rng::seeded("panics of what indexers do once");
    let cluster = Cluster::without_services()?.breakable(&["indexer-1", "indexer-2"])?;
    // Of an index that the log does not know. Who coordinates is asked in vain, then again, and then these are removed.
    let unknown = cluster.data_dir("indexer-1").join("indexer/slices/orders/unknown.0.1");
    fs::create_dir_all(&unknown).context("no directory")?;
    let errands = [("indexer-1", "asking who coordinates"), ("indexer-2", "removing files of slices that are gone")];
    for (node, what) in errands {
        cluster.panic_at(node, &format!("errand.{what}"))?;
    }
    cluster
        .with_nodes(&[&SERVICES[..], &["indexer-2"]].concat())
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = documents::indexes(2);
            let source = load::indexed(&client, BUCKET, DOCUMENTS, &indexes, &mut rng, WITHIN).await?;
            for (node, what) in errands {
                cluster.hit(node, &format!("errand.{what}")).await?;
                stated::panicked(&client, node, what, WITHIN).await?;
            }
            goes_on(&client, &source, &indexes, &mut rng).await?;
            until("unknown files are removed", WITHIN, async || {
                if unknown.exists() { Err(format!("{} is there", unknown.display())) } else { Ok(()) }
            })
            .await?;
            // What is not made durable at the end is read again after the next start.
            let (place, what) = ("drain", "making bucket orders durable");
            cluster.panic_at("indexer-1", place)?;
            load::write(&source, 50, &mut rng).await?;
            cluster.stop("indexer-1").await.context(what)?;
            cluster.hit("indexer-1", place).await.context(what)?;
            cluster.start_node("indexer-1").await?;
            goes_on(&client, &source, &indexes, &mut rng).await
        })
        .await
}
