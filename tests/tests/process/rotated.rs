//! What a service is let in by is replaced while it runs: it goes on by what its files hold then, over each of its connections.

use async_nats::ConnectOptions;
use highwater_tests::{
    cluster::SERVICES,
    load,
    made::{Authority, Operator, key},
    prelude::*,
    stated,
};
use nkeys::KeyPairType;
use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

const BUCKET: &str = "people";
const WITHIN: Duration = Duration::from_secs(60);
/// So long the first user is one: the services are there by then, or come by the second.
const FIRST_USER: Duration = Duration::from_secs(20);

/// Of each service's connections, the user; by the server's list.
fn users(cluster: &mut Cluster) -> Result<Vec<(String, String)>> {
    let told = cluster.nats().monitored("connz?auth=1")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = told["connections"].as_array().context("no connections")?.iter();
    let all = all.map(|connection| (text(&connection["name"]), text(&connection["authorized_user"])));
    Ok(all.filter(|(name, _)| name.starts_with("highwater ")).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_user_of_a_credentials_file_takes_over_from_one_that_expires() -> Result<()> {
    let (first, second, tests) = (key(KeyPairType::User, 4)?, key(KeyPairType::User, 5)?, key(KeyPairType::User, 6)?);
    let directory = tempfile::tempdir()?;
    let operator = Operator::new(directory.path())?;
    let file = directory.path().join("service.creds");
    let end = (SystemTime::now() + FIRST_USER).duration_since(UNIX_EPOCH)?.as_secs();
    fs::write(&file, operator.credentials_until(&first, &first.seed()?, Some(end))?)?;
    let own = ConnectOptions::with_credentials(&operator.credentials(&tests, &tests.seed()?)?)?;
    Cluster::configured(&format!("jetstream: enabled\nhttp: \"127.0.0.1:-1\"\n{}", operator.configuration))?
        .with_options(own)
        .with_access(vec!["--creds".into(), file.to_string_lossy().into_owned()])
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let mut rng = Rng::seeded("rotated");
            let indexes = &documents::indexes(1)[..1];
            let source = load::indexed(&client, BUCKET, 200, indexes, &mut rng, WITHIN).await?;
            fs::write(&file, operator.credentials(&second, &second.seed()?)?)?;
            let (old, new) = (first.public_key(), second.public_key());
            until("every connection is of the second user", WITHIN, || {
                std::future::ready(match users(cluster) {
                    Ok(all) if all.len() >= 2 * SERVICES.len() && all.iter().all(|(_, user)| *user == new) => Ok(()),
                    other => Err(format!("{old} before, {new} now: {other:?}")),
                })
            })
            .await?;
            client.wait_formed(&SERVICES).await?;
            load::write(&source, 50, &mut rng).await?;
            ask::each_again(&client, &source, indexes, WITHIN).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_were_replaced_count_from_the_next_connection_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let authority = Authority::new(directory.path(), "ours")?;
    Cluster::configured(&format!("jetstream: enabled\nhttp: \"127.0.0.1:-1\"\n{}", authority.mutual()))?
        .with_options(authority.options(ConnectOptions::new()))
        .with_access(authority.flags())
        .breakable(&["projector-1"])?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let mut rng = Rng::seeded("certificates");
            let indexes = &documents::indexes(1)[..1];
            let source = load::indexed(&client, BUCKET, 200, indexes, &mut rng, WITHIN).await?;
            cluster.panic_at("projector-1", "certificates")?;
            cluster.nats().kill();
            // Who kept the first authority trusts the server no more, and the server nobody who kept its certificate.
            Authority::new(directory.path(), "ours")?;
            cluster.nats().start_again()?;
            until("all have come back", WITHIN, || {
                std::future::ready(match users(cluster) {
                    Ok(all) if all.len() >= 2 * SERVICES.len() => Ok(()),
                    other => Err(format!("{other:?}")),
                })
            })
            .await?;
            client.wait_formed(&SERVICES).await?;
            // The projector panicked while it read the files, and has read them again.
            cluster.hit("projector-1", "certificates").await?;
            stated::panicked(&client, "projector-1", "reading certificates", WITHIN).await?;
            load::write(&source, 50, &mut rng).await?;
            ask::each_again(&client, &source, indexes, WITHIN).await
        })
        .await
}
