//! Where NATS is reached over TLS every connection of every service is encrypted, our own as the client library's, and a long stream
//! is read in parts.

use highwater_tests::{cluster::SERVICES, prelude::*};
use std::{fs, path::Path};

const BUCKET: &str = "people";
/// So many are read in parts.
const DOCUMENTS: u64 = 70_000;
const WITHIN: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(10);

/// A certificate for this machine with its key; the configuration of a server that has them.
fn configuration(directory: &Path) -> Result<String> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    fs::write(&certificate, made.cert.pem())?;
    fs::write(&key, made.signing_key.serialize_pem())?;
    // The test itself connects in the clear.
    let (certificate, key) = (certificate.display(), key.display());
    Ok(format!(
        "jetstream: enabled\nhttp: \"127.0.0.1:-1\"\nallow_non_tls: true\n\
         tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" }}\n"
    ))
}

/// Of the services' connections, how many are encrypted, and the others.
fn connections(cluster: &mut Cluster) -> Result<(usize, Vec<Value>)> {
    let told = cluster.nats().monitored("connz")?;
    let all = told["connections"].as_array().context("no connections")?;
    let of_services =
        all.iter().filter(|c| SERVICES.iter().any(|node| c["name"].as_str().is_some_and(|n| n.contains(node))));
    let (encrypted, clear): (Vec<_>, Vec<_>) = of_services.cloned().partition(|c| c["tls_version"].is_string());
    Ok((encrypted.len(), clear))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_is_encrypted_where_nats_is_reached_over_tls() -> Result<()> {
    let certificates = tempfile::tempdir()?;
    let mut cluster = Cluster::configured(&configuration(certificates.path())?)?
        .trusting(&certificates.path().join("certificate.pem"))
        .breakable(&["projector-1"])?;
    let url = cluster.url().replace("nats://", "tls://");
    for node in SERVICES.into_iter().chain(["cluster-manager-1"]) {
        cluster = cluster.with_detour(node, &url);
    }
    cluster
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            source.write((0..DOCUMENTS).map(|n| Write::put(0, format!("d{n}"), &json!({"n": n})))).await?;
            client.create_index(&json!({"bucket": BUCKET, "name": "by_n", "keys": ["n"]})).await?;
            client.wait_active(BUCKET, "by_n", WITHIN).await?;
            let newest = json!({"bucket": BUCKET, "index": "by_n", "consistency": "request_plus"});
            ensure!(client.count(&newest).await? == DOCUMENTS, "not every document is indexed");
            // It is read in parts: the reader of one can be made to panic.
            cluster.panic_at("projector-1", "part.KV_people")?;
            client.create_index(&json!({"bucket": BUCKET, "name": "again", "keys": ["n"]})).await?;
            cluster.hit("projector-1", "part.KV_people").await?;
            client.wait_active(BUCKET, "again", WITHIN).await?;
            let (encrypted, clear) = connections(cluster)?;
            // The client library's and our own of each.
            ensure!(
                encrypted >= 2 * SERVICES.len() && clear.is_empty(),
                "{encrypted} encrypted; in the clear: {clear:?}"
            );
            // Also after the server was away.
            cluster.nats().kill();
            cluster.nats().start_again()?;
            until("all have come back", SOON, || {
                std::future::ready(match connections(cluster) {
                    Ok((encrypted, clear)) if encrypted >= 2 * SERVICES.len() && clear.is_empty() => Ok(()),
                    other => Err(format!("{other:?}")),
                })
            })
            .await?;
            source.write([Write::put(0, "next", &json!({"n": DOCUMENTS}))]).await?;
            let reply = client.insist("hw.query.count", &newest, WITHIN).await?;
            ensure!(reply["count"] == DOCUMENTS + 1, "{reply}");
            Ok(())
        })
        .await
}
