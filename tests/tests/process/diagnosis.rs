//! `highwater index verify` and `highwater slice dump`: on running nodes, on stopped ones, and when a disk has lost something.

use highwater_tests::{
    cli::{highwater, json_of},
    files::slices,
    prelude::*,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

const BUILT_WITHIN: Duration = Duration::from_secs(30);
const DOCUMENTS: u64 = 2_000;
/// In the included fields of one document, and nowhere else in a data file.
const MARKER: &str = "here-be-damage";

/// Writes `new` over every `old` in the file; answers how many there were.
fn overwrite(file: &Path, old: &[u8], new: &[u8]) -> Result<usize> {
    let mut bytes = fs::read(file)?;
    let places: Vec<usize> =
        (0..bytes.len().saturating_sub(old.len())).filter(|at| bytes[*at..].starts_with(old)).collect();
    for at in &places {
        bytes[*at..at + new.len()].copy_from_slice(new);
    }
    fs::write(file, bytes)?;
    Ok(places.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_disk_lost_is_found_and_built_again() -> Result<()> {
    let mut rng = Rng::seeded("diagnosis");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            let indexes: Vec<_> = documents::indexes(2).into_iter().filter(|i| i.name != "by_nested_city").collect();
            source.write((0..DOCUMENTS).map(|_| documents::write(&mut rng, 1, 500))).await?;
            let marked = json!({"active": true, "score": 77, "age": 5, "city": "Oslo", "name": MARKER});
            source.write([Write::put(0, "marked", &marked)]).await?;
            for index in &indexes {
                client.create_index(&index.definition("people")).await?;
            }
            for index in &indexes {
                client.wait_active("people", &index.name, BUILT_WITHIN).await?;
                ask::whole(&client, &source, index).await?;
            }
            let url = cluster.url().to_owned();
            let data = cluster.data_dir("indexer-1");
            let directory = data.to_string_lossy().into_owned();
            let verify = ["index", "verify", "people", "--nats-url", &url];
            let verify_stopped = ["index", "verify", "--data-dir", &directory];

            // Running: all of it, by name, and by the public subject.
            let found = json_of(&verify, 0)?;
            let all = found["slices"].as_array().context("no slices")?.clone();
            ensure!(all.len() == 5 && all.iter().all(|s| s["at"] == "indexer-1" && s["state"] == "active"), "{found}");
            let partial = client.index("people", "active_by_score").await?;
            let by_name = json_of(&["index", "verify", "people", "active_by_score", "--nats-url", &url], 0)?;
            ensure!(by_name["slices"][0]["entries"] == partial["items"], "{by_name} and {partial}");
            let (code, table, _) = highwater(&verify)?;
            ensure!(code == Some(0) && table.contains("people/primary.0") && table.contains("DOCUMENTS"), "{table}");
            let (code, _, err) = highwater(&["index", "verify", "people", "nothing", "--nats-url", &url])?;
            ensure!(code == Some(1) && err.contains("nothing"), "{err}");
            refusals(&client).await?;
            let (code, _, err) = highwater(&verify_stopped)?;
            ensure!(code == Some(1) && err.contains("in use"), "a running node's directory was read: {err}");

            let dump =
                ["slice", "dump", "people", "active_by_score", "--nats-url", &url, "--rows", "3", "--from", "marked"];
            let shown = json_of(&dump, 0)?;
            let slice = &shown["slices"][0];
            ensure!(
                slice["state"] == "active" && slice["format_version"] == 3 && slice["mark"]["st"].is_u64(),
                "{shown}"
            );
            ensure!(slice["mark"]["vbs"].as_array().is_some_and(|vbs| vbs.len() == 1), "{shown}");
            until("the document is durable", BUILT_WITHIN, async || {
                let shown = json_of(&dump, 0).map_err(|e| e.to_string())?;
                if is_marked(&shown["slices"][0]["rows"][0]) { Ok(()) } else { Err(shown.to_string()) }
            })
            .await?;
            let parted = ["slice", "dump", "people", "by_city_parted", "--nats-url", &url, "--node", "indexer-1"];
            let (code, _, err) = highwater(&parted)?;
            ensure!(code == Some(1) && err.contains("0, 1"), "{err}");
            let one = json_of(&[&parted[..], &["--partition", "1"]].concat(), 0)?;
            ensure!(one["slices"][0]["partition"] == 1 && one["slices"][0]["rows"] == json!([]), "{one}");

            // Stopped: the same numbers.
            cluster.stop("indexer-1").await?;
            let stopped = json_of(&verify_stopped, 0)?;
            let numbers = |found: &Value| {
                let number = |s: &Value| (s["documents"].as_u64(), s["entries"].as_u64(), s["unindexed"].as_u64());
                let mut all: Vec<_> = found["slices"].as_array().into_iter().flatten().map(number).collect();
                all.sort_unstable();
                all
            };
            ensure!(numbers(&stopped) == numbers(&found), "{stopped} and {found}");
            let shown = json_of(&["slice", "dump", "--data-dir", &directory, "--rows", "10000"], 0)?;
            let dumps = shown["slices"].as_array().context("no slices")?;
            let holds = |s: &&Value| s["rows"].as_array().into_iter().flatten().any(is_marked);
            let marked_in = dumps.iter().find(holds).context("no slice has the document")?;
            ensure!(dumps.len() == 5 && dumps.iter().all(|s| s["kept"].is_array() && s["more"] == false), "{shown}");
            let (code, text, _) = highwater(&["slice", "dump", "--data-dir", &directory])?;
            ensure!(code == Some(0) && text.contains("VBUUID") && text.contains("version 3"), "{text}");
            let (code, text, err) =
                highwater(&["index", "verify", "--data-dir", &slices(&data)?[0].to_string_lossy()])?;
            ensure!(code == Some(0) && text.lines().count() == 2, "{text}{err}");
            let (code, _, err) = highwater(&["index", "verify", "--data-dir", &cluster.path().to_string_lossy()])?;
            ensure!(code == Some(1) && err.contains("no slices"), "{err}");

            // What a document's entry says: nothing but a verification looks at that.
            let hurt = PathBuf::from(marked_in["at"].as_str().context("no directory")?);
            let name = marked_in["index_id"].as_str().context("no id")?.to_owned();
            let wrong = MARKER.replace("here", "Here");
            let damaged = overwrite(&hurt.join("data.mdb"), MARKER.as_bytes(), &wrong.as_bytes()[..1])?;
            ensure!(damaged > 0, "the document is not in {}", hurt.display());
            let found = json_of(&verify_stopped, 1)?;
            let bad: Vec<&Value> =
                found["slices"].as_array().into_iter().flatten().filter(|s| s.get("error").is_some()).collect();
            ensure!(bad.len() == 1 && bad[0]["index"] == *name && bad[0]["at"] == *hurt.to_string_lossy(), "{found}");
            let (code, table, err) = highwater(&verify_stopped)?;
            ensure!(code == Some(1) && table.contains("damaged slice") && err.contains("1 of 5"), "{table}{err}");
            cluster.start_node("indexer-1").await?;
            let found = until("the slice is verified", BUILT_WITHIN, async || {
                let (code, out, _) = highwater(&[&verify[..], &["--json"]].concat()).map_err(|e| e.to_string())?;
                let found: Value = serde_json::from_str(out.trim()).map_err(|e| format!("{e}: {out}"))?;
                let told = found["slices"].to_string().contains("being built again");
                if code == Some(1) && told { Ok(found) } else { Err(out) }
            })
            .await?;
            println!("{found}");
            built_again(&client, &source, &indexes, &verify).await?;
            ensure!(!hurt.exists(), "the slice was not built again");

            // What leads LMDB through the file: every opening looks at that.
            cluster.stop("indexer-1").await?;
            let hurt = slices(&data)?.remove(0);
            let file = hurt.join("data.mdb");
            let mut bytes = fs::read(&file)?;
            for page in bytes.chunks_mut(4_096).skip(2) {
                page[10] ^= 0xff;
            }
            fs::write(&file, bytes)?;
            let found = json_of(&verify_stopped, 1)?;
            let bad = found["slices"].as_array().into_iter().flatten().filter(|s| s.get("error").is_some()).count();
            ensure!(bad == 1 && found["slices"].to_string().contains("data file"), "{found}");
            json_of(&["slice", "dump", "--data-dir", &directory], 1)?;
            cluster.start_node("indexer-1").await?;
            built_again(&client, &source, &indexes, &verify).await?;
            ensure!(!hurt.exists(), "the slice was not built again");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_has_not_begun_is_no_damage() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            source.write((0..100).map(|i| Write::put(0, format!("d{i}"), &json!({"name": i})))).await?;
            // Nobody reads the source.
            cluster.kill("projector-1")?;
            let index = documents::indexes(2).remove(3);
            client.create_index(&index.definition("people")).await?;
            let url = cluster.url().to_owned();
            let data = cluster.data_dir("indexer-1").to_string_lossy().into_owned();
            let verify = ["index", "verify", "people", "--nats-url", &url];
            let found = until("the slice is open", BUILT_WITHIN, async || {
                let found = json_of(&verify, 0).map_err(|e| e.to_string())?;
                if found["slices"][0]["state"] == "building" { Ok(found) } else { Err(found.to_string()) }
            })
            .await?;
            ensure!(found["slices"].as_array().map(Vec::len) == Some(1), "{found}");
            ensure!(found["slices"][0]["documents"] == 0, "{found}");
            let (code, table, _) = highwater(&verify)?;
            ensure!(code == Some(0) && table.contains("nothing to check yet"), "{table}");
            let shown = json_of(&["slice", "dump", "people", &index.name, "--nats-url", &url, "--rows", "5"], 0)?;
            ensure!(shown["slices"][0]["rows"] == json!([]), "{shown}");
            cluster.stop("indexer-1").await?;
            let found = json_of(&["index", "verify", "--data-dir", &data], 0)?;
            ensure!(found["slices"][0]["documents"] == 0, "{found}");
            let (code, table, _) = highwater(&verify)?;
            ensure!(
                code == Some(1) && table.contains("no service answers") | table.contains("is it running"),
                "{table}"
            );
            // Progress only rises, and is whole when the index is active.
            cluster.start_node("indexer-1").await?;
            cluster.start_node("projector-1").await?;
            let mut last = 0.0;
            loop {
                let listed = client.index("people", &index.name).await?;
                let progress = listed["progress"].as_f64().context("no progress")?;
                let active = listed["state"] == "active";
                ensure!(progress >= last && active == (progress >= 1.0), "{last}, then {listed}");
                if active {
                    break;
                }
                last = progress;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            json_of(&verify, 0)?;
            ask::whole(&client, &source, &index).await
        })
        .await
}

fn is_marked(row: &Value) -> bool {
    row["id"] == "marked"
        && row["entries"][0]["key"] == json!([77, 5])
        && row["entries"][0]["include"]["name"] == MARKER
}

async fn built_again(client: &Client, source: &Source, indexes: &[Index], verify: &[&str]) -> Result<()> {
    for index in indexes {
        client.wait_active("people", &index.name, BUILT_WITHIN).await?;
        ask::whole(client, source, index).await?;
    }
    until("every slice is right", BUILT_WITHIN, async || json_of(verify, 0).map_err(|e| e.to_string())).await?;
    Ok(())
}

/// What is asked wrongly is refused with a code that says so.
async fn refusals(client: &Client) -> Result<()> {
    let verify = "hw.node.indexer-1.verify";
    let dump = "hw.node.indexer-1.dump";
    for (subject, request, code) in [
        (verify, json!({}), "malformed_request"),
        (verify, json!({"bucket": "people", "node": 1}), "unknown_field"),
        (verify, json!({"bucket": "nowhere"}), "bucket_not_found"),
        (verify, json!({"bucket": "people", "index": "nothing"}), "index_not_found"),
        (verify, json!({"bucket": "people", "index": "primary", "partition": 7}), "topology_stale"),
        (verify, json!({"bucket": "people", "timeout_ms": 0}), "malformed_request"),
        (dump, json!({"bucket": "people", "index": "primary", "rows": 10_001}), "malformed_request"),
        (dump, json!({"bucket": "people", "index": "by_city_parted"}), "malformed_request"),
    ] {
        match client.request(subject, &request).await {
            Err(refused) if refused.code == code => {}
            other => bail!("{subject} {request}: {other:?}"),
        }
    }
    let all = client.request(dump, &json!({"bucket": "people", "index": "primary", "rows": 10_000})).await?;
    let rows = all["slices"][0]["rows"].as_array().map_or(0, Vec::len);
    ensure!(rows > 0, "no rows");
    let in_all = client.request(verify, &json!({"bucket": "people"})).await?;
    ensure!(in_all["slices"].as_array().map(Vec::len) == Some(5), "{in_all}");
    Ok(())
}
