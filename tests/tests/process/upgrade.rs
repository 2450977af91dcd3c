//! Today's program on the directories that earlier versions left: what they had built serves at once, and goes on.
//!
//! `cargo xtask fixtures` made each directory with the version that it is of. None is ever changed.

use crate::dev::{Dev, free_port};
use highwater_tests::prelude::*;
use std::{fs, path::Path, process::Command};

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(30);
/// Documents that the bucket holds. All of it was durable when the directory was left.
const DOCUMENTS: u64 = 180;

/// As `cargo xtask fixtures` declares them.
fn indexes() -> [Index; 3] {
    let index = |name: &str, keys: &[(&'static str, bool)], partitions| Index {
        name: name.into(),
        keys: keys.to_vec(),
        partitions,
        ..Index::default()
    };
    [
        index("by_n", &[("n", false)], 1),
        index("by_city", &[("city", false), ("n", true)], 1),
        index("by_name", &[("name", false)], 2),
    ]
}

/// Of the bucket's vbucket, as the coordinator shows it.
async fn vbucket(client: &Client) -> Result<Value> {
    let members = client.members().await?;
    Ok(members["buckets"][0]["vbuckets"][0].clone())
}

async fn upgraded(archive: &Path) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("highwater-test-").tempdir()?;
    let unpacked = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(directory.path()).status();
    ensure!(unpacked.context("tar does not start")?.success(), "{} is not unpacked", archive.display());
    let dev = Dev::start(directory.path(), free_port()?).await?;
    let client = Client::connect(&dev.url).await?;
    let store = client.js.get_key_value(BUCKET).await?;
    let source = Source::existing(&client, BUCKET).await?;
    for index in &indexes() {
        let shown = client.index(BUCKET, &index.name).await?;
        ensure!(shown["state"] == "active", "it is built again: {shown}");
        ask::whole(&client, &source, index).await?;
    }
    let history = client.request("hw.admin.bucket.history", &json!({"name": BUCKET})).await?;
    let branches = history["streams"][0]["failover"].as_array().map_or(0, Vec::len);
    ensure!(branches == 1 && history["rollbacks"] == json!([]), "its source began a branch: {history}");
    let read = vbucket(&client).await?;
    let caught_up = read["reads"]["catchup"].as_u64().context("no reads")?;
    ensure!(caught_up == 0, "what was durable is read again: {read}");
    // It goes on from there.
    store.put("new", json!({"n": 1_000, "city": "city 9", "name": "new"}).to_string().into()).await?;
    store.delete("d0").await?;
    let newest = json!({"bucket": BUCKET, "index": "by_n", "consistency": "request_plus"});
    let count = client.count(&newest).await?;
    ensure!(count == DOCUMENTS, "{count} of {DOCUMENTS}");
    source.reread().await?;
    for index in &indexes() {
        until("it is what is stored", WITHIN, async || {
            ask::whole(&client, &source, index).await.map_err(|error| format!("{error:#}"))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_version_left_serves_and_goes_on() -> Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut tried = 0;
    for entry in fs::read_dir(&fixtures).with_context(|| format!("{}", fixtures.display()))? {
        let archive = entry?.path().join("data.tar.gz");
        if archive.is_file() {
            upgraded(&archive).await.with_context(|| archive.display().to_string())?;
            tried += 1;
        }
    }
    ensure!(tried > 0, "there is no fixture in {}", fixtures.display());
    println!("{tried} directories of earlier versions");
    Ok(())
}
