//! A list of documents of very different sizes lacks none, in a stream that keeps older revisions: the server forgets the last message
//! of a subject that no pull of ours has room for.

use async_nats::jetstream::stream::Config;
use highwater_bus::{Bus, ConnectSettings, ReadFrom};
use highwater_projector::pump::{self, Pumped};
use highwater_tests::{nats::NatsServer, prelude::*};
use std::collections::BTreeMap;

const STREAM: &str = "sizes";
const WITHIN: Duration = Duration::from_secs(60);
const ROUNDS: usize = 12;

/// The sizes of a round's documents, in order.
fn sizes(round: usize, rng: &mut Rng) -> Vec<usize> {
    let mut sizes: Vec<usize> = match round % 4 {
        // All the same, and larger than half of what is asked for at once.
        0 => vec![700_000; 12],
        // Many small ones, so that the average is small, and then large ones.
        1 => (0..4_000).map(|_| 10).chain((0..20).map(|_| 900_000)).collect(),
        2 => (0..20).map(|_| 900_000).chain((0..4_000).map(|_| 10)).collect(),
        _ => (0..150).map(|_| [10, 1_000, 60_000, 400_000, 1_000_000][rng.below(5) as usize]).collect(),
    };
    if round >= 4 {
        sizes.truncate(1 + rng.below(sizes.len() as u64) as usize);
    }
    sizes
}

/// The sequences that a list names; Err: it has to begin again, and why.
async fn list(bus: &Bus) -> Result<Result<Vec<u64>, String>> {
    let from = ReadFrom { lists: true, apart: true, ..ReadFrom::default() };
    let mut pump = pump::Running::start(bus, STREAM, from);
    let mut named = Vec::new();
    loop {
        let next = tokio::time::timeout(WITHIN, pump.pumped.recv()).await.context("nothing comes")?;
        match next.context("the pump has ended")? {
            Pumped::Opened { .. } => {}
            Pumped::Messages { messages, .. } => named.extend(messages.iter().map(|message| message.seq)),
            Pumped::Listed { .. } => return Ok(Ok(named)),
            Pumped::Changed(why) => return Ok(Err(why)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_documents_of_very_different_sizes_is_complete() -> Result<()> {
    let mut rng = Rng::seeded("sizes");
    let directory = tempfile::tempdir()?;
    let server = NatsServer::start(directory.path())?;
    let client = Client::connect(server.url()).await?;
    let mut again = 0;
    for round in 0..ROUNDS {
        let config = Config {
            name: STREAM.into(),
            subjects: vec!["s.>".into()],
            max_messages_per_subject: if round % 2 == 0 { -1 } else { 5 },
            ..Config::default()
        };
        client.js.create_stream(config).await?;
        let mut last = BTreeMap::new();
        for (n, size) in sizes(round, &mut rng).into_iter().enumerate() {
            // Some have older revisions, which no list names.
            for _ in 0..=u64::from(rng.chance(20)) {
                let subject = format!("s.{n}");
                let payload = vec![b'x'; size].into();
                last.insert(n, client.js.publish(subject, payload).await?.await?.sequence);
            }
        }
        let mut last: Vec<u64> = last.into_values().collect();
        last.sort_unstable();
        // A process of its own each time: what one remembers of the stream helps its later lists.
        let bus = Bus::connect(&ConnectSettings { url: server.url().into(), ..ConnectSettings::default() }).await?;
        let mut attempts = 0;
        let named = loop {
            match list(&bus).await? {
                Ok(named) => break named,
                Err(why) => ensure!(attempts < 2, "round {round}: it does not end: {why}"),
            }
            attempts += 1;
        };
        again += attempts;
        ensure!(named == last, "round {round}: {} are named, and {} are there", named.len(), last.len());
        client.js.delete_stream(STREAM).await?;
    }
    println!("{again} lists were begun again");
    ensure!(again > 0, "every list had room for all documents, so nothing was tried");
    Ok(())
}

/// More than one pull asks for.
const MANY: u64 = 20_000;
/// Publishes under way.
const WINDOW: u64 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_of_documents_of_one_size_is_complete_at_the_first_attempt() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let server = NatsServer::start(directory.path())?;
    let client = Client::connect(server.url()).await?;
    for size in [10, 300, 5_000] {
        let config = Config { name: STREAM.into(), subjects: vec!["s.>".into()], ..Config::default() };
        client.js.create_stream(Config { max_messages_per_subject: 3, ..config }).await?;
        for first in (0..MANY).step_by(WINDOW as usize) {
            let mut sent = Vec::new();
            for n in first..first + WINDOW {
                sent.push(client.js.publish(format!("s.{n}"), vec![b'x'; size].into()).await?);
            }
            for acknowledged in sent {
                acknowledged.await?;
            }
        }
        let bus = Bus::connect(&ConnectSettings { url: server.url().into(), ..ConnectSettings::default() }).await?;
        let began = Instant::now();
        let named = list(&bus).await?.map_err(|why| anyhow::anyhow!("{size} bytes: it has to begin again: {why}"))?;
        println!("{MANY} documents of {size} bytes: listed within {:?}", began.elapsed());
        ensure!(named.len() as u64 == MANY, "{size} bytes: {} are named", named.len());
        client.js.delete_stream(STREAM).await?;
    }
    Ok(())
}
