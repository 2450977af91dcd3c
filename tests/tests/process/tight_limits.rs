//! An indexer with as little memory and address space as it may have: builds go over runs, slices become durable out of turn,
//! and maps grow, while documents are written and the process is killed. Every index is right all the same.

use highwater_tests::{binaries, files, prelude::*};
use std::{fs, path::PathBuf};

const NODES: [&str; 3] = ["coordinator-1", "projector-1", "catalog-1"];
/// The least that the indexer takes.
const LIMITS: [&str; 8] =
    ["--memory-quota", "8MiB", "--map-size", "16MiB", "--map-growth", "16MiB", "--build-memory", "1MiB"];
/// As in [`LIMITS`].
const MAP_SIZE: u64 = 16 << 20;
const DOCUMENTS: u64 = 40_000;
/// Included in the index, so that a slice outgrows its map: twice when all documents have been written again.
const FILLING: usize = 400;
const WITHIN: Duration = Duration::from_secs(90);

fn index() -> Index {
    Index { name: "by_number".into(), keys: vec![("number", true)], include: vec!["filling"], ..Index::default() }
}

fn document(number: u64, rng: &mut Rng) -> Write {
    let filling: String = (0..FILLING).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
    Write::put(0, format!("d{}", number % DOCUMENTS), &json!({"number": rng.below(5_000), "filling": filling}))
}

/// The directories of the indexer's slices.
fn slices(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    files::slices(&cluster.data_dir("indexer-1"))
}

/// The sorted runs of the builds under way: what they have collected beyond their memory.
fn runs(cluster: &Cluster) -> Result<usize> {
    let of = |slice: PathBuf| fs::read_dir(slice.join("runs")).map_or(0, Iterator::count);
    Ok(slices(cluster)?.into_iter().map(of).sum())
}

/// Starts the indexer with its limits, and waits until it serves.
async fn start_indexer(cluster: &mut Cluster) -> Result<()> {
    cluster.spawn_with("indexer-1", &LIMITS)?;
    cluster.wait_ready("indexer-1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexer_with_the_least_of_everything_is_right() -> Result<()> {
    let mut rng = Rng::seeded("tight limits");
    Cluster::start_nodes(&NODES)
        .await?
        .run(async |cluster| {
            start_indexer(cluster).await?;
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "tight").await?;
            let indexes = [index(), Index { name: "primary".into(), ..Index::default() }];
            source.write((0..DOCUMENTS).map(|n| document(n, &mut rng))).await?;
            for index in &indexes {
                client.create_index(&index.definition("tight")).await?;
            }
            // In the middle of the build, wherever that is: a build that is over leaves no runs.
            until("a build goes over runs", WITHIN, async || match runs(cluster) {
                Ok(0) => Err("there are none".into()),
                found => found.map_err(|e| e.to_string()),
            })
            .await?;
            cluster.kill("indexer-1")?;
            let left = runs(cluster)?;
            ensure!(left > 0, "every build was over when the indexer was killed");
            start_indexer(cluster).await?;
            for index in &indexes {
                client.wait_active("tight", &index.name, WITHIN).await?;
                ask::whole(&client, &source, index).await?;
            }
            // All of it again: more than the map and the quota hold.
            source.write((0..DOCUMENTS).map(|n| document(n, &mut rng))).await?;
            for index in &indexes {
                ask::whole(&client, &source, index).await?;
            }
            let length = |slice: &PathBuf| fs::metadata(slice.join("data.mdb")).map_or(0, |file| file.len());
            let largest = slices(cluster)?.iter().map(length).max().unwrap_or(0);
            println!("{left} runs were left by the first kill; the largest slice has {largest} bytes");
            ensure!(largest > MAP_SIZE, "no slice has outgrown its map: {largest} bytes");
            cluster.kill("indexer-1")?;
            start_indexer(cluster).await?;
            for index in &indexes {
                ask::whole(&client, &source, index).await?;
                ask::random(&client, &source, index, &mut rng).await?;
            }
            let url = cluster.url().to_owned();
            let verify = ["index", "verify", "tight", "--nats-url", &url, "--timeout-ms", "60000"];
            let output = binaries::command()?.args(verify).output().context("highwater does not run")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            Ok(())
        })
        .await
}
