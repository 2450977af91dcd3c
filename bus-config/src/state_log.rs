//! The replicated log: one stream, appended to with the expected last sequence, followed by every service.

use crate::{
    connect::Bus,
    error::BusError,
    reader::{ReadFrom, StreamMessage, StreamReader},
    streams::StreamSpec,
};
use async_nats::{HeaderMap, header, jetstream::context::PublishErrorKind};
use bytes::Bytes;
use highwater_schemas::subjects::{STATE_STREAM, STATE_SUBJECT};
use std::time::Duration;
use tokio::{sync::mpsc, task::AbortHandle};

const RETRY: Duration = Duration::from_millis(200);
/// Records taken from the stream at once, and those that may wait for a follower.
const FOLLOW_BATCH: usize = 256;

/// The coordinator's end of the log.
#[derive(Debug)]
pub struct StateLog {
    bus: Bus,
    last_seq: u64,
}

/// Outcome of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub seq: u64,
}

impl StateLog {
    /// Opens the log and reads all of it.
    pub async fn open(bus: &Bus) -> Result<(Self, Vec<Bytes>), BusError> {
        bus.ensure_stream(&StreamSpec::state()).await?;
        let state = bus.stream_state(STATE_STREAM).await?;
        let mut records = Vec::new();
        let mut last_seq = 0;
        if state.messages > 0 {
            let mut reader =
                StreamReader::open(bus, STATE_STREAM, ReadFrom { after: 0, filter: None, created: None }).await?;
            let mut batch = Vec::new();
            while last_seq < state.last_seq {
                reader.next_ready(FOLLOW_BATCH, &mut batch).await?;
                for message in batch.drain(..) {
                    last_seq = message.seq;
                    records.push(message.payload);
                }
            }
        }
        Ok((Self { bus: bus.clone(), last_seq: state.last_seq.max(last_seq) }, records))
    }

    /// Appends a record behind the last one. An unknown outcome is settled by reading the record at the expected place.
    pub async fn append(&mut self, record: &[u8]) -> Result<Appended, BusError> {
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, self.last_seq.to_string().as_str());
            let sent = self.bus.js.publish_with_headers(STATE_SUBJECT, headers, Bytes::copy_from_slice(record)).await;
            let outcome = match sent {
                Ok(future) => future.await,
                Err(e) => Err(e),
            };
            match outcome {
                Ok(ack) => {
                    self.last_seq = ack.sequence;
                    return Ok(Appended { seq: ack.sequence });
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        PublishErrorKind::TimedOut | PublishErrorKind::WrongLastSequence | PublishErrorKind::BrokenPipe
                    ) =>
                {
                    if let Some(found) = self.read(self.last_seq + 1).await? {
                        if found == record {
                            self.last_seq += 1;
                            return Ok(Appended { seq: self.last_seq });
                        }
                        return Err(BusError::Deposed);
                    }
                    if e.kind() == PublishErrorKind::WrongLastSequence {
                        return Err(BusError::Deposed);
                    }
                    tokio::time::sleep(RETRY).await;
                }
                Err(e) => return Err(BusError::other("append to the log", e)),
            }
        }
    }

    async fn read(&self, seq: u64) -> Result<Option<Vec<u8>>, BusError> {
        loop {
            let stream =
                self.bus.js.get_stream_no_info(STATE_STREAM).await.map_err(|e| BusError::other("read the log", e))?;
            match stream.get_raw_message(seq).await {
                Ok(message) => return Ok(Some(message.payload.to_vec())),
                Err(e) if e.to_string().contains("no message found") => return Ok(None),
                Err(error) => {
                    tracing::debug!(%error, "the log cannot be read yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Everyone else's end of the log.
///
/// A task of its own reads: who follows does so beside timers and requests, and opening the log again takes longer than these
/// wait.
pub struct StateFollower {
    items: mpsc::Receiver<Followed>,
    task: AbortHandle,
    opened: bool,
    /// The log's last sequence when it was opened.
    end: u64,
    seen: u64,
}

enum Followed {
    /// With this last sequence.
    Opened(u64),
    Record(u64, Bytes),
    Failed(BusError),
}

impl Bus {
    /// Follows the log from its beginning.
    pub fn follow_state(&self) -> StateFollower {
        let (sender, items) = mpsc::channel(FOLLOW_BATCH);
        let task = tokio::spawn(follow(self.clone(), sender)).abort_handle();
        StateFollower { items, task, opened: false, end: 0, seen: 0 }
    }
}

impl StateFollower {
    /// The next record, waiting for it and for the log itself as long as it takes. Cancel safe.
    ///
    /// # Errors
    /// The log is not the one that was followed so far.
    pub async fn next(&mut self) -> Result<Bytes, BusError> {
        loop {
            match self.items.recv().await {
                Some(Followed::Opened(end)) => (self.opened, self.end) = (true, end),
                Some(Followed::Record(seq, record)) => {
                    self.seen = seq;
                    return Ok(record);
                }
                Some(Followed::Failed(error)) => return Err(error),
                None => return Err(BusError::Other { what: "state log", why: "nobody reads it any more".into() }),
            }
        }
    }

    /// True when everything that the log held when it was opened has been handed out.
    pub fn caught_up(&self) -> bool {
        self.opened && self.seen >= self.end
    }
}

impl Drop for StateFollower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the log until it is another one, or until nobody follows any more.
async fn follow(bus: Bus, items: mpsc::Sender<Followed>) {
    let (mut reader, end) = loop {
        let opened = match bus.stream_state(STATE_STREAM).await {
            Ok(state) => {
                let from = ReadFrom { after: 0, filter: None, created: None };
                StreamReader::open(&bus, STATE_STREAM, from).await.map(|reader| (reader, state.last_seq))
            }
            Err(e) => Err(e),
        };
        match opened {
            Ok(opened) => break opened,
            Err(error) => {
                tracing::debug!(%error, "waiting for the log");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let mut gone = items.send(Followed::Opened(end)).await.is_err();
    let mut batch: Vec<StreamMessage> = Vec::new();
    while !gone {
        match reader.next_ready(FOLLOW_BATCH, &mut batch).await {
            Ok(()) => {
                for message in batch.drain(..) {
                    gone |= items.send(Followed::Record(message.seq, message.payload)).await.is_err();
                }
            }
            Err(error) => {
                // Who is gone does not want to know.
                let _ = items.send(Followed::Failed(error)).await;
                return;
            }
        }
    }
}
