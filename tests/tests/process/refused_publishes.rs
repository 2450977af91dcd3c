//! NATS refuses what a service publishes: that ends nobody, is stated, and all goes on once it may be published again.

use futures_util::StreamExt;
use highwater_schemas::subjects;
use highwater_tests::{cluster::SERVICES, load, prelude::*};

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(60);
/// Heartbeats come twice a second from each of the nodes.
const SILENT: Duration = Duration::from_secs(2);

/// The server's configuration; nobody may publish to this subject.
fn configuration(denied: &str) -> String {
    format!(
        "jetstream {{}}\nno_auth_user: tested\naccounts {{ TESTED {{ jetstream: enabled, users: [{{user: tested, \
         password: tested, permissions: {{publish: {{allow: \">\", deny: \"{denied}\"}}}}}}] }} }}\n"
    )
}

const NOTHING: &str = "denied";

/// A service says what the server refused.
async fn is_stated(client: &Client, subject: &str) -> Result<()> {
    until("it is stated", WITHIN, async || {
        let members = client.members().await.map_err(|refused| refused.to_string())?;
        let text = members.to_string().to_lowercase();
        let stated = text.contains("permissions violation for publish") && text.contains(subject);
        if stated { Ok(()) } else { Err(members.to_string()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_published_ends_nobody() -> Result<()> {
    let mut rng = Rng::seeded("refused publishes");
    Cluster::configured(&configuration(NOTHING))?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            load::write(&source, 200, &mut rng).await?;
            let index = documents::indexes(1).swap_remove(0);
            client.create_indexes(BUCKET, std::slice::from_ref(&index), WITHIN).await?;
            ask::whole(&client, &source, &index).await?;
            for (denied, said) in [("hw.stability.>", "hw.stability."), ("hw.sync.>", "hw.sync.")] {
                cluster.reconfigure(&configuration(denied))?;
                let newest = json!({"bucket": BUCKET, "index": index.name, "consistency": "request_plus",
                    "timeout_ms": 300});
                let deadline = Instant::now() + WITHIN;
                loop {
                    load::write(&source, 5, &mut rng).await?;
                    match client.request("hw.query.count", &newest).await {
                        Err(refused) if refused.retry => break,
                        other => ensure!(Instant::now() < deadline, "{denied}: {other:?}"),
                    }
                }
                is_stated(&client, said).await.context(denied)?;
                cluster.reconfigure(&configuration(NOTHING))?;
                until("all goes on", WITHIN, async || {
                    ask::newest(&client, &source, &index).await.map_err(|error| format!("{error:#}"))
                })
                .await
                .context(denied)?;
                ask::whole(&client, &source, &index).await.context(denied)?;
            }
            // Who does not hear even itself takes nobody for down.
            let mut beats = client.nats.subscribe(subjects::CLUSTER_JOIN).await?;
            cluster.reconfigure(&configuration("hw.cluster.join"))?;
            let deadline = Instant::now() + WITHIN;
            while tokio::time::timeout(SILENT, beats.next()).await.is_ok() {
                ensure!(Instant::now() < deadline, "heartbeats come");
            }
            load::write(&source, 50, &mut rng).await?;
            ask::whole(&client, &source, &index).await?;
            client.wait_formed(&SERVICES).await?;
            cluster.reconfigure(&configuration(NOTHING))?;
            is_stated(&client, "hw.cluster.join").await?;
            until("all goes on", WITHIN, async || {
                ask::newest(&client, &source, &index).await.map_err(|error| format!("{error:#}"))
            })
            .await?;
            load::write(&source, 50, &mut rng).await?;
            ask::whole(&client, &source, &index).await
        })
        .await
}
