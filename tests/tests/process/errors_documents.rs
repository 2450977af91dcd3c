//! Documents that cannot be indexed are counted and listed, lose their old entries, and stop nothing.

use highwater_tests::{
    prelude::*,
    stated::{self, Stated},
};

const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
/// As documented in `schemas`.
const DEEPEST: usize = 128;
const LONGEST_KEY: usize = 1_982;
const LONGEST_ID: usize = 1_024;

fn put(id: &str, payload: impl Into<Vec<u8>>) -> Write {
    Write { vb: 0, id: id.into(), op: Op::Put(payload.into().into()) }
}

fn nested(levels: usize) -> String {
    format!(r#"{{"n":5,"x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels))
}

/// The ids of an index in order, everything acknowledged included, and the count of what it could not take.
async fn ids(client: &Client, index: &str) -> Result<(Vec<String>, u64)> {
    let request = json!({"bucket": "docs", "index": index, "consistency": "request_plus"});
    let reply = client.scan(&request).await.with_context(|| format!("{index} cannot be scanned"))?;
    let id = |row: &Value| row["id"].as_str().unwrap_or_default().to_owned();
    let rows = reply["rows"].as_array().context("no rows")?.iter().map(id).collect();
    Ok((rows, reply["unindexed"].as_u64().context("no unindexed")?))
}

/// What `describe` lists: id and reason, sorted.
async fn listed(client: &Client, index: &str) -> Result<Vec<(String, String)>> {
    let reply = client.request("hw.query.describe", &json!({"bucket": "docs", "index": index})).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let documents = reply["unindexed"].as_array().context("no list")?;
    let mut all: Vec<_> = documents.iter().map(|d| (text(&d["id"]), text(&d["reason"]))).collect();
    all.sort();
    Ok(all)
}

async fn index(client: &Client, name: &str, keys: &[&str]) -> Result<()> {
    client.create_index(&json!({"bucket": "docs", "name": name, "keys": keys, "include": ["n"]})).await?;
    client.wait_active("docs", name, ACTIVE_WITHIN).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_indexed_is_counted_listed_and_passed_over() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "docs").await?;
            let good = |id: &str| put(id, r#"{"n":1,"s":"x"}"#);
            let all = ["brackets", "deep", "long", "number", "text", "truncated", "utf8", "whole"];
            source.write(all.map(good)).await?;
            index(&client, "by_n", &["n"]).await?;
            index(&client, "by_s", &["s"]).await?;
            ensure!(ids(&client, "by_n").await? == (all.map(String::from).to_vec(), 0));
            ensure!(listed(&client, "by_n").await?.is_empty());

            // Each had an entry, and has none any more.
            source
                .write([
                    put("text", "hello"),
                    put("truncated", r#"{"n":1"#),
                    put("utf8", b"{\"n\":1,\"s\":\"\xff\xfe\"}".to_vec()),
                    put("brackets", "[".repeat(100_000)),
                    put("deep", nested(DEEPEST + 1)),
                    put("long", format!(r#"{{"n":1,"s":"{}"}}"#, "k".repeat(LONGEST_KEY))),
                    // JSON, but nothing that an index could take: not listed.
                    put("number", "7"),
                ])
                .await?;
            let unreadable = ["brackets", "deep", "text", "truncated", "utf8"];
            let (rows, unindexed) = ids(&client, "by_n").await?;
            ensure!(rows == ["long", "whole"] && unindexed == 5, "{rows:?} {unindexed}");
            let (rows, unindexed) = ids(&client, "by_s").await?;
            ensure!(rows == ["whole"] && unindexed == 6, "{rows:?} {unindexed}");
            let found = listed(&client, "by_n").await?;
            let (names, reasons): (Vec<_>, Vec<_>) = found.iter().cloned().unzip();
            ensure!(names == unreadable, "{found:?}");
            ensure!(reasons[1] == "too_deep" && reasons[2..].iter().all(|r| r == "not_json"), "{found:?}");
            ensure!(["too_deep", "not_json"].contains(&reasons[0].as_str()), "{found:?}");
            let found = listed(&client, "by_s").await?;
            ensure!(found.contains(&("long".into(), "key_too_long".into())) && found.len() == 6, "{found:?}");
            let listed_index = client.index("docs", "by_s").await?;
            ensure!(listed_index["state"] == "active" && listed_index["error"].is_null(), "{listed_index}");

            // A fresh build finds the same.
            index(&client, "again", &["s"]).await?;
            ensure!(ids(&client, "again").await? == (vec!["whole".to_owned()], 6));
            ensure!(listed(&client, "again").await? == listed(&client, "by_s").await?);

            // Made good, or deleted, they are no longer counted.
            source.write([good("text"), good("deep"), good("long")]).await?;
            source.write([Write { vb: 0, id: "utf8".into(), op: Op::Delete }]).await?;
            source.write([Write { vb: 0, id: "brackets".into(), op: Op::Purge }]).await?;
            for name in ["by_s", "again"] {
                let (rows, unindexed) = ids(&client, name).await?;
                ensure!(rows == ["deep", "long", "text", "whole"] && unindexed == 1, "{name}: {rows:?} {unindexed}");
            }
            ensure!(listed(&client, "by_n").await? == [("truncated".to_owned(), "not_json".to_owned())]);
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_taken_to_the_byte_and_huge_documents_go_through() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "docs").await?;
            source.write([put("plain", r#"{"n":0,"s":"a"}"#)]).await?;
            index(&client, "by_n", &["n"]).await?;
            index(&client, "by_s", &["s"]).await?;

            let longest = "i".repeat(LONGEST_ID);
            // Both begin as the longest one that is taken.
            let too_long = "i".repeat(LONGEST_ID + 1);
            let much_too_long = "i".repeat(2 * LONGEST_ID);
            // As much as fits one message of the server, the key-value subject apart.
            let huge = format!(r#"{{"n":2,"s":"b","filler":"{}"}}"#, "f".repeat(1_048_576 - 2_000));
            let wide: String = (0..40_000).fold(String::new(), |all, i| all + &format!(r#""f{i}":{i},"#));
            source
                .write([
                    put("deepest", nested(DEEPEST - 1)),
                    put(&longest, r#"{"n":1}"#),
                    put(&too_long, r#"{"n":1}"#),
                    put(&much_too_long, r#"{"n":1}"#),
                    put("huge", huge),
                    put("wide", format!(r#"{{{wide}"n":3}}"#)),
                    put("many", format!(r#"{{"n":4,"s":[{}]}}"#, vec!["1"; 100_000].join(","))),
                    put("last", r#"{"n":6,"s":"z"}"#),
                ])
                .await?;
            let (rows, unindexed) = ids(&client, "by_n").await?;
            let expected = ["plain", &longest, "huge", "wide", "many", "deepest", "last"];
            ensure!(rows == expected && unindexed == 2, "{rows:?} {unindexed}");
            let found = listed(&client, "by_n").await?;
            let named = |(id, reason): &(String, String)| id.starts_with(&"i".repeat(500)) && reason == "id_too_long";
            ensure!(found.len() == 2 && found.iter().all(named), "{found:?}");
            source.write([Write { vb: 0, id: too_long, op: Op::Delete }]).await?;
            let (rows, unindexed) = ids(&client, "by_n").await?;
            ensure!(rows == expected && unindexed == 1, "{rows:?} {unindexed}");
            let (rows, unindexed) = ids(&client, "by_s").await?;
            ensure!(rows == ["plain", "huge", "last"] && unindexed == 2, "{rows:?} {unindexed}");
            let found = listed(&client, "by_s").await?;
            ensure!(found.contains(&("many".into(), "key_too_long".into())), "{found:?}");

            // The key that just fits: found by bisection, and its neighbour is refused.
            let (mut fits, mut not) = (1, LONGEST_KEY + 1);
            while not - fits > 1 {
                let middle = usize::midpoint(fits, not);
                source.write([put("probe", format!(r#"{{"s":"{}"}}"#, "p".repeat(middle)))]).await?;
                let (rows, _) = ids(&client, "by_s").await?;
                if rows.iter().any(|id| id == "probe") { fits = middle } else { not = middle }
            }
            ensure!(fits > LONGEST_KEY - 64, "the longest key has only {fits} characters");
            source.write([put("probe", format!(r#"{{"s":"{}"}}"#, "p".repeat(not)))]).await?;
            let (rows, _) = ids(&client, "by_s").await?;
            ensure!(rows == ["plain", "huge", "last"], "{rows:?}");
            let found = listed(&client, "by_s").await?;
            ensure!(found.contains(&("probe".into(), "key_too_long".into())), "{found:?}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bad_documents_is_counted_and_the_list_is_bounded() -> Result<()> {
    const BAD: u64 = 3_000;
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "docs").await?;
            source.write((0..BAD).map(|i| put(&format!("b{i}"), "{"))).await?;
            source.write([put("good", r#"{"n":1}"#)]).await?;
            index(&client, "by_n", &["n"]).await?;
            ensure!(ids(&client, "by_n").await? == (vec!["good".to_owned()], BAD));
            let found = listed(&client, "by_n").await?;
            ensure!(!found.is_empty() && found.len() < 1_000, "{} are listed", found.len());
            source.write((0..BAD).map(|i| put(&format!("b{i}"), r#"{"n":0}"#))).await?;
            let (rows, unindexed) = ids(&client, "by_n").await?;
            ensure!(rows.len() as u64 == BAD + 1 && unindexed == 0, "{} {unindexed}", rows.len());
            Ok(())
        })
        .await
}

/// One document of the most and one of more, beside others, in 51 indexes on one node: each takes the one, and none the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_an_entry_is_too_large_does_not_depend_on_what_is_beside_it() -> Result<()> {
    const INDEXES: usize = 51;
    // Together with a number as the key, and the name of the field.
    const MOST: usize = 256 * 1024 - 64;
    const MORE: usize = 256 * 1024;
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "docs").await?;
            let large = |id: &str, bytes: usize| Write::put(0, id, &json!({"n": 1, "text": "x".repeat(bytes)}));
            // Before there is an index, and again when all are there.
            let all =
                || ["most", "more", "small"].into_iter().zip([MOST, MORE, 10]).map(|(id, bytes)| large(id, bytes));
            source.write(all()).await?;
            let names: Vec<String> = (0..INDEXES).map(|n| format!("i{n}")).collect();
            for name in &names {
                client
                    .create_index(&json!({"bucket": "docs", "name": name, "keys": ["n"], "include": ["text"]}))
                    .await?;
            }
            for round in 0..2 {
                for name in &names {
                    client.wait_active("docs", name, ACTIVE_WITHIN).await?;
                    let found = ids(&client, name).await?;
                    ensure!(found == (vec!["most".into(), "small".into()], 1), "{round}: {name} has {found:?}");
                }
                let reasons = listed(&client, "i7").await?;
                ensure!(reasons == [("more".into(), "entry_too_large".into())], "{reasons:?}");
                source.write(all()).await?;
            }
            Ok(())
        })
        .await
}

/// A `KV-Operation` that nobody knows is a put that is counted, and what does not have the bucket's prefix is counted too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_unusual_are_counted_by_stream() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "docs").await?;
            source.write([put("a", r#"{"n":1}"#)]).await?;
            index(&client, "by_n", &["n"]).await?;
            for (id, operation) in [("a", "MOVE"), ("b", "del"), ("c", "PUT"), ("d", "MERGE")] {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("KV-Operation", operation);
                let subject = format!("$KV.docs.{id}");
                client.js.publish_with_headers(subject, headers, r#"{"n":2}"#.into()).await?.await?;
            }
            let (rows, unindexed) = ids(&client, "by_n").await?;
            ensure!(rows == ["a", "b", "c", "d"] && unindexed == 0, "{rows:?} {unindexed}");
            let what = "an unknown KV-Operation in stream KV_docs";
            let newest = "it counts as a put; the newest is that of docid \"d\", seqno 5";
            let wanted = |stated: &Stated| stated.is("projector-1", what) && stated.error == newest;
            stated::is_stated(&client, what, ACTIVE_WITHIN, wanted).await?;
            until("three unknown operations are counted", ACTIVE_WITHIN, async || {
                let vbucket = only_vbucket(&client, "docs").await?;
                let (reads, listed) = (&vbucket["reads"], &vbucket["unknown_operations"]);
                let all = [("a", 2), ("b", 3), ("d", 5)].map(|(id, seqno)| json!({"id": id, "seqno": seqno}));
                let counted = reads["unknown_operations"] == 3 && reads["passed_over"] == 0;
                if counted && *listed == json!(all) { Ok(()) } else { Err(vbucket.to_string()) }
            })
            .await?;

            // A stream that takes up further subjects later: two of five messages have the prefix of the bucket.
            let config = |subjects: &str| async_nats::jetstream::stream::Config {
                name: "orders".into(),
                subjects: vec![subjects.into()],
                ..Default::default()
            };
            client.js.create_stream(config("orders.eu.>")).await?;
            let streams = json!([{"name": "orders", "strip_prefix": "orders.eu."}]);
            let request = json!({"name": "orders", "source": {"streams": streams}});
            client.insist("hw.admin.bucket.add", &request, ACTIVE_WITHIN).await?;
            client.create_index(&json!({"bucket": "orders", "name": "by_n", "keys": ["n"]})).await?;
            client.wait_active("orders", "by_n", ACTIVE_WITHIN).await?;
            client.js.update_stream(config("orders.>")).await?;
            for subject in ["orders.eu.1", "orders.us.1", "orders.us.2", "orders.eux.1", "orders.eu.2"] {
                client.js.publish(subject, r#"{"n":2}"#.into()).await?.await?;
            }
            until("three messages are passed over", ACTIVE_WITHIN, async || {
                let reads = &only_vbucket(&client, "orders").await?["reads"];
                let passed_over = reads["passed_over"] == 3 && reads["live"] == 5;
                if passed_over && reads["unknown_operations"] == 0 { Ok(()) } else { Err(reads.to_string()) }
            })
            .await?;
            let request = json!({"bucket": "orders", "index": "by_n", "consistency": "request_plus"});
            ensure!(client.scan(&request).await?["rows"].as_array().map(Vec::len) == Some(2));
            Ok(())
        })
        .await
}

/// A bucket's only stream.
async fn only_vbucket(client: &Client, bucket: &str) -> Result<Value, String> {
    let bucket = client.bucket(bucket).await.map_err(|refused| refused.to_string())?;
    Ok(bucket["vbuckets"][0].clone())
}
