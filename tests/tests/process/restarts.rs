//! Processes are killed while documents are written: afterwards every index is as if nothing had happened, and none was built
//! anew.

use highwater_schemas::{
    api::NodeKind,
    state::{SliceName, StateContext},
};
use highwater_tests::{
    load::{self, Writer, write, written},
    prelude::*,
    sessions::{Sessions, Why},
};
use std::collections::BTreeMap;

const STREAMS: usize = 2;
/// Of a bucket whose streams move.
const MOVED: usize = 4;
const MOVED_WITHIN: Duration = Duration::from_secs(20);
const FIRST: u64 = 3_000;
/// Of one process.
const KILLS: u32 = 3;
/// A persistence timestamp is due every 5 s, if anything changed.
const DURABLE_WITHIN: Duration = Duration::from_secs(20);
const BUILT_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_indexer_continues_where_it_was() -> Result<()> {
    survives("indexer-1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_projector_continues_where_it_was() -> Result<()> {
    survives("projector-1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_coordinator_continues_where_it_was() -> Result<()> {
    survives("coordinator-1").await
}

async fn survives(node: &str) -> Result<()> {
    let mut rng = Rng::seeded(node);
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::keyed_streams(&client, "orders", STREAMS).await?;
            let indexes = documents::indexes(3);
            load::index(&client, &source, FIRST, &indexes, &mut rng, BUILT_WITHIN).await?;
            durable(&client, &source).await?;
            // What is durable must not be needed again: who began anew would find a gap here.
            client.js.get_stream("HW_MUTATION_orders").await?.purge().await?;
            let built = Sessions::of(&client).await?;
            ensure!(built.from_zero > 0, "the builds left no trace in HW_STATE: {built:?}");
            for _ in 0..KILLS {
                let writer = Writer::start(&source, &mut rng);
                written(&source, 200 + rng.below(2_000)).await?;
                cluster.kill(node)?;
                written(&source, rng.below(500)).await?;
                cluster.start_node(node).await?;
                written(&source, 200 + rng.below(1_000)).await?;
                writer.stop().await?;
                for index in &indexes {
                    ask::whole(&client, &source, index).await?;
                    ask::random(&client, &source, index, &mut rng).await?;
                }
            }
            let after = Sessions::of(&client).await?;
            println!("{node}: {built:?}, then {after:?}, {} writes", source.log().complete().iter().sum::<u64>());
            ensure!(after.from_zero == built.from_zero, "something was built anew: {built:?}, then {after:?}");
            // Documents that are purged by rollups may make a stream's messages fewer, which only a reconcile explains; a slice
            // that was away then is compared with the source, once for each. A kill may also cut short what brings a slice up.
            let mut cut_short: BTreeMap<SliceName, u32> = BTreeMap::new();
            for compared in &after.compared[built.compared.len()..] {
                println!("{compared:?}");
                let why =
                    compared.why.with_context(|| format!("compared for no reason: {compared:?}, of {after:?}"))?;
                if matches!(why, Why::RecoveryCutShort { .. }) {
                    let times = cut_short.entry(compared.slice).or_default();
                    *times += 1;
                    ensure!(*times <= KILLS, "cut short more often than {node} was killed: {compared:?}, of {after:?}");
                }
            }
            ensure!(after.branches == built.branches, "history was taken to be rewritten: {after:?}");
            ensure!(after.lost_place == 0, "a projector began again at zero: {after:?}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_given_up_and_comes_back_does_no_harm() -> Result<()> {
    let mut rng = Rng::seeded("given up");
    let nodes = ["coordinator-1", "projector-1", "projector-2", "indexer-1", "catalog-1"];
    Cluster::start_nodes(&nodes)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            for node in &nodes[1..] {
                alive(&client, node, true).await?;
            }
            // The coordinator hears of a node a little later. A stream that it moves before anything is read begins at zero again.
            until("the coordinator knows both projectors", MOVED_WITHIN, async || {
                let projectors = state(&client).await?.alive(NodeKind::Projector).count();
                if projectors == 2 { Ok(()) } else { Err(projectors.to_string()) }
            })
            .await?;
            let source = Source::keyed_streams(&client, "orders", STREAMS).await?;
            let indexes = documents::indexes(3);
            for index in &indexes {
                client.create_index(&index.definition("orders")).await?;
            }
            write(&source, FIRST, &mut rng).await?;
            for index in &indexes {
                client.wait_active("orders", &index.name, BUILT_WITHIN).await?;
            }
            for node in ["projector-1", "projector-2", "indexer-1", "projector-2", "projector-1"] {
                let writer = Writer::start(&source, &mut rng);
                written(&source, 200 + rng.below(500)).await?;
                cluster.node(node)?.freeze()?;
                alive(&client, node, false).await?;
                written(&source, 200 + rng.below(500)).await?;
                cluster.node(node)?.thaw()?;
                alive(&client, node, true).await?;
                written(&source, 200).await?;
                writer.stop().await?;
                for index in &indexes {
                    ask::whole(&client, &source, index).await.with_context(|| format!("after {node} was away"))?;
                }
            }
            let seen = Sessions::of(&client).await?;
            println!("{seen:?}");
            ensure!(seen.assigned > STREAMS as u32, "no projector took over from another: {seen:?}");
            ensure!(seen.lost_place == 0 && seen.branches == 0, "a takeover began at zero: {seen:?}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_move_to_a_projector_that_joins_and_from_one_that_leaves() -> Result<()> {
    let mut rng = Rng::seeded("streams move");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::keyed_streams(&client, "orders", MOVED).await?;
            let indexes = documents::indexes(3);
            load::index(&client, &source, FIRST, &indexes, &mut rng, BUILT_WITHIN).await?;
            owners(&client, &["projector-1"; MOVED]).await?;
            let writer = Writer::start(&source, &mut rng);
            cluster.start_node("projector-2").await?;
            owners(&client, &["projector-1", "projector-1", "projector-2", "projector-2"]).await?;
            written(&source, 500).await?;
            cluster.stop("projector-1").await?;
            owners(&client, &["projector-2"; MOVED]).await?;
            written(&source, 500).await?;
            writer.stop().await?;
            for index in &indexes {
                ask::whole(&client, &source, index).await?;
            }
            let seen = Sessions::of(&client).await?;
            println!("{seen:?}, {} writes", source.log().complete().iter().sum::<u64>());
            ensure!(seen.lost_place == 0 && seen.branches == 0, "a takeover began at zero: {seen:?}");
            Ok(())
        })
        .await
}

/// Waits until these projectors, in order, own the streams.
async fn owners(client: &Client, wanted: &[&str]) -> Result<()> {
    until(&format!("the streams are owned by {wanted:?}"), MOVED_WITHIN, async || {
        let state = state(client).await?;
        let vbuckets = state.buckets.get("orders").map(|bucket| &*bucket.vbuckets).unwrap_or_default();
        let mut owners: Vec<&str> = vbuckets.iter().map(|vbucket| &*vbucket.projector).collect();
        owners.sort_unstable();
        if owners == wanted { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await
}

/// The replicated state.
async fn state(client: &Client) -> Result<StateContext, String> {
    let mut reply = client.request("hw.admin.state.get", &json!({})).await.map_err(|refused| refused.to_string())?;
    serde_json::from_value(reply["state"].take()).map_err(|error| error.to_string())
}

/// Waits until the coordinator takes a node to be alive, or not to be.
async fn alive(client: &Client, node: &str, wanted: bool) -> Result<()> {
    until(&format!("{node} alive: {wanted}"), Duration::from_secs(15), async || {
        let status = client.request("hw.cluster.members", &json!({})).await.map_err(|refused| refused.to_string())?;
        let members = status["members"].as_array().cloned().unwrap_or_default();
        let as_wanted = members.iter().any(|member| member["node"] == node && member["alive"] == wanted);
        if as_wanted { Ok(()) } else { Err(status["members"].to_string()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_survives_the_death_of_its_indexer() -> Result<()> {
    builds_without("indexer-1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_survives_the_death_of_its_projector() -> Result<()> {
    builds_without("projector-1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_survives_the_death_of_the_coordinator() -> Result<()> {
    builds_without("coordinator-1").await
}

async fn builds_without(node: &str) -> Result<()> {
    let mut rng = Rng::seeded(&format!("build without {node}"));
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            source.write((0..60_000).map(|i| Write::put(0, format!("d{i}"), &documents::document(&mut rng)))).await?;
            let mut interrupted = 0;
            for attempt in 0..6 {
                let mut index = documents::indexes(2).remove(attempt % 3);
                index.name = format!("attempt{attempt}");
                client.create_index(&index.definition("people")).await?;
                let under_way = until("the build begins", BUILT_WITHIN, async || {
                    let now = client.index("people", &index.name).await.map_err(|refused| refused.to_string())?;
                    let begun = now["docs_done"].as_u64() > Some(0) || now["state"] != "building";
                    if begun { Ok(now) } else { Err(now.to_string()) }
                })
                .await?;
                interrupted += u32::from(under_way["state"] == "building");
                let writer = Writer::start(&source, &mut rng);
                cluster.restart(node).await?;
                client.wait_active("people", &index.name, BUILT_WITHIN).await?;
                writer.stop().await?;
                ask::whole(&client, &source, &index).await?;
                if interrupted >= 2 {
                    break;
                }
            }
            println!("{interrupted} builds were interrupted");
            ensure!(interrupted > 0, "every build was over before {node} was killed");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_the_same_name_can_be_created_again() -> Result<()> {
    let mut rng = Rng::seeded("same name");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            write(&source, 1_000, &mut rng).await?;
            let mut ids = Vec::new();
            for turn in 0..8 {
                let mut index = documents::indexes(2).remove(turn % 5);
                index.name = "again".into();
                let writer = Writer::start(&source, &mut rng);
                client.create_index(&index.definition("people")).await?;
                if turn == 5 {
                    cluster.restart("indexer-1").await?;
                }
                let active = client.wait_active("people", "again", BUILT_WITHIN).await?;
                writer.stop().await?;
                let id = active["id"].as_str().context("no id")?.to_owned();
                ensure!(!ids.contains(&id), "the id {id} was given twice");
                ids.push(id);
                ask::whole(&client, &source, &index).await?;
                client.drop_index("people", "again").await?;
                let request = json!({"bucket": "people", "index": "again"});
                until("the index is gone", Duration::from_secs(5), async || match client.scan(&request).await {
                    Err(refused) if refused.code == "index_not_found" => Ok(()),
                    other => Err(format!("{other:?}")),
                })
                .await?;
            }
            Ok(())
        })
        .await
}

/// Every write so far is part of a durable stability timestamp.
async fn durable(client: &Client, source: &Source) -> Result<()> {
    ask::whole(client, source, &documents::indexes(3)[0]).await?;
    let shown = async || client.bucket(&source.bucket).await.map_err(|refused| refused.to_string());
    let st = until("the bucket is shown", DURABLE_WITHIN, shown).await?["st"].as_u64().context("no st")?;
    until("what was written is durable", DURABLE_WITHIN, async || {
        let bucket = shown().await?;
        if bucket["durable"].as_u64() >= Some(st) { Ok(()) } else { Err(bucket.to_string()) }
    })
    .await
}
