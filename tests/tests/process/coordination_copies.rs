//! Copies of the log that come back: an old one, one of another deployment, or too few of them. No copy beats an intact log, and
//! a lost one is replaced by the latest copy only.

use futures_util::StreamExt;
use highwater_schemas::{api::ClusterEvent, subjects};
use highwater_tests::{
    cli, files, load,
    prelude::*,
    scenarios::copies,
    trial::{self, BUCKET, MANAGERS, SETTLED_WITHIN, Trial},
};

const DOCUMENTS: u64 = 1_000;
/// Events of the cluster manager, one at each heartbeat: more of them than heartbeats of a silent node are waited for.
const IN_VAIN: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stray_old_copy_follows_the_log_even_when_it_is_elected() -> Result<()> {
    copies::stray("stray copy", Cluster::deployed().await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_another_deployment_loses_against_the_log() -> Result<()> {
    // Longer than the log that it meets, in a later term.
    let mut other = Cluster::without_services()?.deploy(&["cluster-manager-1", "coordinator-1"]).await?;
    let client = other.client().await?;
    Source::key_value(&client, "strange").await?;
    client
        .insist("hw.admin.bucket.add", &json!({"name": "strange", "source": {"kv": "strange"}}), SETTLED_WITHIN)
        .await?;
    let topic = json!({"bucket": "strange", "topic": "passing"});
    for _ in 0..100 {
        client.insist("hw.admin.topic.create", &topic, SETTLED_WITHIN).await?;
        client.insist("hw.admin.topic.delete", &topic, SETTLED_WITHIN).await?;
    }
    let version = members(&client).await?["version"].as_u64().context("no version")?;
    other.stop("coordinator-1").await?;
    let foreign = other.data_dir("coordinator-1").join("coordinator/state");

    Trial::run("foreign copy", Cluster::deployed().await?, DOCUMENTS, async |cluster, trial, _| {
        let (_, term) = trial.master().await?;
        let context = trial.history.read(&trial.client).await?;
        ensure!(version > context.version, "the foreign copy is at {version}, ours at {}", context.version);
        // As a replica, and then as the first to be elected: it claims the highest version.
        let mut before = term;
        for others_die in [false, true] {
            let (master, _) = trial.master().await?;
            let stray = MANAGERS.into_iter().find(|node| *node != master).context("no replica")?;
            let gone = Instant::now();
            if others_die {
                for node in MANAGERS {
                    cluster.kill(node)?;
                }
            } else {
                cluster.stop(stray).await?;
            }
            files::put_back(&foreign, &cluster.data_dir(stray).join("coordinator/state"))?;
            cluster.start_node(stray).await?;
            if others_die {
                let (next, later) = trial.later_term(before, gone).await?;
                println!("{next} coordinates in term {later} after {before}");
                before = later;
                for node in MANAGERS.into_iter().filter(|node| *node != stray) {
                    cluster.start_node(node).await?;
                }
            }
            trial.formed(&cluster.nodes()).await?;
            let state = trial.state_of(stray).await?;
            trial.holds(&state)?;
            ensure!(!state.buckets.contains_key("strange"), "the foreign bucket is there");
            trial.create(&format!("after_{others_die}")).await?;
        }
        trial.settle(cluster).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_log_waits_for_every_copy() -> Result<()> {
    Trial::run("two of three", Cluster::deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        let last = only_one_knows(cluster, trial, rng).await?;
        nobody_coordinates(trial, &last).await?;
        cluster.start_node(&last).await?;
        let (next, _) = trial.master().await?;
        println!("{next} coordinates");
        trial.holds(&trial.state_of(&next).await?)?;
        trial.create("at_last").await?;
        trial.traffic(rng);
        trial.settle(cluster).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_log_is_recovered_by_force_from_the_copies_that_are_there() -> Result<()> {
    Trial::run("by force", Cluster::deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        let last = only_one_knows(cluster, trial, rng).await?;
        nobody_coordinates(trial, &last).await?;
        let (code, out, err) = cli::highwater(&["state", "recover", "--force", "--nats-url", cluster.url()])?;
        ensure!(code == Some(0), "{code:?} {out} {err}");
        let (next, _) = trial.master().await?;
        // Its owner gave up what only the missing one knew.
        trial.indexes.retain(|index| index.name != "known_to_one");
        trial.holds(&trial.state_of(&next).await?)?;
        trial.create("at_last").await?;
        // It returns with a later version of a log that is no more.
        cluster.start_node(&last).await?;
        trial.formed(&cluster.nodes()).await?;
        trial.holds(&trial.state_of(&last).await?)?;
        trial.create("known_to_one").await?;
        trial.traffic(rng);
        trial.settle(cluster).await
    })
    .await
}

/// Stops every index manager and deletes the log; those are started again that do not know the newest index. Answers who does.
async fn only_one_knows(cluster: &mut Cluster, trial: &mut Trial, rng: &mut Rng) -> Result<String> {
    let last = (*rng.pick(&MANAGERS)).to_owned();
    let others: Vec<&str> = MANAGERS.into_iter().filter(|node| *node != last).collect();
    trial.create("known_to_all").await?;
    trial.formed(&cluster.nodes()).await?;
    let (_, term) = trial.master().await?;
    for node in &others {
        cluster.kill(node)?;
    }
    if trial.report_of(&last).await.map_err(anyhow::Error::msg)?.leading.is_none() {
        trial.later_term(term, Instant::now()).await?;
    }
    trial.create("known_to_one").await?;
    if rng.chance(50) {
        // Another generation, which only the one knows too.
        let vbucket = trial.state_of(&last).await?.buckets[BUCKET].vbuckets[0].clone();
        println!("{} ends, which reads the source", vbucket.projector);
        cluster.restart(&vbucket.projector).await?;
        until("it has an heir", SETTLED_WITHIN, async || {
            let state = trial.state_of(&last).await.map_err(|e| e.to_string())?;
            let now = state.buckets[BUCKET].vbuckets[0].generation;
            if now > vbucket.generation { Ok(()) } else { Err(format!("generation {now}")) }
        })
        .await?;
        load::written(&trial.source, 500).await?;
    }
    trial.quiet_without_failures().await?;
    trial.history.read(&trial.client).await?;
    cluster.kill(&last)?;
    trial.client.js.delete_stream(subjects::STATE_STREAM).await?;
    for node in others {
        cluster.start_node(node).await?;
    }
    Ok(last)
}

/// Nobody does for a while, and everybody can see who is missing.
async fn nobody_coordinates(trial: &Trial, last: &str) -> Result<()> {
    let told = until("it is said who is missing", SETTLED_WITHIN, async || {
        let mut notes = Vec::new();
        for node in MANAGERS.into_iter().filter(|node| *node != last) {
            let (alive, _, note) = trial::seen_as(&trial.client, node).await?;
            if alive && note.contains(last) && note.contains("--force") {
                return Ok(note);
            }
            notes.push((alive, note));
        }
        Err(format!("{notes:?}"))
    })
    .await?;
    println!("{told}");
    let request = trial::named("in_vain").definition(BUCKET);
    let mut events = trial.client.nats.subscribe(subjects::CLUSTER_EVENT).await?;
    for _ in 0..IN_VAIN {
        let event =
            tokio::time::timeout(SETTLED_WITHIN, events.next()).await.context("no event")?.context("no event")?;
        let event: ClusterEvent = serde_json::from_slice(&event.payload)?;
        ensure!(event.master.is_none(), "somebody coordinates: {event:?}");
        let status = members(&trial.client).await?;
        ensure!(status["coordinator"] == "", "somebody coordinates: {status}");
        let refused = trial.client.request("hw.admin.index.create", &request).await.err().context("it was created")?;
        ensure!(refused.code == "no_coordinator" && refused.retry, "{refused}");
    }
    Ok(())
}

/// What the cluster says, as soon as it says anything.
async fn members(client: &Client) -> Result<Value> {
    until("the cluster answers", SETTLED_WITHIN, async || client.members().await.map_err(|refused| refused.to_string()))
        .await
}
