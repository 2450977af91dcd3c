//! Servers and accounts with limits: Highwater works within them, or says in one line which one it meets.

use async_nats::jetstream::{consumer::pull, kv, stream::Config};
use futures_util::StreamExt;
use highwater_tests::{cli, cluster::SERVICES, load, prelude::*, stated};
use std::collections::BTreeMap;
use tokio::time::timeout;

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(60);
const WRITES: u64 = 3_000;
const RETRIES_A_SECOND: u64 = 5;
/// Attempts are counted for so long.
const COUNTED: Duration = Duration::from_secs(5);
/// Sources have room for what the tests write.
const SOURCE_BYTES: i64 = 64 * 1024 * 1024;

/// A server with these limits of JetStream.
fn server(limits: &str) -> String {
    format!("jetstream {{ limits {{ {limits} }} }}\n")
}

/// An account with these limits.
fn account(limits: &str) -> String {
    format!(
        "jetstream {{}}\nno_auth_user: tested\naccounts {{ TESTED {{ jetstream {{ {limits} }}, users: [{{user: tested, \
         password: tested}}] }} }}\n"
    )
}

/// A bucket of documents; accounts may demand that each stream has a limit of bytes.
async fn source(client: &Client) -> Result<Source> {
    let config = kv::Config { bucket: BUCKET.into(), history: 1, max_bytes: SOURCE_BYTES, ..kv::Config::default() };
    Source::key_value_configured(client, config).await
}

/// Builds indexes there, writes on, and compares everything.
async fn works(configuration: &str) -> Result<()> {
    let mut rng = Rng::seeded(configuration);
    Cluster::configured(configuration)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = source(&client).await?;
            load::write(&source, WRITES, &mut rng).await?;
            let indexes = documents::indexes(2);
            client.create_indexes(BUCKET, &indexes, WITHIN).await?;
            ask::each(&client, &source, &indexes).await?;
            load::write(&source, WRITES, &mut rng).await?;
            ask::each(&client, &source, &indexes).await?;
            // Also who begins in the middle.
            cluster.restart("indexer-1").await?;
            cluster.restart("projector-1").await?;
            load::write(&source, WRITES, &mut rng).await?;
            ask::each_again(&client, &source, &indexes, WITHIN).await?;
            client.insist("hw.admin.bucket.reconcile", &json!({"name": BUCKET}), WITHIN).await?;
            let url = cluster.url().to_owned();
            let (code, said, complained) = cli::highwater(&["ping", "--nats", "--nats-url", &url])?;
            ensure!(code == Some(0), "{said}{complained}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_ask_for_no_more_messages_than_the_server_allows() -> Result<()> {
    for most in [1, 100] {
        works(&server(&format!("max_request_batch: {most}"))).await.with_context(|| most.to_string())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_remember_duplicates_no_longer_than_the_server_allows() -> Result<()> {
    works(&server("duplicate_window: \"3s\"")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_acknowledgements_may_be_pending() -> Result<()> {
    works(&server("max_ack_pending: 1")).await?;
    works(&account("max_ack_pending: 1")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_in_which_every_stream_has_a_limit_of_bytes_is_used() -> Result<()> {
    // Room for the source and for what Highwater reserves, and no more.
    works(&account("max_bytes_required: true, max_file: 300MB")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_topics_reserve_is_named_with_its_setting_and_can_be_set() -> Result<()> {
    let configuration = account("max_file: 90MB");
    Cluster::configured(&configuration)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let config = kv::Config { bucket: BUCKET.into(), ..kv::Config::default() };
            let source = Source::key_value_configured(&client, config).await?;
            let mut rng = Rng::seeded("reservations");
            load::write(&source, 500, &mut rng).await?;
            let indexes = &documents::indexes(1)[..1];
            let refused = client.request("hw.admin.index.create", &indexes[0].definition(BUCKET)).await;
            let refused = refused.err().context("it has no room, and is made")?;
            ensure!(refused.message.contains("10047") || refused.message.contains("10002"), "{refused}");
            ensure!(refused.message.contains("-bytes lower"), "{refused}");

            cluster.kill("coordinator-1")?;
            let least = ["--mutation-bytes", "8MiB", "--catchup-bytes", "8MiB"];
            cluster.spawn_with("coordinator-1", &least)?;
            cluster.wait_ready("coordinator-1").await?;
            client.create_indexes(BUCKET, indexes, WITHIN).await?;
            ask::each(&client, &source, indexes).await?;
            for stream in ["HW_MUTATION_people", "HW_CATCHUP_people"] {
                let config = client.js.get_stream(stream).await?.cached_info().config.clone();
                ensure!(config.max_bytes == 8 << 20, "{stream}: {}", config.max_bytes);
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_may_have_no_further_stream_says_so() -> Result<()> {
    let mut rng = Rng::seeded("streams");
    // The state log, the lease, and the source: no topic has a place.
    let cluster = Cluster::configured(&account("max_streams: 3"))?;
    let (code, _, complained) = cli::highwater(&["ping", "--nats", "--nats-url", cluster.url()])?;
    ensure!(code == Some(1) && complained.contains("max_streams"), "{code:?} {complained}");
    cluster
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = source(&client).await?;
            load::write(&source, 100, &mut rng).await?;
            let indexes = &documents::indexes(1)[..1];
            let refused = client.request("hw.admin.index.create", &indexes[0].definition(BUCKET)).await;
            let refused = refused.err().context("it is made")?;
            ensure!(refused.message.contains("maximum number of streams"), "{refused}");
            ensure!(refused.message.contains("two for each bucket"), "{refused}");
            cluster.reconfigure(&account("max_streams: 5"))?;
            client.create_indexes(BUCKET, indexes, WITHIN).await?;
            ask::each(&client, &source, indexes).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_without_room_for_a_consumer_is_named_by_the_index_that_waits_for_it() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let config =
                Config { max_consumers: 1, max_messages_per_subject: 1, allow_rollup: true, ..Config::default() };
            // Somebody else has the only one.
            let (name, subjects) = ("people_0".to_owned(), vec!["people.0.>".to_owned()]);
            let stream = client.js.create_stream(Config { name, subjects, ..config.clone() }).await?;
            let taken = pull::Config { durable_name: Some("taken".into()), ..pull::Config::default() };
            stream.create_consumer(taken).await?;
            let source = Source::configured(&client, BUCKET, config).await?;
            let mut rng = Rng::seeded("consumers");
            load::write(&source, 500, &mut rng).await?;
            let indexes = &documents::indexes(1)[..1];
            client.create_index(&indexes[0].definition(BUCKET)).await?;
            let named = |stated: &stated::Stated| {
                stated.node == "projector-1" && stated.what.contains("people_0") && stated.says("maximum consumers")
            };
            stated::is_stated(&client, "the source has no room for a consumer", WITHIN, named).await?;
            until("the index says so", WITHIN, async || {
                let index = client.index(BUCKET, &indexes[0].name).await.map_err(|e| e.to_string())?;
                let error = index["error"].as_str().unwrap_or_default();
                if error.contains("people_0") && error.contains("maximum consumers") {
                    Ok(())
                } else {
                    Err(index.to_string())
                }
            })
            .await?;
            let url = cluster.url().to_owned();
            let wait = ["index", "wait", BUCKET, &indexes[0].name, "--within", "1", "--nats-url", &url];
            let (code, _, complained) = cli::highwater(&wait)?;
            ensure!(code == Some(1) && complained.contains("maximum consumers"), "{code:?} {complained}");
            // One is enough for all who read in turn.
            stream.delete_consumer("taken").await?;
            client.wait_active(BUCKET, &indexes[0].name, WITHIN).await?;
            ask::each(&client, &source, indexes).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_are_said_by_ping() -> Result<()> {
    let cluster = Cluster::configured("jetstream {}\nmax_payload: 65536\n")?;
    let (code, _, complained) = cli::highwater(&["ping", "--nats", "--nats-url", cluster.url()])?;
    ensure!(code == Some(1) && complained.contains("max_payload"), "{code:?} {complained}");
    ensure!(complained.contains("65536") && complained.contains("1048576"), "{complained}");
    Ok(())
}

/// What fails is tried five times a second at most: here messages may not be pulled, from a stream whose newest messages are listed
/// or from one that is read on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_not_tried_without_end() -> Result<()> {
    let configuration = |denied: &str| {
        format!(
            "jetstream {{}}\nno_auth_user: tested\naccounts {{ TESTED {{ jetstream: enabled, users: \
             [{{user: tested, password: tested, permissions: {{publish: {{allow: \">\", deny: [{denied}]}}}}}}] }} }}\n"
        )
    };
    Cluster::configured(&configuration(""))?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let mut rng = Rng::seeded("without end");
            let indexes = &documents::indexes(1)[..1];
            let source = load::indexed(&client, BUCKET, 500, indexes, &mut rng, WITHIN).await?;
            // Of a stream that keeps several messages of a subject the newest ones are listed.
            let listed = Source::keyed_streams(&client, "orders", 2).await?;
            load::write(&listed, 500, &mut rng).await?;
            client.create_indexes("orders", indexes, WITHIN).await?;
            // Consumers are made, and every pull from them is refused.
            let pulls = ["KV_people", "orders_0", "orders_1"].map(|of| format!("\"$JS.API.CONSUMER.MSG.NEXT.{of}.>\""));
            cluster.reconfigure(&configuration(&pulls.join(", ")))?;
            cluster.restart("projector-1").await?;
            for stream in ["KV_people", "orders_0", "orders_1"] {
                let reading = |stated: &stated::Stated| {
                    let refused = stated.says("does not permit") && stated.says("CONSUMER.MSG.NEXT");
                    stated.node == "projector-1" && stated.what == format!("reading stream {stream}") && refused
                };
                stated::is_stated(&client, stream, WITHIN, reading).await?;
            }
            let mut made = client.nats.subscribe("$JS.EVENT.ADVISORY.CONSUMER.CREATED.>").await?;
            client.nats.flush().await?;
            let (mut consumers, since) = (BTreeMap::<String, u64>::new(), Instant::now());
            while let Ok(Some(advisory)) = timeout(COUNTED.saturating_sub(since.elapsed()), made.next()).await {
                let stream = advisory.subject.split('.').nth(5).context("no stream")?;
                *consumers.entry(stream.to_owned()).or_default() += 1;
            }
            // The chain and a comparison read each stream.
            let most = 2 * RETRIES_A_SECOND * COUNTED.as_secs() + 2;
            println!("consumers made within {COUNTED:?}: {consumers:?}");
            ensure!(consumers.values().all(|made| *made <= most), "more than {most} within {COUNTED:?}: {consumers:?}");
            cluster.reconfigure(&configuration(""))?;
            for source in [source, listed] {
                load::write(&source, 100, &mut rng).await?;
                ask::each_again(&client, &source, indexes, WITHIN).await?;
            }
            Ok(())
        })
        .await
}
