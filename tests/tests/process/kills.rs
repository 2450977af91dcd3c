//! Every component in turn is killed at a random moment and started again, while documents are written and scanned at every
//! consistency: every scan keeps its promise, and after each round every index equals the source.
//!
//! 20 rounds; 100 with `cargo xtask test --long`, or `HIGHWATER_LONG=1` in the environment.

use highwater_tests::{
    history::History,
    load::{self, Writer},
    prelude::*,
    rounds,
    watch::Watch,
};

const NODES: [&str; 9] = [
    "cluster-manager-1",
    "coordinator-1",
    "coordinator-2",
    "projector-1",
    "projector-2",
    "indexer-1",
    "indexer-2",
    "catalog-1",
    "catalog-2",
];
/// In their turn.
const KILLED: [&str; 6] = ["nats-server", "indexer", "coordinator", "projector", "catalog", "cluster-manager"];
const STREAMS: usize = 2;
const FIRST: u64 = 3_000;
/// Between bursts of writes.
const PAUSE: Duration = Duration::from_millis(20);
/// After which a write that is not acknowledged, or a component that is not back, is given up: many times what it takes.
const WITHIN: Duration = Duration::from_secs(40);
/// For so long a component is away at most.
const AWAY_MS: u64 = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_every_scan_keeps_its_promise() -> Result<()> {
    killed(Cluster::without_services()?, rounds(20, 100), "kills").await
}

/// Each in its turn, where connections are encrypted and inboxes are elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_every_scan_keeps_its_promise_on_a_secured_server() -> Result<()> {
    killed(Cluster::secured()?, rounds(KILLED.len() as u64, 100), "kills on a secured server").await
}

async fn killed(cluster: Cluster, rounds: u64, name: &str) -> Result<()> {
    let mut rng = Rng::seeded(name);
    cluster
        .deploy(&NODES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let watch = Watch::start(cluster.client().await?).await?;
            let source = Source::keyed_streams(&client, "orders", STREAMS).await?.patient(WITHIN);
            load::write(&source, FIRST, &mut rng).await?;
            let indexes = documents::indexes(3);
            client.create_indexes("orders", &indexes, WITHIN).await?;
            let (mut history, mut longest) = (History::default(), Duration::ZERO);
            for round in 0..rounds {
                let component = KILLED[round as usize % KILLED.len()];
                let node = whom(&client, component, &mut rng).await?;
                let what = || format!("round {round}: {node}");
                longest = longest
                    .max(one_round(cluster, &client, &source, &indexes, &node, &mut rng).await.with_context(what)?);
                history.read(&client).await.context("the log")?;
                watch.check()?;
            }
            println!("unavailable for {longest:.1?} at most; {} terms", history.terms().count());
            Ok(())
        })
        .await
}

/// A process of a component; of the index managers mostly the one that coordinates.
async fn whom(client: &Client, component: &str, rng: &mut Rng) -> Result<String> {
    if component == "coordinator" && rng.chance(75) {
        return Ok(client.wait_term(0, WITHIN).await?.0);
    }
    let of = |node: &&&str| node.rsplit_once('-').is_some_and(|(service, _)| service == component);
    let nodes: Vec<&str> = NODES.iter().filter(of).copied().collect();
    Ok(if nodes.is_empty() { component.into() } else { (*rng.pick(&nodes)).into() })
}

/// Answers the longest time without a scan.
async fn one_round(
    cluster: &mut Cluster,
    client: &Client,
    source: &Source,
    indexes: &[Index],
    node: &str,
    rng: &mut Rng,
) -> Result<Duration> {
    let checker = Checker::start(client, source, indexes, rng).with_writer(Writer::paced(source, rng, PAUSE));
    load::written(source, rng.below(2_000)).await?;
    let (away, report) = checker
        .through(WITHIN, async |checker| {
            let away = Duration::from_millis(rng.below(AWAY_MS));
            if node == "nats-server" {
                cluster.nats().kill();
                tokio::time::sleep(away).await;
                cluster.nats().start_again()?;
            } else {
                cluster.kill(node)?;
                tokio::time::sleep(away).await;
                cluster.start_node(node).await?;
            }
            let back = Instant::now();
            client.wait_formed(&NODES).await?;
            checker.answered(2, WITHIN).await.context("after it was started again")?;
            Ok((away, back.elapsed()))
        })
        .await?;
    println!("{node} away for {:.1?}, everything answers {:.1?} later", away.0, away.1);
    for index in indexes {
        ask::whole(client, source, index).await?;
        ask::random(client, source, index, rng).await?;
    }
    Ok(report.unavailable())
}
