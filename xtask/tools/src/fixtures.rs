//! `cargo xtask fixtures`: what this version of Highwater leaves on disk, for the upgrade test of later versions
//! (`tests/tests/process/upgrade.rs`).

use crate::{
    child::Child,
    client::{self, Highwater},
    highwater, shell, workspace,
};
use anyhow::{Context, Result, ensure};
use async_nats::jetstream::{self, kv};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tokio::time::sleep;
use xtask::nats_server;

const WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const BUCKET: &str = "people";
const DOCUMENTS: u64 = 200;
/// Documents that are written again, and as many that are deleted, when the indexes are built.
const LATER: u64 = 20;
/// Name, keys, partitions.
const INDEXES: [(&str, &[&str], u32); 3] =
    [("by_n", &["n"], 1), ("by_city", &["city", "n DESC"], 1), ("by_name", &["name"], 2)];

#[derive(clap::Args)]
pub struct Options {
    /// What the fixture is called: the versions of its formats, such as log-2-wire-3-store-3
    name: String,
}

/// Runs all services on a few documents, ends them, and packs their directory.
pub async fn make(Options { name }: Options) -> Result<()> {
    let directory = workspace::root().join("tests/fixtures").join(&name);
    let shown = directory.display();
    ensure!(!directory.exists(), "{shown} is there: no fixture is ever changed; a new format gets one of its own");
    let place = tempfile::Builder::new().prefix("highwater-fixture-").tempdir().context("no temporary directory")?;
    let mut dev = start(place.path())?;
    let filled = fill(&mut dev).await;
    dev.stop();
    filled?;
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {shown}"))?;
    pack(place.path(), &directory.join("data.tar.gz"))?;
    println!("{shown}: {} indexes over {DOCUMENTS} documents", INDEXES.len());
    Ok(())
}

fn start(place: &Path) -> Result<Child> {
    let server = nats_server::find(&workspace::target_dir()?)?;
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("no free port")?.port();
    let mut command = Command::new(highwater()?);
    command.args(["dev", "--nats-port", &port.to_string(), "--data-dir"]).arg(place.join("data"));
    command.env(nats_server::VARIABLE, server.path);
    Child::start("dev", command, place)
}

async fn fill(dev: &mut Child) -> Result<()> {
    let line = wait("highwater is ready", async || Ok(dev.said("highwater ready "))).await?;
    let url = line.rsplit(' ').next().context("no URL")?;
    let nats = client::connect(url).await?;
    let highwater = Highwater::new(nats.clone());
    let config = kv::Config { bucket: BUCKET.into(), history: 1, ..kv::Config::default() };
    let store = jetstream::new(nats).create_key_value(config).await.context("no bucket")?;
    for id in 0..DOCUMENTS {
        put(&store, id, id).await?;
    }
    for (name, keys, partitions) in INDEXES {
        let index = json!({"bucket": BUCKET, "name": name, "keys": keys, "num_partition": partitions});
        highwater.call("hw.admin.index.create", &index).await?;
        highwater.active(BUCKET, name, WITHIN).await?;
    }
    // Changes that came by the topics; the last message stays, and proves to the next start that the source is the same.
    for id in 0..LATER {
        put(&store, id, DOCUMENTS + id).await?;
        store.delete(key(DOCUMENTS / 2 + id)).await.context("no delete")?;
    }
    wait("all is durable", async || {
        let status = highwater.status(WITHIN).await?;
        let bucket = &status["buckets"][0];
        let durable =
            bucket["durable"].as_u64().is_some_and(|durable| durable > 0) && bucket["durable"] == bucket["st"];
        let state = highwater.call("hw.admin.state.get", &json!({"bucket": BUCKET})).await?;
        let bookmarks = &state["state"]["buckets"][BUCKET]["vbuckets"][0]["bookmarks"];
        let last = bookmarks.as_array().and_then(|bookmarks| bookmarks.last()).map(|bookmark| &bookmark["seqno"]);
        let proven = last.is_some_and(|seqno| *seqno == DOCUMENTS + 2 * LATER);
        Ok((durable && proven).then_some(()))
    })
    .await?;
    let newest = json!({"bucket": BUCKET, "index": INDEXES[0].0, "consistency": "request_plus"});
    let count = highwater.call("hw.query.count", &newest).await?;
    ensure!(count["count"] == DOCUMENTS - LATER, "{count}");
    Ok(())
}

fn key(id: u64) -> String {
    format!("d{id}")
}

async fn put(store: &kv::Store, id: u64, n: u64) -> Result<()> {
    let document: Value = json!({"n": n, "city": format!("city {}", n % 7), "name": format!("name {id}")});
    store.put(key(id), document.to_string().into()).await.with_context(|| format!("no put of {id}"))?;
    Ok(())
}

async fn wait<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "not within {WITHIN:?}: {what}");
        sleep(POLL).await;
    }
}

/// Files of LMDB are sparse.
fn pack(place: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.current_dir(place).args(["--create", "--sparse", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.args(["--use-compress-program=gzip --best --no-name", "--file"]).arg(archive).arg("data");
    shell::run_blocking(tar)?;
    Ok(())
}
