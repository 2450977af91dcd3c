//! A node with some hundred slices: its heartbeats are small, and whoever coordinates next knows all of them.

use async_nats::Subscriber;
use futures_util::StreamExt;
use highwater_schemas::{
    api::{ClusterStatus, Join, NodeKind},
    report::{Item, PART_BYTES, ReportPart},
    subjects,
};
use highwater_tests::{
    prelude::*,
    trial::{ELECTED_WITHIN, QUICK, SETTLED_WITHIN},
};
use std::collections::BTreeMap;

const NODES: [&str; 6] =
    ["cluster-manager-1", "coordinator-1", "coordinator-2", "projector-1", "indexer-1", "catalog-1"];
const BUCKET: &str = "many";
const INDEXES: usize = 4;
const PARTITIONS: usize = 64;
const SLICES: usize = INDEXES * PARTITIONS;
const WITHIN: Duration = Duration::from_secs(180);
/// What a heartbeat may have, and what one has of a node where nothing fails.
const MOST: usize = 16 * 1024;
const WELL: usize = 1024;

/// Heartbeats and reports as they are told to everyone.
struct Heard {
    joins: Subscriber,
    parts: Subscriber,
    _client: async_nats::Client,
}

impl Heard {
    async fn start(url: &str) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        let joins = client.subscribe(subjects::CLUSTER_JOIN).await?;
        let parts = client.subscribe(subjects::CLUSTER_REPORT).await?;
        client.flush().await?;
        Ok(Self { joins, parts, _client: client })
    }

    /// The whole edition that the indexer tells in this term: its parts, and its slices.
    async fn edition(&mut self, term: u64) -> Result<(u64, usize)> {
        let mut parts: BTreeMap<u64, Vec<ReportPart>> = BTreeMap::new();
        let told = async {
            loop {
                let message = self.parts.next().await.context("the connection is closed")?;
                ensure!(message.payload.len() <= PART_BYTES + 1024, "a part of {} bytes", message.payload.len());
                let part: ReportPart = serde_json::from_slice(&message.payload)?;
                if part.kind != NodeKind::Indexer || part.term < term {
                    continue;
                }
                let of = parts.entry(part.edition).or_default();
                let whole = part.whole;
                of.push(part);
                if whole && of[0].part == 0 {
                    let items = of.iter().flat_map(|part| &part.items);
                    let slices = items.filter(|item| matches!(item, Item::Slice(_))).count();
                    return Ok((of.len() as u64, slices));
                }
            }
        };
        tokio::time::timeout(SETTLED_WITHIN, told).await.context("the indexer does not tell everything")?
    }

    /// The largest heartbeat of each kind of node that has come so far.
    async fn largest(&mut self) -> Result<BTreeMap<&'static str, usize>> {
        let mut largest = BTreeMap::new();
        while let Ok(Some(message)) = tokio::time::timeout(Duration::ZERO, self.joins.next()).await {
            let join: Join = serde_json::from_slice(&message.payload)?;
            let most: &mut usize = largest.entry(join.kind.as_str()).or_default();
            *most = message.payload.len().max(*most);
            let size = message.payload.len();
            ensure!(size <= if join.troubles.is_empty() { WELL } else { MOST }, "{size} bytes of {join:?}");
        }
        Ok(largest)
    }
}

fn indexes() -> impl Iterator<Item = (String, Value)> {
    (0..INDEXES).map(|n| {
        let name = format!("x{n}");
        let definition = json!({"bucket": BUCKET, "name": name, "keys": ["number"], "num_partition": PARTITIONS});
        (name, definition)
    })
}

/// One row of each index, at least as new as what was written before.
async fn counts(client: &Client, documents: u64) -> Result<()> {
    for (name, _) in indexes() {
        let count = client.count(&json!({"bucket": BUCKET, "index": name, "consistency": "request_plus"})).await;
        ensure!(count.as_ref().is_ok_and(|count| *count == documents), "{name}: {count:?} of {documents}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_stay_small_and_the_next_coordinator_knows_every_slice() -> Result<()> {
    let cluster = Cluster::without_services()?.with_arguments("cluster-manager", &QUICK).with_nodes(&NODES).await?;
    cluster
        .run(async |cluster| {
            let client = cluster.client().await?;
            let mut heard = Heard::start(cluster.url()).await?;
            let source = Source::key_value(&client, BUCKET).await?;
            let put = |n: u64| Write::put(0, format!("d{n}"), &json!({"number": n}));
            source.write((0..100).map(put)).await?;
            for (_, definition) in indexes() {
                client.create_index(&definition).await?;
            }
            for (name, _) in indexes() {
                client.wait_active(BUCKET, &name, WITHIN).await?;
            }
            counts(&client, 100).await?;
            for round in 0..3 {
                let (master, term) = client.wait_term(0, ELECTED_WITHIN).await?;
                let mut next = Heard::start(cluster.url()).await?;
                cluster.kill(&master)?;
                let (parts, slices) = next.edition(term + 1).await?;
                ensure!(slices == SLICES && parts > 1, "{slices} slices in {parts} parts");
                let (other, later) = client.wait_term(term, ELECTED_WITHIN).await?;
                ensure!(other != master && later > term, "{other} in term {later}");
                // Every slice is as the next coordinator must know it, and nothing is done anew.
                source.write([put(100 + round)]).await?;
                counts(&client, 101 + round).await?;
                let status: ClusterStatus = serde_json::from_value(client.members().await?)?;
                let bucket = status.buckets.iter().find(|bucket| bucket.name == BUCKET).context("no bucket")?;
                ensure!(bucket.sessions.is_empty() && bucket.st > 0, "{bucket:?}");
                cluster.start_node(&master).await?;
                client.wait_formed(&NODES).await?;
            }
            let largest = heard.largest().await?;
            println!("the largest heartbeats: {largest:?}");
            ensure!(largest.len() == 5 && largest["indexer"] > 0, "{largest:?}");
            Ok(())
        })
        .await
}
