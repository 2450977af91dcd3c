//! `highwater ping`, which supervisors run as a health check.

use highwater_tests::{binaries, prelude::*};
use std::net::TcpListener;

/// The exit code, and what was said on stdout or stderr.
fn ping(arguments: &[&str], url: &str) -> Result<(Option<i32>, String)> {
    let mut command = binaries::command()?;
    let output = command.arg("ping").args(arguments).env("NATS_URL", url).output().context("highwater does not run")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_whether_a_node_or_nats_serves() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let url = cluster.url().to_owned();
            for (arguments, code, word) in [
                (&["indexer-1"][..], 0, "indexer-1 answers"),
                (&["--nats"], 0, "NATS answers"),
                (&["indexer-9"], 1, "no one answers"),
                (&["indexer.*"], 1, "node"),
                (&[], 2, "NODE"),
                (&["indexer-1", "--nats"], 2, "--nats"),
            ] {
                let (ended, said) = ping(arguments, &url)?;
                ensure!(ended == Some(code) && said.contains(word), "ping {arguments:?}: {ended:?} {said}");
            }
            // Stopped, but not gone: NATS still takes requests for it.
            cluster.node("indexer-1")?.freeze()?;
            let (ended, said) = ping(&["indexer-1", "--timeout-ms", "300"], &url)?;
            ensure!(ended == Some(1) && said.contains("300 ms"), "ping of a node that hangs: {ended:?} {said}");
            cluster.node("indexer-1")?.thaw()?;
            let (ended, said) = ping(&["indexer-1"], &url)?;
            ensure!(ended == Some(0), "ping of a node that goes on: {ended:?} {said}");

            let nobody = format!("nats://{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?);
            let (ended, said) = ping(&["--nats"], &nobody)?;
            ensure!(ended == Some(1) && said.contains("cannot reach"), "ping without NATS: {ended:?} {said}");
            Ok(())
        })
        .await
}
