//! Three nats-servers with three replicas of every stream: nothing that was acknowledged is lost, and somebody coordinates again,
//! when the server that leads a stream is killed under load, and in what else one server shows.

use futures_util::StreamExt;
use highwater_schemas::subjects;
use highwater_tests::{
    cli, load,
    prelude::*,
    scenarios::{copies, log, sleep},
    trial::{NODES, QUICK, SETTLED_WITHIN, Trial},
};
use std::collections::BTreeMap;
use tokio::time::timeout;

const DOCUMENTS: u64 = 2_000;
/// Far more than the servers take to elect another leader of a stream, about 5 s, and then the index managers to follow.
const LED_WITHIN: Duration = Duration::from_secs(30);

async fn deployed() -> Result<Cluster> {
    Cluster::replicated().await?.deploy(&NODES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_the_source_killed_under_load_loses_nothing() -> Result<()> {
    Trial::run("leader of the source", deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        replicated(trial, cluster).await?;
        for round in 0..2 {
            let stream = trial.source.streams[0].0.clone();
            one_round(cluster, trial, &stream, false, round, rng).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_the_log_killed_with_or_without_the_master_loses_nothing() -> Result<()> {
    Trial::run("leader of the log", deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        for round in 0..2 {
            one_round(cluster, trial, subjects::STATE_STREAM, round % 2 == 1, round, rng).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_wakes_up_steps_down() -> Result<()> {
    sleep::wakes_up("sleeping master, replicated", deployed().await?, false, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_log_is_published_anew() -> Result<()> {
    log::deleted("deleted log, replicated", deployed().await?, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terms_rise_without_the_cluster_managers_bucket() -> Result<()> {
    log::without_bucket("lost bucket, replicated", deployed().await?, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stray_old_copy_follows_the_log_even_when_it_is_elected() -> Result<()> {
    copies::stray("stray copy, replicated", deployed().await?).await
}

/// Two of three servers are down: the third takes connections, and its JetStream has no leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_start_before_jetstream_has_a_leader_wait_for_it() -> Result<()> {
    let cluster = Cluster::replicated().await?.with_arguments("cluster-manager", &QUICK);
    let test = async |cluster: &mut Cluster| {
        for server in &mut cluster.servers()[1..] {
            server.kill();
        }
        let client = cluster.client().await?;
        until("JetStream has no leader", LED_WITHIN, async || {
            client.js.query_account().await.map_or(Ok(()), |_| Err("it answers".into()))
        })
        .await?;
        let mut asked = client.nats.subscribe("$JS.API.>").await?;
        client.nats.flush().await?;
        for node in NODES {
            cluster.spawn(node)?;
        }
        // Each asks from an inbox of its own. Twice: the first question was not answered.
        let mut asking: BTreeMap<String, u32> = BTreeMap::new();
        while asking.values().filter(|times| **times > 1).count() < NODES.len() {
            let question = timeout(LED_WITHIN, asked.next()).await.context("not every node asks for JetStream")?;
            let reply = question.and_then(|question| question.reply).context("a question without a reply subject")?;
            *asking.entry(reply.split('.').nth(1).unwrap_or_default().to_owned()).or_default() += 1;
        }
        drop(asked);
        cluster.check()?;
        let (code, _, said) = cli::highwater(&["ping", "--nats", "--nats-url", cluster.url()])?;
        ensure!(code == Some(1) && said.contains("JetStream does not answer"), "ping --nats: {code:?} {said}");
        // Whoever waits can be stopped.
        cluster.stop("cluster-manager-2").await?;
        cluster.spawn("cluster-manager-2")?;
        for server in &mut cluster.servers()[1..] {
            server.start_again()?;
        }
        for node in NODES {
            cluster.wait_ready(node).await?;
        }
        client.wait_formed(&NODES).await?;
        let source = Source::key_value_replicated(&client, "late", 3).await?;
        load::write(&source, DOCUMENTS, &mut Rng::seeded("late JetStream")).await?;
        let indexes = documents::indexes(1);
        client.create_indexes("late", &indexes, SETTLED_WITHIN).await?;
        ask::each(&client, &source, &indexes).await
    };
    cluster.run(test).await
}

/// Kills the server that leads a stream, perhaps with the master, while indexes are created and documents are written.
async fn one_round(
    cluster: &mut Cluster,
    trial: &mut Trial,
    stream: &str,
    with_master: bool,
    round: u32,
    rng: &mut Rng,
) -> Result<()> {
    trial.traffic(rng);
    let (master, term) = trial.master().await?;
    let before = format!("before{round}");
    trial.create(&before).await?;
    load::written(&trial.source, 100 + rng.below(1_000)).await?;
    let leader = leader(trial, stream).await?;
    let gone = Instant::now();
    cluster.servers().iter_mut().find(|server| server.name() == leader).context("no such server")?.kill();
    if with_master {
        cluster.kill(&master)?;
        let (next, later) = trial.client.wait_term(term, LED_WITHIN).await?;
        println!("{next} coordinates in term {later} after {:?}", gone.elapsed());
    }
    load::written(&trial.source, 1).await?;
    println!("round {round}: {leader} led {stream}; writes go on after {:?}", gone.elapsed());
    trial.create(&format!("without{round}")).await?;
    println!("DDL after {:?}", gone.elapsed());
    trial.drop(&before).await?;
    load::written(&trial.source, 500).await?;
    cluster.servers().iter_mut().find(|server| server.name() == leader).context("no such server")?.start_again()?;
    if with_master {
        cluster.start_node(&master).await?;
    }
    current(trial, cluster).await?;
    println!("all replicas are current after {:?}", gone.elapsed());
    let scanned = trial.quiet().await?;
    println!("{} scans, {} failed, the longest pause {:?}", scanned.answered, scanned.failed.len(), scanned.pause);
    for (at, refused) in &scanned.failed {
        ensure!(refused.retry || refused.code == "no_reply", "at {at:?}: {refused}");
    }
    trial.formed(&cluster.nodes()).await?;
    trial.check().await
}

async fn leader(trial: &Trial, stream: &str) -> Result<String> {
    until(&format!("a leader of {stream}"), LED_WITHIN, async || {
        let found = trial.client.js.get_stream(stream).await.map_err(|e| e.to_string())?;
        let cluster = found.cached_info().cluster.as_ref();
        cluster.and_then(|c| c.leader.clone()).ok_or_else(|| "none".to_owned())
    })
    .await
}

async fn names(trial: &Trial) -> Result<Vec<String>, String> {
    use futures_util::TryStreamExt;
    trial.client.js.stream_names().try_collect().await.map_err(|e| e.to_string())
}

/// Every stream has as many replicas as there are servers.
async fn replicated(trial: &Trial, cluster: &mut Cluster) -> Result<()> {
    let wanted = cluster.servers().len();
    for name in names(trial).await.map_err(anyhow::Error::msg)? {
        let stream = trial.client.js.get_stream(&name).await?;
        let replicas = stream.cached_info().config.num_replicas;
        ensure!(replicas == wanted, "{name} has {replicas} replicas");
    }
    Ok(())
}

/// Waits until each server has all of every stream.
async fn current(trial: &Trial, cluster: &mut Cluster) -> Result<()> {
    let others = cluster.servers().len() - 1;
    until("every replica is current", SETTLED_WITHIN, async || {
        for name in names(trial).await? {
            let stream = trial.client.js.get_stream(&name).await.map_err(|e| format!("{name}: {e}"))?;
            let group = stream.cached_info().cluster.clone().unwrap_or_default();
            let current = group.replicas.iter().filter(|r| r.current && !r.offline).count();
            if current != others || group.leader.is_none() {
                return Err(format!("{name}: {group:?}"));
            }
        }
        Ok(())
    })
    .await
}
