//! Bytes that make the client library panic, sent to the inbox that a service's connection of that library has for answers: the
//! service has a new connection and goes on serving. No process ends, and every scan keeps its promise. One that panics where it
//! opens the new connection ends with code 1.

use highwater_tests::{
    cluster::SERVICES,
    load::{self, Writer},
    prelude::*,
    raw::Raw,
    stated,
    wait::deadline,
};
use std::collections::BTreeMap;

const CONFIGURATION: &str = "jetstream: enabled\nhttp: \"127.0.0.1:-1\"\n";
const BUCKET: &str = "people";
const FIRST: u64 = 1_000;
const WITHIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// A node states that the library's connection was lost.
const LOST: &str = "connection to NATS";

/// A header block, and whether the library panics when it reads that; else it connects again by itself.
struct Block(&'static [u8], bool);

/// A CR inside of a value, a value in Latin-1, and the first once more.
const BLOCKS: [Block; 3] = [
    Block(b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n", true),
    Block(b"NATS/1.0\r\nFilename: r\xe9sum\xe9.pdf\r\n\r\n", false),
    Block(b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n", true),
];

/// A node's connections by their number, each with the subjects of its inboxes.
fn connections(cluster: &mut Cluster, node: &str) -> Result<BTreeMap<u64, Vec<String>>> {
    let page = cluster.nats().monitored("connz?subs=1&limit=1024")?;
    let mut found = BTreeMap::new();
    for connection in page["connections"].as_array().context("no connections")? {
        let of = connection["name"].as_str().unwrap_or_default();
        if of.starts_with("highwater ") && of.ends_with(&format!(" {node}")) {
            let subjects = connection["subscriptions_list"].as_array().into_iter().flatten();
            let inboxes = subjects.filter_map(Value::as_str).filter(|subject| subject.starts_with("_INBOX."));
            found.insert(connection["cid"].as_u64().context("no number")?, inboxes.map(str::to_owned).collect());
        }
    }
    ensure!(!found.is_empty(), "{node} has no connection");
    Ok(found)
}

/// The library's connection of a node, and its inbox: one for all answers, which no other connection has.
fn of_library(cluster: &mut Cluster, node: &str) -> Result<Option<(u64, String)>> {
    let all = connections(cluster, node)?.into_iter();
    let mut found = all.flat_map(|(cid, inboxes)| inboxes.into_iter().map(move |inbox| (cid, inbox)));
    Ok(found.find(|(_, inbox)| inbox.ends_with(".*")))
}

/// Waits until the library's connection of a node has an inbox.
async fn inbox(cluster: &mut Cluster, node: &str) -> Result<(u64, String)> {
    let deadline = deadline(WITHIN);
    loop {
        if let Some(found) = of_library(cluster, node)? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{node} has no inbox for answers");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends a header block to the library's inbox of a node, and waits until that has another connection.
async fn broken(cluster: &mut Cluster, raw: &mut Raw, node: &str, Block(block, panics): &Block) -> Result<()> {
    let (cid, inbox) = inbox(cluster, node).await?;
    raw.publish(inbox.replace('*', "broken").as_bytes(), b"", Some(block), b"{}").await?;
    raw.flush().await?;
    let deadline = deadline(WITHIN);
    while connections(cluster, node)?.contains_key(&cid) {
        ensure!(Instant::now() < deadline, "{node} keeps connection {cid}: nothing broke it");
        tokio::time::sleep(PAUSE).await;
    }
    let (next, next_inbox) = self::inbox(cluster, node).await?;
    // A client that connects again by itself keeps its inbox; a new one has another.
    ensure!(next > cid && (next_inbox != inbox) == *panics, "{node}: {inbox} of {cid}, then {next_inbox} of {next}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_inbox_for_answers_is_sent_anything_goes_on_serving() -> Result<()> {
    let mut rng = Rng::seeded("inboxes");
    Cluster::configured(CONFIGURATION)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let mut indexes = documents::indexes(2);
            let source = load::indexed(&client, BUCKET, FIRST, &indexes, &mut rng, WITHIN).await?;
            let mut raw = Raw::connect(cluster.nats().port()).await?;
            for node in SERVICES {
                for block in &BLOCKS {
                    let writer = Writer::paced(&source, &mut rng, PAUSE);
                    let checker = Checker::start(&client, &source, &indexes, &mut rng).with_writer(writer);
                    let through = async |checker: &Checker| {
                        // What one block leads to is stated for 30 seconds, and so still while the next one is sent.
                        let before = stated::so_far(&client, node, LOST).await?;
                        broken(cluster, &mut raw, node, block).await?;
                        stated::is_stated_anew(&client, node, LOST, before.as_ref(), WITHIN).await?;
                        load::written(&source, 200).await?;
                        checker.answered(2, WITHIN).await
                    };
                    checker
                        .through(WITHIN, through)
                        .await
                        .with_context(|| format!("{node}: {}", block.0.escape_ascii()))?;
                    cluster.check()?;
                }
                // Everybody has a part in this.
                let late = documents::passing(&format!("after_{}", node.replace('-', "_")));
                client.create_index(&late.definition(BUCKET)).await?;
                client.wait_active(BUCKET, &late.name, WITHIN).await?;
                indexes.push(late);
                ask::each(&client, &source, &indexes).await.with_context(|| node.to_owned())?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_cannot_open_another_connection_ends_with_code_1() -> Result<()> {
    let mut rng = Rng::seeded("keepers");
    let (place, what) = ("keeper", "reopening the NATS client");
    Cluster::configured(CONFIGURATION)?
        .breakable(&SERVICES)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = documents::indexes(1);
            let source = load::indexed(&client, BUCKET, FIRST, &indexes, &mut rng, WITHIN).await?;
            let mut raw = Raw::connect(cluster.nats().port()).await?;
            for node in SERVICES {
                let context = || format!("{node}: {what}");
                cluster.panic_at(node, place)?;
                let (_, inbox) = inbox(cluster, node).await?;
                raw.publish(inbox.replace('*', "broken").as_bytes(), b"", Some(BLOCKS[0].0), b"{}").await?;
                raw.flush().await?;
                cluster.hit(node, place).await.with_context(context)?;
                cluster.ended(node, 1, WITHIN).await.with_context(context)?;
                cluster.start_node(node).await?;
                load::write(&source, 20, &mut rng).await?;
                ask::each_again(&client, &source, &indexes, WITHIN).await?;
            }
            Ok(())
        })
        .await
}
