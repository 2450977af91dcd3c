//! Documents that vanish from a source without a message: every index follows.

use async_nats::jetstream::{kv, stream};
use highwater_tests::{
    load::{self, Writer},
    prelude::*,
};

const BUCKET: &str = "people";
const FIRST: u64 = 1_500;
const BUILT_WITHIN: Duration = Duration::from_secs(30);
/// Longer than finding and removing them takes on a machine that does much else.
const GONE_WITHIN: Duration = Duration::from_secs(40);

/// What takes documents away.
#[derive(Debug, Clone, Copy)]
enum Removal {
    /// The oldest, by sequence.
    UpTo,
    All,
    /// One document with all its revisions.
    Subject,
    /// All but the newest few.
    Keep,
    /// One message, perhaps one of which an older revision is left.
    Message,
    /// A message takes the place of everything.
    RollUp,
    /// Limits of the stream that were not there before.
    Limits,
}

const REMOVALS: [Removal; 7] =
    [Removal::UpTo, Removal::Subject, Removal::Message, Removal::Keep, Removal::Limits, Removal::RollUp, Removal::All];

fn kept(revisions: i64) -> stream::Config {
    stream::Config { max_messages_per_subject: revisions, allow_rollup: true, ..stream::Config::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_purged_deleted_or_rolled_up_goes_from_every_index() -> Result<()> {
    let mut rng = Rng::seeded("removals");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            // Older revisions may become current again.
            for (bucket, revisions) in [("one", 1), ("several", 3)] {
                let source = Source::configured(&client, bucket, kept(revisions)).await?;
                let indexes = indexed(&client, &source, &mut rng).await?;
                for removal in REMOVALS {
                    remove(removal, &client, &source, &mut rng).await?;
                    follow(&client, &source, &indexes, &format!("{bucket}: {removal:?}")).await?;
                    load::write(&source, 200, &mut rng).await?;
                    // Once all of that is known, nothing hides how many messages go.
                    follow(&client, &source, &indexes, "what was written").await?;
                }
                ensure_no_rollback(&client, bucket).await?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_removed_under_writes_goes_from_every_index() -> Result<()> {
    let mut rng = Rng::seeded("removals under writes");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::configured(&client, BUCKET, kept(2)).await?;
            let indexes = indexed(&client, &source, &mut rng).await?;
            for round in 0..4 {
                let writer = Writer::paced(&source, &mut rng, Duration::from_millis(5));
                for _ in 0..2 {
                    let removal = *rng.pick(&[Removal::UpTo, Removal::Subject, Removal::Message, Removal::Keep]);
                    load::written(&source, 100).await?;
                    remove(removal, &client, &source, &mut rng).await?;
                    if rng.chance(50) {
                        reconcile(&client, BUCKET).await?;
                    }
                }
                load::written(&source, 100).await?;
                writer.stop().await?;
                // What was written hides how much is gone: only a comparison finds all of it.
                reconcile(&client, BUCKET).await?;
                source.reread().await?;
                for index in &indexes {
                    ask::whole(&client, &source, index).await.with_context(|| format!("round {round}"))?;
                }
            }
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_grows_old_goes_from_every_index() -> Result<()> {
    let mut rng = Rng::seeded("age");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let age = Duration::from_secs(5);
            let plain = kv::Config { bucket: "plain".into(), max_age: age, ..kv::Config::default() };
            // Every document leaves a marker, which goes after a while too.
            let marked = kv::Config {
                bucket: "marked".into(),
                max_age: age,
                limit_markers: Some(Duration::from_secs(1)),
                ..kv::Config::default()
            };
            for config in [plain, marked] {
                let bucket = config.bucket.clone();
                let source = Source::key_value_configured(&client, config).await?;
                let indexes = indexed(&client, &source, &mut rng).await?;
                load::write(&source, 300, &mut rng).await?;
                until("all of them are gone", GONE_WITHIN, async || {
                    for index in &indexes {
                        let request = json!({"bucket": bucket, "index": index.name, "consistency": "request_plus"});
                        let count = client.count(&request).await.map_err(|e| e.to_string())?;
                        if count > 0 {
                            return Err(format!("{count} of {}", index.name));
                        }
                    }
                    Ok(())
                })
                .await?;
                load::write(&source, 300, &mut rng).await?;
                follow(&client, &source, &indexes, &bucket).await?;
                ensure_no_rollback(&client, &bucket).await?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_by_itself_goes_from_every_index() -> Result<()> {
    let mut rng = Rng::seeded("ttl");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            for (bucket, revisions) in [("one", 1), ("two", 2)] {
                let config = stream::Config { allow_message_ttl: true, ..kept(revisions) };
                let source = Source::configured(&client, bucket, config).await?;
                let indexes = indexed(&client, &source, &mut rng).await?;
                let prefix = &source.streams[0].1;
                for n in 0..40 {
                    let mut headers = async_nats::HeaderMap::new();
                    headers.insert("Nats-TTL", "2s");
                    let document = documents::document(&mut rng).to_string();
                    // Some of them write over what stays below.
                    let subject =
                        format!("{prefix}{}", documents::write(&mut rng, 1, if n % 2 == 0 { 40 } else { 4_000 }).id);
                    client.js.publish_with_headers(subject, headers, document.into()).await?.await?;
                }
                let mut stream = client.js.get_stream(&source.streams[0].0).await?;
                let full = stream.info().await?.state.messages;
                until("they have expired", GONE_WITHIN, async || {
                    let left = stream.get_info().await.map_err(|e| e.to_string())?.state.messages;
                    if left + 20 <= full { Ok(()) } else { Err(left.to_string()) }
                })
                .await?;
                follow(&client, &source, &indexes, bucket).await?;
                ensure_no_rollback(&client, bucket).await?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vanishes_while_nobody_reads_goes_from_every_index() -> Result<()> {
    let mut rng = Rng::seeded("vanished");
    let nodes = ["coordinator-1", "projector-1", "indexer-1", "indexer-2", "catalog-1"];
    Cluster::start_nodes(&nodes)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::configured(&client, BUCKET, kept(1)).await?;
            let indexes = indexed(&client, &source, &mut rng).await?;
            for node in ["projector-1", "indexer-1", "coordinator-1"] {
                cluster.kill(node)?;
                for removal in [Removal::Subject, Removal::UpTo, Removal::Message] {
                    remove(removal, &client, &source, &mut rng).await?;
                }
                cluster.start_node(node).await?;
                load::write(&source, 50, &mut rng).await?;
                reconcile(&client, BUCKET).await?;
                follow(&client, &source, &indexes, node).await?;
            }
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_round_may_remove_goes_from_every_index() -> Result<()> {
    const MANY: u64 = 280_000;
    let mut rng = Rng::seeded("many");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::configured(&client, BUCKET, kept(1)).await?;
            let small = |n: u64| Write::put(0, format!("n{n}"), &json!({"age": n % 90, "city": "Oslo", "score": n}));
            source.write((0..MANY).map(small)).await?;
            let indexes = documents::indexes(1);
            client.create_indexes(BUCKET, &indexes[..2], BUILT_WITHIN).await?;
            // Those above the floor stay, and what is written meanwhile comes.
            let mut stream = client.js.get_stream(&source.streams[0].0).await?;
            let last = stream.info().await?.state.last_sequence;
            let writer = Writer::paced(&source, &mut rng, Duration::from_millis(20));
            stream.purge().sequence(last - 100).await?;
            load::written(&source, 1_000).await?;
            writer.stop().await?;
            follow(&client, &source, &indexes[..2], "most of it").await?;
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

/// Documents, and indexes over them.
async fn indexed(client: &Client, source: &Source, rng: &mut Rng) -> Result<Vec<Index>> {
    load::write(source, FIRST, rng).await?;
    let indexes = documents::indexes(2);
    client.create_indexes(&source.bucket, &indexes, BUILT_WITHIN).await?;
    Ok(indexes)
}

async fn remove(removal: Removal, client: &Client, source: &Source, rng: &mut Rng) -> Result<()> {
    let (name, prefix) = &source.streams[0];
    let mut stream = client.js.get_stream(name).await?;
    let state = stream.info().await?.state.clone();
    let subject = |rng: &mut Rng| format!("{prefix}{}", documents::write(rng, 1, 500).id);
    match removal {
        Removal::UpTo => {
            let span = state.last_sequence - state.first_sequence;
            stream.purge().sequence(state.first_sequence + 1 + span / 4).await?;
        }
        Removal::All => {
            stream.purge().await?;
        }
        Removal::Subject => {
            for _ in 0..10 {
                stream.purge().filter(subject(rng)).await?;
            }
        }
        Removal::Keep => {
            stream.purge().keep(state.messages * 3 / 4).await?;
        }
        Removal::Message => {
            for _ in 0..10 {
                let some = state.first_sequence + rng.below(state.last_sequence - state.first_sequence);
                if let Ok(message) = stream.get_first_raw_message_by_subject(">", some).await {
                    stream.delete_message(message.sequence).await?;
                }
            }
        }
        Removal::RollUp => {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Rollup", "all");
            let document = documents::document(rng).to_string();
            client.js.publish_with_headers(subject(rng), headers, document.into()).await?.await?;
        }
        Removal::Limits => {
            let unlimited = stream.info().await?.config.clone();
            let limit = (state.messages * 2 / 3) as i64;
            client.js.update_stream(stream::Config { max_messages: limit, ..unlimited.clone() }).await?;
            client.js.update_stream(unlimited).await?;
        }
    }
    Ok(())
}

/// Waits until the indexes are what the source is now.
async fn follow(client: &Client, source: &Source, indexes: &[Index], what: &str) -> Result<()> {
    let began = Instant::now();
    until(what, GONE_WITHIN, async || {
        source.reread().await.map_err(|e| format!("{e:#}"))?;
        for index in indexes {
            ask::whole(client, source, index).await.map_err(|e| format!("{e:#}"))?;
        }
        Ok(())
    })
    .await?;
    println!("{what}: followed after {:?}", began.elapsed());
    Ok(())
}

/// Has the indexes compared with the source, and waits until that is done.
async fn reconcile(client: &Client, bucket: &str) -> Result<()> {
    let reply = client.insist("hw.admin.bucket.reconcile", &json!({"name": bucket}), GONE_WITHIN).await?;
    let after = reply["after"].as_u64().context("no number")?;
    until("it is reconciled", GONE_WITHIN, async || {
        let history = client.request("hw.admin.bucket.history", &json!({"name": bucket})).await;
        let history = history.map_err(|e| e.to_string())?;
        let done = history["reconciled"]["id"].as_u64().is_some_and(|id| id > after);
        if done { Ok(()) } else { Err(history.to_string()) }
    })
    .await
}

async fn ensure_no_rollback(client: &Client, bucket: &str) -> Result<()> {
    let history = client.insist("hw.admin.bucket.history", &json!({"name": bucket}), GONE_WITHIN).await?;
    ensure!(history["rollbacks"] == json!([]), "{history}");
    Ok(())
}
