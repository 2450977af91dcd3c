//! Takes messages off a source stream, so that re-opening it never holds up the vbucket's task.

use highwater_bus::{Bus, BusError, List, ReadFrom, StreamMessage, StreamReader};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Chunks that may wait for the vbucket task.
pub(crate) const CAPACITY: usize = 4;
/// Messages of one chunk.
const CHUNK: usize = 512;
/// A list of which nothing comes for so long may be complete.
const SILENCE: Duration = Duration::from_millis(300);
/// What was on its way when nothing more was pending is here after this time.
const SETTLED: Duration = Duration::from_millis(100);
/// One of which nothing comes for so long, though it is not complete, is begun again.
const STALLED: Duration = Duration::from_secs(20);

/// What a pump yields.
#[derive(Debug)]
pub(crate) enum Pumped {
    /// The stream is open.
    Opened { created: i64 },
    /// The list that it began with is complete, up to this seqno.
    Listed { upto: u64 },
    Messages {
        messages: Vec<StreamMessage>,
        /// Rises when the reader was opened again after a server restart.
        restarts: u64,
    },
    /// The stream contradicts what was read before; nothing more comes.
    Changed(String),
}

/// Runs until the receiver is dropped or the stream contradicts.
pub(crate) async fn run(bus: Bus, stream: String, from: ReadFrom, out: mpsc::Sender<Pumped>) {
    let mut retry = bus.retry(format!("reading source stream {stream}"));
    let mut reader = loop {
        match StreamReader::open(&bus, &stream, from.clone()).await {
            Ok(reader) => break reader,
            Err(BusError::StreamChanged { why, .. }) => {
                let _ = out.send(Pumped::Changed(why)).await;
                return;
            }
            Err(error) => {
                tokio::select! {
                    () = retry.wait(&error) => {}
                    () = out.closed() => return,
                }
            }
        }
    };
    drop(retry);
    if out.send(Pumped::Opened { created: reader.created() }).await.is_err() {
        return;
    }
    let mut list = reader.list();
    let mut listed_at = Instant::now();
    if let Some(done) = list.take_if(|list| list.messages == 0)
        && out.send(Pumped::Listed { upto: done.upto }).await.is_err()
    {
        return;
    }
    loop {
        let mut messages = Vec::new();
        let silence = if list.is_some() { SILENCE } else { Duration::MAX };
        let read = tokio::select! {
            read = tokio::time::timeout(silence, reader.next_ready(CHUNK, &mut messages)) => read,
            () = out.closed() => return,
        };
        let (pumped, over) = match read {
            // The rest of the list may have been removed meanwhile.
            Err(_) => match reader.pending().await {
                // What was sent before that answer is here by now.
                Ok(0) => match tokio::time::timeout(SETTLED, reader.next_ready(CHUNK, &mut messages)).await {
                    Err(_) => (Vec::new(), true),
                    Ok(Ok(())) => (split(messages, list, reader.restarts()), false),
                    Ok(Err(error)) => {
                        let _ = out.send(Pumped::Changed(error.to_string())).await;
                        return;
                    }
                },
                pending if listed_at.elapsed() >= STALLED => {
                    let _ = out.send(Pumped::Changed(format!("the list stopped, with {pending:?} to come"))).await;
                    return;
                }
                _ => continue,
            },
            Ok(Ok(())) => (split(messages, list, reader.restarts()), false),
            Ok(Err(BusError::StreamChanged { why, .. })) => {
                let _ = out.send(Pumped::Changed(why)).await;
                return;
            }
            Ok(Err(error)) => {
                tracing::warn!(stream, %error, "reading the source");
                continue;
            }
        };
        let ended = list.filter(|list| over || list_ends(&pumped, list.upto));
        // What is beyond the list comes after its end.
        let (within, beyond): (Vec<_>, Vec<_>) = pumped.into_iter().partition(|p| match (p, list) {
            (Pumped::Messages { messages, .. }, Some(list)) => messages.first().is_none_or(|m| m.seq <= list.upto),
            _ => true,
        });
        let end = ended.map(|list| Pumped::Listed { upto: list.upto });
        if ended.is_some() {
            list = None;
        }
        for pumped in within.into_iter().chain(end).chain(beyond) {
            if out.send(pumped).await.is_err() {
                return;
            }
        }
        listed_at = Instant::now();
    }
}

/// Messages of the list and those beyond it.
fn split(mut messages: Vec<StreamMessage>, list: Option<List>, restarts: u64) -> Vec<Pumped> {
    let within = list.map_or(messages.len(), |list| messages.partition_point(|m| m.seq <= list.upto));
    let beyond = messages.split_off(within);
    if messages.is_empty() && beyond.is_empty() {
        // Only that it was opened again.
        return vec![Pumped::Messages { messages, restarts }];
    }
    let parts = [messages, beyond].into_iter().filter(|part| !part.is_empty());
    parts.map(|messages| Pumped::Messages { messages, restarts }).collect()
}

/// Whether nothing of a list is to come after these.
fn list_ends(pumped: &[Pumped], upto: u64) -> bool {
    pumped.iter().any(|p| match p {
        Pumped::Messages { messages, .. } => messages.last().is_some_and(|m| m.seq > upto || m.pending == 0),
        _ => false,
    })
}
