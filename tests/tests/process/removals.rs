//! Documents that vanish from a source without a message: every index follows, and every scan keeps its promise meanwhile.

use async_nats::jetstream::{kv, stream};
use highwater_tests::{
    branches::reconcile,
    load::{self, Writer},
    prelude::*,
    source::Gone,
};

const BUCKET: &str = "people";
const FIRST: u64 = 1_500;
const BUILT_WITHIN: Duration = Duration::from_secs(30);
/// Longer than finding and removing them takes on a machine that does much else.
const GONE_WITHIN: Duration = Duration::from_secs(40);

/// How long some documents live.
const TTL: Duration = Duration::from_secs(2);

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

pub(crate) fn kept(revisions: i64) -> stream::Config {
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
                    let checker = Checker::start(&client, &source, &indexes, &mut rng);
                    let removed = async |_: &Checker| {
                        let from = Instant::now();
                        remove(removal, &client, &source, &mut rng).await?;
                        follow(&client, &source, &indexes, from, &format!("{bucket}: {removal:?}")).await
                    };
                    checker.through(GONE_WITHIN, removed).await.with_context(|| format!("{bucket}: {removal:?}"))?;
                    load::write(&source, 200, &mut rng).await?;
                    // Once all of that is known, nothing hides how many messages go.
                    follow(&client, &source, &indexes, Instant::now(), "what was written").await?;
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
                let checker = Checker::start(&client, &source, &indexes, &mut rng).with_writer(writer);
                let removed = async |_: &Checker| {
                    for _ in 0..2 {
                        let removal = *rng.pick(&[Removal::UpTo, Removal::Subject, Removal::Message, Removal::Keep]);
                        load::written(&source, 100).await?;
                        let from = Instant::now();
                        let gone = remove(removal, &client, &source, &mut rng).await?;
                        for gone in &gone {
                            source.log().gone(from, gone);
                        }
                        if rng.chance(50) {
                            reconcile(&client, BUCKET, GONE_WITHIN).await?;
                        }
                    }
                    load::written(&source, 100).await?;
                    // What was written hides how much is gone: only a comparison finds all of it.
                    reconcile(&client, BUCKET, GONE_WITHIN).await?;
                    followed(&client, &source, &indexes).await
                };
                checker.through(GONE_WITHIN, removed).await.with_context(|| format!("round {round}"))?;
                source.compare(Instant::now()).await?;
                ask::each(&client, &source, &indexes).await.with_context(|| format!("round {round}"))?;
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
                let from = Instant::now() + age;
                let indexes = indexed(&client, &source, &mut rng).await?;
                load::write(&source, 300, &mut rng).await?;
                let last = source.log().complete()[0];
                let checker = Checker::start(&client, &source, &indexes, &mut rng);
                let gone = async |_: &Checker| {
                    all_gone(&client, &bucket, &indexes).await?;
                    source.log().gone(from, &Gone::Below(0, last + 1));
                    followed(&client, &source, &indexes).await
                };
                checker.through(GONE_WITHIN, gone).await.with_context(|| bucket.clone())?;
                load::write(&source, 300, &mut rng).await?;
                follow(&client, &source, &indexes, Instant::now(), &bucket).await?;
                ensure_no_rollback(&client, &bucket).await?;
            }
            Ok(())
        })
        .await
}

/// Each document is the stream's only one, and has just the seqno with which the emptied stream began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_emptied_again_and_again_leaves_nothing() -> Result<()> {
    let mut rng = Rng::seeded("emptied");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::configured(&client, BUCKET, kept(1)).await?;
            let indexes = indexed(&client, &source, &mut rng).await?;
            for round in 0..6 {
                let document = json!({"age": round, "address": {"city": "Oslo"}, "name": "n", "active": true});
                source.write([Write::put(0, format!("d{round}"), &document)]).await?;
                follow(&client, &source, &indexes, Instant::now(), "one document").await?;
                let from = Instant::now();
                let last = source.log().complete()[0];
                client.js.get_stream(&source.streams[0].0).await?.purge().await?;
                all_gone(&client, BUCKET, &indexes).await.with_context(|| format!("round {round}"))?;
                source.log().gone(from, &Gone::Below(0, last + 1));
            }
            ensure_no_rollback(&client, BUCKET).await
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
                let checker = Checker::start(&client, &source, &indexes, &mut rng);
                let expired = async |_: &Checker| {
                    let from = Instant::now() + TTL;
                    let seqnos = write_for_a_while(&client, &source, &mut rng).await?;
                    let stream = client.js.get_stream(&source.streams[0].0).await?;
                    until("they have expired", GONE_WITHIN, async || {
                        for seqno in &seqnos {
                            if stream.get_raw_message(*seqno).await.is_ok() {
                                return Err(format!("{seqno} is there"));
                            }
                        }
                        Ok(())
                    })
                    .await?;
                    follow(&client, &source, &indexes, from, bucket).await
                };
                checker.through(GONE_WITHIN, expired).await.context(bucket)?;
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
                let checker = Checker::start(&client, &source, &indexes, &mut rng);
                let vanished = async |checker: &Checker| {
                    let from = Instant::now();
                    cluster.kill(node)?;
                    for removal in [Removal::Subject, Removal::UpTo, Removal::Message] {
                        remove(removal, &client, &source, &mut rng).await?;
                    }
                    source.compare(from).await?;
                    cluster.start_node(node).await?;
                    load::write(&source, 50, &mut rng).await?;
                    reconcile(&client, BUCKET, GONE_WITHIN).await?;
                    follow(&client, &source, &indexes, from, node).await?;
                    checker.answered(2, GONE_WITHIN).await.context("when all have followed")
                };
                checker.through(GONE_WITHIN, vanished).await.context(node)?;
            }
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_round_may_remove_goes_from_every_index() -> Result<()> {
    const MANY: u64 = 280_000;
    let mut rng = Rng::seeded("many");
    // Without a checker: it keeps every row of every scan.
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
            follow(&client, &source, &indexes[..2], Instant::now(), "most of it").await?;
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

/// Documents, and indexes over them.
async fn indexed(client: &Client, source: &Source, rng: &mut Rng) -> Result<Vec<Index>> {
    let indexes = documents::indexes(2);
    load::index(client, source, FIRST, &indexes, rng, BUILT_WITHIN).await?;
    Ok(indexes)
}

/// Writes some documents that expire; answers their seqnos.
async fn write_for_a_while(client: &Client, source: &Source, rng: &mut Rng) -> Result<Vec<u64>> {
    let mut seqnos = Vec::new();
    for n in 0..40 {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-TTL", format!("{}s", TTL.as_secs()));
        let document = documents::document(rng);
        // Some of them write over what stays below.
        let id = documents::write(rng, 1, if n % 2 == 0 { 40 } else { 4_000 }).id;
        let subject = format!("{}{id}", source.streams[0].1);
        let ack = client.js.publish_with_headers(subject, headers, document.to_string().into()).await?.await?;
        source.log().add(Write::put(0, id, &document), ack.sequence);
        seqnos.push(ack.sequence);
    }
    Ok(seqnos)
}

async fn all_gone(client: &Client, bucket: &str, indexes: &[Index]) -> Result<()> {
    until("all of them are gone", GONE_WITHIN, async || {
        for index in indexes {
            let request = json!({"bucket": bucket, "index": index.name, "consistency": "request_plus"});
            let count = client.count(&request).await.map_err(|e| e.to_string())?;
            if count > 0 {
                return Err(format!("{count} of {}", index.name));
            }
        }
        Ok(())
    })
    .await
}

/// Answers what is gone, where nobody needs to compare the stream for that.
async fn remove(removal: Removal, client: &Client, source: &Source, rng: &mut Rng) -> Result<Vec<Gone>> {
    let (name, prefix) = &source.streams[0];
    let mut stream = client.js.get_stream(name).await?;
    let state = stream.info().await?.state.clone();
    let mut gone = Vec::new();
    match removal {
        Removal::UpTo => {
            let span = state.last_sequence - state.first_sequence;
            let first = state.first_sequence + 1 + span / 4;
            stream.purge().sequence(first).await?;
            gone.push(Gone::Below(0, first));
        }
        Removal::All => {
            stream.purge().await?;
        }
        Removal::Subject => {
            for _ in 0..10 {
                let id = some_id(rng);
                let before = source.log().acknowledged()[0];
                stream.purge().filter(format!("{prefix}{id}")).await?;
                gone.push(Gone::Document((0, id), before, stream.info().await?.state.last_sequence));
            }
        }
        Removal::Keep => {
            stream.purge().keep(state.messages * 3 / 4).await?;
            gone.push(Gone::Below(0, stream.info().await?.state.first_sequence));
        }
        Removal::Message => {
            for _ in 0..10 {
                let some = state.first_sequence + rng.below(state.last_sequence - state.first_sequence);
                if let Ok(message) = stream.get_first_raw_message_by_subject(">", some).await {
                    if let Err(error) = stream.delete_message(message.sequence).await {
                        // It was overwritten meanwhile.
                        ensure!(stream.get_raw_message(message.sequence).await.is_err(), "{error}");
                        continue;
                    }
                    let id = message.subject.strip_prefix(prefix.as_str()).context("a foreign subject")?;
                    gone.push(Gone::Message((0, id.to_owned()), message.sequence));
                }
            }
        }
        Removal::RollUp => {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Rollup", "all");
            let document = documents::document(rng).to_string();
            let subject = format!("{prefix}{}", some_id(rng));
            client.js.publish_with_headers(subject, headers, document.into()).await?.await?;
        }
        Removal::Limits => {
            let unlimited = stream.info().await?.config.clone();
            let limit = (state.messages * 2 / 3) as i64;
            client.js.update_stream(stream::Config { max_messages: limit, ..unlimited.clone() }).await?;
            client.js.update_stream(unlimited).await?;
        }
    }
    Ok(gone)
}

fn some_id(rng: &mut Rng) -> String {
    documents::write(rng, 1, 500).id
}

/// All that is gone is gone from every index.
async fn followed(client: &Client, source: &Source, indexes: &[Index]) -> Result<()> {
    let mut newest = 0;
    for index in indexes {
        newest = newest.max(ask::newest(client, source, index).await?);
    }
    source.log().followed(newest);
    Ok(())
}

/// Waits until the indexes are what the source is now; what is gone went not before `from`.
pub(crate) async fn follow(
    client: &Client,
    source: &Source,
    indexes: &[Index],
    from: Instant,
    what: &str,
) -> Result<()> {
    let began = Instant::now();
    until(what, GONE_WITHIN, async || {
        source.compare(from).await.map_err(|e| format!("{e:#}"))?;
        for index in indexes {
            ask::whole(client, source, index).await.map_err(|e| format!("{e:#}"))?;
        }
        Ok(())
    })
    .await?;
    println!("{what}: followed after {:?}", began.elapsed());
    followed(client, source, indexes).await
}

pub(crate) async fn ensure_no_rollback(client: &Client, bucket: &str) -> Result<()> {
    let history = client.insist("hw.admin.bucket.history", &json!({"name": bucket}), GONE_WITHIN).await?;
    ensure!(history["rollbacks"] == json!([]), "{history}");
    Ok(())
}
