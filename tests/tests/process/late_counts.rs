//! A count that takes longer than it may is refused in time, whether it waits for its turn on a node, is read there, or the node
//! does not answer at all, and the node goes on: the next one that has the time for it is right.

use futures_util::future::join_all;
use highwater_tests::{client::Refused, cluster::SERVICES, prelude::*};

const BUCKET: &str = "people";
const INDEXER: &str = "indexer-1";
const FAULT: &str = "scan.people";
/// A count of nearly all of them reads each row; that of all of them does not.
const DOCUMENTS: u64 = 200_000;
const WITHIN: Duration = Duration::from_secs(60);
/// Counts at once, on a node that reads for one of them at a time.
const AT_ONCE: usize = 64;

fn request(consistency: &str, timeout_ms: u64) -> Value {
    let spans = json!([{"low": [1]}]);
    json!({"bucket": BUCKET, "index": "by_n", "spans": spans, "consistency": consistency, "timeout_ms": timeout_ms})
}

/// Refused with this code, in the headers too, so that the client may ask again.
fn is_refused(refused: &Refused, code: &str, number: &str) -> Result<()> {
    let headers = (refused.headers.0.as_deref(), refused.headers.1.as_deref());
    ensure!(refused.code == code && refused.retry && headers == (Some(code), Some(number)), "{refused:?}");
    Ok(())
}

/// A count, and part of one, are right when there is time for them.
async fn are_right(client: &Client) -> Result<()> {
    for consistency in ["any", "request_plus"] {
        let count = client.count(&request(consistency, 20_000)).await?;
        ensure!(count == DOCUMENTS - 1, "{consistency}: {count}");
    }
    let mut part = request("any", 20_000);
    part["spans"] = json!([{"low": [10], "high": [19]}, {"low": [1_000], "high": [1_999]}]);
    let count = client.count(&part).await?;
    ensure!(count == 1_010, "{count} in two spans");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_that_takes_longer_than_it_may_is_refused() -> Result<()> {
    let cluster = Cluster::without_services()?.with_arguments("indexer", &["--scans", "1"]);
    cluster
        .breakable(&[INDEXER])?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            source.write((0..DOCUMENTS).map(|n| Write::put(0, format!("d{n}"), &json!({"n": n})))).await?;
            client.create_index(&json!({"bucket": BUCKET, "name": "by_n", "keys": ["n"]})).await?;
            client.wait_active(BUCKET, "by_n", WITHIN).await?;
            are_right(&client).await?;

            // Nearly no time at all.
            for consistency in ["any", "request_plus"] {
                let request = request(consistency, 1);
                let answers = join_all((0..AT_ONCE).map(|_| client.count(&request))).await;
                let mut late = 0;
                for answer in answers {
                    match answer {
                        Ok(count) => ensure!(count == DOCUMENTS - 1, "{consistency}: {count}"),
                        Err(refused) => {
                            is_refused(&refused, "timeout", "504")?;
                            late += 1;
                        }
                    }
                }
                println!("{consistency}: {late} of {AT_ONCE} were late");
                ensure!(late > 0, "none was late");
                are_right(&client).await?;
            }

            // One stands still in the middle of it, and another one waits for its turn: the node says nothing.
            for _ in 0..2 {
                cluster.hang_at(INDEXER, FAULT)?;
                for _ in 0..2 {
                    let refused = client.count(&request("any", 300)).await.err().context("a count was answered")?;
                    is_refused(&refused, "node_unavailable", "503")?;
                    ensure!(cluster.is_hit(INDEXER, FAULT), "it was late before it was read");
                }
                cluster.release(INDEXER, FAULT)?;
                are_right(&client).await?;
            }
            Ok(())
        })
        .await
}
