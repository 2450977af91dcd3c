//! A source goes back when that is least convenient: before every kept snapshot, while its indexes are built for the first time,
//! while an indexer is down. Every scan keeps its promise meanwhile, every index equals what is there then, and nothing of an
//! abandoned branch is shown.

use highwater_schemas::state::{Change, SessionKind};
use highwater_tests::{
    backup::{Backup, OldFiles},
    branches::Branches,
    history::Follow,
    load::{self, Writer},
    prelude::*,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::task::JoinHandle;

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
const FIRST: u64 = 3_000;
/// Docids of an index whose first build takes a while.
const MANY: u64 = 12_000;
/// Documents that exist on an abandoned branch only.
const GONE: &str = "gone.";
const BUILT_WITHIN: Duration = Duration::from_secs(90);
/// Longer than a rollback takes on a machine that does much else.
const BACK_WITHIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_from_before_every_kept_snapshot_is_followed_back() -> Result<()> {
    let mut rng = Rng::seeded("before every snapshot");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            load::write(&source, 50 + rng.below(500), &mut rng).await?;
            let old = Backup::take(&client, STREAM).await?;
            load::write(&source, FIRST, &mut rng).await?;
            let indexes = documents::indexes(2);
            client.create_indexes(BUCKET, &indexes, BUILT_WITHIN).await?;
            // All that is durable is of later.
            let mut log = Follow::start(&client).await?;
            load::write(&source, 100, &mut rng).await?;
            log.until("a durable timestamp", BACK_WITHIN, |c| matches!(c, Change::Persisted { .. })).await?;
            ask::each(&client, &source, &indexes).await?;
            let before = Branches::soon(&client, BUCKET, BACK_WITHIN).await?;
            let checker = Checker::start(&client, &source, &indexes, &mut rng);
            let restored = async |_: &Checker| {
                old.restore(&client).await?;
                source.reread().await?;
                load::write(&source, rng.below(200), &mut rng).await?;
                let now = before.back(&client, BUCKET, &[0], BACK_WITHIN).await?;
                ensure!(now.common(0, &before) <= old.last_seq(), "not before {}: {now:?}", old.last_seq());
                now.check_shown(&cluster.reach(), &source)?;
                all_active(&client, &indexes).await
            };
            checker.through(BACK_WITHIN, restored).await?;
            in_order(&client, &source, &indexes, &mut rng).await?;

            // Nothing of what was read is left, though there are as many messages as before.
            let before = Branches::soon(&client, BUCKET, BACK_WITHIN).await?;
            let checker = Checker::start(&client, &source, &indexes, &mut rng);
            let made_anew = async |_: &Checker| {
                cluster.kill("projector-1")?;
                let messages = source.log().complete()[0];
                client.js.delete_key_value(BUCKET).await?;
                Source::key_value(&client, BUCKET).await?;
                source.reread().await?;
                load::write(&source, messages + rng.below(500), &mut rng).await?;
                cluster.start_node("projector-1").await?;
                let now = before.back(&client, BUCKET, &[0], BACK_WITHIN).await?;
                ensure!(now.common(0, &before) == 0 && now.broken(), "not from the beginning: {now:?}");
                now.check_shown(&cluster.reach(), &source)?;
                all_active(&client, &indexes).await
            };
            checker.through(BACK_WITHIN, made_anew).await?;
            in_order(&client, &source, &indexes, &mut rng).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_goes_back_during_the_first_build_is_built_as_it_is() -> Result<()> {
    let mut rng = Rng::seeded("during the first build");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            let indexes = documents::indexes(2);
            // Declares the bucket.
            client.create_indexes(BUCKET, &indexes[3..4], BUILT_WITHIN).await?;
            let others: Vec<Index> = indexes.iter().filter(|index| index.name != indexes[3].name).cloned().collect();
            let (mut restored, mut unfinished) = (rng.chance(50), 0);
            for _ in 0..2 {
                write_many(&source, MANY, &mut rng).await?;
                let files = OldFiles::take(cluster, &client, STREAM, "kept").await?;
                let backup = Backup::take(&client, STREAM).await?;
                write_many(&source, MANY / 2, &mut rng).await?;
                ask::whole(&client, &source, &indexes[3]).await?;
                // Only this one is active: the others are what is built.
                let checker = Checker::start(&client, &source, &indexes[3..4], &mut rng);
                let before = Branches::soon(&client, BUCKET, BACK_WITHIN).await?;
                let mut log = Follow::start(&client).await?;
                for index in &others {
                    client.create_index(&index.definition(BUCKET)).await?;
                }
                let build = |c: &Change| matches!(c, Change::SessionOpened { kind: SessionKind::Build, .. });
                log.until("a build", BACK_WITHIN, build).await?;
                let read = rng.below(MANY);
                let (built, all) = until("so much is read for the builds", BUILT_WITHIN, async || {
                    let all = client.list(BUCKET).await.map_err(|refused| refused.to_string())?;
                    let built = all.iter().filter(|index| index["state"] == "active").count();
                    let of_builds = all.iter().filter(|index| others.iter().any(|other| index["name"] == *other.name));
                    let done: u64 = of_builds.filter_map(|index| index["docs_done"].as_u64()).sum();
                    if done >= read || built == all.len() { Ok((built, all.len())) } else { Err(done.to_string()) }
                })
                .await?;
                println!("restored {restored}: {built} of {all} are active when it goes back");
                unfinished += usize::from(built < all);
                let back = async |_: &Checker| {
                    if restored {
                        backup.restore(&client).await?;
                    } else {
                        files.put_back(cluster, &client).await?;
                    }
                    source.reread().await?;
                    load::write(&source, rng.below(300), &mut rng).await?;
                    let now = before.back(&client, BUCKET, &[0], BACK_WITHIN).await?;
                    ensure!(now.common(0, &before) <= backup.last_seq(), "not before {}: {now:?}", backup.last_seq());
                    now.check_shown(&cluster.reach(), &source)
                };
                checker.through(BACK_WITHIN, back).await?;
                in_order(&client, &source, &indexes, &mut rng).await?;
                for index in &others {
                    client.drop_index(BUCKET, &index.name).await?;
                }
                restored = !restored;
            }
            ensure!(unfinished > 0, "every build was over before the source went back");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexer_that_was_down_shows_nothing_of_the_abandoned_branch() -> Result<()> {
    let mut rng = Rng::seeded("indexer down");
    let nodes = ["coordinator-1", "projector-1", "indexer-1", "indexer-2", "catalog-1"];
    Cluster::start_nodes(&nodes)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            load::write(&source, FIRST, &mut rng).await?;
            let mut indexes = documents::indexes(2);
            for index in &mut indexes {
                index.partitions = 2;
            }
            client.create_indexes(BUCKET, &indexes, BUILT_WITHIN).await?;
            let mut durable = rng.chance(50);
            for round in 0..2 {
                down_meanwhile(cluster, &client, &source, &indexes, durable, &mut rng)
                    .await
                    .with_context(|| format!("round {round}, durable {durable}"))?;
                durable = !durable;
            }
            Ok(())
        })
        .await
}

/// `durable`: what is abandoned was made durable before the indexer went down.
async fn down_meanwhile(
    cluster: &mut Cluster,
    client: &Client,
    source: &Source,
    indexes: &[Index],
    durable: bool,
    rng: &mut Rng,
) -> Result<()> {
    let old = OldFiles::take(cluster, client, STREAM, "kept").await?;
    load::write(source, rng.below(500), rng).await?;
    ask::each(client, source, indexes).await?;
    let before = Branches::soon(client, BUCKET, BACK_WITHIN).await?;
    let mut log = Follow::start(client).await?;
    source.write((0..500).map(|n| Write::put(0, format!("{GONE}{n}"), &documents::document(rng)))).await?;
    ask::each(client, source, indexes).await?;
    if durable {
        let last = source.log().complete()[0];
        let all =
            |c: &Change| matches!(c, Change::Persisted { st, .. } if st.vbs.iter().all(|v| v.position.seqno >= last));
        log.until("it is durable", BACK_WITHIN, all).await?;
    }
    let checker = Checker::start(client, source, indexes, rng);
    let (looks, first) = checker
        .through(BACK_WITHIN, async |_| back(cluster, client, source, indexes, (&old, &before), rng).await)
        .await?
        .0;
    in_order(client, source, indexes, rng).await?;
    println!("durable {durable}, after the others {first}: {} scans showed nothing that is gone", looks.stop().await?);
    Ok(())
}

/// The source goes back while an indexer is down, which comes back before the others have gone back, or after: then that is said.
async fn back(
    cluster: &mut Cluster,
    client: &Client,
    source: &Source,
    indexes: &[Index],
    (old, before): (&OldFiles, &Branches),
    rng: &mut Rng,
) -> Result<(Looks, bool)> {
    cluster.kill("indexer-2")?;
    old.put_back(cluster, client).await?;
    source.reread().await?;
    ensure!(source.log().now().keys().all(|(_, id)| !id.starts_with(GONE)), "what is abandoned is still there");
    let left = source.log().complete()[0];
    load::write(source, rng.below(300), rng).await?;
    let first = rng.chance(50);
    if first {
        before.back(client, BUCKET, &[0], BACK_WITHIN).await?;
    } else {
        until("a new branch", BACK_WITHIN, async || {
            let now = Branches::of(client, BUCKET).await?;
            if now.count(0) > before.count(0) { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await?;
    }
    let looks = Looks::start(client, indexes);
    cluster.start_node("indexer-2").await?;
    let now = before.back(client, BUCKET, &[0], BACK_WITHIN).await?;
    ensure!(now.common(0, before) <= left, "not before {left}: {now:?}");
    now.check_shown(&cluster.reach(), source)?;
    Ok((looks, first))
}

/// Scans of any timestamp again and again, none of which may show what is abandoned.
struct Looks {
    over: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

impl Looks {
    fn start(client: &Client, indexes: &[Index]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (client, told) = (client.clone(), Arc::clone(&over));
        let names: Vec<String> = indexes.iter().map(|index| index.name.clone()).collect();
        let task = tokio::spawn(async move {
            let mut answered = 0;
            // One round more after the end, so that some are answered.
            let mut last = false;
            while !last {
                last = told.load(Ordering::Relaxed);
                for name in &names {
                    let request = json!({"bucket": BUCKET, "index": name, "consistency": "any"});
                    // Refusals are no answers.
                    let Ok(reply) = client.scan(&request).await else { continue };
                    let rows = reply["rows"].as_array().context("a scan without rows")?;
                    let shown = rows.iter().find(|row| row["id"].as_str().is_some_and(|id| id.starts_with(GONE)));
                    ensure!(shown.is_none(), "{name} shows {shown:?} at {}", reply["timestamp"]);
                    answered += 1;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ok(answered)
        });
        Self { over, task }
    }

    async fn stop(self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        let answered = self.task.await.context("the scans panicked")??;
        ensure!(answered > 0, "no scan was answered");
        Ok(answered)
    }
}

async fn write_many(source: &Source, count: u64, rng: &mut Rng) -> Result<()> {
    let writes: Vec<Write> = (0..count).map(|_| documents::write(rng, 1, MANY)).collect();
    source.write(writes).await
}

async fn all_active(client: &Client, indexes: &[Index]) -> Result<()> {
    for index in indexes {
        client.wait_active(BUCKET, &index.name, BUILT_WITHIN).await?;
    }
    Ok(())
}

/// Every index is active and equals the source, now and when more was written.
async fn in_order(client: &Client, source: &Source, indexes: &[Index], rng: &mut Rng) -> Result<()> {
    all_active(client, indexes).await?;
    for index in indexes {
        ask::random(client, source, index, rng).await?;
    }
    ask::each(client, source, indexes).await?;
    let writer = Writer::start(source, rng);
    load::written(source, 300).await?;
    writer.stop().await?;
    ask::each(client, source, indexes).await.context("after more was written")
}
