//! Documents that are overwritten before anyone reads them: what a scan claims to show is there all the same.
//!
//! The projector stands still while they are, and what it then has to read between a hidden revision and the newest one is long:
//! that is seen on a machine of any speed, and counted.

use highwater_tests::{
    prelude::*,
    source::{Log, Name},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

const HOT: u64 = 4;
const COLD: u64 = 60;
/// Writes that a burst sends between two looks at whether to stop.
const CHUNK: u64 = 2_000;
/// Documents that are not indexed, written once in each burst while the projector stands still: whoever reads a hole has to read
/// them before the revision that covers it.
const FILLING: u64 = 20_000;
/// Scans of each sort that must have been checked.
const WANTED: u64 = 60;
/// Scans in a burst after the projector goes on.
const AFTERWARDS: u64 = 30;
/// Bursts at least.
const BURSTS: u64 = 4;
/// After which something is wrong: many times what it takes where scans meet few timestamps that are not exact.
const MOST_BURSTS: u64 = 200;
/// After which something hangs.
const WITHIN: Duration = Duration::from_secs(240);

/// What was seen.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    exact: u64,
    exact_in_bursts: u64,
    uncovered: u64,
    uncovered_request_plus: u64,
    timeouts: u64,
    cover_timeouts: u64,
    slowest: Duration,
}

impl Tally {
    fn scans(&self) -> u64 {
        self.exact_in_bursts + self.uncovered
    }
}

/// The newest seqno of each document that was acknowledged.
fn floors(log: &Log) -> BTreeMap<Name, u64> {
    let newest = |(name, history): (&Name, &Vec<(u64, _)>)| Some((name.clone(), history.last()?.0));
    log.documents.iter().filter(|(name, _)| is_indexed(name)).filter_map(newest).collect()
}

/// What only takes long to read has no entries.
fn is_indexed(name: &Name) -> bool {
    !name.1.starts_with("filling")
}

fn index() -> Index {
    Index { name: "by_version".into(), keys: vec![("version", true)], partitions: 2, ..Index::default() }
}

/// A writer's documents; each has a version of its own, so that a row tells which write it shows.
fn document(version: u64) -> Value {
    json!({"version": version, "text": "as long as a document may be in practice, and then some more"})
}

fn filling(number: u64) -> Write {
    Write::put(0, format!("filling{number}"), &json!({"text": "not indexed"}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_never_hide_an_acknowledged_write() -> Result<()> {
    overwrite("hidden revisions", false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_never_hide_an_acknowledged_write_when_the_projector_is_killed() -> Result<()> {
    overwrite("hidden revisions and SIGKILL", true).await
}

async fn overwrite(name: &str, kill: bool) -> Result<()> {
    let mut rng = Rng::seeded(name);
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "hot").await?;
            client.create_index(&index().definition("hot")).await?;
            source.write((0..COLD).map(|i| Write::put(0, format!("cold{i}"), &document(i)))).await?;
            client.wait_active("hot", "by_version", Duration::from_secs(20)).await?;
            let tally = Arc::new(Mutex::new(Tally::default()));
            let mut bursts = 0;
            loop {
                bursts += 1;
                burst(cluster, &source, (bursts, kill), &mut rng, &tally).await?;
                between(&client, &source, &mut rng, &tally).await?;
                let seen = seen(&tally);
                if seen.exact >= WANTED && seen.uncovered >= WANTED && bursts >= BURSTS {
                    println!("{bursts} bursts, {} writes, {seen:?}", source.log().complete()[0]);
                    ensure!(seen.timeouts > 0, "no scan had to wait too long");
                    return Ok(());
                }
                ensure!(bursts < MOST_BURSTS, "after {bursts} bursts: {seen:?}");
            }
        })
        .await
}

/// Writers as fast as the server takes it, and scans that run meanwhile.
async fn burst(
    cluster: &mut Cluster,
    source: &Source,
    (number, kill): (u64, bool),
    rng: &mut Rng,
    tally: &Arc<Mutex<Tally>>,
) -> Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    // Versions of different bursts and writers never meet.
    let mut version = number * 1_000_000_000;
    for writer in 0..2 {
        let source = source.over(&cluster.client().await?);
        let (over, mut rng) = (over.clone(), rng.fork());
        version += 100_000_000;
        tasks.spawn(async move {
            let mut next = version;
            while !over.load(Ordering::Relaxed) {
                // Each hot document has one writer.
                let writes: Vec<Write> = (0..CHUNK)
                    .map(|i| Write::put(0, format!("hot{}", 2 * rng.below(HOT / 2) + writer), &document(next + i)))
                    .collect();
                source.write(writes).await?;
                next += CHUNK;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    let cold = source.over(&cluster.client().await?);
    let (cold_over, mut cold_rng) = (over.clone(), rng.fork());
    version += 100_000_000;
    tasks.spawn(async move {
        let mut next = version;
        while !cold_over.load(Ordering::Relaxed) {
            let id = format!("cold{}", cold_rng.below(COLD));
            let op = if cold_rng.chance(10) { Op::Delete } else { Op::Put(document(next).to_string().into()) };
            cold.write([Write { vb: 0, id, op }]).await?;
            next += 1;
        }
        Ok(())
    });
    for _ in 0..3 {
        let (client, source) = (cluster.client().await?, source.clone());
        let (over, mut rng, tally) = (over.clone(), rng.fork(), tally.clone());
        tasks.spawn(async move {
            let mut newest = Newest::default();
            while !over.load(Ordering::Relaxed) {
                scan(&client, &source, &mut rng, &tally, &mut newest).await?;
            }
            Ok(())
        });
    }
    let burst = async {
        // Hidden is what is overwritten now; scans for what is new wait in vain.
        cluster.node("projector-1")?.freeze()?;
        let before = seen(tally);
        source.write((0..FILLING).map(filling)).await?;
        let written = source.log().complete()[0];
        until("more is hidden, and scans wait in vain", WITHIN, async || {
            let (now, written_now) = (seen(tally), source.log().complete()[0]);
            let enough = now.timeouts > before.timeouts && written_now >= written + 2 * CHUNK;
            if enough { Ok(()) } else { Err(format!("{now:?}, {written_now} after {written}")) }
        })
        .await?;
        if kill && number % 2 == 0 {
            cluster.restart("projector-1").await?;
        } else {
            cluster.node("projector-1")?.thaw()?;
        }
        let before = seen(tally).scans();
        until("scans are answered again", WITHIN, async || {
            let now = seen(tally);
            if now.scans() >= before + AFTERWARDS { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await
    };
    let failed = async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task panicked").flatten()?;
        }
        bail!("writers and scans have ended by themselves")
    };
    let outcome = tokio::select! {
        outcome = burst => outcome,
        outcome = failed => outcome,
    };
    over.store(true, Ordering::Relaxed);
    outcome?;
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task panicked").flatten()?;
    }
    Ok(())
}

fn seen(tally: &Mutex<Tally>) -> Tally {
    *tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a scanning client has seen so far: later stability timestamps show nothing older.
#[derive(Default)]
struct Newest {
    st: u64,
    documents: BTreeMap<Name, u64>,
}

/// One scan while documents are overwritten.
async fn scan(
    client: &Client,
    source: &Source,
    rng: &mut Rng,
    tally: &Mutex<Tally>,
    newest: &mut Newest,
) -> Result<()> {
    let mut floors = floors(&source.log());
    let timeout = *rng.pick(&[3, 30, 300, 1500]);
    let mut request = json!({"bucket": source.bucket, "index": "by_version", "timeout_ms": timeout});
    let any = match rng.below(4) {
        0 => true,
        1 => {
            request["consistency"] = json!({"at_plus": floors.values().max()});
            false
        }
        _ => {
            request["consistency"] = "request_plus".into();
            false
        }
    };
    if rng.chance(20) {
        request["page_size"] = 30.into();
    }
    let since = Instant::now();
    let outcome = client.scan(&request).await;
    let took = since.elapsed();
    let reply = match outcome {
        Ok(reply) => reply,
        Err(refused) if ["timeout", "cover_timeout"].contains(&refused.code.as_str()) => {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.timeouts += 1;
            tally.cover_timeouts += u64::from(refused.code == "cover_timeout");
            tally.slowest = tally.slowest.max(took);
            return Ok(());
        }
        // A node that is too busy to answer in such a time.
        Err(refused) if refused.code == "node_unavailable" && refused.retry => return Ok(()),
        Err(refused) => return Err(refused).with_context(|| format!("{request}")),
    };
    if any {
        floors.clear();
    }
    let exact = check(source, &reply, &floors, newest).await.with_context(|| format!("{request}"))?;
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.slowest = tally.slowest.max(took);
    if exact {
        tally.exact += 1;
        tally.exact_in_bursts += 1;
    } else {
        tally.uncovered += 1;
        tally.uncovered_request_plus += u64::from(!any);
    }
    Ok(())
}

/// Every document of the reply is at least as new as its floor and no newer than the timestamp; an exact reply equals the source.
async fn check(source: &Source, reply: &Value, floors: &BTreeMap<Name, u64>, newest: &mut Newest) -> Result<bool> {
    let at = source.seqnos(reply)?;
    // A write may be in the stream, and in the index, before its acknowledgement is here.
    until("the acknowledgements of what a scan shows", Duration::from_secs(10), async || {
        let complete = source.log().complete();
        if complete[0] >= at[0] { Ok(()) } else { Err(format!("{complete:?} is before {at:?}")) }
    })
    .await?;
    let index = index();
    let got = ask::read_rows(reply, source, &index)?;
    let log = source.log();
    if reply["exact"] == true {
        let wanted = index.rows(&log.at(&at));
        if let Some(difference) = highwater_tests::oracle::difference(&got, &wanted) {
            bail!("the exact scan at {at:?} (ST {}) is not the source: {difference}", reply["st"]);
        }
    }
    let st = reply["st"].as_u64().context("no st")?;
    let shown: BTreeMap<&Name, &Value> =
        got.iter().filter_map(|row| Some((&row.document, row.key[0].as_ref()?))).collect();
    ensure!(shown.len() == got.len(), "a document has two rows in {reply}");
    for (name, history) in log.documents.iter().filter(|(name, _)| is_indexed(name)) {
        let floor = floors.get(name).copied().unwrap_or(0);
        let before = newest.documents.get(name).copied().unwrap_or(0);
        let seen = match shown.get(name) {
            Some(version) => {
                let shows =
                    |payload: &[u8]| serde_json::from_slice::<Value>(payload).is_ok_and(|v| v["version"] == **version);
                let found =
                    history.iter().rev().find(|(_, payload)| payload.as_ref().is_some_and(|payload| shows(payload)));
                found.with_context(|| format!("{name:?} never had version {version}"))?.0
            }
            // The newest moment at which it may have been away.
            None => history
                .iter()
                .rev()
                .find(|(seqno, payload)| payload.is_none() && *seqno <= at[0])
                .map_or(0, |(seqno, _)| *seqno),
        };
        ensure!(
            seen >= floor && seen <= at[0],
            "at {at:?} (ST {st}, exact {}) {name:?} shows revision {seen}, but {floor} was acknowledged before; its history \
             ends {:?}",
            reply["exact"],
            history.iter().rev().take(4).map(|(seqno, payload)| (seqno, payload.is_some())).collect::<Vec<_>>()
        );
        if st >= newest.st {
            ensure!(
                seen >= before,
                "{name:?} went back from revision {before} to {seen} at ST {st}, after {}",
                newest.st
            );
            newest.documents.insert(name.clone(), seen);
        }
    }
    newest.st = newest.st.max(st);
    Ok(reply["exact"] == true)
}

/// Between bursts every scan succeeds, and what is written slowly is read exactly.
async fn between(client: &Client, source: &Source, rng: &mut Rng, tally: &Mutex<Tally>) -> Result<()> {
    // Beyond those of all bursts.
    let version = 1_000_000_000_000 + 100 * source.log().complete()[0];
    for turn in 0..12 {
        if turn > 0 {
            let id = if rng.chance(50) { format!("hot{}", rng.below(HOT)) } else { format!("cold{}", rng.below(COLD)) };
            source.write([Write::put(0, id, &document(version + turn))]).await?;
        }
        let floors = floors(&source.log());
        let request = json!({"bucket": source.bucket, "index": "by_version", "consistency": "request_plus", "timeout_ms": 15_000});
        let reply = client.scan(&request).await.context("a scan between bursts")?;
        let exact = check(source, &reply, &floors, &mut Newest::default()).await?;
        ensure!(exact, "nothing is hidden, but the scan is not exact");
        tally.lock().unwrap_or_else(PoisonError::into_inner).exact += 1;
    }
    Ok(())
}
