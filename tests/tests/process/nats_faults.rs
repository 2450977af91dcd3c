//! What NATS refuses, loses or cannot be asked is stated in `highwater status` while it lasts, and every scan keeps its promise;
//! afterwards every index equals its source.

use highwater_tests::{
    branches::Branches,
    cli,
    cluster::SERVICES,
    deleting::Deleting,
    load::{self, Writer},
    prelude::*,
    proxy::Proxy,
    stated::{self, Stated, stated},
};

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
const CATCHUP: &str = "HW_CATCHUP_people";
const FIRST: u64 = 3_000;
const BUILT_WITHIN: Duration = Duration::from_secs(60);
const STATED_WITHIN: Duration = Duration::from_secs(60);
/// A lost connection is stated for half a minute after it came back.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(120);
const WELL_WITHIN: Duration = Duration::from_secs(60);
/// Documents of 4 KiB.
const LARGE: u64 = 6_000;
/// How long a component is without NATS: far beyond the heartbeats that it may miss.
const AWAY: Duration = Duration::from_secs(20);
/// Between bursts of writes.
const PAUSE: Duration = Duration::from_millis(5);
/// One that is not heard is down.
const DOWN_WITHIN: Duration = Duration::from_secs(30);

/// The server's configuration; `room`: bytes that JetStream may keep on disk.
fn configuration(room: &str) -> String {
    format!(
        "http: \"127.0.0.1:-1\"\njetstream {{ max_file_store: 8G }}\nwrite_deadline: \"1s\"\nno_auth_user: tested\n\
         accounts {{ TESTED {{ users: [{{user: tested, password: tested}}], \
         jetstream {{ max_file: {room}, max_mem: 256M }} }} }}\n"
    )
}

const ROOM: &str = "4G";
const NO_ROOM: &str = "1K";

/// Waits until a node states something of which `what` and the words are parts.
async fn is_stated(client: &Client, node: &str, what: &str, words: &str) -> Result<()> {
    let wanted = |stated: &Stated| stated.node == node && stated.what.contains(what) && stated.says(words);
    stated::is_stated(client, &format!("{what:?} of {node}: {words:?}"), STATED_WITHIN, wanted).await
}

/// Waits until nothing is stated any more, by any node.
async fn all_is_well(client: &Client) -> Result<()> {
    until("nothing fails", FORGOTTEN_WITHIN, async || {
        let stated = stated(client).await?;
        if stated.is_empty() { Ok(()) } else { Err(format!("{stated:?}")) }
    })
    .await
}

/// Indexes over the first documents of a bucket.
async fn indexed(client: &Client, source: &Source, rng: &mut Rng) -> Result<Vec<Index>> {
    let indexes = documents::indexes(2);
    load::index(client, source, FIRST, &indexes, rng, BUILT_WITHIN).await?;
    Ok(indexes)
}

/// Every index equals the source, as soon as it is active again.
async fn equal(client: &Client, source: &Source, indexes: &[Index]) -> Result<()> {
    for index in indexes {
        client.wait_active(BUCKET, &index.name, WELL_WITHIN).await?;
    }
    ask::each_again(client, source, indexes, WELL_WITHIN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catchup_topic_that_is_deleted_during_a_build_holds_it_up_and_no_more() -> Result<()> {
    let mut rng = Rng::seeded("deleted catchup topic");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            let mut indexes = indexed(&client, &source, &mut rng).await?;
            let built = documents::passing("built_meanwhile");
            let checker = Checker::start(&client, &source, &indexes, &mut rng);
            let deleted = async |checker: &Checker| {
                // Whatever makes it again, it is gone at once.
                let deleting = Deleting::start(cluster.url(), CATCHUP).await?;
                client.create_index(&built.definition(BUCKET)).await?;
                build_is_stated(&client, &built).await?;
                let (code, text, _) = cli::highwater(&["status", "--nats-url", cluster.url()])?;
                ensure!(code == Some(0) && text.contains("FAILS") && text.contains("hw.catchup.people"), "{text}");
                ensure!(text.contains("SESSION") && text.contains("built_meanwhile/0"), "{text}");
                // The others answer, and take up what is written.
                load::write(&source, 500, &mut rng).await?;
                ask::each(&client, &source, &indexes).await?;
                checker.answered(2, WELL_WITHIN).await.context("without a catchup topic")?;
                deleting.stop().await
            };
            checker.through(WELL_WITHIN, deleted).await?;
            indexes.push(built);
            equal(&client, &source, &indexes).await?;
            all_is_well(&client).await
        })
        .await
}

/// Waits until the session of a build is shown, and that its topic is not there.
async fn build_is_stated(client: &Client, built: &Index) -> Result<()> {
    let session = until("the session of the build is shown", STATED_WITHIN, async || {
        let bucket = client.bucket(BUCKET).await.map_err(|refused| refused.to_string())?;
        let session = &bucket["sessions"][0];
        if session["documents"].as_u64() > Some(0) { Ok(session.clone()) } else { Err(bucket.to_string()) }
    })
    .await?;
    println!("{session}");
    ensure!(session["kind"] == "build" && session["node"] == "indexer-1", "{session}");
    ensure!(session["slices"][0]["index"] == built.name && session["slices"][0]["state"] == "building", "{session}");
    ensure!(session["read"].as_u64() <= session["documents"].as_u64(), "{session}");
    is_stated(client, "projector-1", "publishing key versions of bucket people", "hw.catchup.people").await?;
    is_stated(client, "indexer-1", CATCHUP, CATCHUP).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_on_disk_topics_wait_and_lose_nothing() -> Result<()> {
    let mut rng = Rng::seeded("no room");
    Cluster::configured(&configuration(ROOM))?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            // Its writes need no room on disk.
            let source = Source::key_value_in_memory(&client, BUCKET).await?;
            let indexes = indexed(&client, &source, &mut rng).await?;
            for round in 0..2 {
                let writer = Writer::paced(&source, &mut rng, PAUSE);
                let checker = Checker::start(&client, &source, &indexes, &mut rng).with_writer(writer);
                let full = async |checker: &Checker| {
                    cluster.reconfigure(&configuration(NO_ROOM))?;
                    limited(&client, |bytes| bytes <= 1_024).await?;
                    no_room_is_stated(&client, round).await?;
                    // What is there is still answered.
                    for index in &indexes {
                        let request = json!({"bucket": BUCKET, "index": index.name, "consistency": "any"});
                        client.count(&request).await.with_context(|| index.name.clone())?;
                    }
                    cluster.reconfigure(&configuration(ROOM))?;
                    limited(&client, |bytes| bytes > 1_024).await?;
                    load::written(&source, 200).await?;
                    checker.answered(2, WELL_WITHIN).await.context("with room again")
                };
                checker.through(WELL_WITHIN, full).await?;
                equal(&client, &source, &indexes).await?;
                all_is_well(&client).await?;
            }
            Ok(())
        })
        .await
}

async fn no_room_is_stated(client: &Client, round: u32) -> Result<()> {
    let refused = "resource limits exceeded";
    let publishing = format!("hw.mutation.people.indexer-1: {refused}");
    is_stated(client, "projector-1", "publishing key versions", &publishing).await?;
    is_stated(client, "cluster-manager-1", "lease", refused).await?;
    if round == 0 {
        is_stated(client, "coordinator-1", "HW_STATE", refused).await?;
    }
    Ok(())
}

/// Waits until the server has taken its new limits.
async fn limited(client: &Client, good: impl Fn(i64) -> bool) -> Result<()> {
    until("the server has its new limits", STATED_WITHIN, async || {
        let account = client.js.query_account().await.map_err(|error| error.to_string())?;
        let most = account.limits.max_storage.unwrap_or_default();
        if good(most) { Ok(()) } else { Err(most.to_string()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_gone_is_stated_until_it_is_there_again() -> Result<()> {
    let mut rng = Rng::seeded("gone source");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            let indexes = indexed(&client, &source, &mut rng).await?;
            let before = Branches::soon(&client, BUCKET, WELL_WITHIN).await?;
            let checker = Checker::start(&client, &source, &indexes, &mut rng);
            let gone = async |_: &Checker| {
                client.js.delete_key_value(BUCKET).await?;
                is_stated(&client, "projector-1", "source stream KV_people", STREAM).await?;
                let request = json!({"bucket": BUCKET, "index": indexes[0].name, "consistency": "request_plus"});
                let refused = client.count(&request).await.err().context("nothing shows what is new")?;
                ensure!(refused.code == "source_missing" && refused.retry, "{refused:?}");
                Source::key_value(&client, BUCKET).await?;
                source.reread().await?;
                load::write(&source, 500, &mut rng).await?;
                before.back(&client, BUCKET, &[0], WELL_WITHIN).await?;
                equal(&client, &source, &indexes).await
            };
            checker.through(WELL_WITHIN, gone).await?;
            equal(&client, &source, &indexes).await?;
            all_is_well(&client).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexer_without_nats_for_a_while_comes_back() -> Result<()> {
    cut_off("indexer-1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_projector_without_nats_for_a_while_comes_back() -> Result<()> {
    cut_off("projector-1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_without_nats_for_a_while_comes_back() -> Result<()> {
    cut_off("coordinator-1").await
}

async fn is_alive(client: &Client, node: &str, wanted: bool) -> Result<()> {
    until(&format!("{node} is {}", if wanted { "alive" } else { "down" }), DOWN_WITHIN, async || {
        let status = client.members().await.map_err(|refused| refused.to_string())?;
        let members = status["members"].as_array().cloned().unwrap_or_default();
        let found = members.iter().any(|m| m["node"] == node && m["alive"] == wanted);
        if found { Ok(()) } else { Err(status.to_string()) }
    })
    .await
}

/// A cluster in which one node reaches NATS through a network of its own.
async fn detoured(node: &str) -> Result<(Cluster, Proxy)> {
    let mut cluster = Cluster::configured(&configuration(ROOM))?;
    let proxy = Proxy::start(cluster.nats().port()).await?;
    let cluster = cluster.with_detour(node, proxy.url()).with_nodes(&SERVICES).await?;
    Ok((cluster, proxy))
}

async fn cut_off(node: &str) -> Result<()> {
    let mut rng = Rng::seeded(node);
    let (cluster, proxy) = detoured(node).await?;
    cluster
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            let indexes = indexed(&client, &source, &mut rng).await?;
            // Once the connections end, once nobody hears of it.
            for stalls in [false, true] {
                let writer = Writer::paced(&source, &mut rng, PAUSE);
                let checker = Checker::start(&client, &source, &indexes, &mut rng).with_writer(writer);
                load::written(&source, 200).await?;
                let away = async |checker: &Checker| {
                    if stalls {
                        proxy.stall();
                    } else {
                        proxy.cut();
                    }
                    is_alive(&client, node, false).await?;
                    let back = Instant::now() + AWAY;
                    while Instant::now() < back {
                        load::written(&source, 100).await?;
                    }
                    proxy.heal();
                    is_alive(&client, node, true).await?;
                    // Asked for now: it is stated for 30 seconds, and what follows may take longer.
                    is_stated(&client, node, "connection to NATS", "lost").await?;
                    load::written(&source, 200).await?;
                    checker.answered(2, WELL_WITHIN).await.context("with NATS again")
                };
                checker.through(WELL_WITHIN, away).await.with_context(|| format!("stalled: {stalls}"))?;
                equal(&client, &source, &indexes).await.with_context(|| format!("stalled: {stalls}"))?;
            }
            all_is_well(&client).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_is_not_cut_off_as_a_slow_consumer() -> Result<()> {
    let mut rng = Rng::seeded("slow consumer");
    let (cluster, proxy) = detoured("projector-1").await?;
    cluster
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            let indexes = indexed(&client, &source, &mut rng).await?;
            for round in 1..=2 {
                let checker = Checker::start(&client, &source, &indexes, &mut rng);
                let slow = async |checker: &Checker| {
                    proxy.stall();
                    // More than sockets hold, and what was asked for is not withdrawn.
                    let large = (0..LARGE).map(|i| {
                        let mut document = documents::document(&mut rng);
                        document["padding"] = "x".repeat(4_096).into();
                        Write::put(0, format!("large_{round}_{i}"), &document)
                    });
                    source.write(large).await?;
                    proxy.heal();
                    load::write(&source, 500, &mut rng).await?;
                    checker.answered(2, WELL_WITHIN).await.context("with NATS again")
                };
                checker.through(WELL_WITHIN, slow).await?;
                equal(&client, &source, &indexes).await?;
            }
            let times = cluster.nats().counted("slow_consumers")?;
            ensure!(times == 0, "the server found a consumer slow {times} times");
            Ok(())
        })
        .await
}
