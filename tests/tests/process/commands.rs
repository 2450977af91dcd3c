//! `highwater status`, `state` and `topic`: what stands behind the indexes, for people and for programs.

use highwater_tests::{
    cli::{highwater, json_of},
    prelude::*,
};

const WITHIN: Duration = Duration::from_secs(20);
/// Of a bootstrap.
const STEPS: usize = 13;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_behind_the_indexes_is_shown() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            source.write([Write::put(0, "d0", &json!({"name": "Ada"}))]).await?;
            let index = documents::indexes(2).remove(0);
            client.create_index(&index.definition("people")).await?;
            client.wait_active("people", &index.name, WITHIN).await?;
            let names = bootstrapped(&client).await?;
            history(&client).await?;
            let url = cluster.url().to_owned();
            let last = names.last().context("no steps")?;
            commands(&url, last, &index.name)
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_heads_its_columns_with_the_names_of_the_keys() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            source.write([Write::put(0, "d0", &json!({"home": {"city": "Oslo"}, "age": 7, "name": "Ada"}))]).await?;
            for (name, keys) in [("by_city", json!(["home.city DESC", "age"])), ("primary", json!([]))] {
                let index = json!({"bucket": "people", "name": name, "keys": keys, "include": ["name"]});
                client.request("hw.admin.index.create", &index).await?;
                client.wait_active("people", name, WITHIN).await?;
            }
            let url = cluster.url().to_owned();
            for (index, more, head) in [
                ("by_city", &[][..], ["HOME.CITY", "AGE", "ID", "NAME"].as_slice()),
                // Also where no row has any key.
                ("by_city", &["--equal", "Rome"], &["HOME.CITY", "AGE", "ID"]),
                ("primary", &[], &["ID", "NAME"]),
            ] {
                let scan = ["scan", "people", index, "--consistency", "request_plus", "--nats-url", &url];
                let (ended, out, err) = highwater(&[&scan, more].concat())?;
                let words: Vec<&str> = out.lines().next().unwrap_or_default().split_whitespace().collect();
                ensure!(ended == Some(0) && words == head, "{index} {more:?}: {ended:?}\n{out}\n{err}");
            }
            let reply = client.request("hw.query.scan", &json!({"bucket": "people", "index": "by_city"})).await?;
            ensure!(reply["key_names"] == json!(["home.city", "age"]), "{reply}");
            Ok(())
        })
        .await
}

/// Waits until every step to the coordinator's service is done; answers their names.
async fn bootstrapped(client: &Client) -> Result<Vec<String>> {
    let steps = until("every step is done", WITHIN, async || {
        let mut status = client.members().await.map_err(|refused| refused.to_string())?;
        let Value::Array(steps) = status["bootstrap"].take() else { return Err(status.to_string()) };
        let done = !steps.is_empty() && steps.iter().all(|step| step["done_ms"].is_u64());
        if done { Ok(steps) } else { Err(format!("{steps:?}")) }
    })
    .await?;
    ensure!(steps.len() == STEPS, "{} steps: {steps:?}", steps.len());
    ensure!(steps.iter().map(|step| step["step"].as_u64()).eq((1..=STEPS as u64).map(Some)), "{steps:?}");
    ensure!(steps.is_sorted_by_key(|step| step["done_ms"].as_u64()), "{steps:?}");
    let name = |step: &Value| step["name"].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
    steps.iter().map(|step| name(step).with_context(|| format!("a step without a name: {step}"))).collect()
}

/// The newest records of the log, and no more than were asked for.
async fn history(client: &Client) -> Result<()> {
    let subject = "hw.admin.state.history";
    let version = |record: &Value| record["version"].as_u64();
    let all = client.request(subject, &json!({"limit": 1_000})).await?;
    let records = all["records"].as_array().context("no records")?;
    ensure!(records.iter().any(|record| record["change"]["what"] == "term_started"), "no term was started: {all}");
    let newest = records.iter().max_by_key(|record| version(record)).context("no record")?;
    let few = client.request(subject, &json!({"limit": 2})).await?;
    let few = few["records"].as_array().context("no records")?;
    ensure!(few.len() == 2 && few.iter().any(|record| version(record) >= version(newest)), "{few:?} and {newest}");
    Ok(())
}

/// Each command with its exit code and a word of its answer.
fn commands(url: &str, last_step: &str, index: &str) -> Result<()> {
    for (arguments, code, word) in [
        (&["status"][..], 0, "bootstrap: all 13 steps done"),
        (&["status"], 0, index),
        (&["status", "--bootstrap"], 0, last_step),
        (&["state", "show"], 0, "\"people\""),
        (&["state", "show", "--bucket", "people"], 0, index),
        (&["state", "show", "--bucket", "nothing"], 1, "bucket_not_found"),
        (&["state", "history", "--limit", "1000"], 0, "term_started"),
        (&["topic", "list"], 0, "indexer-1"),
        (&["topic", "create", "people", "feed"], 0, "topic feed on people is created"),
        (&["topic", "subscribe", "people", "feed", "audit", "--predicate", "partition = 0"], 0, "audit reads hw."),
        (&["topic", "list", "people"], 0, "partition = 0"),
        (&["topic", "subscribe", "people", "nothing", "audit"], 1, "nothing"),
        (&["topic", "unsubscribe", "people", "feed", "audit"], 0, "no longer subscribed"),
        (&["topic", "delete", "people", "feed"], 0, "topic feed on people is deleted"),
        (&["topic", "delete", "people", "feed"], 1, "feed"),
        (&["state"], 2, "history"),
        (&["state", "recover"], 2, "--force"),
    ] {
        let mut all = arguments.to_vec();
        if code != 2 {
            all.extend(["--nats-url", url]);
        }
        let (ended, out, err) = highwater(&all)?;
        let said = if code == 0 { &out } else { &err };
        ensure!(ended == Some(code) && said.contains(word), "{arguments:?}: {ended:?}\n{out}\n{err}");
    }
    for (arguments, field) in [
        (&["status"][..], "bootstrap"),
        (&["state", "show"], "state"),
        (&["state", "history"], "records"),
        (&["topic", "list"], "topics"),
    ] {
        let shown = json_of(&[arguments, &["--nats-url", url]].concat(), 0)?;
        ensure!(shown["ok"] == true && !shown[field].is_null(), "{arguments:?}: {shown}");
    }
    Ok(())
}
