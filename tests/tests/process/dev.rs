//! `highwater dev`, all services in one process, killed and started again on its data.

use highwater_tests::{binaries, child::Child, prelude::*};
use std::{fs, net::TcpListener, path::Path, process::Command};

/// `highwater dev` with the nats-server that it starts.
pub(crate) struct Dev<'a> {
    child: Child,
    directory: &'a Path,
    pub(crate) url: String,
}

impl<'a> Dev<'a> {
    pub(crate) async fn start(directory: &'a Path, port: u16) -> Result<Self> {
        let mut command = binaries::command()?;
        command.args(["dev", "--nats-port", &port.to_string(), "--data-dir"]).arg(directory.join("data"));
        command.env(binaries::NATS_SERVER, binaries::nats_server()?);
        let child = Child::start("dev", command, directory)?;
        let mut dev = Self { child, directory, url: String::new() };
        let line = dev.child.wait_said("highwater ready nats://", Duration::from_secs(40)).await?;
        line.trim_start_matches("highwater ready ").clone_into(&mut dev.url);
        Ok(dev)
    }

    /// SIGKILL for it and for the nats-server, as when the machine stops.
    fn kill(mut self) -> Result<()> {
        self.kill_all()
    }

    fn kill_all(&mut self) -> Result<()> {
        self.child.kill();
        for server in servers(self.directory)? {
            Command::new("kill").args(["-s", "KILL", &server]).status().context("kill does not start")?;
        }
        Ok(())
    }
}

impl Drop for Dev<'_> {
    fn drop(&mut self) {
        let _ = self.kill_all();
    }
}

/// The processes that have this directory in their command, by id.
fn servers(directory: &Path) -> Result<Vec<String>> {
    let directory = directory.to_string_lossy();
    let mut ids = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if id.bytes().all(|byte| byte.is_ascii_digit()) && String::from_utf8_lossy(&command).contains(&*directory) {
            ids.push(id);
        }
    }
    Ok(ids)
}

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_in_one_process_comes_back_from_sigkill_with_its_data() -> Result<()> {
    let mut rng = Rng::seeded("dev");
    let directory = tempfile::Builder::new().prefix("highwater-test-").tempdir()?;
    let dev = Dev::start(directory.path(), free_port()?).await?;
    let client = Client::connect(&dev.url).await?;
    let mut source = Source::key_value(&client, "people").await?;
    let indexes = documents::indexes(2);
    let some = |rng: &mut Rng| (0..2_000).map(|_| documents::write(rng, 1, 500)).collect::<Vec<_>>();
    source.write(some(&mut rng)).await?;
    client.create_indexes("people", &indexes, Duration::from_secs(30)).await?;
    source.write(some(&mut rng)).await?;
    ask::whole(&client, &source, &indexes[0]).await?;
    dev.kill()?;
    for _ in 0..2 {
        let dev = Dev::start(directory.path(), free_port()?).await?;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_of_a_killed_run_does_not_stand_in_the_way_of_the_next() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("highwater-test-").tempdir()?;
    let port = free_port()?;
    let mut dev = Dev::start(directory.path(), port).await?;
    let client = Client::connect(&dev.url).await?;
    let source = Source::key_value(&client, "people").await?;
    let index = documents::indexes(2).remove(3);
    client.create_index(&index.definition("people")).await?;
    source.write((0..100).map(|i| Write::put(0, format!("d{i}"), &json!({"n": i})))).await?;
    client.wait_active("people", &index.name, Duration::from_secs(30)).await?;
    dev.child.kill();
    ensure!(!servers(directory.path())?.is_empty(), "the server ended with it");
    let again = Dev::start(directory.path(), port).await?;
    let client = Client::connect(&again.url).await?;
    client.wait_active("people", &index.name, Duration::from_secs(30)).await?;
    ask::whole(&client, &source.over(&client), &index).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_in_one_process_ends_while_its_server_stands_still() -> Result<()> {
    /// What `docs/operating.md` promises, and what a loaded machine may add.
    const ENDS_WITHIN: Duration = Duration::from_secs(50);
    let directory = tempfile::Builder::new().prefix("highwater-test-").tempdir()?;
    let mut dev = Dev::start(directory.path(), free_port()?).await?;
    let own = dev.child.id().to_string();
    for server in servers(directory.path())?.into_iter().filter(|id| *id != own) {
        Command::new("kill").args(["-s", "STOP", &server]).status().context("kill does not start")?;
    }
    let asked = Instant::now();
    dev.child.terminate()?;
    while dev.child.exited().is_none() {
        ensure!(asked.elapsed() < ENDS_WITHIN, "it does not end\n{}", dev.child.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until("its server has gone with it", Duration::from_secs(5), async || {
        let left = servers(directory.path()).map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await
}
