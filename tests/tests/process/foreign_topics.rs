//! What somebody else writes into the state log is passed over, and what is of no session is removed.

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use flate2::{Compression, write::ZlibEncoder};
use highwater_schemas::subjects;
use highwater_tests::{
    foreign::{headers, lines},
    prelude::*,
    raw::Raw,
    trial::{self, Trial},
};

use std::io::Write as _;

const DOCUMENTS: u64 = 300;
const GONE_WITHIN: Duration = Duration::from_secs(60);
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// What is no record of the log.
fn no_records() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = ["", "junk", "null", "{}", "[1]", "x\u{9c}", r#"{"version":1}"#, r#"{"a":"#]
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    all.extend([vec![0xff; 1_000], vec![0x78, 0x9c, 1, 2, 3], vec![b'{'; 100_000]]);
    // Large once it is unpacked.
    let mut bomb = ZlibEncoder::new(Vec::new(), Compression::fast());
    let written = bomb.write_all(&vec![b' '; 100_000_000]).and_then(|()| bomb.finish());
    all.extend(written);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_record_of_the_log_stops_nobody() -> Result<()> {
    Trial::run("no records", Cluster::deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        let (_, before) = trial.master().await?;
        let no_records = no_records();
        ensure!(no_records.len() == 12);
        for (at, payload) in no_records.iter().enumerate() {
            trial.client.js.publish(subjects::STATE_SUBJECT, payload.clone().into()).await?.await?;
            if at % 4 == 0 {
                trial.create(&format!("behind{at}")).await?;
            }
        }
        let mut raw = Raw::connect(cluster.nats().port()).await?;
        let mut stored = 0;
        for line in lines("bad_headers.txt", 3)?.iter().filter(|line| line[1].is_empty()) {
            let subject = subjects::STATE_SUBJECT.as_bytes();
            let answer = raw.request(subject, headers(&line[2])?.as_deref(), b"{}", ANSWERED_WITHIN).await?;
            let answer: Value = serde_json::from_slice(&answer.with_context(|| format!("{}: no answer", line[0]))?)?;
            stored += u32::from(answer["seq"].is_u64());
        }
        ensure!(stored > 5, "{stored} header blocks are stored");
        trial.create("behind_headers").await?;
        trial.settle(cluster).await?;
        let (master, term) = trial.master().await?;
        ensure!(term == before, "a message that is no record ended term {before}; now it is {term}");
        // Whoever is elected reads all of it, and so does who starts.
        trial.client.js.publish(subjects::STATE_SUBJECT, "the last message".into()).await?.await?;
        let gone = Instant::now();
        cluster.kill(&master)?;
        let (_, later) = trial.later_term(term, gone).await?;
        ensure!(later > term);
        trial.create("elected").await?;
        cluster.start_node(&master).await?;
        trial.client.js.publish(subjects::STATE_SUBJECT, "one more".into()).await?.await?;
        trial.create("again").await?;
        trial.traffic(rng);
        trial.settle(cluster).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_no_session_are_removed() -> Result<()> {
    Trial::run("no session", Cluster::deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        let bucket = trial::BUCKET;
        let stream = subjects::catchup_stream(bucket);
        let foreign = [format!("hw.catchup.{bucket}.x"), subjects::catchup(bucket, u64::MAX)];
        for subject in &foreign {
            for _ in 0..5 {
                trial.client.js.publish(subject.clone(), vec![b'x'; 100_000].into()).await?.await?;
            }
        }
        // A coordinator that begins looks at once.
        let (master, term) = trial.master().await?;
        let gone = Instant::now();
        cluster.kill(&master)?;
        trial.later_term(term, gone).await?;
        until("foreign messages are removed", GONE_WITHIN, async || {
            for subject in &foreign {
                let handle = trial.client.js.get_stream_no_info(&stream).await.map_err(|e| e.to_string())?;
                match handle.get_last_raw_message_by_subject(subject).await {
                    Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {}
                    found => return Err(format!("{subject}: {found:?}")),
                }
            }
            Ok(())
        })
        .await?;
        cluster.start_node(&master).await?;
        trial.create("after").await?;
        trial.traffic(rng);
        trial.settle(cluster).await
    })
    .await
}
