//! A worker that stands still while its inbox is full, and while a persist and a merge of its bucket end of which it is to be told,
//! holds up its own bucket alone: another bucket's slices become durable and have their layers merged, and it is written and read.
//! Where the worker would never be told, the indexer ends.

use futures_util::future::join_all;
use highwater_tests::{
    cluster::SERVICES,
    load,
    prelude::*,
    stated::{self, Stated},
    wait::deadline,
};

const BUSY: &str = "busy";
const QUICK: &str = "quick";
const INDEXER: &str = "indexer-1";
const WITHIN: Duration = Duration::from_secs(40);
/// Documents that differ: layers of so many changes are merged by a job.
const MANY: u64 = 20_000;
const BURST: u64 = 2_000;
/// Between bursts of writes; each makes layers of its own.
const PAUSE: Duration = Duration::from_millis(50);
/// More events than an inbox holds.
const EVENTS: usize = 400;
/// Checks that a node takes at once.
const AT_ONCE: usize = 4;

async fn write(source: &Source, rng: &mut Rng) -> Result<()> {
    source.write((0..BURST).map(|_| documents::write(rng, 1, MANY))).await
}

/// Writes to a bucket until its node has met these faults.
async fn write_until_hit(cluster: &Cluster, source: &Source, rng: &mut Rng, places: &[&str]) -> Result<()> {
    let deadline = deadline(WITHIN);
    while !places.iter().all(|place| cluster.is_hit(INDEXER, place)) {
        ensure!(Instant::now() < deadline, "writes to {} do not lead to {places:?}", source.bucket);
        write(source, rng).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Each of these asks the worker for a check, and waits no longer; what it was asked stays in its inbox.
async fn fill_inbox(client: &Client) -> Result<()> {
    let request = json!({"bucket": BUSY, "timeout_ms": 1});
    let mut late = 0;
    while late < EVENTS {
        let asked = (0..AT_ONCE).map(|_| client.request("hw.node.indexer-1.verify", &request));
        for checked in join_all(asked).await {
            match checked {
                Ok(checked) => {
                    let slices = checked["slices"].as_array().context("no slices")?;
                    ensure!(slices.iter().all(|slice| slice["error"]["code"] == "timeout"), "{checked}");
                    late += slices.len();
                }
                Err(refused) => ensure!(refused.code == "too_many_requests", "{refused}"),
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_inbox_holds_up_no_other_bucket() -> Result<()> {
    let mut rng = Rng::seeded("full inbox");
    let cluster = Cluster::without_services()?.with_arguments("indexer", &["--merge-layers", "2"]);
    cluster
        .breakable(&[INDEXER])?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = &documents::indexes(1)[..1];
            let quick = load::indexed(&client, QUICK, BURST, indexes, &mut rng, WITHIN).await?;
            let busy = load::indexed(&client, BUSY, BURST, indexes, &mut rng, WITHIN).await?;
            // At rest, so that what comes next is of the busy bucket.
            until("all is durable", WITHIN, async || {
                for name in [QUICK, BUSY] {
                    let bucket = client.bucket(name).await.map_err(|refused| refused.to_string())?;
                    if bucket["st"].as_u64() <= Some(0) || bucket["durable"] != bucket["st"] {
                        return Err(bucket.to_string());
                    }
                }
                Ok(())
            })
            .await?;
            cluster.hang_at(INDEXER, "persist")?;
            cluster.hang_at(INDEXER, "merge")?;
            write_until_hit(cluster, &busy, &mut rng, &["persist", "merge"]).await?;
            cluster.hang_at(INDEXER, "worker.busy")?;
            write_until_hit(cluster, &busy, &mut rng, &["worker.busy"]).await?;
            fill_inbox(&client).await?;
            for place in ["persist", "merge"] {
                cluster.release(INDEXER, place)?;
            }

            // Who passes these places now has work for the other bucket: the worker of the busy one gives none.
            for place in ["persist", "merge"] {
                cluster.panic_at(INDEXER, place)?;
            }
            write_until_hit(cluster, &quick, &mut rng, &["persist", "merge"]).await?;
            stated::panicked(&client, INDEXER, "merging layers of bucket quick", WITHIN).await?;
            // Where the slice had nothing to write, its mark is made durable.
            let made_durable = ["making bucket quick durable", "writing marks of bucket quick"];
            let panicked =
                |s: &Stated| s.node == INDEXER && made_durable.contains(&s.what.as_str()) && s.says("panicked");
            stated::is_stated(&client, "a persist panicked", WITHIN, panicked).await?;
            ask::each(&client, &quick, indexes).await?;
            let request =
                json!({"bucket": BUSY, "index": indexes[0].name, "consistency": "request_plus", "timeout_ms": 300});
            let refused = client.count(&request).await.err().context("a worker that stands still has answered")?;
            ensure!(refused.retry, "{refused}");

            cluster.release(INDEXER, "worker.busy")?;
            ask::each(&client, &busy, indexes).await?;
            write(&busy, &mut rng).await?;
            for source in [&busy, &quick] {
                ask::each(&client, source, indexes).await?;
                ask::random(&client, source, &indexes[0], &mut rng).await?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexer_whose_worker_is_not_told_of_a_job_ends_with_code_1() -> Result<()> {
    let mut rng = Rng::seeded("a worker that is not told");
    let (place, what) = ("errand.telling a worker of its job's end", "telling a worker of its job's end");
    let cluster = Cluster::without_services()?.breakable(&[INDEXER])?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = &documents::indexes(1)[..1];
            let busy = load::indexed(&client, BUSY, BURST, indexes, &mut rng, WITHIN).await?;
            cluster.hang_at(INDEXER, "persist")?;
            write_until_hit(cluster, &busy, &mut rng, &["persist"]).await?;
            cluster.hang_at(INDEXER, "worker.busy")?;
            write_until_hit(cluster, &busy, &mut rng, &["worker.busy"]).await?;
            fill_inbox(&client).await?;
            cluster.panic_at(INDEXER, place)?;
            cluster.release(INDEXER, "persist")?;
            cluster.hit(INDEXER, place).await?;
            cluster.ended(INDEXER, 1, WITHIN).await.context(what)?;
            cluster.start_node(INDEXER).await?;
            ask::each_again(&client, &busy, indexes, WITHIN).await
        })
        .await
}
