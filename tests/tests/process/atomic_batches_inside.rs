//! Positions inside of an atomic batch: SYNC and stability timestamps name none of them, whoever asks for one waits for the end of
//! the batch and is shown all of it, and what was begun before a batch goes on without it.

use crate::atomic_batches::{ANSWERED_WITHIN, Bank};
use futures_util::StreamExt;
use highwater_schemas::{
    subjects,
    wire::{self, Stability},
};
use highwater_tests::{cluster::SERVICES, prelude::*, proxy::Proxy};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::task::JoinHandle;

const BUCKET: &str = "inside";
const INDEX: &str = "rounds";
const PROJECTOR: &str = "projector-1";
/// Every document is written in each batch.
const DOCUMENTS: u64 = 10;
const BATCHES: u64 = 6;
/// Revisions that the stream keeps: what is overwritten can still be read.
const HISTORY: i64 = 5;
const PAGE: u64 = 3;
/// Text in the first document that the projector does not receive.
const HALT: &str = "~halt~";
/// Documents of a batch that come before it.
const READ: u64 = 6;
/// Time limits of requests: of those that can be answered, and of those that must not be.
const ANSWERED_MS: u64 = 15_000;
const UNANSWERED_MS: u64 = 300;

/// Positions that were named, by SYNC and by stability timestamps.
type Positions = [BTreeSet<u64>; 2];

/// Hears them until it is dropped.
struct Named {
    positions: Arc<Mutex<Positions>>,
    task: JoinHandle<()>,
}

impl Named {
    async fn start(client: &Client) -> Result<Self> {
        let mut syncs = client.nats.subscribe(subjects::sync(BUCKET)).await?;
        let mut issued = client.nats.subscribe(subjects::stability(BUCKET)).await?;
        client.nats.flush().await?;
        let positions = Arc::<Mutex<Positions>>::default();
        let heard = Arc::clone(&positions);
        let task = tokio::spawn(async move {
            loop {
                let (by, position) = tokio::select! {
                    Some(message) = syncs.next() => {
                        let sync = wire::decode::<wire::Sync>(&message.payload).ok();
                        (0, sync.and_then(|sync| sync.vbs.first().map(|vb| vb.state.position.seqno)))
                    }
                    Some(message) = issued.next() => {
                        let stability = wire::decode::<Stability>(&message.payload).ok();
                        (1, stability.and_then(|stability| stability.st.vbs.first().map(|vb| vb.position.seqno)))
                    }
                    else => return,
                };
                lock(&heard)[by].extend(position);
            }
        });
        Ok(Self { positions, task })
    }

    /// Of a batch the last position is named, and none before it was.
    async fn only_the_end(&self, first: u64, last: u64) -> Result<()> {
        until(&format!("position {last} is named"), ANSWERED_WITHIN, async || {
            let named = lock(&self.positions).clone();
            if named.iter().all(|named| named.contains(&last)) { Ok(()) } else { Err(format!("{named:?}")) }
        })
        .await?;
        for named in &*lock(&self.positions) {
            let inside: Vec<u64> = named.range(first..last).copied().collect();
            ensure!(inside.is_empty(), "{inside:?} are inside of the batch from {first} to {last}");
        }
        Ok(())
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(positions: &Mutex<Positions>) -> MutexGuard<'_, Positions> {
    positions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream of batches, each of which writes every document with its own number.
struct Place {
    client: Client,
    bank: Bank,
    named: Named,
}

impl Place {
    async fn start(cluster: &Cluster) -> Result<Self> {
        let client = cluster.client().await?;
        let bank = Bank::open(&client, BUCKET, 1, HISTORY, 1).await?;
        bank.index(INDEX, json!({"keys": ["round", "n"], "num_partition": 2})).await?;
        let named = Named::start(&client).await?;
        Ok(Self { client, bank, named })
    }

    /// Writes a batch; answers its first and its last position.
    async fn write(&self, round: u64, halts: bool) -> Result<(u64, u64)> {
        let document = |n: u64| {
            let note = if halts && n == READ { HALT } else { "" };
            (format!("d{n}"), json!({"n": n, "note": note, "round": round}))
        };
        let documents: Vec<(String, Value)> = (0..DOCUMENTS).map(document).collect();
        let last = self.bank.batch(0, &format!("b{round}"), &documents, round.is_multiple_of(2)).await?;
        Ok((last + 1 - DOCUMENTS, last))
    }

    fn at_plus(&self, seqno: u64) -> Value {
        let stream = self.bank.streams[0].as_str();
        json!({"at_plus": {stream: seqno}})
    }

    async fn scan(&self, consistency: &Value) -> Result<Value> {
        let request = request(consistency);
        self.client.scan(&request).await.with_context(|| request.to_string())
    }

    /// The first rows, and what asks for the others.
    async fn first_page(&self, consistency: &Value) -> Result<(Value, Value)> {
        let mut request = request(consistency);
        request["page_size"] = PAGE.into();
        let page = self.client.request("hw.query.scan", &request).await.with_context(|| request.to_string())?;
        let rows = page["rows"].as_array().map_or(0, Vec::len) as u64;
        ensure!(rows == PAGE && page["page_token"].is_string(), "{page}");
        request["page_token"] = page["page_token"].clone();
        Ok((page, request))
    }

    /// The reply of the first page with the rows of all.
    async fn all_pages(&self, (mut page, request): (Value, Value)) -> Result<Value> {
        let mut others = self.client.scan(&request).await.with_context(|| request.to_string())?;
        ensure!(others["st"] == page["st"] && others["exact"] == page["exact"], "{page} and {others}");
        if let (Some(rows), Value::Array(others)) = (page["rows"].as_array_mut(), others["rows"].take()) {
            rows.extend(others);
        }
        Ok(page)
    }

    /// The reply has all of that batch, which ends at `last`, exactly, and nothing else.
    fn shows(&self, reply: &Value, round: u64, last: u64) -> Result<()> {
        let rows = reply["rows"].as_array().context("no rows")?;
        let whole = rows.len() as u64 == DOCUMENTS && rows.iter().all(|row| row["key"][0] == round);
        let at = &reply["timestamp"][&self.bank.streams[0]]["seqno"];
        ensure!(whole && reply["exact"] == true && *at == last, "not batch {round} as it was at {last}: {reply}");
        Ok(())
    }

    /// How many messages the projector has read, as it tells.
    async fn has_read(&self, wanted: u64) -> Result<()> {
        until(&format!("{wanted} messages are read"), ANSWERED_WITHIN, async || {
            let bucket = self.client.bucket(BUCKET).await.map_err(|refused| refused.to_string())?;
            if bucket["vbuckets"][0]["reads"]["live"] == wanted { Ok(()) } else { Err(bucket.to_string()) }
        })
        .await
    }
}

fn request(consistency: &Value) -> Value {
    json!({"bucket": BUCKET, "index": INDEX, "consistency": consistency, "timeout_ms": ANSWERED_MS})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_a_position_inside_of_a_batch_is_shown_all_of_it() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let place = Place::start(cluster).await?;
            let mut before = 0;
            for round in 1..=BATCHES {
                // Somebody asks before it is written.
                let (client, asked) = (place.client.clone(), request(&place.at_plus(before + DOCUMENTS / 2)));
                let asked = tokio::spawn(async move { client.scan(&asked).await });
                let (first, last) = place.write(round, false).await?;
                ensure!(first == before + 1, "the batch from {first} to {last} follows {before}");
                place.shows(&asked.await??, round, last)?;
                for seqno in first..=last {
                    let consistency = place.at_plus(seqno);
                    place.shows(&place.scan(&consistency).await?, round, last)?;
                    let mut request = request(&consistency);
                    request["spans"] = json!([{"equal": [round]}]);
                    let count = place.client.count(&request).await.with_context(|| request.to_string())?;
                    ensure!(count == DOCUMENTS, "{request} counts {count}");
                }
                place.named.only_the_end(first, last).await?;
                before = last;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_snapshots_from_before_a_batch_go_on_without_it() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let place = Place::start(cluster).await?;
            let (_, mut before) = place.write(1, false).await?;
            for round in 2..=BATCHES {
                let page = place.first_page(&place.at_plus(before)).await?;
                let then = json!({"at_snapshot": page.0["st"]});
                let (first, last) = place.write(round, false).await?;
                place.shows(&place.scan(&place.at_plus(first + 1)).await?, round, last)?;
                place.shows(&place.scan(&then).await?, round - 1, before)?;
                place.shows(&place.all_pages(page).await?, round - 1, before)?;
                let page = place.first_page(&then).await?;
                place.shows(&place.all_pages(page).await?, round - 1, before)?;
                before = last;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_of_a_batch_is_shown_to_nobody_before_its_end() -> Result<()> {
    let mut cluster = Cluster::without_services()?;
    let proxy = Proxy::start(cluster.nats().port()).await?;
    cluster
        .with_detour(PROJECTOR, proxy.url())
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let place = Place::start(cluster).await?;
            let (_, mut before) = place.write(1, false).await?;
            for round in 2..=3 {
                place.shows(&place.scan(&place.at_plus(before)).await?, round - 1, before)?;
                place.has_read(before).await?;
                let before_fault = proxy.faults_hit();
                proxy.cut_before(HALT);
                let (first, last) = place.write(round, true).await?;
                until("the projector gets no further", ANSWERED_WITHIN, async || {
                    if proxy.faults_hit() > before_fault { Ok(()) } else { Err("it has all of the batch".to_owned()) }
                })
                .await?;
                place.has_read(before + READ).await?;
                // Before the batch, in what was read of it, in what was not, and at its end.
                place.shows(&place.scan(&json!("any")).await?, round - 1, before)?;
                let [at_first, at_read, at_last] = [first, first + READ - 1, last].map(|seqno| place.at_plus(seqno));
                for consistency in [&at_first, &at_read, &at_last, &json!("request_plus")] {
                    let mut request = request(consistency);
                    request["timeout_ms"] = UNANSWERED_MS.into();
                    match place.client.scan(&request).await {
                        Err(refused) if refused.retry => {}
                        other => bail!("{request} is answered though the batch has not ended: {other:?}"),
                    }
                }
                let page = place.first_page(&json!("any")).await?;
                let (client, asked) = (place.client.clone(), request(&at_first));
                let asked = tokio::spawn(async move { client.scan(&asked).await });
                proxy.heal();
                place.shows(&asked.await??, round, last)?;
                place.shows(&place.scan(&at_read).await?, round, last)?;
                place.shows(&place.all_pages(page).await?, round - 1, before)?;
                place.named.only_the_end(first, last).await?;
                before = last;
            }
            Ok(())
        })
        .await
}
