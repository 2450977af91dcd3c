//! Data messages that are damaged, foreign or of unknown versions are refused and counted, and stop nothing.

use highwater_schemas::{
    Position, subjects,
    timestamp::{Asked, StVb, StabilityTimestamp},
    wire::{self, Batch, HighWatermark, KeyVersions, ScanMode, ScanRequest, StChoice, Stability, Sync, SyncVb, Want},
};
use highwater_tests::{beats::Beats, cluster::SERVICES, prelude::*};
use std::collections::BTreeSet;

const BUCKET: &str = "people";
const INDEXER: &str = "indexer-1";
const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
const COUNTED_WITHIN: Duration = Duration::from_secs(20);

fn batch() -> Batch {
    Batch {
        bucket: BUCKET.into(),
        vb: 0,
        vbuuid: 1,
        generation: 1,
        topology: 1,
        session: 0,
        from: Position::new(0, 0),
        to: Position::new(9, 0),
        covered: 9,
        server_time: 1,
        hash: 1,
        attempt: 0,
        floor: 0,
        reconciled: 0,
        removal: None,
        only: Vec::new(),
        versions: KeyVersions::default(),
    }
}

fn timestamp(vbs: usize) -> StabilityTimestamp {
    let vb =
        StVb { vbuuid: 1, position: Position::new(u64::MAX, 9), covered: u64::MAX, generation: 9, ..StVb::default() };
    StabilityTimestamp { number: u64::MAX - 1, term: u64::MAX, vbs: vec![vb; vbs], ..StabilityTimestamp::default() }
}

/// A valid message of each kind.
fn messages() -> [Vec<u8>; 6] {
    let state = StVb { asked: vec![Asked { catalog: 1, seq: 1 }], ..StVb::default() };
    let sync = Sync { bucket: BUCKET.into(), vbs: vec![SyncVb { vb: 0, state, source_last: 1, bookmark: None }] };
    let hwt = HighWatermark {
        bucket: BUCKET.into(),
        node: INDEXER.into(),
        incarnation: 1,
        hwt: vec![Position::new(1, 0)],
        held: (1, 1),
        durable: 1,
        queued: 0,
    };
    let scan = ScanRequest {
        bucket: BUCKET.into(),
        index: 1,
        partition: 0,
        at: StChoice::AtLeast(0),
        ranges: Vec::new(),
        reverse: false,
        after: None,
        skip: 0,
        limit: 10,
        page_bytes: 1_000,
        mode: ScanMode::Rows,
        lease_ms: 0,
        timeout_ms: 1_000,
    };
    [
        wire::encode(&batch()),
        wire::encode(&sync),
        wire::encode(&Stability { bucket: BUCKET.into(), st: timestamp(1), wanted: Vec::new() }),
        wire::encode(&Want { bucket: BUCKET.into(), catalog: 1, seq: 1 }),
        wire::encode(&hwt),
        wire::encode(&scan),
    ]
}

/// Ways to spoil `good`; every result is to be refused by the reader of its kind.
fn spoiled(good: &[u8], rng: &mut Rng) -> Vec<Vec<u8>> {
    let changed = |at: usize, to: u8| {
        let mut bad = good.to_vec();
        bad[at] = to;
        bad
    };
    let random = |rng: &mut Rng, len: usize| (0..len).map(|_| rng.next() as u8).collect::<Vec<u8>>();
    let mut all = vec![
        Vec::new(),
        b"H".to_vec(),
        b"HW".to_vec(),
        b"{\"hello\":1}".to_vec(),
        changed(0, b'X'),
        changed(1, 0),
        changed(2, good[2] - 1),
        changed(2, good[2] + 1),
        changed(2, 255),
        changed(3, 0),
        changed(3, 99),
        changed(4, good[4].wrapping_add(1)),
        changed(7, 255),
        good[..good.len() - 1].to_vec(),
        [good, &[0]].concat(),
        // A good header before bytes that are no archive.
        [&good[..8], &vec![0xff; good.len() - 8][..]].concat(),
    ];
    all.extend((0..20).map(|_| {
        let len = rng.below(good.len() as u64) as usize;
        good[..len].to_vec()
    }));
    all.extend((1..20).map(|i| random(rng, i * 37)));
    all
}

/// The indexer's own count.
async fn refused(client: &Client) -> Result<u64> {
    let status = client.request(&subjects::node(INDEXER, "status"), &json!({})).await?;
    status["refused_messages"].as_u64().context("no refused_messages")
}

/// Writes on, and every index must follow.
async fn goes_on(client: &Client, source: &Source, round: u64) -> Result<()> {
    source.write((0..50).map(|i| Write::put(0, format!("p{i}"), &json!({"age": round * 1_000 + i})))).await?;
    let request = json!({
        "bucket": BUCKET, "index": "by_age", "consistency": "request_plus", "spans": [{"low": [round * 1_000]}]
    });
    let reply = client.insist("hw.query.count", &request, Duration::from_secs(20)).await?;
    ensure!(reply["count"] == 50, "round {round}: {reply}");
    Ok(())
}

async fn on_people(test: impl AsyncFnOnce(&mut Cluster, &Client, &Source) -> Result<()>) -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            source.write((0..50).map(|i| Write::put(0, format!("p{i}"), &json!({"age": i})))).await?;
            client.create_index(&json!({"bucket": BUCKET, "name": "by_age", "keys": ["age"]})).await?;
            client.wait_active(BUCKET, "by_age", ACTIVE_WITHIN).await?;
            test(cluster, &client, &source).await
        })
        .await
}

/// Waits until every node has reported since now: none of them states that something of it panicked, as it does for ten minutes.
async fn nobody_panicked(client: &Client) -> Result<()> {
    let mut beats = Beats::listen(client).await?;
    let mut unheard = BTreeSet::from(SERVICES);
    while !unheard.is_empty() {
        let beat = beats.next(COUNTED_WITHIN).await.with_context(|| format!("nothing is heard of {unheard:?}"))?;
        let panicked = beat.troubles.iter().find(|trouble| trouble.error.contains("panicked"));
        ensure!(panicked.is_none(), "{} states {panicked:?}", beat.node);
        unheard.remove(&*beat.node);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_batches_on_the_mutation_subject_are_counted_and_passed_over() -> Result<()> {
    let mut rng = Rng::seeded("bad batches");
    on_people(async |cluster, client, source| {
        goes_on(client, source, 1).await?;
        ensure!(refused(client).await? == 0, "refused before anything was sent");
        let mut sent = 0;
        let [good, others @ ..] = messages();
        let contradictory = [
            Batch { bucket: "others".into(), ..batch() },
            Batch { from: Position::new(10, 0), ..batch() },
            Batch { covered: 10, ..batch() },
        ];
        let mut bad = spoiled(&good, &mut rng);
        bad.extend(others);
        bad.extend(contradictory.iter().map(wire::encode));
        for (round, payload) in bad.into_iter().enumerate() {
            client.js.publish(subjects::mutation(BUCKET, INDEXER), payload.into()).await?.await?;
            sent += 1;
            if round % 10 == 0 {
                goes_on(client, source, 2 + round as u64).await?;
            }
        }
        goes_on(client, source, 900).await?;
        until("every bad batch is counted", COUNTED_WITHIN, || async {
            let counted = refused(client).await.map_err(|error| error.to_string())?;
            if counted == sent { Ok(()) } else { Err(format!("{counted} of {sent}")) }
        })
        .await?;
        nobody_panicked(client).await?;
        // Of a branch, a generation and a topology that do not exist: whole, so not refused, but never applied.
        client.js.publish(subjects::mutation(BUCKET, INDEXER), good.into()).await?.await?;
        let ahead = Batch { generation: u64::MAX, topology: u64::MAX, vb: 9, ..batch() };
        client.js.publish(subjects::mutation(BUCKET, INDEXER), wire::encode(&ahead).into()).await?.await?;
        goes_on(client, source, 901).await?;
        // Read again after a restart, they are passed over again.
        cluster.restart(INDEXER).await?;
        goes_on(client, source, 902).await?;
        println!("{sent} bad batches were counted");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_other_data_subject_changes_nothing() -> Result<()> {
    let mut rng = Rng::seeded("garbage");
    on_people(async |_, client, source| {
        let [batch, sync, stability, want, hwt, _] = messages();
        let subjects = [
            (subjects::sync(BUCKET), &sync),
            (subjects::want(BUCKET), &want),
            (subjects::stability(BUCKET), &stability),
            (subjects::hwt(BUCKET, INDEXER), &hwt),
        ];
        let before = refused(client).await?;
        let mut to_indexer = 0;
        for (round, (subject, good)) in subjects.iter().enumerate() {
            let mut bad = spoiled(good, &mut rng);
            bad.push(batch.clone());
            if subject.starts_with("hw.stability.") {
                to_indexer += bad.len() as u64;
            }
            for payload in bad {
                client.nats.publish(subject.clone(), payload.into()).await?;
            }
            client.nats.flush().await?;
            goes_on(client, source, 1 + round as u64).await?;
        }
        // Whole messages about what does not exist.
        let elsewhere = Sync { bucket: "nowhere".into(), vbs: Vec::new() };
        client.nats.publish(subjects::sync("nowhere"), wire::encode(&elsewhere).into()).await?;
        let far = SyncVb { vb: 999, state: StVb::default(), source_last: 1, bookmark: None };
        let far = Sync { bucket: BUCKET.into(), vbs: vec![far] };
        client.nats.publish(subjects::sync(BUCKET), wire::encode(&far).into()).await?;
        let wide = Stability { bucket: BUCKET.into(), st: timestamp(7), wanted: vec![0] };
        client.nats.publish(subjects::stability(BUCKET), wire::encode(&wide).into()).await?;
        client.nats.flush().await?;
        goes_on(client, source, 50).await?;
        until("bad stability timestamps are counted", COUNTED_WITHIN, || async {
            let counted = refused(client).await.map_err(|error| error.to_string())? - before;
            if counted >= to_indexer { Ok(()) } else { Err(format!("{counted} of {to_indexer}")) }
        })
        .await?;
        nobody_panicked(client).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_answers_bad_scans_and_serves_on() -> Result<()> {
    let mut rng = Rng::seeded("bad scans");
    on_people(async |_, client, source| {
        let [batch, .., scan] = messages();
        let before = refused(client).await?;
        let subject = subjects::node(INDEXER, "scan");
        let mut bad = spoiled(&scan, &mut rng);
        bad.push(batch);
        let sent = bad.len() as u64;
        for payload in bad {
            let reply = client.nats.request(subject.clone(), payload.into()).await?;
            match wire::decode::<wire::ScanReply>(&reply.payload)? {
                wire::ScanReply::Refused { code, .. } => ensure!(code == "malformed_request", "{code}"),
                wire::ScanReply::Page(page) => bail!("a bad scan was answered with {} rows", page.rows.len()),
            }
        }
        ensure!(refused(client).await? == before + sent, "not every bad scan is counted");
        let slice = |index, partition| {
            let mut request = wire::decode::<ScanRequest>(&scan).unwrap_or_else(|error| panic!("{error}"));
            (request.index, request.partition) = (index, partition);
            request
        };
        let odd = [
            slice(4_000_000_000, 0),
            slice(1, 4_000_000_000),
            ScanRequest { bucket: "nowhere".into(), ..slice(1, 0) },
            ScanRequest { after: Some(vec![0xff; 5_000]), ..slice(1, 0) },
            ScanRequest { limit: u64::MAX, skip: u64::MAX, page_bytes: u32::MAX, timeout_ms: 1, ..slice(1, 0) },
        ];
        for request in odd {
            let reply = client.nats.request(subject.clone(), wire::encode(&request).into()).await?;
            wire::decode::<wire::ScanReply>(&reply.payload)?;
        }
        for verb in ["status", "ping", "scan"] {
            for payload in ["{", "[]", r#"{"x":1}"#, ""] {
                client.nats.publish(subjects::node(INDEXER, verb), payload.into()).await?;
                client.nats.request(subjects::node(INDEXER, verb), payload.into()).await?;
            }
        }
        goes_on(client, source, 1).await
    })
    .await
}
