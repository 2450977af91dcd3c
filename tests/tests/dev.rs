//! `highwater dev`, all services in one process, killed and started again on its data.

use highwater_tests::{binaries, child::Child, prelude::*};
use std::{fs, net::TcpListener, path::Path, process::Command};

/// `highwater dev` with the nats-server that it starts.
struct Dev {
    child: Child,
    url: String,
}

impl Dev {
    async fn start(directory: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(binaries::highwater()?);
        command.args(["dev", "--nats-port", &port.to_string(), "--data-dir"]).arg(directory.join("data"));
        command.env(binaries::NATS_SERVER, binaries::nats_server()?);
        let mut child = Child::start("dev", command, directory)?;
        let ready = until("highwater dev serves", Duration::from_secs(40), async || {
            child.said("highwater ready nats://").ok_or_else(|| child.log_tail())
        })
        .await;
        match ready {
            Ok(line) => Ok(Self { url: line.trim_start_matches("highwater ready ").to_owned(), child }),
            Err(error) => {
                kill_with_server(&mut child)?;
                Err(error)
            }
        }
    }

    /// SIGKILL for it and for the nats-server, as when the machine stops.
    fn kill(mut self) -> Result<()> {
        kill_with_server(&mut self.child)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = kill_with_server(&mut self.child);
    }
}

fn kill_with_server(dev: &mut Child) -> Result<()> {
    if dev.exited().is_some() {
        return Ok(());
    }
    let mut servers: Vec<String> = Vec::new();
    // The server is a child of whichever thread started it.
    for thread in fs::read_dir(format!("/proc/{}/task", dev.id()))?.flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        servers.extend(children.split_whitespace().map(str::to_owned));
    }
    servers.sort_unstable();
    servers.dedup();
    dev.kill();
    for server in servers {
        Command::new("kill").args(["-9", &server]).status().context("kill does not start")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_in_one_process_comes_back_from_sigkill_with_its_data() -> Result<()> {
    let mut rng = Rng::seeded("dev");
    let directory = tempfile::Builder::new().prefix("highwater-test-").tempdir()?;
    let dev = Dev::start(directory.path()).await?;
    let client = Client::connect(&dev.url).await?;
    let mut source = Source::key_value(&client, "people").await?;
    let indexes = documents::indexes(2);
    let some = |rng: &mut Rng| (0..2_000).map(|_| documents::write(rng, 1, 500)).collect::<Vec<_>>();
    source.write(some(&mut rng)).await?;
    for index in &indexes {
        client.create_index(&index.definition("people")).await?;
    }
    for index in &indexes {
        client.wait_active("people", &index.name, Duration::from_secs(30)).await?;
    }
    source.write(some(&mut rng)).await?;
    ask::whole(&client, &source, &indexes[0]).await?;
    dev.kill()?;
    for _ in 0..2 {
        let dev = Dev::start(directory.path()).await?;
        let client = Client::connect(&dev.url).await?;
        source = source.over(&client);
        for index in &indexes {
            client.wait_active("people", &index.name, Duration::from_secs(30)).await?;
            ask::whole(&client, &source, index).await?;
        }
        source.write(some(&mut rng)).await?;
        for index in &indexes {
            ask::whole(&client, &source, index).await?;
            ask::random(&client, &source, index, &mut rng).await?;
        }
        dev.kill()?;
    }
    Ok(())
}
