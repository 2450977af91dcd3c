//! A source whose history is taken back, rewritten or begun again: every scan keeps its promise meanwhile, and every index equals
//! what is there then.

use highwater_tests::{
    branches::Branches,
    cluster::SERVICES,
    files,
    load::{self, Writer},
    prelude::*,
};

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
const FIRST: u64 = 3_000;
const BUILT_WITHIN: Duration = Duration::from_secs(30);
/// Longer than a rollback of so few documents takes on a machine that does much else.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// What becomes of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Older files are put in the place of the stream's while the server is down.
    OldFiles,
    /// The newest message block is cut off, and the index of the blocks removed.
    Cut,
    /// The bucket is deleted and made again.
    Recreated,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_with_older_files_is_followed_back() -> Result<()> {
    taken_back(Fate::OldFiles, Cluster::without_services()?, &mut Rng::seeded("older files")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_with_older_files_is_followed_back_on_a_secured_server() -> Result<()> {
    taken_back(Fate::OldFiles, Cluster::secured()?, &mut Rng::seeded("older files on a secured server")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_lost_its_tail_is_followed_back() -> Result<()> {
    taken_back(Fate::Cut, Cluster::without_services()?, &mut Rng::seeded("lost tail")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_was_made_anew_is_indexed_anew() -> Result<()> {
    taken_back(Fate::Recreated, Cluster::without_services()?, &mut Rng::seeded("made anew")).await
}

async fn taken_back(fate: Fate, cluster: Cluster, rng: &mut Rng) -> Result<()> {
    cluster
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = documents::indexes(2);
            let source = load::indexed(&client, BUCKET, FIRST, &indexes, rng, BUILT_WITHIN).await?;
            let kept = cluster.path().join("kept");
            for round in 0..2 {
                cluster.nats().kill();
                files::copy(&cluster.nats().stream_dir(STREAM), &kept)?;
                cluster.nats().start_again()?;
                let writer = Writer::start(&source, rng);
                load::written(&source, 500 + rng.below(2_000)).await?;
                writer.stop().await?;
                for index in &indexes {
                    ask::whole(&client, &source, index).await.context("before it was taken back")?;
                }
                // That restart may have left the history unproven: what counts is what comes now.
                let before = Branches::at_rest(&client, BUCKET, BACK_WITHIN).await?;
                let checker = Checker::start(&client, &source, &indexes, rng);
                let back = async |_: &Checker| {
                    change(fate, cluster, &client, &kept, rng).await?;
                    source.reread().await?;
                    // Others than before, under the same seqnos.
                    load::write(&source, 200 + rng.below(500), rng).await?;
                    let gone = Instant::now();
                    let now = before.back(&client, BUCKET, &[0], BACK_WITHIN).await?;
                    println!("{fate:?} {round}: back after {:?}", gone.elapsed());
                    now.check_shown(&cluster.reach(), &source)
                };
                checker.through(BACK_WITHIN, back).await?;
                for index in &indexes {
                    client.wait_active(BUCKET, &index.name, BUILT_WITHIN).await?;
                    ask::whole(&client, &source, index).await?;
                    ask::random(&client, &source, index, rng).await?;
                }
                std::fs::remove_dir_all(&kept)?;
            }
            Ok(())
        })
        .await
}

async fn change(
    fate: Fate,
    cluster: &mut Cluster,
    client: &Client,
    kept: &std::path::Path,
    rng: &mut Rng,
) -> Result<()> {
    match fate {
        Fate::OldFiles | Fate::Cut => {
            cluster.nats().kill();
            let stream = cluster.nats().stream_dir(STREAM);
            if fate == Fate::OldFiles {
                files::put_back(kept, &stream)?;
            } else {
                files::cut_stream(&stream, 40 + rng.below(50))?;
            }
            cluster.nats().start_again()?;
            until("NATS is there", BACK_WITHIN, async || {
                client.js.get_stream(STREAM).await.map(|_| ()).map_err(|e| e.to_string())
            })
            .await?;
        }
        Fate::Recreated => {
            client.js.delete_key_value(BUCKET).await?;
            Source::key_value(client, BUCKET).await?;
        }
    }
    Ok(())
}
