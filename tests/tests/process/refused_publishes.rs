//! NATS refuses what a service publishes: that ends nobody, is stated, and all goes on once it may be published again.

use highwater_tests::{beats::Beats, cluster::SERVICES, load, prelude::*, stated, wait::deadline};

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(60);
/// Twice what it takes until a node without heartbeats is down.
const SILENT: Duration = Duration::from_secs(4);

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
    let refused = |stated: &stated::Stated| stated.says("permissions violation for publish") && stated.says(subject);
    stated::is_stated(client, subject, WITHIN, refused).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_published_ends_nobody() -> Result<()> {
    let mut rng = Rng::seeded("refused publishes");
    Cluster::configured(&configuration(NOTHING))?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = &documents::indexes(1)[..1];
            let source = load::indexed(&client, BUCKET, 200, indexes, &mut rng, WITHIN).await?;
            for (denied, said) in [("hw.stability.>", "hw.stability."), ("hw.sync.>", "hw.sync.")] {
                cluster.reconfigure(&configuration(denied))?;
                let newest = json!({"bucket": BUCKET, "index": indexes[0].name, "consistency": "request_plus",
                    "timeout_ms": 300});
                let deadline = deadline(WITHIN);
                loop {
                    load::write(&source, 5, &mut rng).await?;
                    match client.request("hw.query.count", &newest).await {
                        Err(refused) if refused.retry => break,
                        other => ensure!(Instant::now() < deadline, "{denied}: {other:?}"),
                    }
                }
                is_stated(&client, said).await.context(denied)?;
                cluster.reconfigure(&configuration(NOTHING))?;
                ask::each_again(&client, &source, indexes, WITHIN).await.context(denied)?;
            }
            // A cluster manager that does not even hear its own heartbeats takes no node for down.
            let mut beats = Beats::listen(&client).await?;
            for node in SERVICES {
                beats.of(node, 1, WITHIN).await?;
            }
            cluster.reconfigure(&configuration("hw.cluster.join"))?;
            beats.end(SILENT, WITHIN).await?;
            load::write(&source, 50, &mut rng).await?;
            ask::each(&client, &source, indexes).await?;
            client.wait_formed(&SERVICES).await?;
            cluster.reconfigure(&configuration(NOTHING))?;
            is_stated(&client, "hw.cluster.join").await?;
            ask::each_again(&client, &source, indexes, WITHIN).await?;
            load::write(&source, 50, &mut rng).await?;
            ask::each(&client, &source, indexes).await
        })
        .await
}
