//! The replicated log: one stream, appended to with the expected last sequence, followed by every service.
//!
//! What an append came to is for the caller to find out: [`StateLog`] does one thing at a time and says what the server said.

use crate::{
    codes::wrong_sequence,
    connect::Bus,
    error::BusError,
    faults::fault,
    message::StreamMessage,
    reader::{ReadFrom, StreamReader},
    stream_spec::{StreamSettings, StreamSpec},
    supervise::{self, Task},
};
use async_nats::{HeaderMap, header, jetstream::context::PublishErrorKind};
use bytes::Bytes;
use highwater_schemas::subjects::{STATE_STREAM, STATE_SUBJECT};
use std::{error::Error, time::Duration};
use tokio::{sync::mpsc, time::timeout};

/// A log that cannot be opened is tried at least this often.
const LONGEST: Duration = Duration::from_millis(500);
/// A log that is not what it was is read from its beginning after this.
const AGAIN: Duration = Duration::from_millis(200);
/// An append or a question that is not answered by then is asked about, or asked again: while a leader of the log is elected what
/// was sent to the one before stays without an answer, and nothing is coordinated until the append is settled.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Records taken from the stream at once, and those that may wait for a follower.
const FOLLOW_BATCH: usize = 256;

/// What the log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogContents {
    /// The stream's last sequence, whether its message is still there or not.
    pub last_seq: u64,
    /// Oldest first, as they travelled.
    pub records: Vec<Bytes>,
}

/// What the server said of an append; only [`Self::Acked`] settles what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log at this sequence.
    Acked(u64),
    /// The log's last sequence is not the expected one.
    Moved,
    /// It may be in the log or not.
    Unknown,
    /// The server did not take it, or said nothing that can be read; why.
    Refused(String),
}

/// An index manager's end of the log.
#[derive(Debug, Clone)]
pub struct StateLog {
    bus: Bus,
    settings: StreamSettings,
}

impl StateLog {
    /// `settings`: of the stream, when this end makes it.
    pub fn new(bus: &Bus, settings: StreamSettings) -> Self {
        Self { bus: bus.clone(), settings }
    }

    /// Makes the stream where it is missing, and reads all of it.
    pub async fn read(&self) -> Result<LogContents, BusError> {
        self.bus.ensure_stream(&StreamSpec::state(&self.settings)).await?;
        let state = self.bus.stream_state(STATE_STREAM).await?;
        let mut contents = LogContents { last_seq: state.last_seq, records: Vec::new() };
        let end = last_record(&self.bus).await?;
        let mut reader = StreamReader::open(&self.bus, STATE_STREAM, ReadFrom::default()).await?;
        let (mut batch, mut seen) = (Vec::new(), 0);
        while seen < end {
            reader.next_ready(FOLLOW_BATCH, &mut batch).await?;
            for message in batch.drain(..) {
                seen = message.seq;
                contents.records.push(message.payload_bytes());
            }
        }
        contents.last_seq = contents.last_seq.max(seen);
        Ok(contents)
    }

    /// Appends a record behind the sequence `expected`; with `rollup` it takes the place of everything before it.
    pub async fn append(&self, expected: u64, record: Bytes, rollup: bool) -> Appended {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, expected.to_string().as_str());
        if rollup {
            headers.insert(header::NATS_ROLLUP, "all");
        }
        let sent = async {
            match self.bus.js().publish_with_headers(STATE_SUBJECT, headers, record).await {
                Ok(acknowledged) => acknowledged.await,
                Err(error) => Err(error),
            }
        };
        // An acknowledgement that got lost with the connection is not waited for, nor one that may be lost with the log's leader.
        let answered = self.bus.unless_lost(timeout(ANSWERED_WITHIN, sent));
        let outcome = match self.bus.permitted(|subject| subject == STATE_SUBJECT, answered).await {
            Ok(Some(Ok(outcome))) => outcome,
            Ok(_) => return Appended::Unknown,
            Err(refusal) => return Appended::Refused(refusal.to_string()),
        };
        match outcome {
            Ok(ack) => Appended::Acked(ack.sequence),
            Err(e) => match e.kind() {
                _ if wrong_sequence(&e) => Appended::Moved,
                PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => Appended::Unknown,
                // The server's own words are behind the client's.
                _ => Appended::Refused(e.source().map_or_else(|| e.to_string(), ToString::to_string)),
            },
        }
    }

    /// The record at a sequence, if there is one.
    pub async fn read_at(&self, seq: u64) -> Result<Option<Bytes>, BusError> {
        let found = timeout(ANSWERED_WITHIN, self.bus.message_at(STATE_STREAM, seq)).await;
        match found.unwrap_or_else(|_| Err(BusError::Timeout { subject: STATE_SUBJECT.into() })) {
            Ok(message) => Ok(message.map(|message| message.payload)),
            Err(BusError::NoStream(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Everyone's view of the log.
///
/// A task of its own reads: who follows does so beside timers and requests, and opening the log again takes longer than these
/// wait.
pub struct StateFollower {
    items: mpsc::Receiver<Followed>,
    /// Ends with this.
    _task: Task,
    opened: bool,
    /// The log's last sequence when it was opened.
    end: u64,
    seen: u64,
}

/// What following the log brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// The log is read from its beginning, for the first time or again, because it is not what it was.
    Opened {
        /// Its last sequence.
        end: u64,
    },
    Record(u64, Bytes),
}

impl Bus {
    /// Follows the log from its beginning.
    pub fn follow_state(&self) -> StateFollower {
        let (sender, items) = mpsc::channel(FOLLOW_BATCH);
        let what = format!("reading stream {STATE_STREAM}");
        let task = supervise::task(&self.incidents(), what, follow(self.clone(), sender));
        StateFollower { items, _task: task, opened: false, end: 0, seen: 0 }
    }
}

impl StateFollower {
    /// What comes next, waiting for it and for the log itself as long as it takes. Cancel safe.
    pub async fn next(&mut self) -> Result<Followed, BusError> {
        let Some(followed) = self.items.recv().await else {
            return Err(BusError::Other { what: "state log", why: "nobody reads it any more".into() });
        };
        match &followed {
            Followed::Opened { end } => (self.opened, self.end, self.seen) = (true, *end, 0),
            Followed::Record(seq, _) => self.seen = *seq,
        }
        Ok(followed)
    }

    /// True when everything that the log held when it was opened has been handed out.
    pub fn caught_up(&self) -> bool {
        self.opened && self.seen >= self.end
    }
}

/// Reads the log until nobody follows any more; from its beginning whenever it is not what it was.
async fn follow(bus: Bus, items: mpsc::Sender<Followed>) {
    let mut retry = bus.retry(format!("reading stream {STATE_STREAM}")).within(LONGEST);
    loop {
        let (mut reader, end) = match open(&bus).await {
            Ok(opened) => opened,
            Err(error) => {
                tokio::select! {
                    () = retry.wait(&error) => continue,
                    () = items.closed() => return,
                }
            }
        };
        retry.over();
        if items.send(Followed::Opened { end }).await.is_err() {
            return;
        }
        let mut batch: Vec<StreamMessage> = Vec::new();
        loop {
            fault("follower", "");
            match reader.next_ready(FOLLOW_BATCH, &mut batch).await {
                Ok(()) => {
                    for message in batch.drain(..) {
                        if items.send(Followed::Record(message.seq, message.payload_bytes())).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the state log is not what it was: reading it from its beginning");
                    tokio::time::sleep(AGAIN).await;
                    break;
                }
            }
        }
    }
}

async fn open(bus: &Bus) -> Result<(StreamReader, u64), BusError> {
    let reader = StreamReader::open(bus, STATE_STREAM, ReadFrom::default()).await?;
    Ok((reader, last_record(bus).await?))
}

/// Sequence of the newest record that is still there, 0 for none: the stream's own last sequence may be that of one that was
/// removed by hand.
async fn last_record(bus: &Bus) -> Result<u64, BusError> {
    Ok(bus.last_of(STATE_STREAM, STATE_SUBJECT).await?.map_or(0, |message| message.seq))
}
