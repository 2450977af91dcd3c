//! A worker that is busy with one of its bucket's slices, or panics there, holds up its bucket alone: while it goes back, is compared
//! with its source, is swept, is staged, or is read by a scan that takes long.

use highwater_schemas::{state::Change, subjects};
use highwater_tests::{
    backup::OldFiles,
    beats::Beats,
    branches::{Branches, reconcile},
    cluster::SERVICES,
    history::changes,
    load,
    prelude::*,
};

const BUSY: &str = "busy";
const STREAM: &str = "KV_busy";
const QUICK: &str = "quick";
const INDEXER: &str = "indexer-1";
const DOCUMENTS: u64 = 300;
const WITHIN: Duration = Duration::from_secs(60);
/// Heartbeats come twice a second.
const BEATS: usize = 3;

struct Place {
    client: Client,
    busy: Source,
    quick: Source,
    index: Index,
}

impl Place {
    async fn start(cluster: &Cluster, rng: &mut Rng) -> Result<Self> {
        let client = cluster.client().await?;
        let index = documents::indexes(1).swap_remove(0);
        let indexes = std::slice::from_ref(&index);
        let busy = load::indexed(&client, BUSY, DOCUMENTS, indexes, rng, WITHIN).await?;
        let quick = load::indexed(&client, QUICK, DOCUMENTS, indexes, rng, WITHIN).await?;
        Ok(Self { client, busy, quick, index })
    }

    /// The quick bucket is written and read, and heartbeats of the indexer come.
    async fn goes_on(&self, rng: &mut Rng) -> Result<()> {
        let mut beats = Beats::listen(&self.client).await?;
        for _ in 0..3 {
            load::write(&self.quick, 20, rng).await?;
            ask::whole(&self.client, &self.quick, &self.index).await?;
        }
        beats.of(INDEXER, BEATS, WITHIN).await?;
        let status = self.client.request(&subjects::node(INDEXER, "status"), &json!({})).await?;
        ensure!(status["node"] == INDEXER, "{status}");
        Ok(())
    }

    /// Once hung and once panicked, a place that the worker passes while its source goes back.
    async fn goes_back(&self, cluster: &mut Cluster, place: &str, panics: bool, rng: &mut Rng) -> Result<()> {
        let Self { client, busy, index, .. } = self;
        load::write(busy, 20, rng).await?;
        self.is_durable().await?;
        let old = OldFiles::take(cluster, client, STREAM, "old").await?;
        load::write(busy, 100, rng).await?;
        ask::whole(client, busy, index).await?;
        // Only what is durable has to be taken back; what is in memory is just not there when the slice is opened again.
        self.is_durable().await?;
        let before = Branches::soon(client, BUSY, WITHIN).await?;
        break_at(cluster, place, panics)?;
        old.put_back(cluster, client).await?;
        busy.reread().await?;
        self.through(cluster, place, panics, rng).await?;
        before.back(client, BUSY, &[0], WITHIN).await?;
        self.is_well(rng).await
    }

    /// There is something to go back to.
    async fn is_durable(&self) -> Result<()> {
        let last = self.client.js.get_stream(STREAM).await?.cached_info().state.last_sequence;
        until("all that was written is durable", WITHIN, async || {
            let changes = changes(&self.client).await.map_err(|error| format!("{error:#}"))?;
            let durable = changes.iter().any(|change| match change {
                Change::Persisted { bucket, st } => bucket == BUSY && st.vbs[0].position.seqno >= last,
                _ => false,
            });
            if durable { Ok(()) } else { Err(format!("{last} is not")) }
        })
        .await
    }

    async fn is_reconciled(&self, cluster: &Cluster, place: &str, panics: bool, rng: &mut Rng) -> Result<()> {
        break_at(cluster, place, panics)?;
        let (client, index) = (self.client.clone(), self.index.clone());
        let reconciled = tokio::spawn(async move {
            reconcile(&client, BUSY, WITHIN).await?;
            client.wait_active(BUSY, &index.name, WITHIN).await
        });
        self.through(cluster, place, panics, rng).await?;
        reconciled.await??;
        self.is_well(rng).await
    }

    /// Nothing else waits for what is broken.
    async fn through(&self, cluster: &Cluster, place: &str, panics: bool, rng: &mut Rng) -> Result<()> {
        let place = format!("{place}.{BUSY}");
        cluster.hit(INDEXER, &place).await?;
        self.goes_on(rng).await?;
        if !panics {
            cluster.release(INDEXER, &place)?;
        }
        Ok(())
    }

    async fn is_well(&self, rng: &mut Rng) -> Result<()> {
        self.client.wait_active(BUSY, &self.index.name, 2 * WITHIN).await?;
        load::write(&self.busy, 20, rng).await?;
        ask::whole(&self.client, &self.busy, &self.index).await
    }
}

/// The indexer's next work of this kind for the busy bucket hangs, or panics.
fn break_at(cluster: &Cluster, place: &str, panics: bool) -> Result<()> {
    let place = format!("{place}.{BUSY}");
    if panics { cluster.panic_at(INDEXER, &place) } else { cluster.hang_at(INDEXER, &place) }
}

async fn cluster() -> Result<Cluster> {
    Cluster::without_services()?.breakable(&[INDEXER])?.with_nodes(&SERVICES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slice_that_goes_back_and_is_compared_holds_up_no_other_bucket() -> Result<()> {
    let mut rng = Rng::seeded("busy with a rollback");
    cluster()
        .await?
        .run(async |cluster| {
            let bench = Place::start(cluster, &mut rng).await?;
            for place in ["roll back", "compare", "walk"] {
                bench.goes_back(cluster, place, false, &mut rng).await.with_context(|| format!("{place} hangs"))?;
            }
            for place in ["stage", "walk"] {
                bench.is_reconciled(cluster, place, false, &mut rng).await.with_context(|| format!("{place} hangs"))?;
            }
            Ok(())
        })
        .await
}

/// The first panic of a worker is made good at once; each place gets a node of its own, for the second one would wait.
async fn panics(place: &str) -> Result<()> {
    let mut rng = Rng::seeded(place);
    cluster()
        .await?
        .run(async |cluster| {
            let bench = Place::start(cluster, &mut rng).await?;
            if place == "stage" {
                bench.is_reconciled(cluster, place, true, &mut rng).await
            } else {
                bench.goes_back(cluster, place, true, &mut rng).await
            }
        })
        .await
        .with_context(|| format!("a panic in {place}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_a_slice_goes_back_or_is_compared_is_made_good() -> Result<()> {
    panics("roll back").await?;
    panics("compare").await?;
    panics("walk").await?;
    panics("stage").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_that_takes_long_holds_up_no_heartbeat_and_no_other_scan() -> Result<()> {
    let mut rng = Rng::seeded("a long scan");
    cluster()
        .await?
        .run(async |cluster| {
            let bench = Place::start(cluster, &mut rng).await?;
            break_at(cluster, "scan", false)?;
            let request = json!({"bucket": BUSY, "index": bench.index.name, "timeout_ms": 500});
            let Err(refused) = bench.client.request("hw.query.scan", &request).await else { bail!("it was answered") };
            ensure!(refused.retry, "{refused}");
            bench.through(cluster, "scan", false, &mut rng).await?;
            bench.is_well(&mut rng).await
        })
        .await
}
