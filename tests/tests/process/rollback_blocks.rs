//! Message blocks of a source are lost while the server is down, and the stream's index of its blocks is as of then, older or
//! gone: its last sequence falls, or stays over a hole, or old revisions are current again. Every scan keeps its promise meanwhile,
//! and every index equals what is left.

use highwater_tests::{
    backup,
    branches::Branches,
    files::{self, block_index},
    prelude::*,
};
use std::path::Path;

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
/// Few enough for a bucket of small blocks.
const IDS: u64 = 200;
/// Some blocks full.
const WRITES: u64 = 1_000;
const BUILT_WITHIN: Duration = Duration::from_secs(30);
/// Longer than a rollback of so few documents takes on a machine that does much else.
const BACK_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// The newest blocks are gone.
    Removed,
    /// The newest block is cut off.
    Truncated,
}

/// The index of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BlockIndex {
    Current,
    Stale,
    Absent,
}

const LOSSES: [Loss; 2] = [Loss::Removed, Loss::Truncated];
const INDEXES: [BlockIndex; 3] = [BlockIndex::Current, BlockIndex::Stale, BlockIndex::Absent];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_lost_under_a_current_index_of_blocks_are_missed() -> Result<()> {
    each_loss("lost blocks, current index", BlockIndex::Current).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_lost_under_a_stale_index_of_blocks_are_missed() -> Result<()> {
    each_loss("lost blocks, stale index", BlockIndex::Stale).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_lost_with_the_index_of_blocks_are_missed() -> Result<()> {
    each_loss("lost blocks, no index", BlockIndex::Absent).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_lost_one_time_after_the_other_are_missed() -> Result<()> {
    let mut rng = Rng::seeded("lost blocks");
    let losses: Vec<_> = (0..4).map(|_| (*rng.pick(&LOSSES), *rng.pick(&INDEXES))).collect();
    lost_in_turn(&losses, &mut rng).await
}

async fn each_loss(name: &str, index: BlockIndex) -> Result<()> {
    let mut rng = Rng::seeded(name);
    lost_in_turn(&LOSSES.map(|loss| (loss, index)), &mut rng).await
}

async fn lost_in_turn(losses: &[(Loss, BlockIndex)], rng: &mut Rng) -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value_small(&client, BUCKET).await?;
            write(&source, WRITES, rng).await?;
            let indexes = documents::indexes(2);
            client.create_indexes(BUCKET, &indexes, BUILT_WITHIN).await?;
            for (loss, index) in losses {
                let lost = lost(cluster, &client, &source, &indexes, *loss, *index, rng);
                lost.await.with_context(|| format!("{loss:?}, {index:?}"))?;
            }
            Ok(())
        })
        .await
}

async fn write(source: &Source, count: u64, rng: &mut Rng) -> Result<()> {
    let writes: Vec<Write> = (0..count).map(|_| documents::write(rng, 1, IDS)).collect();
    source.write(writes).await
}

async fn lost(
    cluster: &mut Cluster,
    client: &Client,
    source: &Source,
    indexes: &[Index],
    loss: Loss,
    index: BlockIndex,
    rng: &mut Rng,
) -> Result<()> {
    let directory = cluster.nats().stream_dir(STREAM);
    let stale = cluster.path().join("index.db");
    cluster.nats().stop()?;
    std::fs::copy(block_index(&directory), &stale).context("no index of the blocks")?;
    cluster.nats().start_again()?;
    backup::there(client, STREAM).await?;
    write(source, WRITES / 2 + rng.below(WRITES), rng).await?;
    ask::each(client, source, indexes).await.context("before blocks were lost")?;
    let checker = Checker::start(client, source, indexes, rng);
    let mended = async |checker: &Checker| {
        let before = Branches::soon(client, BUCKET, BACK_WITHIN).await?;
        if index == BlockIndex::Current || rng.chance(50) {
            cluster.nats().stop()?;
        } else {
            cluster.nats().kill();
        }
        lose(&directory, &stale, loss, index, rng)?;
        cluster.nats().start_again()?;
        backup::there(client, STREAM).await?;
        followed(&cluster.reach(), client, source, indexes, &before, rng).await?;
        checker.answered(2, BACK_WITHIN).await.context("when all is mended")
    };
    checker.through(BACK_WITHIN, mended).await?;
    for index in indexes {
        client.wait_active(BUCKET, &index.name, BUILT_WITHIN).await?;
        ask::random(client, source, index, rng).await?;
    }
    ask::each(client, source, indexes).await
}

/// Waits until the bucket has followed its source, which was changed.
async fn followed(
    reach: &[&str],
    client: &Client,
    source: &Source,
    indexes: &[Index],
    before: &Branches,
    rng: &mut Rng,
) -> Result<()> {
    let documents = source.log().now();
    let last = source.log().complete();
    source.reread().await?;
    let left = source.log().now();
    let last_left = source.log().complete();
    let at_once = rng.chance(50);
    if at_once {
        ask::each(client, source, indexes).await.context("at once")?;
    } else {
        // Others than before, often under the same seqnos.
        write(source, 1 + rng.below(WRITES), rng).await?;
    }
    let changed = left != documents;
    println!("{last:?} then {last_left:?}, changed {changed}, asked at once {at_once}");
    if changed || last != last_left {
        // Broken, or only unproven where what was written since lies over the bookmarks.
        before.back(client, BUCKET, &[0], BACK_WITHIN).await?.check_shown(reach, source)?;
    }
    Ok(())
}

fn lose(directory: &Path, stale: &Path, loss: Loss, index: BlockIndex, rng: &mut Rng) -> Result<()> {
    match loss {
        Loss::Removed => {
            let blocks = files::blocks(directory)?;
            ensure!(blocks.len() > 2, "too few blocks: {blocks:?}");
            let keep = blocks.len() - 1 - rng.below(blocks.len() as u64 / 2) as usize;
            for block in &blocks[keep..] {
                std::fs::remove_file(block)?;
            }
        }
        Loss::Truncated => files::cut_block(directory, rng.below(100))?,
    }
    match index {
        BlockIndex::Current => ensure!(block_index(directory).exists(), "no index of the blocks"),
        BlockIndex::Stale => _ = std::fs::copy(stale, block_index(directory))?,
        BlockIndex::Absent if block_index(directory).exists() => std::fs::remove_file(block_index(directory))?,
        BlockIndex::Absent => {}
    }
    Ok(())
}
