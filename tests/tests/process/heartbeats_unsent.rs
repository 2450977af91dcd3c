//! A heartbeat that cannot be sent is an error of the node, which is stated until one can be sent again.

use highwater_bus::{Bus, ConnectSettings, Heart};
use highwater_schemas::api::{Join, ManagerReport, NodeKind, Trouble};
use highwater_tests::{beats::Beats, nats::NatsServer, prelude::*};
use std::{fs, path::Path};
use tokio::time::timeout;

/// Bytes that the server takes in a message.
const MOST: usize = 150;
const EVERY: Duration = Duration::from_millis(500);
/// Between heartbeats here: some thousand have room in a connection that is lost.
const BETWEEN: Duration = Duration::from_millis(1);
/// What takes longer hangs.
const WITHIN: Duration = Duration::from_secs(120);

/// A server, and a node that is connected to it.
async fn started(directory: &Path, configuration: &str) -> Result<(NatsServer, Bus, Heart)> {
    let file = directory.join("nats.conf");
    fs::write(&file, configuration)?;
    let server = NatsServer::start_with(&directory.join("nats"), &["-c", &file.to_string_lossy()])?;
    let settings = ConnectSettings { url: server.url().into(), name: "test".into(), ..ConnectSettings::default() };
    let bus = Bus::connect(&settings).await?;
    let heart = Heart::new(&bus, EVERY).await?;
    Ok((server, bus, heart))
}

/// Beats until the node states that it cannot send heartbeats, or states it no more; answers what it states.
async fn beats(bus: &Bus, heart: &mut Heart, join: &Join, fails: bool) -> Result<Option<Trouble>> {
    let beating = async {
        loop {
            heart.beat(join).await;
            let stated = bus.troubles().into_iter().find(|trouble| trouble.what == "sending heartbeats");
            if stated.is_some() == fails {
                return stated;
            }
            tokio::time::sleep(BETWEEN).await;
        }
    };
    timeout(WITHIN, beating).await.with_context(|| format!("stated: {}; not within {WITHIN:?}", !fails))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_that_the_server_would_not_take_is_stated_until_one_is_small_enough() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (server, bus, mut heart) = started(directory.path(), &format!("max_payload: {MOST}\n")).await?;
    let client = Client::connect(server.url()).await?;
    let mut heard = Beats::listen(&client).await?;
    let small = Join::new(NodeKind::Coordinator, "m", 1);
    let report = ManagerReport { hash: "h".repeat(64), ..ManagerReport::default() };
    let large = Join { manager: Some(report), ..small.clone() };
    let sizes = (serde_json::to_vec(&small)?.len(), serde_json::to_vec(&large)?.len());
    ensure!(sizes.0 < MOST && sizes.1 > MOST, "{sizes:?} bytes");

    ensure!(beats(&bus, &mut heart, &small, false).await?.is_none(), "nothing fails yet");
    let stated = beats(&bus, &mut heart, &large, true).await?.context("it is stated")?;
    ensure!(stated.times > 0 && stated.since > 0, "how often, and since when? {stated:?}");
    ensure!(stated.error.contains(&MOST.to_string()), "the limit is not named: {stated:?}");
    ensure!(beats(&bus, &mut heart, &small, false).await?.is_none(), "it is over");

    // The heartbeats that arrive are complete. Only their troubles may be left out, where they do not fit.
    for _ in 0..2 {
        let join = heard.next(WITHIN).await?;
        let but_for_troubles = Join { troubles: Vec::new(), ..join.clone() };
        ensure!(but_for_troubles == small, "{join:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_for_which_a_lost_connection_has_no_room_is_stated_until_it_is_back() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (mut server, bus, mut heart) = started(directory.path(), "max_payload: 1MB\n").await?;
    let join = Join::new(NodeKind::Catalog, "c", 1);
    ensure!(beats(&bus, &mut heart, &join, false).await?.is_none(), "nothing fails yet");
    server.kill();
    let stated = beats(&bus, &mut heart, &join, true).await?.context("it is stated")?;
    ensure!(!stated.error.is_empty(), "it does not say why: {stated:?}");
    server.start_again()?;
    ensure!(beats(&bus, &mut heart, &join, false).await?.is_none(), "it is over");
    let client = Client::connect(server.url()).await?;
    let mut heard = Beats::listen(&client).await?;
    heart.beat(&join).await;
    heard.next(WITHIN).await?;
    Ok(())
}
