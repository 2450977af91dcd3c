//! What an earlier version left is read as it was meant: an index whose record names no version of the language keeps the rules of
//! its time, in what is built again too, until it is made anew.

use highwater_tests::{cluster::SERVICES, history, prelude::*};
use std::{collections::BTreeSet, fs};

const BUCKET: &str = "docs";
const INDEX: &str = "by_v";
const WITHIN: Duration = Duration::from_secs(60);

/// Values that the rules differ about.
const VALUES: [(&str, &str); 8] = [
    ("exact", "9007199254740993"),
    ("float", "9007199254740993.0"),
    ("below", "9007199254740992"),
    ("power", "18446744073709551616"),
    ("above", "18446744073709551617"),
    ("huge", "1e400"),
    ("half", "\"\\ud800\""),
    ("text", "\"t\""),
];

/// What is seen of them.
struct Seen {
    language: u64,
    /// A bound, and what equals it; None: it is refused.
    equal: &'static [(&'static str, Option<&'static [&'static str]>)],
    unindexed: &'static [(&'static str, &'static str)],
}

const BEFORE: Seen = Seen {
    language: 0,
    equal: &[
        ("9007199254740993", Some(&["exact"])),
        ("9007199254740992", Some(&["below", "float"])),
        ("9007199254740993.0", Some(&["below", "float"])),
        ("18446744073709551616", Some(&["above", "power"])),
        ("18446744073709551617", Some(&["above", "power"])),
        ("\"t\"", Some(&["text"])),
    ],
    unindexed: &[("half", "not_json"), ("huge", "not_json")],
};

const NOW: Seen = Seen {
    language: 2,
    equal: &[
        ("9007199254740993", Some(&["exact", "float"])),
        ("9007199254740992", Some(&["below"])),
        ("9007199254740993.0", Some(&["exact", "float"])),
        ("18446744073709551616", Some(&["power"])),
        ("18446744073709551617", None),
        ("\"t\"", Some(&["text"])),
    ],
    unindexed: &[("above", "inexact_number"), ("half", "bad_value"), ("huge", "bad_value")],
};

/// A document of each value; its id begins with this.
async fn write(source: &Source, begins: &str) -> Result<()> {
    let put = |(name, text): &(&str, &str)| Write {
        vb: 0,
        id: format!("{begins}{name}"),
        op: Op::Put(format!("{{\"v\":{text}}}").into()),
    };
    source.write(VALUES.iter().map(put)).await
}

fn ids(names: &[&str], groups: &[&str]) -> BTreeSet<String> {
    groups.iter().flat_map(|group| names.iter().map(move |name| format!("{group}{name}"))).collect()
}

/// The index answers by these rules, for every group of documents.
async fn is_seen(client: &Client, index: &str, seen: &Seen, groups: &[&str]) -> Result<()> {
    for (bound, equal) in seen.equal {
        let request = format!(
            r#"{{"bucket":"{BUCKET}","index":"{index}","consistency":"request_plus","spans":[{{"equal":[{bound}]}}]}}"#
        );
        // What is built again may not be there yet.
        let reply = until(&format!("{index} answers"), WITHIN, async || {
            match client.request_raw("hw.query.scan", request.clone().into_bytes()).await {
                Err(refused) if refused.retry => Err(refused.to_string()),
                reply => Ok(reply),
            }
        })
        .await?;
        match (reply, equal) {
            (Ok(reply), Some(names)) => {
                let rows = reply["rows"].as_array().context("no rows")?;
                let found: BTreeSet<String> =
                    rows.iter().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect();
                ensure!(found == ids(names, groups), "{index}: equal to {bound} are {found:?}");
            }
            (Err(refused), None) => ensure!(refused.code == "bad_span", "{index}: {bound}: {refused}"),
            (reply, _) => bail!("{index}: {bound}: {reply:?}"),
        }
    }
    let described = client.insist("hw.query.describe", &json!({"bucket": BUCKET, "index": index}), WITHIN).await?;
    ensure!(described["index"]["language"] == seen.language, "{described}");
    let listed = described["unindexed"].as_array().context("no list")?;
    let listed: BTreeSet<(&str, &str)> =
        listed.iter().filter_map(|d| Some((d["id"].as_str()?, d["reason"].as_str()?))).collect();
    let of = |group: &&str| {
        let group = (*group).to_owned();
        seen.unindexed.iter().map(move |(name, reason)| (format!("{group}{name}"), *reason))
    };
    let expected: Vec<(String, &str)> = groups.iter().flat_map(of).collect();
    ensure!(listed == expected.iter().map(|(id, reason)| (id.as_str(), *reason)).collect(), "{index}: {listed:?}");
    Ok(())
}

/// The records of an earlier version know nothing of languages.
fn forget_languages(value: &mut Value) -> usize {
    match value {
        Value::Object(fields) => {
            let of = usize::from(fields.remove("language").is_some());
            of + fields.values_mut().map(forget_languages).sum::<usize>()
        }
        Value::Array(values) => values.iter_mut().map(forget_languages).sum(),
        _ => 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_an_earlier_version_keeps_its_rules_until_it_is_made_anew() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            write(&source, "built_").await?;
            let definition = |name: &str| json!({"bucket": BUCKET, "name": name, "keys": ["v"]});
            client.create_index(&definition(INDEX)).await?;
            client.wait_active(BUCKET, INDEX, WITHIN).await?;
            is_seen(&client, INDEX, &NOW, &["built_"]).await?;

            for node in SERVICES.iter().rev() {
                cluster.stop(node).await?;
            }
            let mut forgotten = 0;
            history::rewrite(&client, |record| forgotten += forget_languages(record)).await?;
            ensure!(forgotten > 0, "no record names a language");
            // What follows from the records is made again from them.
            for node in ["coordinator-1", "indexer-1"] {
                fs::remove_dir_all(cluster.data_dir(node))?;
            }
            for node in SERVICES {
                cluster.spawn(node)?;
            }
            for node in SERVICES {
                cluster.wait_ready(node).await?;
            }
            client.wait_formed(&SERVICES).await?;
            client.wait_active(BUCKET, INDEX, WITHIN).await?;
            is_seen(&client, INDEX, &BEFORE, &["built_"]).await?;
            write(&source, "live_").await?;
            is_seen(&client, INDEX, &BEFORE, &["built_", "live_"]).await?;

            // A slice that is built again agrees with those that are not.
            cluster.stop("indexer-1").await?;
            fs::remove_dir_all(cluster.data_dir("indexer-1"))?;
            cluster.start_node("indexer-1").await?;
            is_seen(&client, INDEX, &BEFORE, &["built_", "live_"]).await?;

            // Beside it a new one has the rules of now, and so has the old one when it is made anew.
            client.create_index(&definition("beside")).await?;
            client.drop_index(BUCKET, INDEX).await?;
            client.create_index(&definition(INDEX)).await?;
            for index in ["beside", INDEX] {
                client.wait_active(BUCKET, index, WITHIN).await?;
                is_seen(&client, index, &NOW, &["built_", "live_"]).await?;
            }
            Ok(())
        })
        .await
}
