//! Documents that vanish from a source without a message, and of which the projector can know: they go from every index soon, and
//! nobody reads the bucket for that.

use crate::removals::{ensure_no_rollback, follow, kept};
use async_nats::{HeaderMap, jetstream::stream};
use futures_util::StreamExt;
use highwater_schemas::api::{BucketStatus, Reads};
use highwater_tests::{cluster::SERVICES, prelude::*, stated};
use std::ops::RangeInclusive;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::timeout;

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(60);

fn by_n() -> [Index; 1] {
    [Index { name: "by_n".into(), keys: vec![("n", true)], ..Index::default() }]
}

fn document(id: impl Into<String>, n: u64) -> Write {
    Write::put(0, id, &json!({ "n": n }))
}

/// What the projector has read of the bucket's stream.
async fn reads(client: &Client) -> Result<Reads> {
    until("what was read", WITHIN, async || {
        let members = client.members().await.map_err(|refused| refused.to_string())?;
        let buckets = members["buckets"].as_array().into_iter().flatten();
        let bucket = buckets.clone().find(|bucket| bucket["name"] == BUCKET).ok_or("no bucket")?;
        let status: BucketStatus = serde_json::from_value(bucket.clone()).map_err(|error| error.to_string())?;
        status.vbuckets.into_iter().next().map(|vb| vb.reads).ok_or_else(|| "no vbucket".to_owned())
    })
    .await
}

/// Waits until so many more documents were named than before; nothing else was read of the bucket meanwhile.
async fn named(client: &Client, before: Reads, documents: RangeInclusive<u64>) -> Result<()> {
    until("the documents are named", WITHIN, async || {
        let now = reads(client).await.map_err(|error| error.to_string())?;
        let right = now.named.checked_sub(before.named).is_some_and(|named| documents.contains(&named));
        right.then_some(()).ok_or_else(|| format!("{now:?}, before {before:?}"))
    })
    .await?;
    let now = reads(client).await?;
    ensure!(now.compared == before.compared, "documents were compared: {now:?}, before {before:?}");
    Ok(())
}

/// Waits until the stream holds so many messages, and has this last sequence if one is given; then until the index is what is stored.
async fn follows(client: &Client, source: &Source, (messages, last): (u64, Option<u64>)) -> Result<()> {
    until("the stream is as it is to be", WITHIN, async || {
        let mut stream = client.js.get_stream(&source.streams[0].0).await.map_err(|error| error.to_string())?;
        let state = stream.info().await.map_err(|error| error.to_string())?.state.clone();
        let right = state.messages == messages && last.is_none_or(|last| state.last_sequence == last);
        right.then_some(()).ok_or_else(|| format!("{state:?}"))
    })
    .await?;
    source.reread().await?;
    until("the index is what is stored", WITHIN, async || {
        ask::whole(client, source, &by_n()[0]).await.map_err(|error| format!("{error:#}"))
    })
    .await
}

/// Waits until the stream has this last sequence, and the index is what is stored; answers how many deletes the stream still holds.
async fn follows_deletes(client: &Client, source: &Source, last: u64) -> Result<u64> {
    let name = &source.streams[0].0;
    let state = until("everything is stored", WITHIN, async || {
        let mut stream = client.js.get_stream(name).await.map_err(|error| error.to_string())?;
        let state = stream.info().await.map_err(|error| error.to_string())?.state.clone();
        if state.last_sequence == last { Ok(state) } else { Err(format!("{state:?}")) }
    })
    .await?;
    follows(client, source, (state.messages, Some(last))).await?;
    Ok(state.messages - 50)
}

/// An index over these documents, and no reconcile to come.
async fn indexed(client: &Client, source: &Source) -> Result<Reads> {
    client.create_indexes(&source.bucket, &by_n(), WITHIN).await?;
    ask::each(client, source, &by_n()).await?;
    reads(client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_the_oldest_document_hides_no_other() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::configured(&client, BUCKET, kept(1)).await?;
            source.write([document("old", 1_000)]).await?;
            for n in 0..10 {
                source.write((0..60).map(|id| document(format!("d{id}"), n))).await?;
            }
            let before = indexed(&client, &source).await?;
            let from = Instant::now();
            let stream = client.js.get_stream(&source.streams[0].0).await?;
            let ids = (0..20).map(|id| format!("d{id}")).chain(["old".into()]);
            for id in ids {
                stream.purge().filter(format!("{}{id}", source.streams[0].1)).await?;
            }
            follow(&client, &source, &by_n(), from, "21 documents").await?;
            named(&client, before, 21..=21).await?;
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_purged_while_the_bucket_is_compared_goes_too() -> Result<()> {
    const DOCUMENTS: u64 = 20_000;
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::configured(&client, BUCKET, kept(5)).await?;
            source.write((0..DOCUMENTS).map(|id| document(format!("d{id}"), id))).await?;
            let before = indexed(&client, &source).await?;
            let stream = client.js.get_stream(&source.streams[0].0).await?;
            for round in 0..3 {
                let from = Instant::now();
                client.insist("hw.admin.bucket.reconcile", &json!({"name": BUCKET}), WITHIN).await?;
                for n in 0..150 {
                    let id = (n * 131 + round) % DOCUMENTS;
                    stream.purge().filter(format!("{}d{id}", source.streams[0].1)).await?;
                }
                follow(&client, &source, &by_n(), from, "150 documents").await?;
            }
            let named = reads(&client).await?.named - before.named;
            ensure!(named == 450, "{named} were named");
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_whose_message_is_purged_at_once_is_one() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::configured(&client, BUCKET, kept(1)).await?;
            source.write((0..50).map(|id| document(format!("d{id}"), id))).await?;
            let before = indexed(&client, &source).await?;
            let (name, prefix) = &source.streams[0];
            let (mut deletes, mut left) = (0, 0);
            let inbox = client.nats.new_inbox();
            let mut purged = client.nats.subscribe(inbox.clone()).await?;
            // A server may carry out a purge before the delete that was sent before it, which then stays: once more.
            while deletes == left && deletes < 50 {
                let from = Instant::now();
                // Nothing of that waits for an answer, so that the projector may never see the delete.
                for id in deletes..deletes + 10 {
                    let new = json!({"n": 100 + id}).to_string();
                    client.nats.publish(format!("{prefix}new{id}"), new.into()).await?;
                    client.nats.publish(format!("{prefix}d{id}"), "".into()).await?;
                    let purge = json!({"filter": format!("{prefix}d{id}")}).to_string();
                    let request = format!("$JS.API.STREAM.PURGE.{name}");
                    client.nats.publish_with_reply(request, inbox.clone(), purge.into()).await?;
                }
                for _ in 0..10 {
                    timeout(WITHIN, purged.next()).await?.context("no answer to a purge")?;
                }
                deletes += 10;
                left = follows_deletes(&client, &source, 50 + 2 * deletes).await?;
                println!("followed after {:?}; {left} of {deletes} deletes stay", from.elapsed());
            }
            ensure!(left < deletes, "no delete was purged");
            // Those of the others may have been named as well: when the purge was heard of, nothing was there.
            named(&client, before, deletes - left..=deletes).await?;
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_lived_long_enough_goes_and_an_older_revision_comes_back() -> Result<()> {
    let lives = |seconds: u64| {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-TTL", format!("{seconds}s"));
        headers
    };
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let config = stream::Config { allow_message_ttl: true, ..kept(2) };
            let source = Source::configured(&client, BUCKET, config).await?;
            let prefix = source.streams[0].1.clone();
            // Of half of them an older revision stays.
            source.write((0..100).map(|id| document(format!("d{id}"), id))).await?;
            let before = indexed(&client, &source).await?;
            let write = async |id: u64, seconds: u64| -> Result<()> {
                let payload = json!({"n": 1_000 + id}).to_string();
                let subject = format!("{prefix}d{id}");
                client.js.publish_with_headers(subject, lives(seconds), payload.into()).await?.await?;
                Ok(())
            };
            for id in 50..150 {
                write(id, 2).await?;
            }
            follows(&client, &source, (100, None)).await?;
            named(&client, before, 100..=100).await?;
            // Another projector learns from the bucket what is to expire.
            for id in 200..220 {
                write(id, 10).await?;
            }
            let taken =
                json!({"bucket": BUCKET, "index": "by_n", "consistency": "request_plus", "spans": [{"low": [1_000]}]});
            ensure!(client.count(&taken).await? == 20, "they are indexed");
            cluster.kill("projector-1")?;
            cluster.start_node("projector-1").await?;
            follows(&client, &source, (100, None)).await?;
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_up_that_panics_is_done_again() -> Result<()> {
    Cluster::without_services()?
        .breakable(&["projector-1"])?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::configured(&client, BUCKET, kept(1)).await?;
            source.write((0..50).map(|id| document(format!("d{id}"), id))).await?;
            let before = indexed(&client, &source).await?;
            let (name, prefix) = &source.streams[0];
            let from = Instant::now();
            cluster.panic_at("projector-1", "vanished")?;
            client.js.get_stream(name).await?.purge().filter(format!("{prefix}d7")).await?;
            cluster.hit("projector-1", "vanished").await?;
            let what = format!("looking up documents in source stream {name}");
            stated::panicked(&client, "projector-1", &what, WITHIN).await?;
            follow(&client, &source, &by_n(), from, "a document").await?;
            named(&client, before, 1..=1).await?;
            ensure_no_rollback(&client, BUCKET).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_is_no_document() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let (name, prefix) = ("people_0", "people.0.");
            let config = json!({
                "name": name, "subjects": [format!("{prefix}>")], "storage": "file", "retention": "limits", "num_replicas": 1,
                "max_msgs_per_subject": 1, "allow_rollup_hdrs": true, "allow_msg_ttl": true, "allow_msg_schedules": true,
            });
            let made = client.nats.request(format!("$JS.API.STREAM.CREATE.{name}"), config.to_string().into()).await?;
            let made: Value = serde_json::from_slice(&made.payload)?;
            ensure!(made["error"].is_null(), "{made}");
            let declared = json!({"name": BUCKET, "source": {"streams": [{"name": name, "strip_prefix": prefix}]}});
            client.insist("hw.admin.bucket.add", &declared, WITHIN).await?;
            client.js.publish(format!("{prefix}a"), json!({"n": 1}).to_string().into()).await?.await?;
            client.js.publish(format!("{prefix}later"), json!({"n": 2}).to_string().into()).await?.await?;
            client.create_indexes(BUCKET, &by_n(), WITHIN).await?;
            let before = reads(&client).await?;
            let ids = async |expected: &[&str]| {
                until("the documents are indexed", WITHIN, async || {
                    let request = json!({"bucket": BUCKET, "index": "by_n", "consistency": "request_plus"});
                    let reply = client.scan(&request).await.map_err(|refused| refused.to_string())?;
                    let rows = reply["rows"].as_array().into_iter().flatten();
                    let mut ids: Vec<&str> = rows.filter_map(|row| row["id"].as_str()).collect();
                    ids.sort_unstable();
                    (ids == expected && reply["exact"] == true).then_some(()).ok_or_else(|| reply.to_string())
                })
                .await
            };
            ids(&["a", "later"]).await?;
            // It takes the place of a document, and publishes another one a few seconds later.
            let at = (OffsetDateTime::now_utc() + Duration::from_secs(3)).format(&Rfc3339)?;
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Schedule", format!("@at {at}"));
            headers.insert("Nats-Schedule-Target", format!("{prefix}target"));
            let payload = json!({"n": 3}).to_string();
            client.js.publish_with_headers(format!("{prefix}later"), headers, payload.into()).await?.await?;
            ids(&["a"]).await?;
            ids(&["a", "target"]).await?;
            let now = reads(&client).await?;
            ensure!(now.passed_over == before.passed_over + 1, "{now:?}, before {before:?}");
            Ok(())
        })
        .await
}
