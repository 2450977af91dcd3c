//! The kinds of sources that people have: each is indexed right, or refused at once with the reason.

use async_nats::jetstream::{
    kv,
    stream::{Config, ConsumerLimits, External, RetentionPolicy, Source as Origin, SubjectTransform},
};
use highwater_tests::{cli, prelude::*};
use std::collections::BTreeSet;

const WITHIN: Duration = Duration::from_secs(60);
const DOCUMENTS: u64 = 300;

fn transform(source: &str, destination: &str) -> SubjectTransform {
    SubjectTransform { source: source.into(), destination: destination.into() }
}

fn stream(name: &str, subjects: &[&str]) -> Config {
    Config { name: name.into(), subjects: subjects.iter().map(ToString::to_string).collect(), ..Config::default() }
}

fn from(name: &str) -> Origin {
    Origin { name: name.into(), ..Origin::default() }
}

async fn put(client: &Client, subject: &str, n: u64) -> Result<u64> {
    let ack = client.js.publish(subject.to_owned(), json!({"n": n}).to_string().into()).await?.await?;
    Ok(ack.sequence)
}

/// Declares streams as a bucket with an index over `n`, and waits until that is active.
async fn declared(client: &Client, bucket: &str, source: Value) -> Result<()> {
    client.insist("hw.admin.bucket.add", &json!({"name": bucket, "source": source}), WITHIN).await?;
    // Again: it is the same.
    client.insist("hw.admin.bucket.add", &json!({"name": bucket, "source": source}), WITHIN).await?;
    indexed(client, bucket).await
}

async fn indexed(client: &Client, bucket: &str) -> Result<()> {
    client.create_index(&json!({"bucket": bucket, "name": "by_n", "keys": ["n"]})).await?;
    client.wait_active(bucket, "by_n", WITHIN).await?;
    Ok(())
}

/// The docids of the index.
async fn ids(client: &Client, bucket: &str, consistency: Value) -> Result<BTreeSet<String>> {
    let request = json!({"bucket": bucket, "index": "by_n", "consistency": consistency, "timeout_ms": 10_000});
    let reply = client.insist("hw.query.scan", &request, WITHIN).await?;
    let rows = reply["rows"].as_array().context("no rows")?;
    Ok(rows.iter().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect())
}

/// Waits until the index has just these.
async fn has(client: &Client, bucket: &str, wanted: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
    until(&format!("{bucket} has {wanted:?}"), WITHIN, async || {
        let found = ids(client, bucket, json!("request_plus")).await.map_err(|e| format!("{e:#}"))?;
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await
}

async fn passed_over(client: &Client, bucket: &str, wanted: u64) -> Result<()> {
    until(&format!("{wanted} messages of {bucket} are passed over"), WITHIN, async || {
        let status = client.members().await.map_err(|refused| refused.to_string())?;
        let mut buckets = status["buckets"].as_array().into_iter().flatten();
        let found = buckets.find(|b| b["name"] == bucket).ok_or_else(|| status.to_string())?;
        let reads = &found["vbuckets"][0]["reads"];
        if reads["passed_over"] == wanted { Ok(()) } else { Err(reads.to_string()) }
    })
    .await
}

async fn run(test: impl AsyncFnOnce(&Client, &str) -> Result<()>) -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let url = cluster.url().to_owned();
            test(&client, &url).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_counts_and_not_what_is_published() -> Result<()> {
    run(async |client, _| {
        let config = stream("moved", &["in.*"]);
        client
            .js
            .create_stream(Config { subject_transform: Some(transform("in.*", "kept.{{wildcard(1)}}.x")), ..config })
            .await?;
        put(client, "in.a", 1).await?;
        let published = json!({"name": "moved", "source": {"streams": [{"name": "moved", "strip_prefix": "in."}]}});
        let refused = client.request("hw.admin.bucket.add", &published).await.err().context("it is declared")?;
        ensure!(refused.code == "bad_source" && refused.message.contains("kept.*.x"), "{refused}");
        declared(client, "moved", json!({"streams": [{"name": "moved", "strip_prefix": "kept."}]})).await?;
        put(client, "in.b", 2).await?;
        has(client, "moved", &["a.x", "b.x"]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_of_buckets_and_of_streams_are_sources() -> Result<()> {
    run(async |client, _| {
        let origin =
            client.js.create_key_value(kv::Config { bucket: "origin".into(), ..kv::Config::default() }).await?;
        for n in 0..DOCUMENTS {
            origin.put(format!("d{n}"), json!({"n": n}).to_string().into()).await?;
        }
        client.js.create_stream(Config { mirror: Some(from("KV_origin")), ..stream("KV_copy", &[]) }).await?;
        client.js.create_stream(Config { mirror: Some(from("KV_copy")), ..stream("KV_second", &[]) }).await?;
        // Its first index declares it.
        indexed(client, "copy").await?;
        declared(client, "second", json!({"kv": "second"})).await?;
        for bucket in ["copy", "second"] {
            let revision = origin.put(format!("new{bucket}"), json!({"n": 1}).to_string().into()).await?;
            origin.delete("d0").await?;
            let own = ids(client, bucket, json!({"at_plus": revision})).await?;
            ensure!(own.contains(&format!("new{bucket}")), "the revision {revision} of the origin is waited for");
        }
        let all: Vec<String> =
            (1..DOCUMENTS).map(|n| format!("d{n}")).chain(["newcopy".into(), "newsecond".into()]).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        has(client, "copy", &all).await?;
        has(client, "second", &all).await?;
        let buckets = client.insist("hw.admin.bucket.list", &json!({}), WITHIN).await?;
        let prefix = |name: &str| {
            let mut buckets = buckets["buckets"].as_array().into_iter().flatten();
            buckets.find(|b| b["name"] == name).map(|b| b["source"]["kv_prefix"].clone())
        };
        ensure!(prefix("copy") == Some(json!("$KV.origin.")) && prefix("second") == prefix("copy"), "{buckets}");

        client.js.create_stream(stream("orders", &["orders.>"])).await?;
        let mirror = Origin { subject_transforms: vec![transform("orders.>", "bestellt.>")], ..from("orders") };
        client.js.create_stream(Config { mirror: Some(mirror), ..stream("bestellt", &[]) }).await?;
        client.js.create_stream(Config { mirror: Some(from("orders")), ..stream("same", &[]) }).await?;
        put(client, "orders.1", 1).await?;
        declared(client, "bestellt", json!({"streams": [{"name": "bestellt", "strip_prefix": "bestellt."}]})).await?;
        declared(client, "same", json!({"streams": [{"name": "same", "strip_prefix": "orders."}]})).await?;
        put(client, "orders.2", 2).await?;
        has(client, "bestellt", &["1", "2"]).await?;
        has(client, "same", &["1", "2"]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_another_domain_has_the_prefix_of_its_origin() -> Result<()> {
    run(async |client, _| {
        // Nobody is there: the mirror is empty, and its prefix is known all the same.
        let external = External { api_prefix: "$JS.far.API".into(), delivery_prefix: None };
        let far = Origin { external: Some(external), ..from("KV_far") };
        client.js.create_stream(Config { mirror: Some(far), ..stream("KV_near", &[]) }).await?;
        indexed(client, "near").await?;
        let buckets = client.insist("hw.admin.bucket.list", &json!({}), WITHIN).await?;
        ensure!(buckets["buckets"][0]["source"]["kv_prefix"] == "$KV.far.", "{buckets}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_made_of_sources_alone_are_sources() -> Result<()> {
    run(async |client, _| {
        for name in ["eu", "us"] {
            client.js.create_stream(stream(name, &[&format!("{name}.>")])).await?;
            put(client, &format!("{name}.1"), 1).await?;
        }
        let moved = Origin { subject_transforms: vec![transform("us.>", "all.us.>")], ..from("us") };
        let renamed = Origin { subject_transforms: vec![transform("eu.>", "all.eu.>")], ..from("eu") };
        client.js.create_stream(Config { sources: Some(vec![moved, renamed]), ..stream("all", &[]) }).await?;
        declared(client, "all", json!({"streams": [{"name": "all", "strip_prefix": "all."}]})).await?;
        put(client, "us.2", 2).await?;
        has(client, "all", &["eu.1", "us.1", "us.2"]).await?;

        // A key-value bucket made of others, as clients make it.
        for name in ["a", "b"] {
            let store = client.js.create_key_value(kv::Config { bucket: name.into(), ..kv::Config::default() }).await?;
            store.put(format!("of{name}"), json!({"n": 1}).to_string().into()).await?;
        }
        let of = |name: &str| Origin {
            subject_transforms: vec![transform(&format!("$KV.{name}.>"), "$KV.both.>")],
            ..from(&format!("KV_{name}"))
        };
        let both = Config { sources: Some(vec![of("a"), of("b")]), ..stream("KV_both", &["$KV.both.>"]) };
        client.js.create_stream(both).await?;
        indexed(client, "both").await?;
        has(client, "both", &["ofa", "ofb"]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_may_be_narrower_and_may_have_wildcards() -> Result<()> {
    run(async |client, url| {
        client.js.create_stream(stream("orders", &["orders.>"])).await?;
        for (n, subject) in
            ["orders.1.items.a", "orders.2.items.a", "orders.1.notes.a", "orders.1.items", "orders.3.items.b.c"]
                .iter()
                .enumerate()
        {
            put(client, subject, n as u64).await?;
        }
        let added =
            cli::highwater(&["bucket", "add", "items", "--stream", "orders=orders.*.items.", "--nats-url", url])?;
        ensure!(added.0 == Some(0), "{added:?}");
        indexed(client, "items").await?;
        has(client, "items", &["1.a", "2.a", "3.b.c"]).await?;
        // Two were there before the bucket was declared.
        passed_over(client, "items", 2).await?;
        put(client, "orders.9.notes.z", 1).await?;
        put(client, "orders.9.items.z", 1).await?;
        has(client, "items", &["1.a", "2.a", "3.b.c", "9.z"]).await?;
        passed_over(client, "items", 3).await?;

        declared(client, "of_one", json!({"streams": [{"name": "orders", "strip_prefix": "orders.1."}]})).await?;
        has(client, "of_one", &["items.a", "notes.a", "items"]).await?;
        passed_over(client, "of_one", 4).await?;
        declared(client, "heads", json!({"streams": [{"name": "orders", "strip_prefix": "orders.*.items"}]})).await?;
        has(client, "heads", &["1", "1.a", "2.a", "3.b.c", "9.z"]).await?;
        // An index that is empty explains itself.
        declared(client, "none", json!({"streams": [{"name": "orders", "strip_prefix": "orders.x."}]})).await?;
        has(client, "none", &[]).await?;
        passed_over(client, "none", 7).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_may_have_long_names() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let mut rng = Rng::seeded("long names");
            let long = ["b".repeat(65), "b".repeat(244), "b".repeat(252)];
            let mut sources = Vec::new();
            for bucket in &long {
                let source = Source::key_value(&client, bucket).await?;
                highwater_tests::load::write(&source, 500, &mut rng).await?;
                let indexes = documents::indexes(2);
                client.create_indexes(bucket, &indexes, WITHIN).await?;
                ask::each(&client, &source, &indexes).await?;
                let topic = json!({"bucket": bucket, "topic": "t".repeat(64)});
                client.insist("hw.admin.topic.create", &topic, WITHIN).await?;
                sources.push((source, indexes));
            }
            cluster.restart("indexer-1").await?;
            cluster.restart("coordinator-1").await?;
            for (source, indexes) in &sources {
                highwater_tests::load::write(source, 200, &mut rng).await?;
                ask::each_again(&client, source, indexes, WITHIN).await?;
                for index in indexes {
                    client.drop_index(&source.bucket, &index.name).await?;
                }
                client.insist("hw.admin.bucket.remove", &json!({"name": source.bucket}), WITHIN).await?;
            }
            let refused = client.request("hw.query.list", &json!({"bucket": "b".repeat(253)})).await;
            ensure!(refused.err().is_some_and(|refused| refused.code == "bad_name"));
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docids_are_what_clients_encoded() -> Result<()> {
    run(async |client, url| {
        for (bucket, codec, keys) in [
            // "Acme Inc.contact", "é", and what no codec makes.
            ("names", "base64", ["QWNtZSBJbmM.Y29udGFjdA", "w6k", "not-base64-x"]),
            ("paths", "path", ["_root_.config.db", "config.db", "a/b"]),
        ] {
            let store =
                client.js.create_key_value(kv::Config { bucket: bucket.into(), ..kv::Config::default() }).await?;
            for (n, key) in keys.iter().enumerate() {
                store.put(*key, json!({"n": n}).to_string().into()).await?;
            }
            let added = cli::highwater(&["bucket", "add", bucket, "--docid-codec", codec, "--nats-url", url])?;
            ensure!(added.0 == Some(0), "{added:?}");
            indexed(client, bucket).await?;
            let wanted = if codec == "path" { ["/config/db", "config/db"] } else { ["Acme Inc.contact", "é"] };
            has(client, bucket, &wanted).await?;
            let described = client.request("hw.query.describe", &json!({"bucket": bucket, "index": "by_n"})).await?;
            let unindexed = &described["unindexed"][0];
            ensure!(unindexed["reason"] == "id_not_decoded", "{described}");
            ensure!(unindexed["id"] == format!(".{}", keys[2]), "{described}");
            // It goes as it came.
            store.delete(keys[2]).await?;
            store.delete(keys[0]).await?;
            has(client, bucket, &wanted[1..]).await?;
            until("nothing is unindexed", WITHIN, async || {
                let index = client.index(bucket, "by_n").await.map_err(|e| e.to_string())?;
                if index["unindexed"] == 0 { Ok(()) } else { Err(index.to_string()) }
            })
            .await?;
        }
        // Under another codec it is another bucket.
        let other = json!({"name": "paths", "source": {"kv": "paths", "docid_codec": "base64"}});
        let refused = client.request("hw.admin.bucket.add", &other).await.err().context("it is the same")?;
        ensure!(refused.code == "bucket_exists", "{refused}");
        let (code, _, complained) =
            cli::highwater(&["bucket", "add", "x", "--docid-codec", "rot13", "--nats-url", url])?;
        ensure!(code == Some(2) && complained.contains("base64 or path"), "{complained}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_whose_messages_are_no_documents_are_refused_with_the_reason() -> Result<()> {
    run(async |client, _| {
        let queue = Config { retention: RetentionPolicy::WorkQueue, ..stream("queue", &["queue.>"]) };
        let interest = Config { retention: RetentionPolicy::Interest, ..stream("interest", &["interest.>"]) };
        client.js.create_stream(queue).await?;
        client.js.create_stream(interest).await?;
        let counters = json!({"name": "counters", "subjects": ["counters.>"], "retention": "limits", "storage": "file",
            "num_replicas": 1, "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "discard": "old",
            "allow_direct": true, "allow_msg_counter": true});
        let made = client.nats.request("$JS.API.STREAM.CREATE.counters", counters.to_string().into()).await?;
        ensure!(!String::from_utf8_lossy(&made.payload).contains("\"error\""), "{:?}", made.payload);
        for (name, says) in [("queue", "work queue"), ("interest", "interest"), ("counters", "counters")] {
            let request =
                json!({"name": name, "source": {"streams": [{"name": name, "strip_prefix": format!("{name}.")}]}});
            let refused = client.request("hw.admin.bucket.add", &request).await.err().context("it is declared")?;
            ensure!(refused.code == "bad_source" && refused.message.contains(says), "{name}: {refused}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_a_streams_consumers_are_obeyed() -> Result<()> {
    run(async |client, _| {
        let limits = ConsumerLimits { inactive_threshold: Duration::from_secs(1), max_ack_pending: 1 };
        client.js.create_stream(Config { consumer_limits: Some(limits), ..stream("orders", &["orders.>"]) }).await?;
        for n in 0..DOCUMENTS {
            put(client, &format!("orders.{n}"), n).await?;
        }
        declared(client, "orders", json!({"streams": [{"name": "orders", "strip_prefix": "orders."}]})).await?;
        put(client, "orders.x", 1).await?;
        let all: Vec<String> = (0..DOCUMENTS).map(|n| n.to_string()).chain(["x".into()]).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        has(client, "orders", &all).await?;
        client.insist("hw.admin.bucket.reconcile", &json!({"name": "orders"}), WITHIN).await?;
        // Longer than the server keeps a consumer that nobody uses.
        tokio::time::sleep(Duration::from_secs(3)).await;
        put(client, "orders.y", 1).await?;
        has(client, "orders", &[&all[..], &["y"]].concat()).await
    })
    .await
}
