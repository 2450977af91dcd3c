//! A process has two connections to NATS: one for what it asks and the answers, one for messages. After a restart of the server
//! either may be there first.

use async_nats::jetstream::stream::Config;
use highwater_bus::{Bus, ConnectSettings, ReadFrom, StreamMessage, StreamReader};
use highwater_tests::{nats::NatsServer, prelude::*, proxy::Proxy};
use tokio::time::timeout;

const STREAM: &str = "events";
/// What only one of the two says of itself: its version is Highwater's, not the client library's.
const OURS: &str = concat!("\"version\":\"", env!("CARGO_PKG_VERSION"), "\"");
const LIBRARY: &str = "\"lang\":\"rust\",\"version\":\"0.5";
const FIRST: u64 = 100;
const WITHIN: Duration = Duration::from_secs(30);
/// What is published here comes over our own connection.
const HEARD: &str = "heard";
/// The last message there says this.
const LAST: &str = "last";

/// What a reader brings next that says anything.
async fn next(reader: &mut StreamReader) -> Result<Vec<StreamMessage>> {
    let mut messages = Vec::new();
    timeout(WITHIN, reader.next_ready(512, &mut messages)).await.context("nothing comes")??;
    Ok(messages)
}

/// Whichever connection is there first, the reader says that the server restarted before it hands out what that sends: who reads
/// compares the stream before it takes anything of another history.
async fn is_told_first(late: &'static str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut server = NatsServer::start(directory.path())?;
    let client = Client::connect(server.url()).await?;
    client.js.create_stream(Config { name: STREAM.into(), subjects: vec!["e".into()], ..Config::default() }).await?;
    let store = async |many: u64| {
        for _ in 0..many {
            client.js.publish("e", "{}".into()).await?.await?;
        }
        anyhow::Ok(())
    };
    store(FIRST).await?;
    let proxy = Proxy::start(server.port()).await?;
    let settings = ConnectSettings { url: proxy.url().into(), name: "test".into(), ..ConnectSettings::default() };
    let bus = Bus::connect(&settings).await?;
    let mut reader = StreamReader::open(&bus, STREAM, ReadFrom::default()).await?;
    let mut heard = bus.subscribe(HEARD).await?;
    let mut last = 0;
    while last < FIRST {
        last = next(&mut reader).await?.last().context("nothing restarted")?.seq;
    }
    let consumers = async || {
        let mut stream = client.js.get_stream(STREAM).await.map_err(|e| e.to_string())?;
        Ok(stream.info().await.map_err(|e| e.to_string())?.state.consumer_count)
    };

    proxy.hold(late);
    server.kill();
    server.start_again()?;
    until("the stream is there", WITHIN, async || consumers().await.map(|_| ())).await?;
    store(FIRST).await?;
    let reading = tokio::spawn(async move {
        let messages = next(&mut reader).await?;
        anyhow::Ok((messages, reader))
    });
    if late == OURS {
        let asked = until("it has asked over the other connection", WITHIN, async || {
            let many: usize = consumers().await?;
            if many > 0 { Ok(()) } else { Err("no consumer".to_owned()) }
        });
        asked.await?;
    } else {
        // All that the reader could open the stream again with is there, but for answers.
        let listening = tokio::spawn(async move { heard.next().await.map(|_| heard) });
        until("the other connection brings messages", WITHIN, async || {
            client.nats.publish(HEARD, "".into()).await.map_err(|e| e.to_string())?;
            if listening.is_finished() { Ok(()) } else { Err("nothing came".to_owned()) }
        })
        .await?;
        let mut heard = listening.await?.context("the connection ended")?;
        ensure!(!reading.is_finished(), "it was opened again without an answer");
        // Nor is it until that connection has brought what is published now.
        client.nats.publish(HEARD, LAST.into()).await?;
        loop {
            let next = timeout(WITHIN, heard.next()).await.context("nothing comes")?;
            if next.context("the connection ended")?.payload == LAST {
                break;
            }
        }
        ensure!(!reading.is_finished(), "it was opened again without an answer");
    }
    until(
        "a connection is held",
        WITHIN,
        async || {
            if proxy.faults_hit() > 0 { Ok(()) } else { Err("none is".to_owned()) }
        },
    )
    .await?;
    proxy.heal();
    let (messages, mut reader) = reading.await??;
    ensure!(messages.is_empty(), "{} messages came before that the server restarted", messages.len());
    ensure!(reader.restarts() == 1, "{} restarts", reader.restarts());
    while last < 2 * FIRST {
        if let Some(message) = next(&mut reader).await?.last() {
            last = message.seq;
        }
    }
    ensure!(reader.restarts() == 1, "{} restarts", reader.restarts());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_told_before_messages_though_theirs_is_the_later_connection() -> Result<()> {
    is_told_first(OURS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_told_before_messages_though_theirs_is_the_earlier_connection() -> Result<()> {
    is_told_first(LIBRARY).await
}
