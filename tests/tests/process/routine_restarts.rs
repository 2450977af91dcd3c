//! NATS restarts, or another server leads a stream, and nothing is lost: that costs no rollback, no rebuild and no catchup, by the
//! projectors' own counters, also where every document is overwritten again and again.

use highwater_schemas::api::{BucketStatus, Reads};
use highwater_tests::{
    branches::Branches,
    cluster::SERVICES,
    leaders::another_leads,
    load::{self, Writer},
    prelude::*,
    proxy::Proxy,
    rounds,
    wait::deadline,
    watch::Watch,
};
use xtask::busy::Busy;

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
const FIRST: u64 = 3_000;
const PROJECTOR: &str = "projector-1";
const WITHIN: Duration = Duration::from_secs(30);
/// Of the documents, overwritten between the restart and what is asked afterwards at least.
const FURTHER: u64 = 3_000;
/// Answers in which something is missing. Only a comparison's third such answer could be taken for a loss, however long it takes.
const LACKING: u32 = 2;
/// Times that this is tried: both answers may be to other questions than a comparison's.
const TRIALS: usize = 20;

/// What a bucket has cost so far.
#[derive(Debug, Clone)]
struct Cost {
    reads: Reads,
    /// Sequence numbers of the source, read and covered.
    seqno: u64,
    covered: u64,
    branches: usize,
    rollbacks: usize,
}

impl Cost {
    /// At rest: everything that was written is read, and a projector has said so since.
    async fn so_far(client: &Client, source: &Source) -> Result<Self> {
        let last: u64 = source.log().complete().iter().sum();
        until("everything is read", WITHIN, async || {
            let bucket = people(client).await?;
            let covered: u64 = bucket.vbuckets.iter().map(|vbucket| vbucket.covered).sum();
            if covered >= last { Ok(()) } else { Err(format!("{last} is not covered: {bucket:?}")) }
        })
        .await?;
        let since = Instant::now();
        let bucket = until("the projector tells of it", WITHIN, async || {
            let elapsed = since.elapsed().as_millis();
            let status = client.members().await.map_err(|refused| refused.to_string())?;
            let mut members = status["members"].as_array().into_iter().flatten();
            let projector = members.find(|member| member["node"] == PROJECTOR).ok_or("no projector")?;
            let heard = projector["last_heartbeat_ms"].as_u64().unwrap_or(u64::MAX);
            if u128::from(heard) < elapsed { people(client).await } else { Err("no heartbeat yet".into()) }
        })
        .await?;
        let history = Branches::soon(client, BUCKET, WITHIN).await?;
        Ok(Self {
            reads: bucket.vbuckets[0].reads,
            seqno: bucket.vbuckets[0].seqno,
            covered: bucket.vbuckets[0].covered,
            branches: history.count(0),
            rollbacks: history.rollbacks(),
        })
    }

    /// Checks that nothing was done twice since `before`.
    fn check(&self, before: &Self) -> Result<()> {
        ensure!((self.branches, self.rollbacks) == (before.branches, before.rollbacks), "{before:?}, then {self:?}");
        ensure!(
            self.reads.catchup == before.reads.catchup,
            "something was built or caught up: {before:?}, then {self:?}"
        );
        let read = self.reads.live.checked_sub(before.reads.live).context("another projector reads")?;
        let since_covered = self.seqno - before.covered;
        ensure!(read <= since_covered, "{read} of {since_covered} documents were read: {before:?}, then {self:?}");
        let compared = self.reads.compared - before.reads.compared;
        println!("  {read} documents read of {since_covered} since what was covered, and {compared} for comparisons");
        Ok(())
    }
}

/// The bucket as the coordinator sees it.
async fn people(client: &Client) -> Result<BucketStatus, String> {
    let bucket = client.bucket(BUCKET).await.map_err(|refused| refused.to_string())?;
    serde_json::from_value(bucket).map_err(|error| error.to_string())
}

/// How often a leader contradicted what was read, and was asked again.
async fn contradicted(client: &Client) -> Result<u64, String> {
    Ok(people(client).await?.vbuckets.iter().map(|vbucket| vbucket.reads.contradicted).sum())
}

/// Documents that are overwritten all the time until `deed` is done and further ones were written since.
async fn overwritten(source: &Source, hot: bool, rng: &mut Rng, deed: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let writer = hot.then(|| Writer::start(source, rng));
    if hot {
        load::written(source, FURTHER).await?;
    }
    deed().await?;
    match writer {
        Some(writer) => {
            load::written(source, FURTHER).await?;
            writer.stop().await
        }
        None => load::write(source, FURTHER, rng).await,
    }
}

/// Documents on three servers, and indexes over them.
async fn replicated(client: &Client, rng: &mut Rng) -> Result<(Source, Vec<Index>)> {
    let source = Source::key_value_replicated(client, BUCKET, 3).await?.patient(WITHIN);
    let indexes = documents::indexes(2);
    load::index(client, &source, FIRST, &indexes, rng, WITHIN).await?;
    Ok((source, indexes))
}

/// Every index was active all the time and equals the source.
async fn unharmed(client: &Client, source: &Source, indexes: &[Index]) -> Result<()> {
    source.fill().await?;
    for index in indexes {
        let state = client.index(BUCKET, &index.name).await?["state"].clone();
        ensure!(state == "active", "{} is {state}", index.name);
        ask::whole(client, source, index).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_with_its_history_costs_nothing() -> Result<()> {
    let mut rng = Rng::seeded("routine restart");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = documents::indexes(2);
            let source = load::indexed(&client, BUCKET, FIRST, &indexes, &mut rng, WITHIN).await?.patient(WITHIN);
            for round in 0..6 {
                let (hot, killed) = (round % 2 == 1, round % 3 == 0);
                println!("round {round}: hot {hot}, killed {killed}");
                let before = Cost::so_far(&client, &source).await?;
                let checker = Checker::start(&client, &source, &indexes, &mut rng);
                let restarted = async |checker: &Checker| {
                    overwritten(&source, hot, &mut rng, async || {
                        if killed {
                            cluster.nats().kill();
                        } else {
                            cluster.nats().stop()?;
                        }
                        cluster.nats().start_again()
                    })
                    .await?;
                    checker.answered(1, WITHIN).await.context("after the restart")
                };
                checker.through(WITHIN, restarted).await?;
                unharmed(&client, &source, &indexes).await?;
                Cost::so_far(&client, &source).await?.check(&before)?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leader_of_the_stream_costs_nothing() -> Result<()> {
    let mut rng = Rng::seeded("another leader");
    Cluster::replicated()
        .await?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let watch = Watch::start(cluster.client().await?).await?;
            let (source, indexes) = replicated(&client, &mut rng).await?;
            for round in 0..4 {
                let hot = round % 2 == 1;
                println!("round {round}: hot {hot}");
                let before = Cost::so_far(&client, &source).await?;
                overwritten(&source, hot, &mut rng, async || {
                    ensure!(
                        another_leads(&client, &source.streams[0].0, WITHIN).await?,
                        "the leader does not step down"
                    );
                    Ok(())
                })
                .await?;
                unharmed(&client, &source, &indexes).await?;
                Cost::so_far(&client, &source).await?.check(&before)?;
                watch.check()?;
            }
            Ok(())
        })
        .await
}

/// A leader that was elected a moment ago may not have taken in all that was read. Here it has, and its first answers deny it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lacks_what_was_read_is_asked_again() -> Result<()> {
    let mut rng = Rng::seeded("a leader that lacks something");
    let mut cluster = Cluster::replicated().await?;
    let proxy = Proxy::start(cluster.nats().port()).await?;
    cluster
        .with_detour(PROJECTOR, proxy.url())
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let (source, indexes) = replicated(&client, &mut rng).await?;
            for round in 0..2 {
                let before = Cost::so_far(&client, &source).await?;
                let mut trials = 0;
                let times = loop {
                    trials += 1;
                    ensure!(trials <= TRIALS, "no comparison was contradicted");
                    let so_far = proxy.faults_hit();
                    proxy.lower_last_seq(STREAM, LACKING);
                    ensure!(another_leads(&client, STREAM, WITHIN).await?, "the leader does not step down");
                    until("it is asked again and again", WITHIN, async || {
                        let times = proxy.faults_hit() - so_far;
                        if times >= u64::from(LACKING) { Ok(()) } else { Err(times.to_string()) }
                    })
                    .await?;
                    let times = Cost::so_far(&client, &source).await?.reads.contradicted;
                    if times > before.reads.contradicted {
                        break times;
                    }
                };
                println!("round {round}: leaders have contradicted {times} times, after {trials} trials");
                load::write(&source, FURTHER, &mut rng).await?;
                unharmed(&client, &source, &indexes).await?;
                let after = Cost::so_far(&client, &source).await?;
                let costs = |cost: &Cost| (cost.branches, cost.rollbacks, cost.reads.catchup);
                ensure!(costs(&after) == costs(&before), "{before:?}, then {after:?}");
            }
            Ok(())
        })
        .await
}

/// The server that leads steps down again and again under load, and what was read is never declared lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_that_follow_each_other_under_load_begin_no_branch() -> Result<()> {
    let mut rng = Rng::seeded("leaders under load");
    Cluster::replicated()
        .await?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let (source, indexes) = replicated(&client, &mut rng).await?;
            let before = Branches::soon(&client, BUCKET, WITHIN).await?;
            for (busy, times) in [(0, rounds(12, 60)), (4, rounds(12, 60))] {
                let busy = Busy::start(busy);
                let writer = Writer::start(&source, &mut rng);
                let stream = &source.streams[0].0;
                let (mut stepped_down, deadline) = (0, deadline(10 * WITHIN));
                while stepped_down < times {
                    // One that leads no more by then refuses.
                    stepped_down += u64::from(another_leads(&client, stream, WITHIN).await?);
                    load::written(&source, 50).await?;
                    ensure!(Instant::now() < deadline, "only {stepped_down} leaders have stepped down");
                }
                writer.stop().await?;
                drop(busy);
                unharmed(&client, &source, &indexes).await?;
                let times = contradicted(&client).await.map_err(anyhow::Error::msg)?;
                println!("{stepped_down} leaders stepped down; leaders have contradicted {times} times");
                let after = Branches::at_rest(&client, BUCKET, WITHIN).await?;
                ensure!(after.count(0) == before.count(0) && after.rollbacks() == before.rollbacks(), "{after:?}");
            }
            Ok(())
        })
        .await
}
