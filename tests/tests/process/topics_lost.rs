//! Topics lose what they hold: the mutation topic its tail, all of it, or itself; the catchup topic itself in the middle of a
//! session; and what an indexer that is away has not read. Every scan keeps its promise meanwhile, and afterwards every index equals
//! the source without anybody's hand.

use async_nats::jetstream::{
    message::StreamMessage,
    stream::{Config, Info, RawMessageErrorKind},
};
use highwater_tests::{
    files,
    load::{self, Writer},
    prelude::*,
};

const BUCKET: &str = "orders";
const MUTATION: &str = "HW_MUTATION_orders";
const CATCHUP: &str = "HW_CATCHUP_orders";
const NODES: [&str; 7] =
    ["coordinator-1", "coordinator-2", "projector-1", "projector-2", "indexer-1", "indexer-2", "catalog-1"];
const STREAMS: usize = 2;
const FIRST: u64 = 3_000;
const ROUNDS: u64 = 3;
/// Between bursts of writes.
const PAUSE: Duration = Duration::from_millis(20);
/// Many times what anything here takes.
const WITHIN: Duration = Duration::from_secs(60);
/// So many that a build can be met in its middle.
const MANY: u64 = 60_000;

/// Documents, indexes over them, and something that breaks.
struct Deployment<'a> {
    cluster: &'a mut Cluster,
    client: Client,
    source: Source,
    indexes: Vec<Index>,
    rng: Rng,
}

impl Deployment<'_> {
    async fn run(name: &str, documents: u64, test: impl AsyncFnOnce(&mut Deployment<'_>) -> Result<()>) -> Result<()> {
        let mut rng = Rng::seeded(name);
        Cluster::start_nodes(&NODES)
            .await?
            .run(async |cluster| {
                let client = cluster.client().await?;
                let source = Source::keyed_streams(&client, BUCKET, STREAMS).await?.patient(WITHIN);
                load::write(&source, documents, &mut rng).await?;
                let indexes = documents::indexes(3);
                client.create_indexes(BUCKET, &indexes, WITHIN).await?;
                test(&mut Deployment { cluster, client, source, indexes, rng }).await
            })
            .await
    }

    /// Breaks something while documents are written and scanned; then everything is right by itself.
    async fn breaks(&mut self, what: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let writer = Writer::paced(&self.source, &mut self.rng, PAUSE);
        let checker = Checker::start(&self.client, &self.source, &self.indexes, &mut self.rng).with_writer(writer);
        load::written(&self.source, self.rng.below(1_000)).await?;
        let broken = async |checker: &Checker| {
            what(self).await?;
            let broken = Instant::now();
            checker.answered(2, WITHIN).await.context("after it broke")?;
            load::written(&self.source, 500).await?;
            checker.answered(2, WITHIN).await.context("as documents are written")?;
            println!("all is answered {:.1?} after it broke", broken.elapsed());
            Ok(())
        };
        checker.through(WITHIN, broken).await?;
        self.right().await
    }

    async fn right(&mut self) -> Result<()> {
        for index in &self.indexes {
            ask::whole(&self.client, &self.source, index).await?;
            ask::random(&self.client, &self.source, index, &mut self.rng).await?;
        }
        Ok(())
    }

    async fn info(&self, stream: &str) -> Result<Info> {
        Ok(self.client.js.get_stream(stream).await?.cached_info().clone())
    }

    /// Waits until a stream that was deleted is there again: another one.
    async fn made_again(&self, stream: &str, deleted: &Info) -> Result<()> {
        until(&format!("{stream} is made again"), WITHIN, async || {
            let now = self.info(stream).await.map_err(|e| e.to_string())?;
            if now.created == deleted.created { Err(format!("{now:?}")) } else { Ok(()) }
        })
        .await
    }

    /// Whether a stream has lost this message: it has none of this sequence, or another one.
    async fn lost(&self, stream: &str, message: &StreamMessage) -> Result<bool> {
        match self.client.js.get_stream(stream).await?.get_raw_message(message.sequence).await {
            Ok(now) => Ok(now.time != message.time),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a stream is there, with something in it.
    async fn filled(&self, stream: &str) -> Result<()> {
        until(&format!("{stream} is used"), WITHIN, async || {
            let found = self.client.js.get_stream(stream).await.map_err(|e| e.to_string())?;
            let state = &found.cached_info().state;
            if state.messages > 0 { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_topic_that_loses_its_tail_is_made_good() -> Result<()> {
    Deployment::run("lost tail of a topic", FIRST, async |all| {
        let mut lost = 0;
        // Also when an indexer is away that has not read it.
        for away in [None, Some("indexer-1"), None, Some("indexer-2")] {
            let newest = &mut None;
            all.breaks(async |all| {
                if let Some(node) = away {
                    all.cluster.kill(node)?;
                    load::written(&all.source, 1_000).await?;
                }
                let percent = 20 + all.rng.below(75);
                let stream = all.client.js.get_stream(MUTATION).await?;
                *newest = Some(stream.get_raw_message(stream.cached_info().state.last_sequence).await?);
                let nats = all.cluster.nats();
                nats.kill();
                files::cut_stream(&nats.stream_dir(MUTATION), percent)?;
                nats.start_again()?;
                match away {
                    Some(node) => all.cluster.start_node(node).await,
                    None => Ok(()),
                }
            })
            .await?;
            lost += u32::from(all.lost(MUTATION, newest.as_ref().context("nothing was broken")?).await?);
        }
        println!("the newest message that was looked at was lost {lost} times");
        ensure!(lost > 0, "the topic never lost its tail");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_topic_that_is_deleted_is_made_again() -> Result<()> {
    Deployment::run("deleted topic", FIRST, async |all| {
        for _ in 0..ROUNDS {
            let deleted = all.info(MUTATION).await?;
            all.breaks(async |all| {
                all.client.js.delete_stream(MUTATION).await?;
                Ok(())
            })
            .await?;
            all.made_again(MUTATION, &deleted).await?;
            all.filled(MUTATION).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mutation_topic_that_is_purged_goes_on() -> Result<()> {
    Deployment::run("purged topic", FIRST, async |all| {
        for _ in 0..ROUNDS {
            all.breaks(async |all| {
                // Some of it, while it is read; then all of it.
                for _ in 0..5 {
                    let mut stream = all.client.js.get_stream(MUTATION).await?;
                    let last = stream.info().await?.state.last_sequence;
                    let gone = stream.purge().sequence(last.saturating_sub(all.rng.below(3))).await?.purged;
                    ensure!(gone > 0, "nothing below {last} was there");
                    load::written(&all.source, 100).await?;
                }
                let gone = all.client.js.get_stream(MUTATION).await?.purge().await?.purged;
                ensure!(gone > 0, "the topic was empty");
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexer_for_which_the_topic_does_not_wait_catches_up() -> Result<()> {
    Deployment::run("topic too small", FIRST, async |all| {
        for node in ["indexer-1", "indexer-2", "indexer-1"] {
            all.breaks(async |all| {
                all.cluster.kill(node)?;
                let read = all.info(MUTATION).await?.state.last_sequence;
                load::written(&all.source, 500).await?;
                let config = all.info(MUTATION).await?.config;
                all.client.js.update_stream(Config { max_messages: 2, ..config.clone() }).await?;
                let first = all.info(MUTATION).await?.state.first_sequence;
                ensure!(first > read + 1, "the topic begins at {first}, and {node} can have read up to {read}");
                load::written(&all.source, 500).await?;
                all.cluster.start_node(node).await?;
                // Limits are taken as they are.
                all.client.js.update_stream(config).await?;
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catchup_topic_that_is_deleted_in_the_middle_of_a_session_is_made_again() -> Result<()> {
    Deployment::run("deleted session", FIRST, async |all| {
        let documents: Vec<Write> = (0..MANY)
            .map(|i| Write::put(i as usize % STREAMS, format!("many{i}"), &documents::document(&mut all.rng)))
            .collect();
        all.source.write(documents).await?;
        let mut met = 0;
        for attempt in 0..6 {
            let mut index = documents::indexes(2).remove(attempt % 3);
            index.name = format!("attempt{attempt}");
            all.client.create_index(&index.definition(BUCKET)).await?;
            let meeting = until("the build begins", WITHIN, async || {
                let now = all.client.index(BUCKET, &index.name).await.map_err(|refused| refused.to_string())?;
                let begun = now["docs_done"].as_u64() > Some(0) || now["state"] != "building";
                if begun { Ok(now) } else { Err(now.to_string()) }
            })
            .await?;
            let deleted = all.info(CATCHUP).await?;
            all.client.js.delete_stream(CATCHUP).await?;
            met += u32::from(meeting["state"] == "building");
            all.client.wait_active(BUCKET, &index.name, WITHIN).await?;
            all.made_again(CATCHUP, &deleted).await?;
            ask::whole(&all.client, &all.source, &index).await?;
            if met >= 2 {
                break;
            }
        }
        println!("{met} builds lost their topic");
        ensure!(met > 0, "every build was over before its topic was deleted");
        all.right().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catchup_topic_that_is_deleted_does_not_leave_slices_behind() -> Result<()> {
    Deployment::run("deleted catchup", FIRST, async |all| {
        for node in ["indexer-1", "indexer-2"] {
            let deleted = &mut None;
            all.breaks(async |all| {
                all.cluster.kill(node)?;
                load::written(&all.source, 5_000).await?;
                let gone = all.client.js.get_stream(MUTATION).await?.purge().await?.purged;
                ensure!(gone > 0, "the topic was empty");
                all.cluster.start_node(node).await?;
                all.filled(CATCHUP).await?;
                *deleted = Some(all.info(CATCHUP).await?);
                all.client.js.delete_stream(CATCHUP).await?;
                Ok(())
            })
            .await?;
            all.made_again(CATCHUP, deleted.as_ref().context("nothing was deleted")?).await?;
        }
        Ok(())
    })
    .await
}
