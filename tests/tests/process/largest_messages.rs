//! A nats-server may be told to take messages that nobody here wants whole. Stored in a source each is a document that is too large,
//! sent as a request it is malformed, and neither ends a connection. (On disk nats-server stores no message above 32 MiB.)

use highwater_tests::{beats::Beats, cluster::SERVICES, prelude::*, raw::Raw, wait::stretched};
use std::collections::BTreeSet;

const BUCKET: &str = "people";
const CONFIGURATION: &str = "max_payload: 80MB\nmax_pending: 256MB\njetstream {}\n";
/// Above what is read of a message.
const LARGEST: usize = 65 * 1024 * 1024;
const DOCUMENTS: u64 = 20;
const WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_larger_than_is_read_are_counted_or_refused_and_end_nothing() -> Result<()> {
    Cluster::configured(CONFIGURATION)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value_in_memory(&client, BUCKET).await?;
            let small = |n: u64| Write::put(0, format!("d{n}"), &json!({"n": n}));
            source.write((0..DOCUMENTS).map(small)).await?;
            client.create_index(&json!({"bucket": BUCKET, "name": "by_n", "keys": ["n"]})).await?;
            client.wait_active(BUCKET, "by_n", WITHIN).await?;
            let mut raw = Raw::connect(cluster.nats().port()).await?;
            let within = stretched(WITHIN);
            let padding = vec![b' '; LARGEST];
            // It takes the place of a document that was indexed; the next one is deleted by one that is as large.
            let delete = b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n";
            for (subject, headers) in [("$KV.people.d0", None), ("$KV.people.d1", Some(&delete[..]))] {
                let stored = raw.request(subject.as_bytes(), headers, &padding, within).await?.context("not stored")?;
                let stored: Value = serde_json::from_slice(&stored)?;
                ensure!(stored["seq"].is_u64(), "not stored: {stored}");
            }
            source.write([small(2), Write::put(0, "behind", &json!({"n": 1_000}))]).await?;
            // Some take an empty request for one without fields.
            for subject in
                ["hw.query.scan", "hw.query.list", "hw.admin.bucket.add", "hw.admin.state.get", "hw.cluster.members"]
            {
                let answer = raw.request(subject.as_bytes(), None, &padding, within).await?.context("no answer")?;
                let answer: Value = serde_json::from_slice(&answer)?;
                let message = answer["error"]["message"].as_str().unwrap_or_default();
                let right = answer["error"]["code"] == "malformed_request" && message.contains(" bytes; at most ");
                ensure!(right, "{subject}: {answer}");
            }
            for node in SERVICES {
                raw.publish(format!("hw.node.{node}.status").as_bytes(), b"", None, &padding).await?;
            }
            raw.flush().await?;
            until("what is small is indexed", WITHIN, async || {
                let request = json!({"bucket": BUCKET, "index": "by_n", "consistency": "request_plus"});
                let reply = client.scan(&request).await.map_err(|refused| refused.to_string())?;
                let rows = reply["rows"].as_array().map_or(0, Vec::len) as u64;
                let right = rows == DOCUMENTS - 1 && reply["exact"] == true && reply["unindexed"] == 1;
                right.then_some(()).ok_or_else(|| reply.to_string())
            })
            .await?;
            let described = client.request("hw.query.describe", &json!({"bucket": BUCKET, "index": "by_n"})).await?;
            ensure!(described.to_string().contains("too_large"), "{described}");
            // A connection that was lost is stated from the next heartbeat on.
            let (mut beats, mut unheard) = (Beats::listen(&client).await?, BTreeSet::from(SERVICES));
            while !unheard.is_empty() {
                let beat = beats.next(WITHIN).await?;
                ensure!(beat.troubles.is_empty(), "{} states {:?}", beat.node, beat.troubles);
                unheard.remove(&*beat.node);
            }
            Ok(())
        })
        .await
}
