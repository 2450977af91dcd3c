//! A long stream is read in parts over several connections: in order, without a gap, and listed as a whole, whatever is overwritten or
//! removed meanwhile, and whoever kills the server.

use async_nats::jetstream::{
    self,
    context::{PublishError, PublishErrorKind},
    stream::{Config, Stream},
};
use bytes::Bytes;
use highwater_bus::{Bus, BusError, ConnectSettings, ReadFrom, StreamMessage, StreamReader};
use highwater_tests::{backup, cluster::SERVICES, load::Writer, nats::NatsServer, prelude::*, stated, wait::deadline};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{task::JoinSet, time::timeout};

const STREAM: &str = "KV_long";
/// More than is read by one reader, in a stretch that ends within a share.
const DOCUMENTS: u64 = 100_000;
/// Publishes under way.
const WINDOW: usize = 512;
/// A list of which nothing comes for so long may be complete.
const SILENCE: Duration = Duration::from_millis(100);
const WITHIN: Duration = Duration::from_secs(60);

struct Long {
    _directory: tempfile::TempDir,
    server: NatsServer,
    client: Client,
    bus: Bus,
}

/// The sequence of what was stored last under each key.
type Stored = BTreeMap<String, u64>;

impl Long {
    async fn start(history: i64) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let server = NatsServer::start(directory.path())?;
        let client = Client::connect(server.url()).await?;
        // As a key-value bucket's, but that messages may be deleted.
        let config = Config {
            name: STREAM.into(),
            subjects: vec!["$KV.long.>".into()],
            max_messages_per_subject: history,
            ..Config::default()
        };
        client.js.create_stream(config).await?;
        let settings = ConnectSettings { url: server.url().into(), name: "test".into(), ..ConnectSettings::default() };
        let bus = Bus::connect(&settings).await?;
        Ok(Self { _directory: directory, server, client, bus })
    }

    async fn stream(&self) -> Result<Stream> {
        Ok(self.client.js.get_stream(STREAM).await?)
    }

    async fn reader(&self, after: u64, lists: bool) -> Result<StreamReader> {
        let from = ReadFrom { after, lists, apart: true, ..ReadFrom::default() };
        let reader = StreamReader::open(&self.bus, STREAM, from).await?;
        ensure!(reader.is_in_parts(), "one reader reads it all");
        Ok(reader)
    }
}

/// Stores these keys; what each is stored as.
async fn store(client: &Client, keys: impl IntoIterator<Item = String>) -> Result<Stored> {
    let mut stored = Stored::new();
    let mut sending = JoinSet::new();
    for key in keys {
        sending.spawn(store_one(client.js.clone(), key));
        if sending.len() >= WINDOW {
            note(&mut stored, sending.join_next().await)?;
        }
    }
    while !sending.is_empty() {
        note(&mut stored, sending.join_next().await)?;
    }
    Ok(stored)
}

/// Stores one key, once its stream is led by a server: a replicated one that was just made may have no leader for a moment.
async fn store_one(js: jetstream::Context, key: String) -> Acked {
    let deadline = deadline(WITHIN);
    loop {
        let sent = js.publish(format!("$KV.long.{key}"), Bytes::from_static(b"{\"a\":1}")).await?;
        match sent.await {
            Ok(ack) => return Ok((key, ack.sequence)),
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

type Acked = Result<(String, u64), PublishError>;

fn note(stored: &mut Stored, acked: Option<Result<Acked, tokio::task::JoinError>>) -> Result<()> {
    let (key, seq) = acked.context("nothing was sent")???;
    let newest = stored.entry(key).or_default();
    *newest = seq.max(*newest);
    Ok(())
}

fn key_of(message: &StreamMessage) -> Result<String> {
    let subject = message.subject_text();
    Ok(subject.strip_prefix("$KV.long.").with_context(|| format!("subject {subject}"))?.to_owned())
}

/// What a reader has handed out.
#[derive(Default)]
struct Got {
    last: u64,
    by_key: Stored,
    messages: u64,
}

impl Got {
    fn take(&mut self, messages: &[StreamMessage]) -> Result<()> {
        for message in messages {
            ensure!(message.seq > self.last, "{} after {}", message.seq, self.last);
            self.last = message.seq;
            self.messages += 1;
            self.by_key.insert(key_of(message)?, message.seq);
        }
        Ok(())
    }

    /// Reads until the message `seq` is there.
    async fn up_to(&mut self, reader: &mut StreamReader, seq: u64) -> Result<()> {
        let mut messages = Vec::new();
        while self.last < seq {
            timeout(WITHIN, reader.next_ready(512, &mut messages)).await.context("nothing comes")??;
            self.take(&messages)?;
            messages.clear();
        }
        Ok(())
    }

    /// Reads the list that the reader begins with, to its end.
    async fn list(&mut self, reader: &mut StreamReader) -> Result<u64> {
        let list = reader.list().context("no list")?;
        let mut messages = Vec::new();
        loop {
            let read = timeout(SILENCE, reader.next_ready(512, &mut messages)).await;
            read.unwrap_or(Ok(()))?;
            self.take(&messages)?;
            if self.last >= list.upto || messages.is_empty() && reader.list_is_complete().await? {
                reader.list_ended().await?;
                return Ok(list.upto);
            }
            messages.clear();
        }
    }
}

/// Overwrites and removes keys until it is over; what is stored then.
fn overwrite(client: &Client, rng: &mut Rng, over: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Result<Stored>> {
    let (client, mut rng, over) = (client.clone(), rng.fork(), Arc::clone(over));
    tokio::spawn(async move {
        let mut stored = Stored::new();
        while !over.load(Ordering::Relaxed) {
            stored.extend(store(&client, (0..WINDOW).map(|_| format!("k{}", rng.below(DOCUMENTS)))).await?);
        }
        Ok(stored)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_is_listed_as_a_whole_while_it_is_overwritten() -> Result<()> {
    let mut rng = Rng::seeded("long list");
    let long = Long::start(1).await?;
    let mut stored = store(&long.client, (0..DOCUMENTS).map(|n| format!("k{n}"))).await?;
    // Gaps.
    stored.extend(store(&long.client, (0..DOCUMENTS / 5).map(|_| format!("k{}", rng.below(DOCUMENTS)))).await?);
    for round in 0..2 {
        let over = Arc::new(AtomicBool::new(false));
        let writer = (round > 0).then(|| overwrite(&long.client, &mut rng, &over));
        let mut reader = long.reader(0, true).await?;
        let mut got = Got::default();
        let upto = got.list(&mut reader).await?;
        over.store(true, Ordering::Relaxed);
        let written = match writer {
            Some(writer) => writer.await??,
            None => Stored::new(),
        };
        for (key, seq) in &stored {
            let found = got.by_key.get(key);
            // What took its place comes after the list.
            ensure!(found == Some(seq) || written.contains_key(key), "{key}: {seq} is stored, {found:?} listed");
        }
        println!(
            "round {round}: list up to {upto}, {} messages, {} overwritten meanwhile",
            got.messages,
            written.len()
        );
        stored.extend(written);
        let last = long.stream().await?.cached_info().state.last_sequence;
        got.up_to(&mut reader, last).await?;
        ensure!(got.by_key == stored, "not all that is stored was read");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_is_read_on_where_it_ended_and_behind_removed_messages() -> Result<()> {
    let long = Long::start(5).await?;
    store(&long.client, (0..DOCUMENTS).map(|n| format!("k{}", n % 30_000))).await?;
    let mut stream = long.stream().await?;
    // At the beginning and the end of a share, and the end of all.
    let removed = [8_192, 8_193, 16_384, 50_000, DOCUMENTS];
    for seq in removed {
        ensure!(stream.delete_message(seq).await?, "{seq} was not there");
    }
    let there = stream.info().await?.state.messages;
    let mut reader = long.reader(0, false).await?;
    let mut got = Got::default();
    got.up_to(&mut reader, DOCUMENTS - 1).await?;
    ensure!(got.messages == there, "{} of {there} messages", got.messages);
    // Behind a hole at the end.
    let next = store(&long.client, ["next".to_owned()]).await?;
    got.up_to(&mut reader, next["next"]).await?;
    ensure!(got.messages == there + 1, "{} messages", got.messages);
    // From inside of the stream on.
    let mut reader = long.reader(20_000, false).await?;
    let mut got = Got { last: 20_000, ..Got::default() };
    got.up_to(&mut reader, next["next"]).await?;
    ensure!(got.messages == DOCUMENTS + 1 - 20_000 - 2, "{} messages", got.messages);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_ends_the_list_and_not_the_reading() -> Result<()> {
    let mut long = Long::start(1).await?;
    store(&long.client, (0..DOCUMENTS).map(|n| format!("k{n}"))).await?;
    let mut lister = long.reader(0, true).await?;
    let mut reader = long.reader(0, false).await?;
    let (mut listed, mut got) = (Got::default(), Got::default());
    got.up_to(&mut reader, 1).await?;
    let mut messages = Vec::new();
    lister.next_ready(512, &mut messages).await?;
    listed.take(&messages)?;
    long.server.kill();
    long.server.start_again()?;
    backup::there(&long.client, STREAM).await?;
    match listed.list(&mut lister).await {
        Err(error) if matches!(error.downcast_ref(), Some(BusError::StreamChanged { .. })) => println!("{error}"),
        outcome => bail!("the list went on: {outcome:?}"),
    }
    got.up_to(&mut reader, DOCUMENTS).await?;
    ensure!(got.messages == DOCUMENTS, "{} messages", got.messages);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_a_long_stream_is_built_and_compared_while_it_is_overwritten() -> Result<()> {
    let mut rng = Rng::seeded("long build");
    Cluster::without_services()?
        .breakable(&["projector-1"])?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "long").await?;
            let writes: Vec<Write> =
                (0..DOCUMENTS).map(|n| Write::put(0, format!("d{n}"), &documents::document(&mut rng))).collect();
            source.write(writes).await?;
            let index = documents::indexes(1).remove(0);
            let writer = Writer::paced(&source, &mut rng, Duration::from_millis(5));
            client.create_index(&index.definition("long")).await?;
            client.wait_active("long", &index.name, WITHIN).await?;
            writer.stop().await?;
            ask::whole(&client, &source, &index).await?;
            let writer = Writer::paced(&source, &mut rng, Duration::from_millis(5));
            client.insist("hw.admin.bucket.reconcile", &json!({"name": "long"}), WITHIN).await?;
            let compared = async || {
                let bucket = client.bucket("long").await.map_err(|refused| refused.to_string())?;
                let compared = bucket["vbuckets"][0]["reads"]["compared"].as_u64();
                if compared > Some(DOCUMENTS / 10 * 9) { Ok(()) } else { Err(bucket.to_string()) }
            };
            until("all is compared", WITHIN, compared).await?;
            writer.stop().await?;
            ask::whole(&client, &source, &index).await?;
            // What the reader of a part leaves is read by one that reads all of it.
            cluster.panic_at("projector-1", "part.KV_long")?;
            let late = documents::passing("late");
            client.create_index(&late.definition("long")).await?;
            cluster.hit("projector-1", "part.KV_long").await?;
            client.wait_active("long", &late.name, WITHIN).await?;
            stated::panicked(&client, "projector-1", "reading a part of stream KV_long", WITHIN).await?;
            ask::whole(&client, &source, &late).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_stream_is_read_in_parts_from_its_leader_alone() -> Result<()> {
    Cluster::replicated()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let config = Config {
                name: STREAM.into(),
                subjects: vec!["$KV.long.>".into()],
                max_messages_per_subject: 1,
                num_replicas: 3,
                ..Config::default()
            };
            client.js.create_stream(config).await?;
            let stored = store(&client, (0..DOCUMENTS).map(|n| format!("k{n}"))).await?;
            let mut parts = 0;
            for server in cluster.servers() {
                let settings = ConnectSettings { url: server.url().into(), ..ConnectSettings::default() };
                let bus = Bus::connect(&settings).await?;
                let leads = bus.leads(&bus.stream_state(STREAM).await?);
                let from = ReadFrom { lists: true, apart: true, ..ReadFrom::default() };
                let mut reader = StreamReader::open(&bus, STREAM, from).await?;
                ensure!(leads || !reader.is_in_parts(), "parts are read from {}, which does not lead", server.name());
                parts += u64::from(reader.is_in_parts());
                let mut got = Got::default();
                got.list(&mut reader).await?;
                ensure!(got.by_key == stored, "{} of {DOCUMENTS} documents from {}", got.by_key.len(), server.name());
            }
            ensure!(parts == 1, "read in parts from {parts} servers");
            Ok(())
        })
        .await
}
