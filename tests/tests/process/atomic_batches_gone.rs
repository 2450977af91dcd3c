//! An atomic batch of which a part is gone holds up nothing.

use crate::atomic_batches::{ANSWERED_WITHIN, Bank};
use highwater_tests::prelude::*;

/// Of a batch some messages are removed before anybody reads them, or while nothing else is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_which_a_part_is_gone_holds_up_nothing() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let bank = Bank::open(&client, "gone", 1, 1, 1).await?;
            bank.index("balances", json!({"keys": ["balance"]})).await?;
            let shown = async |wanted: &[i64]| {
                until(&format!("{wanted:?}"), ANSWERED_WITHIN, async || {
                    let request = json!({"bucket": "gone", "index": "balances", "consistency": "request_plus"});
                    let reply = client.scan(&request).await.map_err(|refused| refused.to_string())?;
                    let rows = reply["rows"].as_array().cloned().unwrap_or_default();
                    let found: Vec<i64> = rows.iter().filter_map(|row| row["key"][0].as_i64()).collect();
                    if reply["exact"] == true && found == wanted { Ok(()) } else { Err(reply.to_string()) }
                })
                .await
            };
            let batch = |from: i64| -> Vec<(String, Value)> {
                (from..from + 5).map(|n| (format!("d{n}"), json!({"balance": n}))).collect()
            };
            let remove = async |seq: u64| -> Result<()> {
                let done: Value =
                    client.js.request(format!("STREAM.MSG.DELETE.{}", bank.streams[0]), &json!({"seq": seq})).await?;
                ensure!(done["success"] == true, "{done}");
                Ok(())
            };
            // Its end, its beginning, its middle; read live, and only after that.
            let last = bank.batch(0, "b1", &batch(0), false).await?;
            remove(last).await?;
            // It may have been read before.
            client.insist("hw.admin.bucket.reconcile", &json!({"name": "gone"}), ANSWERED_WITHIN).await?;
            shown(&[0, 1, 2, 3]).await?;
            cluster.stop("projector-1").await?;
            let last = bank.batch(0, "b2", &batch(10), true).await?;
            remove(last).await?;
            cluster.start_node("projector-1").await?;
            shown(&[0, 1, 2, 3, 10, 11, 12, 13]).await?;
            cluster.stop("projector-1").await?;
            let last = bank.batch(0, "b3", &batch(20), false).await?;
            remove(last - 4).await?;
            remove(last - 2).await?;
            bank.batch(0, "b4", &batch(21), false).await?;
            cluster.start_node("projector-1").await?;
            shown(&[0, 1, 2, 3, 10, 11, 12, 13, 21, 22, 23, 24, 25]).await?;
            // All of it but the first, with nothing else to read.
            cluster.stop("projector-1").await?;
            let last = bank.batch(0, "b5", &batch(30), false).await?;
            for seq in last - 3..=last {
                remove(seq).await?;
            }
            cluster.start_node("projector-1").await?;
            shown(&[0, 1, 2, 3, 10, 11, 12, 13, 21, 22, 23, 24, 25, 30]).await
        })
        .await
}
