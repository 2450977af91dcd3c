//! Promises of topics: who subscribes gets an unbroken chain of what its predicate wants, from the next batch on, and nobody
//! else is disturbed.

use highwater_schemas::{
    Position,
    wire::{BatchView, partition_of},
};
use highwater_tests::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const BUCKET: &str = "orders";
const STREAMS: usize = 2;
const PARTITIONS: u32 = 3;
const WITHIN: Duration = Duration::from_secs(30);

/// What a subscriber got of one vbucket.
#[derive(Debug, Default)]
struct Got {
    chain: Vec<(Position, Position)>,
    /// Documents with the partitions and indexes of their entries.
    docs: BTreeSet<String>,
    indexes: BTreeSet<u32>,
}

/// Reads all that a subject of a stream holds; fails where a chain is broken.
async fn got(client: &Client, stream: &str, subject: &str) -> Result<BTreeMap<u16, Got>> {
    let stream = client.js.get_stream(stream).await?;
    let mut all: BTreeMap<u16, Got> = BTreeMap::new();
    let last = stream.cached_info().state.last_sequence;
    for seq in stream.cached_info().state.first_sequence..=last {
        let Ok(message) = stream.get_raw_message(seq).await else { continue };
        if message.subject.as_str() != subject {
            continue;
        }
        let batch =
            BatchView::parse(BUCKET, &message.payload[..]).map_err(|e| anyhow::anyhow!("{subject} {seq}: {e}"))?;
        let of_vb = all.entry(batch.vb).or_default();
        if let Some((_, to)) = of_vb.chain.last() {
            ensure!(*to == batch.from, "the chain of vbucket {} breaks at {to:?}: {:?}", batch.vb, batch.from);
        }
        of_vb.chain.push((batch.from, batch.to));
        for doc in batch.versions().context("no versions")?.docs() {
            of_vb.docs.insert(doc.docid.to_owned());
            of_vb.indexes.extend(doc.keys().map(|key| key.index));
        }
    }
    Ok(all)
}

/// Waits until a subscriber's chains reach the sources' ends.
async fn reaches(client: &Client, stream: &str, subject: &str, ends: &[u64]) -> Result<BTreeMap<u16, Got>> {
    until(&format!("{subject} reaches {ends:?}"), WITHIN, async || {
        let all = got(client, stream, subject).await.map_err(|e| format!("{e:#}"))?;
        let reached =
            |vb: u16, end: u64| all.get(&vb).and_then(|g| g.chain.last()).is_some_and(|(_, to)| to.seqno >= end);
        let there = (0..).zip(ends).all(|(vb, end)| reached(vb, *end));
        if there { Ok(all) } else { Err(format!("{:?}", all.values().map(|g| g.chain.last()).collect::<Vec<_>>())) }
    })
    .await
}

async fn ends(client: &Client) -> Result<Vec<u64>> {
    let mut ends = Vec::new();
    for vb in 0..STREAMS {
        let stream = client.js.get_stream(format!("{BUCKET}_{vb}")).await?;
        ends.push(stream.cached_info().state.last_sequence);
    }
    Ok(ends)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_gets_what_its_predicate_wants_in_an_unbroken_chain() -> Result<()> {
    let mut rng = Rng::seeded("topics");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::keyed_streams(&client, BUCKET, STREAMS).await?;
            let indexes = documents::indexes(PARTITIONS);
            for index in &indexes {
                client.create_index(&index.definition(BUCKET)).await?;
                client.wait_active(BUCKET, &index.name, WITHIN).await?;
            }
            // By its name in the definition, and by its number in the batches.
            let wanted = indexes.iter().find(|i| i.name == "by_city_parted").context("no parted index")?;
            let state = client.request("hw.admin.state.get", &json!({"bucket": BUCKET})).await?;
            let known = state["state"]["buckets"][BUCKET]["indexes"].as_array().cloned().unwrap_or_default();
            let number = known
                .iter()
                .find(|i| i["placed"]["definition"]["name"] == wanted.name.as_str())
                .and_then(|i| i["placed"]["number"].as_u64())
                .context("the index has no number")?;

            let topic = json!({"bucket": BUCKET, "topic": "feed"});
            client.request("hw.admin.topic.create", &topic).await?;
            let predicate = format!("index = '{}' AND partition = 1", wanted.name);
            let part = json!({"bucket": BUCKET, "topic": "feed", "subscriber": "part", "predicate": predicate});
            let part = client.request("hw.admin.topic.subscribe", &part).await?;
            let stream = part["stream"].as_str().context("no stream")?.to_owned();
            let streamed = json!({"bucket": BUCKET, "topic": "feed", "subscriber": "one_vb",
                "predicate": format!("vbucket = '{BUCKET}_1'")});
            let one_vb = client.request("hw.admin.topic.subscribe", &streamed).await?;
            let all = json!({"bucket": BUCKET, "topic": "mutation", "subscriber": "everything"});
            let all = client.request("hw.admin.topic.subscribe", &all).await?;
            let subject = |reply: &Value| reply["subject"].as_str().unwrap_or_default().to_owned();

            let writes: Vec<Write> = (0..2_000).map(|_| documents::write(&mut rng, STREAMS, 300)).collect();
            let written: BTreeSet<(usize, String)> = writes.iter().map(|w| (w.vb, w.id.clone())).collect();
            source.write(writes).await?;
            let ends = ends(&client).await?;

            let part = reaches(&client, &stream, &subject(&part), &ends).await?;
            for (vb, got) in &part {
                let mine: BTreeSet<String> = written
                    .iter()
                    .filter(|(v, id)| *v == usize::from(*vb) && partition_of(id, PARTITIONS) == 1)
                    .map(|(_, id)| id.clone())
                    .collect();
                ensure!(got.docs == mine, "vbucket {vb}: {} documents, not {}", got.docs.len(), mine.len());
                ensure!(got.indexes.iter().all(|i| u64::from(*i) == number), "{:?}, not {number}", got.indexes);
            }
            let one_vb = reaches(&client, &stream, &subject(&one_vb), &ends).await?;
            ensure!(one_vb[&0].docs.is_empty() && one_vb[&0].chain.len() > 1, "it sees that time passes");
            ensure!(one_vb[&1].docs.len() > part[&1].docs.len() && one_vb[&1].indexes.len() > 1);
            let everything = reaches(&client, "HW_MUTATION_orders", &subject(&all), &ends).await?;
            ensure!((0..STREAMS).all(|vb| everything[&(vb as u16)].docs.len() >= one_vb[&1].docs.len() / 2));

            let listed = client.request("hw.admin.topic.list", &json!({"bucket": BUCKET})).await?;
            let text = listed["topics"].to_string();
            for name in ["part", "one_vb", "everything", "indexer-1", "by_city_parted"] {
                ensure!(text.contains(name), "{name} is not listed: {text}");
            }
            // A subscriber that nobody reads, and a topic that is gone, hold nothing up.
            client
                .request(
                    "hw.admin.topic.unsubscribe",
                    &json!({"bucket": BUCKET, "topic": "mutation", "subscriber": "everything"}),
                )
                .await?;
            client.request("hw.admin.topic.delete", &topic).await?;
            for index in &indexes {
                ask::whole(&client, &source, index).await?;
            }
            source.write((0..500).map(|_| documents::write(&mut rng, STREAMS, 300))).await?;
            for index in &indexes {
                ask::whole(&client, &source, index).await?;
                ask::random(&client, &source, index, &mut rng).await?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_subscribed_to_is_refused_with_its_reason() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            Source::keyed_streams(&client, BUCKET, 1).await?;
            client.create_index(&documents::indexes(1)[0].definition(BUCKET)).await?;
            let of = |topic: &str, subscriber: &str, predicate: &str| {
                json!({"bucket": BUCKET, "topic": topic, "subscriber": subscriber, "predicate": predicate})
            };
            for (verb, request, code) in [
                ("subscribe", of("none", "s", ""), "topic_not_found"),
                ("subscribe", of("mutation", "s", "indx = 'a'"), "bad_expression"),
                ("subscribe", of("mutation", "s", "index = "), "bad_expression"),
                ("subscribe", of("mutation", "indexer-1", ""), "bad_definition"),
                ("subscribe", of("mutation", "a.b", ""), "bad_name"),
                ("subscribe", json!({"bucket": BUCKET, "topic": "mutation", "subscriber": "s", "pred": ""}), "unknown_field"),
                ("create", json!({"bucket": "none", "topic": "t"}), "bucket_not_found"),
                ("create", json!({"bucket": BUCKET, "topic": "mutation"}), "topic_exists"),
                ("create", json!({"bucket": BUCKET, "topic": "a b"}), "bad_name"),
                ("delete", json!({"bucket": BUCKET, "topic": "mutation"}), "topic_not_found"),
                ("unsubscribe", json!({"bucket": BUCKET, "topic": "mutation", "subscriber": "s"}), "topic_not_found"),
                ("list", json!({"bucket": "none"}), "bucket_not_found"),
            ] {
                match client.request(&format!("hw.admin.topic.{verb}"), &request).await {
                    Err(refused) if refused.code == code => {}
                    other => bail!("{verb} {request}: not {code}: {other:?}"),
                }
            }
            Ok(())
        })
        .await
}
