//! Takes messages off a source stream, so that re-opening it never holds up the vbucket's task.

use highwater_bus::{Bus, BusError, ReadFrom, StreamMessage, StreamReader};
use std::time::Duration;
use tokio::sync::mpsc;

/// Chunks that may wait for the vbucket task.
pub(crate) const CAPACITY: usize = 4;
/// Messages of one chunk.
const CHUNK: usize = 512;
const RETRY: Duration = Duration::from_millis(200);

/// What a pump yields.
#[derive(Debug)]
pub(crate) enum Pumped {
    /// The stream is open.
    Opened { created: i64 },
    Messages {
        messages: Vec<StreamMessage>,
        /// Rises when the reader was opened again after a server restart.
        restarts: u64,
    },
    /// The stream contradicts what was read before; nothing more comes.
    Changed(String),
}

/// Runs until the receiver is dropped or the stream contradicts.
pub(crate) async fn run(bus: Bus, stream: String, after: u64, out: mpsc::Sender<Pumped>) {
    let mut said = false;
    let mut reader = loop {
        match StreamReader::open(&bus, &stream, ReadFrom { after, filter: None, created: None }).await {
            Ok(reader) => break reader,
            Err(BusError::StreamChanged { why, .. }) => {
                let _ = out.send(Pumped::Changed(why)).await;
                return;
            }
            Err(error) => {
                if !said {
                    tracing::warn!(stream, %error, "cannot open the source yet; trying again until it can be");
                    said = true;
                }
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = out.closed() => return,
                }
            }
        }
    };
    if out.send(Pumped::Opened { created: reader.created() }).await.is_err() {
        return;
    }
    loop {
        let mut messages = Vec::new();
        let read = tokio::select! {
            read = reader.next_ready(CHUNK, &mut messages) => read,
            () = out.closed() => return,
        };
        let pumped = match read {
            Ok(()) => Pumped::Messages { messages, restarts: reader.restarts() },
            Err(BusError::StreamChanged { why, .. }) => Pumped::Changed(why),
            Err(error) => {
                tracing::warn!(stream, %error, "reading the source");
                continue;
            }
        };
        let over = matches!(pumped, Pumped::Changed(_));
        if out.send(pumped).await.is_err() || over {
            return;
        }
    }
}
