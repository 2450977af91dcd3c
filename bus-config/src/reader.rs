//! A gap-checked reader of one stream.
//!
//! A pull consumer with `AckPolicy::None` and overlapping pulls from a given sequence on. The server accepts a start past the
//! stream's end or below its first message silently, and a recreated stream looks gapless: so the stream's state is compared
//! before and after every opening, and what contradicts ends the reader with [`BusError::StreamChanged`]. The consumer sequence
//! shows messages that were lost on the way, also on filtered streams; then the reader re-opens where it stood.

use crate::{
    connect::Bus,
    error::BusError,
    pulls::{self, Pulls, told},
    streams::StreamState,
};
use async_nats::{
    Message,
    jetstream::consumer::{AckPolicy, DeliverPolicy, pull},
};
use bytes::Bytes;
use std::time::Duration;

const INACTIVE: Duration = Duration::from_secs(30);
/// A stream that cannot be opened again is tried at least this often.
const LONGEST: Duration = Duration::from_secs(1);

/// Where to begin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadFrom {
    /// The last sequence that is already known; reading begins after it.
    pub after: u64,
    /// Only this subject; None: all.
    pub filter: Option<String>,
    /// The stream's creation time when `after` was read; None: not known.
    pub created: Option<i64>,
    /// Begin with the last message of every subject, once, and go on with what is written after these were determined.
    pub lists: bool,
}

/// The messages that a reader begins with when it lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    /// The stream's last sequence before they were determined.
    pub upto: u64,
    /// How many there were.
    pub messages: u64,
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct StreamMessage {
    pub seq: u64,
    /// Server time, nanoseconds since the epoch.
    pub time: i64,
    /// Messages that the server still held for this reader when it sent this one; a hint.
    pub pending: u64,
    pub subject: async_nats::Subject,
    /// `KV-Operation`.
    pub operation: Option<String>,
    /// `Nats-Marker-Reason` is set.
    pub marker: bool,
    pub payload: Bytes,
}

/// Reads one stream in order.
pub struct StreamReader {
    bus: Bus,
    stream: String,
    filter: Option<String>,
    place: Place,
    created: i64,
    server_id: String,
    pulls: Option<Pulls>,
    consumer: String,
    /// Times that the reader was opened again on another server, or on one that had, or may have, restarted.
    restarts: u64,
    list: Option<List>,
}

/// How far a reader is.
struct Place {
    /// The last stream sequence handed out or passed.
    after: u64,
    /// The last message of the consumer.
    consumer_seq: u64,
}

impl StreamReader {
    /// Opens a stream; it must exist and agree with `from`.
    pub async fn open(bus: &Bus, stream: &str, from: ReadFrom) -> Result<Self, BusError> {
        let state = bus.stream_state(stream).await?;
        let mut reader = Self {
            bus: bus.clone(),
            stream: stream.into(),
            filter: from.filter,
            place: Place { after: from.after, consumer_seq: 0 },
            created: from.created.unwrap_or(state.created),
            server_id: bus.server_id(),
            pulls: None,
            consumer: String::new(),
            restarts: 0,
            list: from.lists.then_some(List { upto: state.last_seq, messages: 0 }),
        };
        reader.check(&state)?;
        let pulls = reader.subscribe().await?;
        let state = reader.bus.stream_state(stream).await?;
        reader.check(&state)?;
        reader.pulls = Some(pulls);
        Ok(reader)
    }

    /// What it began with, if it lists.
    pub fn list(&self) -> Option<List> {
        self.list
    }

    /// It has still to list.
    fn is_listing(&self) -> bool {
        self.list.is_some_and(|list| self.place.after < list.upto)
    }

    /// Messages that the server holds for this reader.
    pub async fn pending(&self) -> Result<u64, BusError> {
        let other = |e: String| BusError::other("consumer", format!("{}: {e}", self.stream));
        let stream = self.bus.js.get_stream_no_info(&self.stream).await.map_err(|e| other(e.to_string()))?;
        stream.consumer_info(&self.consumer).await.map(|info| info.num_pending).map_err(|e| other(e.to_string()))
    }

    /// Creation time of the stream, nanoseconds since the epoch.
    pub fn created(&self) -> i64 {
        self.created
    }

    fn check(&self, state: &StreamState) -> Result<(), BusError> {
        let changed = |why: String| Err(BusError::StreamChanged { stream: self.stream.clone(), why });
        if state.created != self.created {
            return changed("it was created anew".into());
        }
        if state.last_seq < self.place.after {
            return changed(format!(
                "its last sequence is {}, but {} was read before",
                state.last_seq, self.place.after
            ));
        }
        Ok(())
    }

    /// The pulls count as open once the stream was checked after it.
    async fn subscribe(&mut self) -> Result<Pulls, BusError> {
        let listing = self.is_listing();
        let (deliver_policy, all) = if listing {
            // The server wants to be told of which subjects.
            (DeliverPolicy::LastPerSubject, ">")
        } else {
            (DeliverPolicy::ByStartSequence { start_sequence: self.place.after + 1 }, "")
        };
        let config = pull::Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subject: self.filter.clone().unwrap_or_else(|| all.into()),
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let refused = |why: &dyn std::fmt::Display| BusError::other("consumer", format!("{}: {why}", self.stream));
        let made = self.bus.js.create_consumer_on_stream(config, self.stream.clone());
        let consumer = match self.bus.unless_lost(made).await {
            Some(made) => made.map_err(|e| refused(&e))?,
            None => return Err(refused(&"the connection was lost")),
        };
        self.consumer.clone_from(&consumer.cached_info().name);
        if let Some(list) = self.list.as_mut().filter(|_| listing) {
            list.messages = consumer.cached_info().num_pending;
        }
        // Filtered are the topics between services: their messages are large.
        let batch = if self.filter.is_some() { pulls::PACKED } else { pulls::DOCUMENTS };
        let pulls = Pulls::start(&self.bus.client, &self.stream, &self.consumer, batch).await;
        let pulls = pulls.map_err(|e| BusError::other("pull", format!("{}: {e}", self.stream)))?;
        self.place.consumer_seq = 0;
        self.server_id = self.bus.server_id();
        Ok(pulls)
    }

    /// Opens again where it stood, as long as it takes; ends only when the stream contradicts what was read.
    async fn reopen(&mut self, why: &str) -> Result<(), BusError> {
        if self.is_listing() && (self.pulls.is_some() || self.place.after > 0) {
            let why = format!("the list was interrupted: {why}");
            return Err(BusError::StreamChanged { stream: self.stream.clone(), why });
        }
        tracing::info!(stream = self.stream, after = self.place.after, why, "opening the stream again");
        self.pulls = None;
        let before = self.server_id.clone();
        // Best effort: the server also removes it when it is inactive.
        let old = std::mem::take(&mut self.consumer);
        let _ = self.bus.unless_lost(self.bus.js.delete_consumer_from_stream(old, self.stream.as_str())).await;
        let mut retry = self.bus.retry(format!("reading stream {}", self.stream)).within(LONGEST);
        loop {
            let error = match self.bus.stream_state(&self.stream).await {
                Ok(state) => {
                    self.check(&state)?;
                    match self.subscribe().await {
                        Ok(pulls) => match self.bus.stream_state(&self.stream).await {
                            Ok(state) => {
                                self.check(&state)?;
                                self.pulls = Some(pulls);
                                // Another server than ours may have restarted unseen.
                                let suspect = self.server_id != before || !self.bus.leads(&state);
                                self.restarts += u64::from(suspect);
                                retry.over();
                                return Ok(());
                            }
                            Err(error) => error,
                        },
                        Err(error) => error,
                    }
                }
                Err(error @ BusError::NoStream(_)) => {
                    return Err(BusError::StreamChanged { stream: self.stream.clone(), why: error.to_string() });
                }
                Err(error) => error,
            };
            retry.wait(&error).await;
        }
    }

    /// Waits for a message, then takes what is ready, at most `most`; none when the reader was opened again on another server,
    /// or on one that had restarted.
    ///
    /// Cancel safe as far as messages go: one that was taken is returned.
    pub async fn next_ready(&mut self, most: usize, out: &mut Vec<StreamMessage>) -> Result<(), BusError> {
        let restarts = self.restarts;
        while out.is_empty() && self.restarts == restarts {
            let Some(pulls) = self.pulls.as_mut() else {
                self.reopen("it was not open").await?;
                continue;
            };
            let place = &mut self.place;
            if let Err(why) = pulls.next_ready(most, |message| place.take(message, out)).await {
                if out.is_empty() {
                    self.reopen(&why).await?;
                } else {
                    // What was taken is good; the next call opens again.
                    self.pulls = None;
                }
            }
        }
        Ok(())
    }

    /// Times that the reader was opened again on another server, or on one that had restarted.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }
}

impl Place {
    fn take(&mut self, message: Message, out: &mut Vec<StreamMessage>) -> Result<(), String> {
        let reply = message.reply.as_deref().unwrap_or_default();
        let told = told(reply).ok_or_else(|| format!("a message with the reply subject {reply:?}"))?;
        if told.consumer_seq != self.consumer_seq + 1 {
            return Err(format!("message {} of the consumer came after {}", told.consumer_seq, self.consumer_seq));
        }
        if told.stream_seq <= self.after {
            return Err(format!("message {} came after {}", told.stream_seq, self.after));
        }
        self.consumer_seq = told.consumer_seq;
        self.after = told.stream_seq;
        let headers = message.headers.as_ref();
        out.push(StreamMessage {
            seq: told.stream_seq,
            time: told.time,
            pending: told.pending,
            operation: headers.and_then(|h| h.get("KV-Operation")).map(|v| v.as_str().to_owned()),
            marker: headers.is_some_and(|h| h.get("Nats-Marker-Reason").is_some()),
            subject: message.subject,
            payload: message.payload,
        });
        Ok(())
    }
}
