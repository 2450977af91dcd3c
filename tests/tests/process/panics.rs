//! A panic in any task, thread or job of a service: what it served goes on within seconds, the other bucket is untouched, and
//! `status` states the incident.

use highwater_tests::{
    cli,
    cluster::SERVICES,
    load::{self, Scans},
    prelude::*,
    stated::{self, Stated},
    wait::deadline,
};

const BROKEN: &str = "orders";
const OTHER: &str = "people";
const FIRST: u64 = 500;
/// Many times what it takes.
const WITHIN: Duration = Duration::from_secs(40);

/// Two buckets with documents and indexes, and scans of one of them that must never fail.
struct Place {
    client: Client,
    source: Source,
    indexes: Vec<Index>,
    scans: Scans,
}

impl Place {
    async fn start(cluster: &Cluster, rng: &mut Rng) -> Result<Self> {
        let client = cluster.client().await?;
        let indexes = documents::indexes(2);
        for bucket in [OTHER, BROKEN] {
            let source = load::indexed(&client, bucket, FIRST, &indexes, rng, WITHIN).await?;
            if bucket == BROKEN {
                let scans = Scans::start(&client, json!({"bucket": OTHER, "index": indexes[0].name, "limit": 3}));
                return Ok(Self { client, source, indexes, scans });
            }
        }
        bail!("one of the buckets is to be broken")
    }

    /// Documents that were written after a panic are found.
    async fn goes_on(&self, rng: &mut Rng) -> Result<()> {
        goes_on(&self.client, &self.source, &self.indexes, rng).await
    }

    async fn generation(&self, bucket: &str) -> Result<u64> {
        let state = self.client.request("hw.admin.state.get", &json!({"bucket": bucket})).await?;
        let generation = state["state"]["buckets"][bucket]["vbuckets"][0]["generation"].as_u64();
        generation.with_context(|| format!("no generation: {state}"))
    }

    /// Waits until a node states that this panicked.
    async fn panicked(&self, node: &str, what: &str) -> Result<()> {
        stated::panicked(&self.client, node, what, WITHIN).await
    }

    /// Nothing of the other bucket failed meanwhile.
    async fn end(self) -> Result<()> {
        let scanned = self.scans.stop().await?;
        ensure!(scanned.answered > 0, "nothing was scanned");
        ensure!(scanned.failed.is_empty(), "scans of the other bucket failed: {:?}", scanned.failed.first());
        Ok(())
    }
}

/// Documents that are written now are found.
pub(crate) async fn goes_on(client: &Client, source: &Source, indexes: &[Index], rng: &mut Rng) -> Result<()> {
    source.write((0..50).map(|_| documents::write(rng, 1, FIRST))).await?;
    ask::each_again(client, source, indexes, WITHIN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_whose_task_panics_goes_on_in_another_generation() -> Result<()> {
    let mut rng = Rng::seeded("panics of chains");
    let cluster = Cluster::without_services()?.breakable(&["projector-1"])?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let place = Place::start(cluster, &mut rng).await?;
            let other = place.generation(OTHER).await?;
            for (fault, what) in [
                ("vbucket.orders", "vbucket 0 of bucket orders"),
                ("lane.orders", "lane of vbucket 0 of bucket orders"),
                ("pump.KV_orders", "reading source stream KV_orders"),
            ] {
                let before = place.generation(BROKEN).await?;
                cluster.panic_at("projector-1", fault)?;
                place.source.write([documents::write(&mut rng, 1, FIRST)]).await?;
                cluster.hit("projector-1", fault).await.context(fault)?;
                place.goes_on(&mut rng).await.context(fault)?;
                place.panicked("projector-1", what).await?;
                let after = place.generation(BROKEN).await?;
                ensure!(after > before, "{fault}: generation {after} after {before}");
            }
            // These are repeated beside the chain, which goes on.
            for (fault, what) in [
                ("question.KV_orders", "asking about source stream KV_orders"),
                ("acknowledgement.orders", "publishing key versions of bucket orders"),
            ] {
                let before = place.generation(BROKEN).await?;
                cluster.panic_at("projector-1", fault)?;
                place.source.write([documents::write(&mut rng, 1, FIRST)]).await?;
                cluster.hit("projector-1", fault).await.context(fault)?;
                place.goes_on(&mut rng).await.context(fault)?;
                place.panicked("projector-1", what).await?;
                ensure!(place.generation(BROKEN).await? == before, "{fault}: the chain was lost");
            }
            ensure!(place.generation(OTHER).await? == other, "the other bucket's chain was lost");
            let (code, out, _) = cli::highwater(&["status", "--nats-url", cluster.url()])?;
            ensure!(code == Some(0) && out.contains("vbucket 0 of bucket orders"), "status: {out}");
            place.end().await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_task_panics_is_followed_by_another() -> Result<()> {
    let mut rng = Rng::seeded("panics of sessions");
    let nodes = ["projector-1", "indexer-1"];
    let cluster = Cluster::without_services()?.breakable(&nodes)?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let place = Place::start(cluster, &mut rng).await?;
            // A session is read over a connection of its own; who reads it opens another.
            for (number, (node, fault, what)) in [
                ("projector-1", "session.orders", "a session for vbucket 0 of bucket orders"),
                ("projector-1", "connection.apart", "the connection for messages"),
                ("indexer-1", "connection.apart", "the connection for messages"),
            ]
            .into_iter()
            .enumerate()
            {
                cluster.panic_at(node, fault)?;
                let late = documents::passing(&format!("late{number}"));
                place.client.create_index(&late.definition(BROKEN)).await?;
                cluster.hit(node, fault).await?;
                place.client.wait_active(BROKEN, &late.name, WITHIN).await?;
                ask::whole(&place.client, &place.source, &late).await?;
                place.panicked(node, what).await?;
            }
            place.end().await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_panics_is_started_again_from_disk_and_waits_the_second_time() -> Result<()> {
    let mut rng = Rng::seeded("panics of workers");
    let cluster = Cluster::without_services()?.breakable(&["indexer-1"])?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let place = Place::start(cluster, &mut rng).await?;
            cluster.panic_at("indexer-1", "worker.orders")?;
            cluster.hit("indexer-1", "worker.orders").await?;
            place.goes_on(&mut rng).await?;
            place.panicked("indexer-1", "the worker of bucket orders").await?;
            // The next one waits; until then nothing old is answered.
            cluster.panic_at("indexer-1", "worker.orders")?;
            cluster.hit("indexer-1", "worker.orders").await?;
            let scan = json!({"bucket": BROKEN, "index": place.indexes[0].name, "limit": 3, "consistency": "any"});
            until("scans are refused", WITHIN, async || match place.client.scan(&scan).await {
                Err(refused) if refused.code == "internal" => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await?;
            let status = place.client.request("hw.node.indexer-1.status", &json!({})).await?;
            for slice in status["slices"].as_array().into_iter().flatten() {
                let failed =
                    slice["state"] == "error" && slice["error"].as_str().is_some_and(|e| e.contains("panicked"));
                ensure!(failed == (slice["bucket"] == BROKEN), "{slice}");
            }
            place.end().await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_panics_has_failed_and_is_done_again() -> Result<()> {
    let mut rng = Rng::seeded("panics of jobs");
    let cluster = Cluster::without_services()?.breakable(&["indexer-1"])?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let place = Place::start(cluster, &mut rng).await?;
            cluster.panic_at("indexer-1", "persist")?;
            place.source.write([documents::write(&mut rng, 1, FIRST)]).await?;
            cluster.hit("indexer-1", "persist").await?;
            // It may have been either bucket's.
            let either = ["making bucket orders durable", "making bucket people durable"];
            let wanted = |s: &Stated| s.node == "indexer-1" && either.contains(&&*s.what) && s.says("panicked");
            stated::is_stated(&place.client, "a job panicked", WITHIN, wanted).await?;
            place.goes_on(&mut rng).await?;
            cluster.panic_at("indexer-1", "build")?;
            let late = documents::passing("late");
            place.client.create_index(&late.definition(BROKEN)).await?;
            cluster.hit("indexer-1", "build").await?;
            place.client.wait_active(BROKEN, &late.name, WITHIN).await?;
            ask::whole(&place.client, &place.source, &late).await?;
            place.goes_on(&mut rng).await?;
            place.end().await
        })
        .await
}

/// Documents that differ: layers of so many changes are merged by a job.
const MANY: u64 = 20_000;
/// Between bursts of writes; each makes layers of its own.
const PAUSE: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_whose_merge_panics_stay_and_are_merged_later() -> Result<()> {
    let mut rng = Rng::seeded("panics of merges");
    let cluster = Cluster::without_services()?.with_arguments("indexer", &["--merge-layers", "2"]);
    cluster
        .breakable(&["indexer-1"])?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BROKEN).await?;
            // The only slice: what hits the second time is a merge of the same layers, or of more.
            let indexes = [documents::indexes(1).swap_remove(0)];
            client.create_indexes(BROKEN, &indexes, WITHIN).await?;
            let what = "merging layers of bucket orders";
            for _ in 0..2 {
                let before = stated::panics(&client, "indexer-1", what).await?;
                cluster.panic_at("indexer-1", "merge")?;
                let deadline = deadline(WITHIN);
                while !cluster.is_hit("indexer-1", "merge") {
                    ensure!(Instant::now() < deadline, "nothing is merged");
                    source.write((0..2_000).map(|_| documents::write(&mut rng, 1, MANY))).await?;
                    tokio::time::sleep(PAUSE).await;
                }
                stated::panicked_after(&client, "indexer-1", what, before, WITHIN).await?;
                goes_on(&client, &source, &indexes, &mut rng).await?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_what_panics_hears_of_it() -> Result<()> {
    let mut rng = Rng::seeded("panics of requests");
    let nodes = ["indexer-1", "catalog-1", "coordinator-1", "cluster-manager-1"];
    let cluster = Cluster::without_services()?.breakable(&nodes)?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let place = Place::start(cluster, &mut rng).await?;
            let index = &place.indexes[0].name;
            let of = json!({"bucket": BROKEN, "index": index});
            let dump = json!({"bucket": BROKEN, "index": index, "partition": 0, "rows": 1});
            let (room, all) = (json!({"bucket": BROKEN, "index": 1, "partitions": 1}), json!({}));
            let (manager, of_cluster) = ("a request to an index manager", "a request to the cluster manager");
            for (node, fault, what, subject, request) in [
                ("indexer-1", "scan.orders", "a scan", "hw.query.scan", &of),
                ("indexer-1", "dump", "reading a slice", "hw.node.indexer-1.dump", &dump),
                ("indexer-1", "look", "a look into slices", "hw.node.indexer-1.dump", &dump),
                ("indexer-1", "status", "a request for the status", "hw.node.indexer-1.status", &all),
                ("indexer-1", "assign", "a request to hw.node.indexer-1.assign", "hw.node.indexer-1.assign", &room),
                ("catalog-1", "query.count", "a query", "hw.query.count", &of),
                (
                    "coordinator-1",
                    "admin.state.get",
                    "an administrative request",
                    "hw.node.coordinator-1.admin.state.get",
                    &all,
                ),
                ("coordinator-1", "manager.state.get", manager, "hw.node.coordinator-1.admin.state.get", &all),
                ("coordinator-1", "manager.state.history", manager, "hw.node.coordinator-1.admin.state.history", &all),
                ("coordinator-1", "manager.status", manager, "hw.node.coordinator-1.status", &all),
                ("cluster-manager-1", "members", "asking the master", "hw.cluster.members", &all),
                ("cluster-manager-1", "cluster", of_cluster, "hw.cluster.members", &all),
                ("cluster-manager-1", "cluster", of_cluster, "hw.cluster.replicas", &all),
                ("cluster-manager-1", "cluster", of_cluster, "hw.cluster.master", &all),
            ] {
                place.client.request(subject, request).await.with_context(|| format!("{subject} before"))?;
                let before = stated::panics(&place.client, node, what).await?;
                cluster.panic_at(node, fault)?;
                match place.client.request(subject, request).await {
                    Err(refused) if refused.code == "internal" => {}
                    other => bail!("{fault}: {other:?}"),
                }
                cluster.hit(node, fault).await?;
                // Some of these have the same name, and each is stated.
                stated::panicked_after(&place.client, node, what, before, WITHIN).await?;
                place.client.request(subject, request).await.with_context(|| format!("{subject} afterwards"))?;
            }
            // Who waits for a timestamp hears of it too.
            cluster.panic_at("indexer-1", "wait.orders")?;
            let newest = json!({"bucket": BROKEN, "index": index, "consistency": "request_plus"});
            let deadline = deadline(WITHIN);
            loop {
                place.source.write([documents::write(&mut rng, 1, FIRST)]).await?;
                match place.client.request("hw.query.count", &newest).await {
                    Err(refused) if refused.code == "internal" => break,
                    other => ensure!(other.is_ok() && Instant::now() < deadline, "{other:?}"),
                }
            }
            cluster.hit("indexer-1", "wait.orders").await?;
            place.panicked("indexer-1", "a scan that waits").await?;
            // A check answers for each slice.
            let what = "checking bucket orders";
            cluster.panic_at("indexer-1", "verify")?;
            let checked = place.client.request("hw.node.indexer-1.verify", &json!({"bucket": BROKEN})).await?;
            cluster.hit("indexer-1", "verify").await?;
            let codes = checked["slices"].as_array().into_iter().flatten().filter(|s| s["error"]["code"] == "internal");
            ensure!(codes.count() == 1, "{checked}");
            place.panicked("indexer-1", what).await?;
            // And so does a check that does not come so far that it could answer itself.
            let before = stated::panics(&place.client, "indexer-1", what).await?;
            cluster.panic_at("indexer-1", "check")?;
            let checked = place.client.request("hw.node.indexer-1.verify", &json!({"bucket": BROKEN})).await?;
            cluster.hit("indexer-1", "check").await?;
            let codes = checked["slices"].as_array().into_iter().flatten().filter(|s| s["error"]["code"] == "internal");
            ensure!(codes.count() == 1, "{checked}");
            stated::panicked_after(&place.client, "indexer-1", what, before, WITHIN).await?;
            let checked = place.client.request("hw.node.indexer-1.verify", &json!({"bucket": BROKEN})).await?;
            let mut slices = checked["slices"].as_array().context("no slices")?.iter();
            ensure!(slices.len() > 0 && slices.all(|s| s["error"].is_null()), "{checked}");
            // Catalogs and index managers share this subject: it is asked until the catalog gets it.
            let what = "an administrative request";
            cluster.panic_at("catalog-1", "admin.state.get")?;
            until("a catalog is asked", WITHIN, async || {
                match place.client.request("hw.admin.state.get", &json!({})).await {
                    Err(refused) if refused.code == "internal" => Ok(()),
                    other => Err(format!("{:?}", other.is_ok())),
                }
            })
            .await?;
            cluster.hit("catalog-1", "admin.state.get").await?;
            place.panicked("catalog-1", what).await?;
            place.goes_on(&mut rng).await?;
            place.end().await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_tasks_that_panic_are_done_again() -> Result<()> {
    let mut rng = Rng::seeded("panics of short tasks");
    let nodes = ["projector-1", "coordinator-1", "cluster-manager-1"];
    let cluster = Cluster::without_services()?.breakable(&nodes)?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let place = Place::start(cluster, &mut rng).await?;
            for (node, fault, what) in [
                ("projector-1", "heart", "replies to heartbeats"),
                ("cluster-manager-1", "errand.writing the lease", "writing the lease"),
                ("coordinator-1", "errand.appending to the log", "appending to the log"),
            ] {
                cluster.panic_at(node, fault)?;
                if node == "coordinator-1" {
                    // Its outcome is not known, and is looked for.
                    let _ = place.client.create_index(&documents::passing("appended").definition(BROKEN)).await;
                }
                cluster.hit(node, fault).await?;
                place.panicked(node, what).await?;
            }
            cluster.panic_at("coordinator-1", "errand.asking a host for room")?;
            let definition = documents::passing("roomy").definition(BROKEN);
            match place.client.request("hw.admin.index.create", &definition).await {
                Err(refused) if refused.code == "internal" => {}
                other => bail!("nobody answered for the host: {other:?}"),
            }
            cluster.hit("coordinator-1", "errand.asking a host for room").await?;
            place.goes_on(&mut rng).await?;
            place.client.create_indexes(BROKEN, &[documents::passing("roomier")], WITHIN).await?;
            place.end().await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_definition_waits_for_may_panic_and_is_asked_for_again() -> Result<()> {
    let mut rng = Rng::seeded("panics beside the loop");
    let cluster = Cluster::without_services()?.breakable(&["coordinator-1"])?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let place = Place::start(cluster, &mut rng).await?;
            let bucket = |name: &str| json!({"name": name, "source": {"kv": name}});
            for name in ["third", "fourth"] {
                Source::key_value(&place.client, name).await?;
            }
            for (what, verb, request) in [
                ("looking at a source", "add", bucket("third")),
                ("making streams", "add", bucket("fourth")),
                ("deleting streams", "remove", json!({"name": "third"})),
            ] {
                let fault = format!("errand.{what}");
                cluster.panic_at("coordinator-1", &fault)?;
                let subject = format!("hw.admin.bucket.{verb}");
                let first = place.client.request(&subject, &request).await;
                cluster.hit("coordinator-1", &fault).await.context(what)?;
                place.panicked("coordinator-1", what).await?;
                if let Err(refused) = first {
                    ensure!(refused.code == "internal", "{what}: {refused}");
                    place.client.request(&subject, &request).await.context(what)?;
                }
            }
            // This is done now and then.
            cluster.panic_at("coordinator-1", "errand.checking topics")?;
            cluster.hit("coordinator-1", "errand.checking topics").await?;
            place.panicked("coordinator-1", "checking topics").await?;
            place.goes_on(&mut rng).await?;
            place.end().await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_cannot_go_on_ends_with_code_1() -> Result<()> {
    let mut rng = Rng::seeded("panics of services");
    let cluster = Cluster::without_services()?.breakable(&SERVICES)?.with_nodes(&SERVICES).await?;
    cluster
        .run(async |cluster| {
            let place = Place::start(cluster, &mut rng).await?;
            place.scans.stop().await?;
            let source = place.source;
            for (node, fault, what) in [
                ("projector-1", "follower", "reading stream HW_STATE"),
                ("indexer-1", "follower", "reading stream HW_STATE"),
                ("indexer-1", "feed.orders", "reading the topic of bucket orders"),
                ("indexer-1", "timestamps.orders", "hearing the timestamps of bucket orders"),
                ("indexer-1", "speaker", "speaking for bucket orders"),
                ("indexer-1", "note", "reporting on bucket orders"),
                ("indexer-1", "purge.orders", "what purges catchup topics"),
                ("indexer-1", "jobs", "the lane of persists"),
                ("catalog-1", "follow", "what follows the log"),
                ("catalog-1", "follower", "reading stream HW_STATE"),
                ("catalog-1", "listener", "what hears timestamps"),
                ("coordinator-1", "follower", "reading stream HW_STATE"),
                ("coordinator-1", "keep", "writing the copy of the log"),
            ] {
                cluster.panic_at(node, fault)?;
                // Something for everybody: a record of the log, and documents.
                let name = format!("{}-{}", node.replace("-1", ""), fault.replace('.', "-"));
                let _ = place.client.create_index(&documents::passing(&name).definition(BROKEN)).await;
                source.write([documents::write(&mut rng, 1, FIRST)]).await?;
                cluster.hit(node, fault).await.with_context(|| format!("{node}: {what}"))?;
                cluster.ended(node, 1, WITHIN).await.context(what)?;
                cluster.start_node(node).await?;
                ask::each_again(&place.client, &source, &place.indexes, WITHIN).await?;
            }
            // Who asked hears of it.
            cluster.panic_at("coordinator-1", "ddl.index.create")?;
            let definition = documents::passing("last").definition(BROKEN);
            match place.client.request("hw.node.coordinator-1.admin.index.create", &definition).await {
                Err(refused) if refused.code == "internal" => {}
                other => bail!("{other:?}"),
            }
            cluster.ended("coordinator-1", 1, WITHIN).await.context("the index manager")?;
            cluster.start_node("coordinator-1").await?;
            // The thread that is to tell the service of SIGTERM panics instead: the service ends all the same.
            cluster.panic_at("catalog-1", "signals")?;
            cluster.node("catalog-1")?.terminate()?;
            cluster.ended("catalog-1", 1, WITHIN).await
        })
        .await
}
