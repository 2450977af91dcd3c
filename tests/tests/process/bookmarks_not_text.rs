//! What a projector remembers as proof of a source's history may be a document whose subject is not UTF-8, of which the server
//! cannot be asked. When it is overwritten while the projector is away, and NATS restarts with all of its history, nothing counts
//! as lost: at most the history is unproven, and compared. Nothing is built or caught up again, and the index is what is stored.

use highwater_tests::{branches::Branches, cluster::SERVICES, prelude::*, raw::Raw};
use std::collections::BTreeMap;

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
const PROJECTOR: &str = "projector-1";
const DOCUMENTS: u64 = 50;
const WITHIN: Duration = Duration::from_secs(60);

/// How a projector is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    /// It stands still, and remembers what it has read.
    Frozen,
    /// It ends, and another start of it knows what the log says.
    Stopped,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookmark_that_is_not_text_costs_a_frozen_projector_no_history() -> Result<()> {
    overwritten(Away::Frozen).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookmark_that_is_not_text_costs_a_stopped_projector_no_history() -> Result<()> {
    overwritten(Away::Stopped).await
}

/// Writes all documents again, each with a number of its own from `first` on, and then or before the one that is not text;
/// answers the sequence of that.
async fn write(cluster: &mut Cluster, first: u64, last_of_all: bool) -> Result<u64> {
    let mut raw = Raw::connect(cluster.nats().port()).await?;
    let good = (0..DOCUMENTS).map(|n| (format!("$KV.people.d{n}").into_bytes(), format!("{{\"n\":{}}}", first + n)));
    let mut all: Vec<_> = good.collect();
    all.insert(if last_of_all { all.len() } else { 0 }, (b"$KV.people.\xff".to_vec(), "{\"n\":1}".into()));
    let mut sequence = 0;
    for (subject, payload) in all {
        let answer = raw.request(&subject, None, payload.as_bytes(), WITHIN).await?.context("not stored")?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let stored = answer["seq"].as_u64().with_context(|| format!("not stored: {answer}"))?;
        if subject.ends_with(b"\xff") {
            sequence = stored;
        }
    }
    Ok(sequence)
}

/// An exact scan shows the documents with the numbers from `first` on, and one that is not indexed.
async fn is_seen(client: &Client, first: u64) -> Result<()> {
    let expected: BTreeMap<String, u64> = (0..DOCUMENTS).map(|n| (format!("d{n}"), first + n)).collect();
    until("the index is what is stored", WITHIN, async || {
        let request = json!({"bucket": BUCKET, "index": "by_n", "consistency": "request_plus"});
        let reply = client.scan(&request).await.map_err(|refused| refused.to_string())?;
        let rows = reply["rows"].as_array().into_iter().flatten();
        let shown: Vec<(String, u64)> = rows
            .map(|row| (row["id"].as_str().unwrap_or_default().to_owned(), row["key"][0].as_u64().unwrap_or_default()))
            .collect();
        let right = shown.len() == expected.len() && shown.into_iter().collect::<BTreeMap<_, _>>() == expected;
        let good = right && reply["exact"] == true && reply["unindexed"] == 1;
        good.then_some(()).ok_or_else(|| reply.to_string())
    })
    .await
}

/// Waits until the newest bookmark in the log is of this sequence.
async fn is_bookmark(client: &Client, sequence: u64) -> Result<()> {
    until(&format!("a bookmark of {sequence}"), WITHIN, async || {
        let asked = client.request("hw.admin.state.get", &json!({"bucket": BUCKET})).await;
        let state = asked.map_err(|refused| refused.to_string())?;
        let marks = &state["state"]["buckets"][BUCKET]["vbuckets"][0]["bookmarks"];
        let newest = marks.as_array().and_then(|all| all.last()).and_then(|mark| mark["seqno"].as_u64());
        (newest == Some(sequence)).then_some(()).ok_or_else(|| format!("{marks}"))
    })
    .await
}

/// Documents that the bucket's projector has read for builds and catchups since it began.
async fn caught_up(client: &Client) -> Result<u64> {
    // After a restart of NATS nobody coordinates for a moment, and only a coordinator knows of buckets.
    until("the number of reads", WITHIN, async || {
        let bucket = client.bucket(BUCKET).await.map_err(|refused| refused.to_string())?;
        bucket["vbuckets"][0]["reads"]["catchup"].as_u64().ok_or_else(|| bucket.to_string())
    })
    .await
}

async fn overwritten(away: Away) -> Result<()> {
    Cluster::start_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            Source::key_value(&client, BUCKET).await?;
            client.create_index(&json!({"bucket": BUCKET, "name": "by_n", "keys": ["n"]})).await?;
            client.wait_active(BUCKET, "by_n", WITHIN).await?;
            let newest = write(cluster, 0, true).await?;
            is_seen(&client, 0).await?;
            for round in 1..=3 {
                // What is read last, and made durable, is the one that is not text.
                let newest = if round == 1 { newest } else { write(cluster, 1_000 * round, true).await? };
                is_seen(&client, if round == 1 { 0 } else { 1_000 * round }).await?;
                is_bookmark(&client, newest).await?;
                let before = (Branches::at_rest(&client, BUCKET, WITHIN).await?, caught_up(&client).await?);
                match away {
                    Away::Frozen => cluster.node(PROJECTOR)?.freeze()?,
                    Away::Stopped => cluster.stop(PROJECTOR).await?,
                }
                write(cluster, 1_000 * round + 500, false).await?;
                let mut stream = client.js.get_stream(STREAM).await?;
                let gone = stream.get_raw_message(newest).await.is_err();
                ensure!(gone && stream.info().await?.state.messages == DOCUMENTS + 1, "it is not overwritten");
                cluster.nats().stop()?;
                cluster.nats().start_again()?;
                match away {
                    Away::Frozen => cluster.node(PROJECTOR)?.thaw()?,
                    Away::Stopped => cluster.start_node(PROJECTOR).await?,
                }
                is_seen(&client, 1_000 * round + 500).await?;
                let after = Branches::at_rest(&client, BUCKET, WITHIN).await?;
                println!("{away:?} {round}: {} branches, {} before", after.count(0), before.0.count(0));
                ensure!(!after.broken(), "something counts as lost: {after:?}");
                // Another start of the projector counts from the beginning.
                let read = caught_up(&client).await?;
                let expected = if away == Away::Frozen { before.1 } else { 0 };
                ensure!(read == expected, "{read} documents were read for catchups, {expected} before");
                let index = client.index(BUCKET, "by_n").await?;
                ensure!(index["state"] == "active", "{index}");
            }
            Ok(())
        })
        .await
}
