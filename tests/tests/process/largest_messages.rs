//! A nats-server may be told to take messages that nobody here wants whole. Stored in a source each is a document that is too large,
//! sent as a request it is malformed, and neither ends a connection. (On disk nats-server stores no message above 32 MiB.)

use highwater_tests::{cluster::SERVICES, prelude::*, raw::Raw};

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
            let padding = vec![b' '; LARGEST];
            // It takes the place of a document that was indexed; the next one is deleted by one that is as large.
            let delete = b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n";
            for (subject, headers) in [("$KV.people.d0", None), ("$KV.people.d1", Some(&delete[..]))] {
                let stored = raw.request(subject.as_bytes(), headers, &padding, WITHIN).await?.context("not stored")?;
                let stored: Value = serde_json::from_slice(&stored)?;
                ensure!(stored["seq"].is_u64(), "not stored: {stored}");
            }
            source.write([small(2), Write::put(0, "behind", &json!({"n": 1_000}))]).await?;
            for subject in [&b"hw.query.scan"[..], b"hw.query.count", b"hw.admin.bucket.add"] {
                let answer = raw.request(subject, None, &padding, WITHIN).await?.context("no answer")?;
                let answer: Value = serde_json::from_slice(&answer)?;
                ensure!(answer["error"]["code"] == "malformed_request", "{answer}");
            }
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
            let members = client.members().await?;
            for member in members["members"].as_array().into_iter().flatten() {
                let troubles = member["troubles"].as_array().map_or(0, Vec::len);
                ensure!(troubles == 0, "{member}");
            }
            Ok(())
        })
        .await
}
