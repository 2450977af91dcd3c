//! A bucket whose worker is busy holds up nothing else: not the node's heartbeat, not what is asked of it, not another bucket.
//!
//! The worker is stopped inside the opening of a slice: its file is a pipe that nobody writes to, until the test does.

use highwater_schemas::subjects;
use highwater_tests::{beats::Beats, load, prelude::*};
use std::{fs, path::PathBuf, process::Command};

const BUSY: &str = "busy";
const QUICK: &str = "quick";
const INDEXER: &str = "indexer-1";
const DOCUMENTS: u64 = 200;
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

/// The quick bucket is written and read, and heartbeats of the indexer come.
async fn goes_on(client: &Client, source: &Source, index: &Index, rng: &mut Rng) -> Result<()> {
    let mut beats = Beats::listen(client).await?;
    for _ in 0..5 {
        load::write(source, 20, rng).await?;
        ask::whole(client, source, index).await?;
        ask::random(client, source, index, rng).await?;
    }
    beats.of(INDEXER, BEATS, WITHIN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slice_that_takes_long_to_open_holds_up_no_other_bucket() -> Result<()> {
    let mut rng = Rng::seeded("busy bucket");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = &documents::indexes(1)[..1];
            let busy = load::indexed(&client, BUSY, DOCUMENTS, indexes, &mut rng, WITHIN).await?;
            let quick = load::indexed(&client, QUICK, DOCUMENTS, indexes, &mut rng, WITHIN).await?;
            let index = &indexes[0];
            cluster.stop(INDEXER).await?;
            let mut pipes = Vec::new();
            for file in data_files(cluster, BUSY)? {
                let aside = file.with_extension("aside");
                fs::rename(&file, &aside)?;
                ensure!(Command::new("mkfifo").arg(&file).status()?.success(), "mkfifo failed");
                pipes.push((file, aside));
            }

            cluster.start_node(INDEXER).await?;
            client.wait_active(QUICK, &index.name, WITHIN).await?;
            goes_on(&client, &quick, index, &mut rng).await?;
            // What is asked of the busy bucket waits for its slice, and no longer than it says.
            let request = json!({"bucket": BUSY, "index": index.name, "timeout_ms": 300});
            for subject in ["hw.query.scan", "hw.query.count"] {
                let Err(refused) = client.request(subject, &request).await else { bail!("{subject} was answered") };
                ensure!(refused.retry, "{subject}: {refused}");
            }
            // What the log says of the busy bucket waits for its worker, and for nobody else.
            for number in 0..3 {
                let further = Index { name: format!("further{number}"), ..index.clone() };
                client.create_index(&further.definition(BUSY)).await?;
                client.drop_index(BUSY, &further.name).await?;
            }
            let status = client.request(&subjects::node(INDEXER, "status"), &json!({})).await?;
            ensure!(status["node"] == INDEXER, "{status}");
            goes_on(&client, &quick, index, &mut rng).await?;

            for (file, aside) in &pipes {
                let pipe = file.with_extension("pipe");
                fs::rename(file, &pipe)?;
                fs::rename(aside, file)?;
                // Lets go of who opens it for reading, which finds it empty.
                let writer = tokio::task::spawn_blocking(move || fs::OpenOptions::new().write(true).open(&pipe));
                tokio::time::timeout(WITHIN, writer).await.context("nobody waits for the pipe")???;
            }
            client.wait_active(BUSY, &index.name, WITHIN).await?;
            load::write(&busy, 20, &mut rng).await?;
            ask::whole(&client, &busy, index).await?;
            goes_on(&client, &quick, index, &mut rng).await
        })
        .await
}
