//! A source that is deleted and restored from an older backup through the JetStream API: every index equals what is there then,
//! whatever is written next and whether or not a projector watched. Every scan keeps its promise meanwhile.

use highwater_tests::{
    backup::Backup,
    branches::Branches,
    load::{self, Writer},
    prelude::*,
};

const BUCKET: &str = "people";
const FIRST: u64 = 3_000;
const STREAMS: usize = 4;
const PROJECTOR: &str = "projector-1";
const BUILT_WITHIN: Duration = Duration::from_secs(30);
/// Longer than a rollback of so few documents takes on a machine that does much else.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// How a stream is restored.
#[derive(Debug, Clone, Copy)]
struct How {
    /// No projector runs meanwhile.
    unwatched: bool,
    /// Its last sequence is soon beyond what it was.
    beyond: bool,
}

/// All of them, in any order.
fn hows(rng: &mut Rng) -> Vec<How> {
    let mut left: Vec<How> = (0..4).map(|n| How { unwatched: n % 2 == 1, beyond: n / 2 == 1 }).collect();
    (0..4).map(|_| left.swap_remove(rng.below(left.len() as u64) as usize)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_restored_is_followed_back() -> Result<()> {
    let mut rng = Rng::seeded("restored bucket");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            restored_again_and_again(cluster, &client, &source, &mut rng).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_restored_stream_of_several_leaves_the_others_their_branches() -> Result<()> {
    let mut rng = Rng::seeded("restored stream");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::keyed_streams(&client, BUCKET, STREAMS).await?;
            restored_again_and_again(cluster, &client, &source, &mut rng).await
        })
        .await
}

async fn restored_again_and_again(
    cluster: &mut Cluster,
    client: &Client,
    source: &Source,
    rng: &mut Rng,
) -> Result<()> {
    load::write(source, FIRST, rng).await?;
    let indexes = documents::indexes(2);
    client.create_indexes(BUCKET, &indexes, BUILT_WITHIN).await?;
    for how in hows(rng) {
        let stream = rng.below(source.streams.len() as u64) as usize;
        restored(cluster, client, source, &indexes, stream, how, rng)
            .await
            .with_context(|| format!("stream {stream}, {how:?}"))?;
    }
    Ok(())
}

async fn restored(
    cluster: &mut Cluster,
    client: &Client,
    source: &Source,
    indexes: &[Index],
    stream: usize,
    how: How,
    rng: &mut Rng,
) -> Result<()> {
    let backup = Backup::take(client, &source.streams[stream].0).await?;
    let writer = Writer::start(source, rng);
    load::written(source, 800 + rng.below(2_000)).await?;
    writer.stop().await?;
    ask::each(client, source, indexes).await.context("before it was restored")?;
    let checker = Checker::start(client, source, indexes, rng);
    let back = checker
        .through(BACK_WITHIN, async |_| back(cluster, client, source, indexes, (stream, how), &backup, rng).await);
    back.await?;
    for index in indexes {
        client.wait_active(BUCKET, &index.name, BUILT_WITHIN).await?;
        ask::random(client, source, index, rng).await?;
    }
    ask::each(client, source, indexes).await
}

/// Restores the stream, and waits until all is in order again.
async fn back(
    cluster: &mut Cluster,
    client: &Client,
    source: &Source,
    indexes: &[Index],
    (stream, how): (usize, How),
    backup: &Backup,
    rng: &mut Rng,
) -> Result<()> {
    let before = Branches::soon(client, BUCKET, BACK_WITHIN).await?;
    let lost = source.log().complete()[stream] - backup.last_seq();
    ensure!(lost > 0, "nothing was written to stream {stream}");
    if how.unwatched {
        cluster.kill(PROJECTOR)?;
    }
    backup.restore(client).await?;
    source.reread().await?;
    // Others than before, under the same seqnos.
    let fewer = rng.below(lost);
    load::write(source, if how.beyond { (lost + 100) * source.streams.len() as u64 } else { fewer }, rng).await?;
    if how.unwatched {
        cluster.start_node(PROJECTOR).await?;
    }
    let gone = Instant::now();
    if rng.chance(50) {
        ask::each(client, source, indexes).await.context("at once")?;
    }
    let now = before.back(client, BUCKET, &[stream], BACK_WITHIN).await?;
    println!("stream {stream}, {how:?}: {lost} lost, back after {:?}", gone.elapsed());
    ensure!(now.common(stream, &before) <= backup.last_seq(), "not before {}: {now:?}", backup.last_seq());
    now.check_shown(&cluster.reach(), source)
}
