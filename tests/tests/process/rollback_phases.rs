//! A rollback is disturbed in each of its phases: its source goes back once more, or whoever coordinates is killed. Another one
//! goes on with it, every scan keeps its promise meanwhile, and every index equals what is there then.

use highwater_schemas::state::Change;
use highwater_tests::{
    backup::OldFiles,
    branches::Branches,
    history::Follow,
    load::{self, Writer},
    prelude::*,
    trial::{ELECTED_WITHIN, QUICK},
};

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
const FIRST: u64 = 3_000;
const NODES: [&str; 7] =
    ["cluster-manager-1", "coordinator-1", "coordinator-2", "projector-1", "indexer-1", "indexer-2", "catalog-1"];
const BUILT_WITHIN: Duration = Duration::from_secs(60);
/// Longer than a rollback takes on a machine that does much else.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// What comes just after a record is met some of the times, milliseconds.
const SOON: u64 = 40;

/// What is in the log when the rollback is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Nothing yet: the source has just gone back.
    Nothing,
    /// The new branch: indexers go back.
    Started,
    /// They have: the source is read again.
    Prepared,
    /// A projector got the stream under a new generation.
    Assigned,
    /// Slices are compared, or built.
    Sessions,
    /// It is over.
    Done,
}

const ALL: [Seen; 6] = [Seen::Nothing, Seen::Started, Seen::Prepared, Seen::Assigned, Seen::Sessions, Seen::Done];

impl Seen {
    fn is(self, change: &Change) -> bool {
        match self {
            Self::Nothing => true,
            Self::Started => matches!(change, Change::BranchStarted { .. }),
            Self::Prepared => matches!(change, Change::RollbackPrepared { .. }),
            Self::Assigned => matches!(change, Change::VbucketAssigned { .. }),
            Self::Sessions => matches!(change, Change::SessionOpened { .. }),
            Self::Done => matches!(change, Change::RollbackDone { .. }),
        }
    }

    /// Waits for it, and sometimes for a little longer.
    async fn wait(self, log: &mut Follow, rng: &mut Rng) -> Result<()> {
        if self != Self::Nothing {
            log.until("a new branch", BACK_WITHIN, |c| Self::Started.is(c)).await?;
        }
        if !matches!(self, Self::Nothing | Self::Started) {
            log.until(&format!("{self:?}"), BACK_WITHIN, |change| self.is(change)).await?;
        }
        if rng.chance(50) {
            tokio::time::sleep(Duration::from_millis(rng.below(SOON))).await;
        }
        Ok(())
    }
}

fn shuffled(rng: &mut Rng) -> Vec<Seen> {
    let mut left = ALL.to_vec();
    (0..left.len()).map(|_| left.swap_remove(rng.below(left.len() as u64) as usize)).collect()
}

struct Bench {
    client: Client,
    source: Source,
    indexes: Vec<Index>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_goes_back_twice_is_followed_back_twice() -> Result<()> {
    let mut rng = Rng::seeded("twice");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let bench = Bench::start(cluster, &mut rng).await?;
            for seen in shuffled(&mut rng) {
                let forward = rng.chance(50);
                let twice = twice(cluster, &bench, seen, forward, &mut rng);
                twice.await.with_context(|| format!("{seen:?}, forward {forward}"))?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_survives_whoever_coordinates() -> Result<()> {
    let mut rng = Rng::seeded("master killed");
    let cluster = Cluster::without_services()?.with_arguments("cluster-manager", &QUICK);
    cluster
        .with_nodes(&NODES)
        .await?
        .run(async |cluster| {
            let bench = Bench::start(cluster, &mut rng).await?;
            for seen in shuffled(&mut rng) {
                let killed = master_killed(cluster, &bench, seen, &mut rng);
                killed.await.with_context(|| format!("{seen:?}"))?;
            }
            Ok(())
        })
        .await
}

/// `forward`: the second time what was abandoned comes back, and not something older.
async fn twice(cluster: &mut Cluster, bench: &Bench, seen: Seen, forward: bool, rng: &mut Rng) -> Result<()> {
    let Bench { client, source, .. } = bench;
    let oldest = OldFiles::take(cluster, client, STREAM, "oldest").await?;
    bench.more(rng).await?;
    let old = OldFiles::take(cluster, client, STREAM, "old").await?;
    let then = source.log().clone();
    bench.more(rng).await?;
    let newest = OldFiles::take(cluster, client, STREAM, "newest").await?;
    bench.check().await.context("before it went back")?;
    let before = Branches::soon(client, BUCKET, BACK_WITHIN).await?;
    let checker = Checker::start(client, source, &bench.indexes, rng);
    let back = async |_: &Checker| {
        let end = Follow::end(client).await?;
        old.put_back(cluster, client).await?;
        source.is_as_it_was(then);
        let mut log = Follow::after(client, end).await?;
        if seen != Seen::Nothing && rng.chance(50) {
            load::write(source, rng.below(200), rng).await?;
        }
        seen.wait(&mut log, rng).await?;
        let second = if forward { &newest } else { &oldest };
        second.put_back(cluster, client).await?;
        source.reread().await?;
        load::write(source, rng.below(300), rng).await?;
        // What was there all the time for those who look began nothing.
        bench.back(cluster, &before, !(forward && seen == Seen::Nothing)).await
    };
    let (now, _) = checker.through(BACK_WITHIN, back).await?;
    println!("{seen:?}, forward {forward}: {} branches, then {}", before.count(0), now.count(0));
    bench.in_order(rng).await
}

async fn master_killed(cluster: &mut Cluster, bench: &Bench, seen: Seen, rng: &mut Rng) -> Result<()> {
    let Bench { client, source, .. } = bench;
    let old = OldFiles::take(cluster, client, STREAM, "old").await?;
    bench.more(rng).await?;
    bench.check().await.context("before it went back")?;
    let (master, term) = client.wait_term(0, ELECTED_WITHIN).await?;
    let before = Branches::soon(client, BUCKET, BACK_WITHIN).await?;
    let checker = Checker::start(client, source, &bench.indexes, rng);
    let back = async |_: &Checker| {
        let end = Follow::end(client).await?;
        old.put_back(cluster, client).await?;
        let mut log = Follow::after(client, end).await?;
        seen.wait(&mut log, rng).await?;
        cluster.kill(&master)?;
        let gone = Instant::now();
        source.reread().await?;
        load::write(source, rng.below(300), rng).await?;
        let (next, later) = client.wait_term(term, BACK_WITHIN).await?;
        println!("{seen:?}: {master} killed in term {term}, {next} coordinates in {later} after {:?}", gone.elapsed());
        let returned = rng.chance(50);
        if returned {
            cluster.start_node(&master).await?;
        }
        bench.back(cluster, &before, true).await?;
        if !returned {
            cluster.start_node(&master).await?;
        }
        client.wait_formed(&NODES).await
    };
    checker.through(BACK_WITHIN, back).await?;
    bench.in_order(rng).await
}

impl Bench {
    async fn start(cluster: &Cluster, rng: &mut Rng) -> Result<Self> {
        let client = cluster.client().await?;
        let source = Source::key_value(&client, BUCKET).await?;
        load::write(&source, FIRST, rng).await?;
        let indexes = documents::indexes(2);
        client.create_indexes(BUCKET, &indexes, BUILT_WITHIN).await?;
        Ok(Self { client, source, indexes })
    }

    async fn more(&self, rng: &mut Rng) -> Result<()> {
        load::write(&self.source, 100 + rng.below(500), rng).await
    }

    async fn check(&self) -> Result<()> {
        ask::each(&self.client, &self.source, &self.indexes).await
    }

    /// Waits until the bucket has gone back; then every index equals the source.
    async fn back(&self, cluster: &Cluster, before: &Branches, surely: bool) -> Result<Branches> {
        let Self { client, source, indexes } = self;
        if surely {
            before.back(client, BUCKET, &[0], BACK_WITHIN).await?;
        }
        for index in indexes {
            client.wait_active(BUCKET, &index.name, BUILT_WITHIN).await?;
        }
        self.check().await?;
        // What went back twice may have been found a second time only now.
        let now = Branches::at_rest(client, BUCKET, BACK_WITHIN).await?;
        if surely {
            now.check_shown(&cluster.reach(), source)?;
        }
        Ok(now)
    }

    /// Every index equals the source, also when more is written.
    async fn in_order(&self, rng: &mut Rng) -> Result<()> {
        let Self { client, source, indexes } = self;
        for index in indexes {
            ask::random(client, source, index, rng).await?;
        }
        let writer = Writer::start(source, rng);
        load::written(source, 300).await?;
        writer.stop().await?;
        self.check().await.context("after more was written")
    }
}
