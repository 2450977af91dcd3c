//! What keeps a process from starting is said in one clear line; it ends with a failure and without a panic.

use highwater_tests::{binaries, child::Child, nats::NatsServer, prelude::*};
use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

const ENDS_WITHIN: Duration = Duration::from_secs(20);
const SERVICES: [&str; 4] = ["coordinator", "projector", "indexer", "catalog"];

fn directory() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("highwater-test-").tempdir().context("no temporary directory")
}

fn highwater(arguments: &[&str]) -> Result<Command> {
    let mut command = binaries::command()?;
    command.args(arguments).env_remove("HIGHWATER_NATS_SERVER").env_remove("HIGHWATER_LOG");
    Ok(command)
}

fn service(kind: &str, data: &Path, url: &str) -> Result<Command> {
    highwater(&[kind, "--node-id", "n1", "--data-dir", &data.to_string_lossy(), "--nats-url", url])
}

/// A port that nobody listens on.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Runs it to its end: it must fail, with exactly one line that is its error and has all of `words`.
async fn fails(name: &str, command: Command, at: &Path, words: &[&str]) -> Result<()> {
    let mut child = Child::start(name, command, at)?;
    let status = child.ended(ENDS_WITHIN).await?;
    let log = child.log();
    ensure!(status.code() == Some(1), "{name}: {status}\n{log}");
    ensure!(!log.contains("panicked"), "{name} panicked:\n{log}");
    ensure!(child.said("highwater ready").is_none(), "{name} said that it is ready");
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("highwater: ")).collect();
    let [error] = errors[..] else { bail!("{name} said {} lines:\n{log}", errors.len()) };
    for word in words {
        ensure!(error.contains(word), "{name} does not say {word}: {error}");
    }
    // Whatever else there is comes from logging.
    let logged = |line: &str| line.starts_with("20") && line.contains("Z ");
    let odd = log.lines().find(|line| !line.starts_with("highwater: ") && !logged(line));
    ensure!(odd.is_none(), "{name} also says {odd:?}");
    println!("{name}: {error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_that_is_not_there_is_said() -> Result<()> {
    let at = directory()?;
    let url = format!("nats://127.0.0.1:{}", free_port()?);
    for kind in SERVICES {
        fails(kind, service(kind, &at.path().join("data"), &url)?, at.path(), &["cannot reach", &url]).await?;
    }
    let data = at.path().join("dev").to_string_lossy().into_owned();
    let command = highwater(&["dev", "--data-dir", &data, "--nats-url", &url])?;
    fails("dev", command, at.path(), &["cannot reach", &url]).await?;
    let command = highwater(&["status", "--nats-url", &url])?;
    fails("status", command, at.path(), &["cannot reach", &url]).await?;
    let command = service("indexer", &at.path().join("data"), "http://[")?;
    fails("odd-url", command, at.path(), &["http://[", "URL"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_jetstream_is_said() -> Result<()> {
    let at = directory()?;
    let server = NatsServer::start_with(&at.path().join("nats"), &[])?;
    for kind in SERVICES {
        let command = service(kind, &at.path().join("data"), server.url())?;
        fails(kind, command, at.path(), &["JetStream", server.url()]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_said() -> Result<()> {
    let at = directory()?;
    let server = NatsServer::start_with(&at.path().join("nats"), &["-js", "--user", "ada", "--pass", "secret"])?;
    let data = at.path().join("data");
    for kind in SERVICES {
        fails(kind, service(kind, &data, server.url())?, at.path(), &["credentials", server.url()]).await?;
    }
    let mut command = service("catalog", &data, server.url())?;
    command.args(["--nats-user", "ada", "--nats-password", "guess"]);
    fails("wrong-password", command, at.path(), &["credentials"]).await?;
    let mut command = service("catalog", &data, server.url())?;
    command.args(["--nats-creds", "nowhere.creds"]);
    fails("no-credentials-file", command, at.path(), &["nowhere.creds"]).await?;
    let mut command = service("catalog", &data, server.url())?;
    command.args(["--nats-nkey", "not a seed"]);
    fails("odd-nkey", command, at.path(), &[]).await?;

    // The right ones are taken.
    let mut command = service("coordinator", &data, server.url())?;
    command.args(["--nats-user", "ada", "--nats-password", "secret"]);
    let child = Child::start("right", command, at.path())?;
    until("the coordinator is ready", ENDS_WITHIN, || async {
        child.said("highwater ready").ok_or_else(|| child.log_tail())
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_says_when_it_cannot_have_its_own_server() -> Result<()> {
    let at = directory()?;
    let data = at.path().join("data").to_string_lossy().into_owned();
    let dev = |port: u16| highwater(&["dev", "--data-dir", &data, "--nats-port", &port.to_string()]);
    let real = binaries::nats_server()?;

    let taken = TcpListener::bind(("127.0.0.1", 0))?;
    let port = taken.local_addr()?.port();
    let mut command = dev(port)?;
    command.env("HIGHWATER_NATS_SERVER", &real);
    fails("port-taken", command, at.path(), &[&format!("port {port} is taken"), "--nats-url"]).await?;

    let old = at.path().join("nats-server");
    fs::write(&old, "#!/bin/sh\necho 'nats-server: v2.9.25'\n")?;
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755))?;
    let mut command = dev(free_port()?)?;
    command.env("HIGHWATER_NATS_SERVER", &old);
    fails("too-old", command, at.path(), &["2.9.25", "too old", "2.11"]).await?;
    let mut command = dev(free_port()?)?;
    command.env("PATH", at.path());
    fails("too-old-in-path", command, at.path(), &["2.9.25", "too old", "2.11"]).await?;

    let mut command = dev(free_port()?)?;
    command.env("HIGHWATER_NATS_SERVER", at.path().join("nothing"));
    fails("named-and-missing", command, at.path(), &["HIGHWATER_NATS_SERVER", "nothing"]).await?;
    let empty = at.path().join("empty");
    fs::create_dir(&empty)?;
    let mut command = dev(free_port()?)?;
    command.env("PATH", &empty);
    fails("missing", command, at.path(), &["no nats-server", "install", "HIGHWATER_NATS_SERVER"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_that_cannot_be_used_is_said() -> Result<()> {
    let at = directory()?;
    let server = NatsServer::start(&at.path().join("nats"))?;
    // A file where the directory should be stops every user, root included.
    let file = at.path().join("file");
    File::create(&file)?;
    for kind in ["coordinator", "indexer"] {
        let command = service(kind, &file, server.url())?;
        fails(kind, command, at.path(), &["data directory", &file.to_string_lossy()]).await?;
    }
    let command = highwater(&["dev", "--data-dir", &file.to_string_lossy(), "--nats-url", server.url()])?;
    fails("dev", command, at.path(), &["data directory", &file.to_string_lossy()]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_in_use_is_said() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    let at = directory()?;
    for node in ["coordinator-1", "indexer-1"] {
        let command = cluster.command(node)?;
        fails(node, command, at.path(), &["data directory", "in use by another process"]).await?;
    }
    cluster.check()?;
    let client = cluster.client().await?;
    client.request("hw.query.list", &json!({})).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_errors_end_with_two() -> Result<()> {
    for arguments in [
        &["indexer"][..],
        &["indexer", "--node-id", "n"],
        &["scan", "b"],
        &["dev", "--nats-url", "x", "--nats-port", "1"],
        &["dev", "--nats-port", "99999"],
        &["scan", "b", "i", "--limit", "ten"],
        &["no-such-command"],
        &["dev", "--memory-quota", "1MiB"],
        &["indexer", "--node-id", "n", "--data-dir", "d", "--kept-least", "0"],
        &["catalog", "--node-id", "n", "--data-dir", "d", "--scan-timeout-ms", "9", "--max-scan-timeout-ms", "8"],
        &["index", "verify"],
        &["index", "verify", "b", "--data-dir", "d"],
        &["slice", "dump", "b"],
        &["slice", "dump", "b", "i", "--rows", "10001"],
    ] {
        let output = highwater(arguments)?.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{arguments:?}: {}\n{text}", output.status);
        ensure!(text.contains("error:") && !text.contains("panicked"), "{arguments:?}: {text}");
    }
    let at = directory()?;
    let url = format!("nats://127.0.0.1:{}", free_port()?);
    let data = at.path().to_string_lossy().into_owned();
    let command = highwater(&["catalog", "--node-id", "a.b", "--data-dir", &data, "--nats-url", &url])?;
    fails("odd-node", command, at.path(), &["node", "a.b"]).await
}
