//! A bucket whose worker is busy holds up nothing else: not the node's heartbeat, not what is asked of it, not another bucket.
//!
//! The worker is stopped inside the opening of a slice: its file is a pipe that nobody writes to, until the test does.

use futures_util::StreamExt;
use highwater_schemas::{api::Join, subjects};
use highwater_tests::{load, prelude::*};
use std::{fs, path::PathBuf, process::Command};

const BUSY: &str = "busy";
const QUICK: &str = "quick";
const INDEXER: &str = "indexer-1";
const WITHIN: Duration = Duration::from_secs(30);
/// Heartbeats come twice a second.
const BEATS: usize = 4;

/// The data files of a bucket's slices.
fn data_files(cluster: &Cluster, bucket: &str) -> Result<Vec<PathBuf>> {
    let slices = cluster.data_dir(INDEXER).join("indexer/slices").join(bucket);
    let mut files = Vec::new();
    for slice in fs::read_dir(&slices).with_context(|| format!("{}", slices.display()))? {
        files.push(slice?.path().join("data.mdb"));
    }
    Ok(files)
}

async fn indexed(client: &Client, bucket: &str, rng: &mut Rng) -> Result<(Source, Index)> {
    let source = Source::key_value(client, bucket).await?;
    load::write(&source, 200, rng).await?;
    let index = documents::indexes(1).swap_remove(0);
    client.create_index(&index.definition(bucket)).await?;
    client.wait_active(bucket, &index.name, WITHIN).await?;
    ask::whole(client, &source, &index).await?;
    Ok((source, index))
}

/// The quick bucket is written and read, and heartbeats of the indexer come.
async fn goes_on(client: &Client, source: &Source, index: &Index, rng: &mut Rng) -> Result<()> {
    let mut beats = client.nats.subscribe(subjects::CLUSTER_JOIN).await?;
    for _ in 0..5 {
        load::write(source, 20, rng).await?;
        ask::whole(client, source, index).await?;
        ask::random(client, source, index, rng).await?;
    }
    let mut heard = 0;
    while heard < BEATS {
        let message = tokio::time::timeout(WITHIN, beats.next()).await.context("no heartbeat")?;
        let join: Join = serde_json::from_slice(&message.context("the connection ended")?.payload)?;
        heard += usize::from(join.node == INDEXER);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slice_that_takes_long_to_open_holds_up_no_other_bucket() -> Result<()> {
    let mut rng = Rng::seeded("busy bucket");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let (busy, of_busy) = indexed(&client, BUSY, &mut rng).await?;
            let (quick, of_quick) = indexed(&client, QUICK, &mut rng).await?;
            cluster.stop(INDEXER).await?;
            let mut pipes = Vec::new();
            for file in data_files(cluster, BUSY)? {
                let aside = file.with_extension("aside");
                fs::rename(&file, &aside)?;
                ensure!(Command::new("mkfifo").arg(&file).status()?.success(), "mkfifo failed");
                pipes.push((file, aside));
            }

            cluster.start_node(INDEXER).await?;
            client.wait_active(QUICK, &of_quick.name, WITHIN).await?;
            goes_on(&client, &quick, &of_quick, &mut rng).await?;
            // What is asked of the busy bucket waits for its slice, and no longer than it says.
            let request = json!({"bucket": BUSY, "index": of_busy.name, "timeout_ms": 300});
            for subject in ["hw.query.scan", "hw.query.count"] {
                let Err(refused) = client.request(subject, &request).await else { bail!("{subject} was answered") };
                ensure!(refused.retry, "{subject}: {refused}");
            }
            // What the log says of the busy bucket waits for its worker, and for nobody else.
            for number in 0..3 {
                let further = Index { name: format!("further{number}"), ..of_busy.clone() };
                client.create_index(&further.definition(BUSY)).await?;
                client.drop_index(BUSY, &further.name).await?;
            }
            let status = client.request(&subjects::node(INDEXER, "status"), &json!({})).await?;
            ensure!(status["node"] == INDEXER, "{status}");
            goes_on(&client, &quick, &of_quick, &mut rng).await?;

            for (file, aside) in &pipes {
                let pipe = file.with_extension("pipe");
                fs::rename(file, &pipe)?;
                fs::rename(aside, file)?;
                // Lets go of who opens it for reading, which finds it empty.
                let writer = tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(&pipe));
                tokio::time::timeout(WITHIN, writer).await.context("nobody waits for the pipe")???;
            }
            client.wait_active(BUSY, &of_busy.name, WITHIN).await?;
            load::write(&busy, 20, &mut rng).await?;
            ask::whole(&client, &busy, &of_busy).await?;
            goes_on(&client, &quick, &of_quick, &mut rng).await
        })
        .await
}
