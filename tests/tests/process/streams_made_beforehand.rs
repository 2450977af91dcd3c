//! Streams that were made before Highwater came: they are taken as they are if they can serve; else the field is named.

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use highwater_tests::{child::Child, cluster::SERVICES, load, prelude::*};

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(60);
/// A recovery may be over before somebody has looked at the topic.
const ROUNDS: u32 = 10;
const STREAMS: [&str; 4] = ["HW_STATE", "KV_hw_cluster", "HW_MUTATION_people", "HW_CATCHUP_people"];

/// An account whose user may make and change no stream.
fn configuration(denied: &str) -> String {
    format!(
        "jetstream {{}}\nno_auth_user: tested\naccounts {{ TESTED {{ jetstream: enabled, users: [{{user: tested, password: \
         tested, permissions: {{publish: {{allow: \">\", deny: [{denied}]}}}}}}] }} }}\n"
    )
}

/// Highwater's streams as somebody else makes them, with limits of their own.
fn beforehand() -> Vec<Config> {
    let config = |name: &str, subject: &str| Config {
        name: name.into(),
        subjects: vec![subject.into()],
        max_bytes: 32 << 20,
        ..Config::default()
    };
    let state = config(STREAMS[0], "hw.state.>");
    let cluster = config(STREAMS[1], "$KV.hw_cluster.>");
    let mutation = config(STREAMS[2], "hw.mutation.people.>");
    let catchup = config(STREAMS[3], "hw.catchup.people.*");
    vec![
        Config { allow_rollup: true, discard: DiscardPolicy::New, ..state },
        Config {
            allow_message_ttl: true,
            allow_rollup: true,
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            ..cluster
        },
        Config { max_age: Duration::from_secs(60), storage: StorageType::Memory, ..mutation },
        Config { discard: DiscardPolicy::New, ..catchup },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_make_no_stream_uses_those_that_are_there() -> Result<()> {
    let mut rng = Rng::seeded("beforehand");
    let mut cluster = Cluster::configured(&configuration(""))?;
    let client = cluster.client().await?;
    let source = Source::key_value(&client, BUCKET).await?;
    load::write(&source, 2_000, &mut rng).await?;
    for config in beforehand() {
        client.js.create_stream(config).await?;
    }
    cluster.reconfigure(&configuration(
        "\"$JS.API.STREAM.CREATE.>\", \"$JS.API.STREAM.UPDATE.>\", \"$JS.API.STREAM.DELETE.>\"",
    ))?;
    cluster
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let indexes = documents::indexes(2);
            client.create_indexes(BUCKET, &indexes, WITHIN).await?;
            ask::each(&client, &source, &indexes).await?;
            cluster.restart("coordinator-1").await?;
            load::write(&source, 2_000, &mut rng).await?;
            ask::each_again(&client, &source, &indexes, WITHIN).await?;
            for wanted in beforehand() {
                let found = client.js.get_stream(&wanted.name).await?.cached_info().config.clone();
                ensure!(found.max_bytes == wanted.max_bytes && found.subjects == wanted.subjects, "{found:?}");
            }
            // What was made beforehand is emptied with its bucket, and stays.
            for index in &indexes {
                client.drop_index(BUCKET, &index.name).await?;
            }
            client.insist("hw.admin.bucket.remove", &json!({"name": BUCKET}), WITHIN).await?;
            for stream in &STREAMS[2..] {
                let state = client.js.get_stream(stream).await?.cached_info().state.clone();
                ensure!(state.messages == 0, "{stream}: {state:?}");
            }
            client.create_indexes(BUCKET, &indexes, WITHIN).await?;
            ask::each(&client, &source, &indexes).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_serve_is_named_with_the_field_and_the_value_it_needs() -> Result<()> {
    let mut cluster = Cluster::without_services()?;
    let client = cluster.client().await?;
    let lease = Config { allow_message_ttl: false, ..beforehand().remove(1) };
    client.js.create_stream(lease.clone()).await?;
    let mut child = Child::start("cluster-manager-9", cluster.command("cluster-manager-9")?, cluster.path())?;
    let deadline = Instant::now() + WITHIN;
    while child.exited().is_none() {
        ensure!(Instant::now() < deadline, "it does not end; {}", child.log_tail());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let log = child.log();
    ensure!(log.contains("KV_hw_cluster") && log.contains("allow_msg_ttl must be true"), "{log}");
    client.js.update_stream(Config { allow_message_ttl: true, ..lease }).await?;

    // Of a bucket: whoever declares it is told, and again once it is mended.
    let mutation = Config { discard: DiscardPolicy::New, ..beforehand().remove(2) };
    client.js.create_stream(mutation.clone()).await?;
    cluster = cluster.with_nodes(&SERVICES).await?;
    cluster
        .run(async |_| {
            let mut rng = Rng::seeded("cannot serve");
            let source = Source::key_value(&client, BUCKET).await?;
            load::write(&source, 500, &mut rng).await?;
            let indexes = &documents::indexes(1)[..1];
            let refused = client.request("hw.admin.index.create", &indexes[0].definition(BUCKET)).await;
            let refused = refused.err().context("it is taken")?;
            ensure!(refused.message.contains("HW_MUTATION_people"), "{refused}");
            ensure!(refused.message.contains("discard must be \"old\""), "{refused}");
            client.js.update_stream(Config { discard: DiscardPolicy::Old, ..mutation }).await?;
            client.create_indexes(BUCKET, indexes, WITHIN).await?;
            ask::each(&client, &source, indexes).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_drops_what_was_not_read_grows() -> Result<()> {
    let mut rng = Rng::seeded("grows");
    Cluster::without_services()?
        .with_arguments("coordinator", &["--mutation-bytes", "4MiB", "--mutation-bytes-most", "16MiB"])
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            let index =
                Index { name: "by_n".into(), keys: vec![("n", false)], include: vec!["text"], ..Index::default() };
            let indexes = [index];
            client.create_indexes(BUCKET, &indexes, WITHIN).await?;
            let max_bytes =
                async || -> Result<i64> { Ok(client.js.get_stream(STREAMS[2]).await?.cached_info().config.max_bytes) };
            let mut number = 0;
            for _ in 0..ROUNDS {
                cluster.kill("indexer-1")?;
                let writes = (0..6_000).map(|_| {
                    number += 1;
                    let text: String = (0..2_000).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
                    Write::put(0, format!("d{}", number % 9_000), &json!({"n": number, "text": text}))
                });
                source.write(writes).await?;
                cluster.start_node("indexer-1").await?;
                ask::each_again(&client, &source, &indexes, WITHIN).await?;
                if max_bytes().await? > 4 << 20 {
                    break;
                }
            }
            let grown = max_bytes().await?;
            ensure!((8 << 20..=16 << 20).contains(&grown), "it has {grown} bytes");
            ask::each(&client, &source, &indexes).await
        })
        .await
}
