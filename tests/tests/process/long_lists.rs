//! Lists that do not fit one message come in pages, and the command line asks for all of them.

use highwater_tests::{
    cli::{highwater, json_of},
    prelude::*,
};

const WITHIN: Duration = Duration::from_secs(20);
const BUCKET: &str = "people";
/// Each index has this many keys of this length: all definitions take more than the largest message.
const INDEXES: usize = 300;
const KEYS: usize = 16;
const KEY_LENGTH: usize = 250;
/// The largest message that a server takes as it comes.
const LARGEST: usize = 1024 * 1024;

fn name(n: usize) -> String {
    format!("by_{n:03}")
}

fn definition(n: usize) -> Value {
    let keys: Vec<String> = (0..KEYS).map(|key| format!("{}{key:02}", "k".repeat(KEY_LENGTH - 2))).collect();
    json!({"bucket": BUCKET, "name": name(n), "keys": keys, "defer_build": true})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lists_come_in_pages() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            Source::key_value(&client, BUCKET).await?;
            for n in 0..INDEXES {
                client.create_index(&definition(n)).await?;
            }
            let all: Vec<String> = (0..INDEXES).map(name).collect();
            until("the catalog knows every index", WITHIN, async || {
                let known = names(&client.list(BUCKET).await.map_err(|refused| refused.to_string())?);
                if known.len() == INDEXES { Ok(()) } else { Err(format!("{} of them", known.len())) }
            })
            .await?;
            pages(&client, &all).await?;
            refusals(&client).await?;
            commands(cluster.url(), &all)
        })
        .await
}

fn names(indexes: &[Value]) -> Vec<String> {
    indexes.iter().filter_map(|index| index["name"].as_str().map(str::to_owned)).collect()
}

/// Every page fits, each index comes once and in order.
async fn pages(client: &Client, all: &[String]) -> Result<()> {
    let (mut seen, mut bytes, mut count) = (Vec::new(), 0, 0);
    let mut request = json!({});
    loop {
        let reply = client.request("hw.query.list", &request).await?;
        let page = names(reply["indexes"].as_array().context("no indexes")?);
        let size = reply.to_string().len();
        ensure!(!page.is_empty() && size < LARGEST, "{} indexes in {size} bytes", page.len());
        seen.extend(page);
        bytes += size;
        count += 1;
        if reply["more"] != true {
            break;
        }
        request = json!({"after": [BUCKET, seen.last()]});
    }
    println!("{} indexes in {count} pages of {bytes} bytes", seen.len());
    ensure!(seen == all && bytes > LARGEST && count > 2, "{} indexes, {bytes} bytes, {count} pages", seen.len());
    let behind = client.request("hw.query.list", &json!({"bucket": BUCKET, "after": [BUCKET, "zzz"]})).await?;
    ensure!(behind["indexes"] == json!([]) && behind["more"].is_null(), "{behind}");
    Ok(())
}

/// What is no place in a list is refused by name.
async fn refusals(client: &Client) -> Result<()> {
    const REQUEST: &str = "malformed_request";
    for (subject, request, code) in [
        ("hw.query.list", json!({"after": "by_003"}), REQUEST),
        ("hw.query.list", json!({"after": [BUCKET]}), REQUEST),
        ("hw.query.nodes", json!({"members_after": ["waiter", "x"]}), REQUEST),
        ("hw.query.nodes", json!({"after": "x"}), "unknown_field"),
        ("hw.cluster.members", json!({"buckets_after": 7}), REQUEST),
        ("hw.cluster.replicas", json!({"after": 7}), REQUEST),
        ("hw.admin.bucket.list", json!({"after": {}}), REQUEST),
        ("hw.admin.topic.list", json!({"after": [1, 2]}), REQUEST),
    ] {
        let refused = client.request(subject, &request).await.err();
        ensure!(refused.as_ref().is_some_and(|refused| refused.code == code), "{subject} {request}: {refused:?}");
    }
    Ok(())
}

/// Rows of all pages for people, a reply a line for programs, one status for both.
fn commands(url: &str, all: &[String]) -> Result<()> {
    let list = ["index", "list", "--nats-url", url];
    let (code, text, error) = highwater(&list)?;
    let shown = all.iter().filter(|name| text.contains(name.as_str())).count();
    ensure!(code == Some(0) && shown == all.len(), "{code:?}: {shown} indexes, {error}");
    let (_, text, _) = highwater(&[&list[..], &["--json"]].concat())?;
    let replies: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let listed = replies.iter().filter_map(|reply| reply["indexes"].as_array()).flat_map(|indexes| names(indexes));
    ensure!(replies.len() > 2 && listed.eq(all.iter().cloned()), "{} replies", replies.len());
    let status = json_of(&["status", "--nats-url", url], 0)?;
    let listed = names(status["indexes"].as_array().context("no indexes")?);
    ensure!(listed == all, "{} indexes in the status", listed.len());
    Ok(())
}
