//! Services whose JetStream is of another account: they reach its API under the prefix of an import.

use async_nats::ConnectOptions;
use highwater_tests::{cluster::SERVICES, load, prelude::*};

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(60);
/// As docs/connecting.md has it.
const ACCOUNTS: &str = r#"jetstream: enabled
accounts {
  HUB {
    jetstream: enabled
    users: [ { user: hub, password: hub } ]
    exports: [
      { service: "$JS.API.>", response_type: stream }
      { service: "hw.state.log" }
      { service: "hw.mutation.>" }
      { service: "hw.catchup.>" }
      { service: "hw.topic.>" }
      { service: "$KV.hw_cluster.>" }
    ]
  }
  ADA {
    users: [ { user: ada, password: ada } ]
    imports: [
      { service: { account: HUB, subject: "$JS.API.>" }, to: "js.hub.>" }
      { service: { account: HUB, subject: "hw.state.log" } }
      { service: { account: HUB, subject: "hw.mutation.>" } }
      { service: { account: HUB, subject: "hw.catchup.>" } }
      { service: { account: HUB, subject: "hw.topic.>" } }
      { service: { account: HUB, subject: "$KV.hw_cluster.>" }, to: "js.hub.$KV.hw_cluster.>" }
    ]
  }
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_use_the_jetstream_of_another_account() -> Result<()> {
    let user = |name: &str| ConnectOptions::with_user_and_password(name.into(), name.into());
    let access = ["--user", "ada", "--password", "ada", "--js-api-prefix", "js.hub"].map(str::to_owned).to_vec();
    Cluster::configured(ACCOUNTS)?
        .with_options(user("ada"))
        .with_access(access)
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let hub = Client::connect_with(cluster.url(), user("hub")).await?;
            let client = cluster.client().await?;
            let mut rng = Rng::seeded("another account");
            // Documents are written in the account of the streams, and asked for in that of the services.
            let source = Source::key_value(&hub, BUCKET).await?.patient(WITHIN);
            load::write(&source, 500, &mut rng).await?;
            let indexes = &documents::indexes(2)[..2];
            client.create_indexes(BUCKET, indexes, WITHIN).await?;
            ask::each(&client, &source, indexes).await?;
            cluster.nats().kill();
            cluster.nats().start_again()?;
            client.wait_formed(&SERVICES).await?;
            load::write(&source, 200, &mut rng).await?;
            ask::each_again(&client, &source, indexes, WITHIN).await
        })
        .await
}
