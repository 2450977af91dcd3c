//! A gap-checked reader of one stream.
//!
//! A pull consumer with `AckPolicy::None` and overlapping pulls from a given sequence on. The server accepts a start past the
//! stream's end or below its first message silently, and a recreated stream looks gapless: so the stream's state is compared
//! before and after every opening, and what contradicts ends the reader with [`BusError::StreamChanged`]. The consumer sequence
//! shows messages that were lost on the way, also on filtered streams; then the reader re-opens where it stood.

use crate::{
    connect::Bus,
    consumers::{consumer, forget_consumer, kept_for, remove_consumer, starting_at},
    error::BusError,
    frames::{Link, codec::Message},
    jetstream::StreamState,
    listing,
    message::StreamMessage,
    parts::{Parts, Stretch},
    pulls::{Pulls, told},
    troubles::Retry,
};
use async_nats::jetstream::consumer::DeliverPolicy;
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

/// Bytes of messages that are handed out together, but for a single larger one.
const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes that a delivery adds to a stored message: the reply subject, without the stream's name.
const BESIDES: u64 = 128;
const LOST: &str = "the connection on which answers come was lost";
/// A stream that cannot be opened again is tried at least this often.
const LONGEST: Duration = Duration::from_secs(1);
/// A reading that lasts so long does not fail, though nothing comes.
const LASTS: Duration = Duration::from_secs(1);

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
    /// Over connections of its own: for who reads so much that other readers of this process would wait. A long stretch is
    /// read in parts.
    pub apart: bool,
    /// Slowly, so that writers hardly notice; never in parts. Where only the last message of each subject is listed, the server must
    /// always have a pull, so that is read at full speed.
    pub paced: bool,
}

/// The messages that a reader begins with when it lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    /// The stream's last sequence before they were determined.
    pub upto: u64,
    /// How many there were.
    pub messages: u64,
}

/// Reads one stream in order.
pub struct StreamReader {
    bus: Bus,
    /// The connection that it reads over, its own or the one of the bus.
    link: Link,
    apart: bool,
    paced: bool,
    stream: String,
    filter: Option<String>,
    place: Place,
    created: i64,
    /// The server that answered when the stream was opened last. The connection that messages come over may still be without one
    /// then, and says nothing of whose messages they will be.
    server_id: String,
    pulls: Option<Pulls>,
    /// The stretch that it begins with.
    parts: Option<(Parts, Stretch)>,
    consumer: String,
    /// Times that the reader was opened again on another server, or on one that had, or may have, restarted.
    restarts: u64,
    /// How often the connection on which answers come had been lost when the stream was opened last.
    losses: u64,
    list: Option<List>,
    /// Messages of the list that have come, if they do not come in parts.
    listed: u64,
    /// Bytes that a message took on average when it was opened; None: all messages are the last ones of their subjects, and the
    /// server sends them as any others.
    average: Option<u64>,
    /// Who led the stream when the list was begun.
    leader: String,
    /// Who led it when it was opened last.
    led_by: String,
    /// How long the server keeps a consumer that nobody uses.
    inactive: Duration,
    /// Readings that end before anything has come, and openings that fail.
    retry: Retry,
    /// When it was opened last, and when it may be opened again.
    opened_at: Instant,
    due: Instant,
    /// Something has come since.
    brought: bool,
}

/// How far a reader is.
pub(crate) struct Place {
    /// The last stream sequence handed out or passed.
    pub(crate) after: u64,
    /// The last message of the consumer.
    consumer_seq: u64,
}

impl StreamReader {
    /// Opens a stream; it must exist and agree with `from`.
    pub async fn open(bus: &Bus, stream: &str, from: ReadFrom) -> Result<Self, BusError> {
        let link = if from.apart { bus.another_link().await? } else { bus.link().clone() };
        let losses = bus.losses();
        let state = bus.stream_state(stream).await?;
        let mut reader = Self {
            bus: bus.clone(),
            stream: stream.into(),
            filter: from.filter,
            place: Place::new(from.after),
            created: from.created.unwrap_or(state.created),
            server_id: bus.server_id(),
            link,
            apart: from.apart,
            paced: from.paced,
            pulls: None,
            parts: None,
            consumer: String::new(),
            restarts: 0,
            losses,
            listed: 0,
            average: (state.max_messages_per_subject != 1)
                .then(|| state.bytes / state.messages.max(1) + BESIDES + stream.len() as u64),
            list: from.lists.then_some(List { upto: state.last_seq, messages: 0 }),
            leader: state.leader.clone(),
            led_by: state.leader.clone(),
            inactive: kept_for(&state),
            retry: bus.retry(format!("reading stream {stream}")).within(LONGEST),
            opened_at: Instant::now(),
            due: Instant::now(),
            brought: false,
        };
        reader.check(&state)?;
        if !reader.begin_in_parts(&state).await {
            reader.subscribe_checked().await?;
        }
        Ok(reader)
    }

    /// Begins to read what the stream has now in parts, if that pays; false: it does not.
    async fn begin_in_parts(&mut self, state: &StreamState) -> bool {
        // All messages are the last ones of their subjects, or all are asked for.
        let all = self.list.is_none() || state.max_messages_per_subject == 1;
        if !self.apart || self.paced || self.filter.is_some() || !all {
            return false;
        }
        let Some(stretch) = Stretch::of(state, self.place.after) else { return false };
        let parts = Parts::start(&self.bus, &self.stream, state, stretch).await;
        if let Some(list) = self.list.as_mut().filter(|_| parts.is_some()) {
            list.messages = state.messages;
        }
        self.parts = parts.map(|parts| (parts, stretch));
        self.parts.is_some()
    }

    async fn subscribe_checked(&mut self) -> Result<StreamState, BusError> {
        let pulls = self.subscribe().await?;
        let state = self.bus.stream_state(&self.stream).await?;
        self.check(&state)?;
        self.pulls = Some(pulls);
        Ok(state)
    }

    /// Takes what the parts have brought, until all of the stretch was handed out; then it is read on behind it.
    async fn next_of_parts(&mut self, most: usize, out: &mut Vec<StreamMessage>) -> Result<(), BusError> {
        let Some((parts, stretch)) = &mut self.parts else { return Ok(()) };
        match parts.next_ready(most, out).await {
            Ok(true) => {
                self.place.after = out.last().map_or(self.place.after, |last| last.seq);
                return Ok(());
            }
            Ok(false) => self.place.after = self.place.after.max(stretch.upto),
            Err(why) => {
                self.parts = None;
                self.bus.attempts().parts_failed(&self.stream);
                return self.reopen(&why).await;
            }
        }
        // The parts stay until it is read on: who gives up waiting for that comes back here.
        let losses = self.bus.losses();
        let opened = self.subscribe_checked().await;
        self.parts = None;
        match opened {
            Ok(state) if self.opened(losses, &state, false) => {}
            Ok(_) => self.reopen(LOST).await?,
            Err(changed @ BusError::StreamChanged { .. }) => return Err(changed),
            Err(error) => self.reopen(&error.to_string()).await?,
        }
        Ok(())
    }

    /// What it began with, if it lists.
    pub fn list(&self) -> Option<List> {
        self.list
    }

    /// It reads a long stretch in parts at present.
    pub fn is_in_parts(&self) -> bool {
        self.parts.is_some()
    }

    /// It has still to list.
    fn is_listing(&self) -> bool {
        self.list.is_some_and(|list| self.place.after < list.upto)
    }

    /// Whether all that the list names has come, as the stream's leader says.
    pub async fn list_is_complete(&self) -> Result<bool, BusError> {
        match self.list {
            // What the parts have brought waits to be handed out.
            Some(list) if self.parts.is_some() && self.place.after < list.upto => Ok(false),
            Some(list) => listing::is_complete(&self.bus, &self.stream, self.place.after, list.upto).await,
            None => Ok(true),
        }
    }

    /// To be called when all has come: whether the server still leads whose list it is.
    ///
    /// # Errors
    /// [`BusError::StreamChanged`] when it does not.
    pub async fn list_ended(&mut self) -> Result<(), BusError> {
        let StreamState { leader, last_seq, subject_count, .. } = self.bus.stream_state(&self.stream).await?;
        let changed = |why: String| Err(BusError::StreamChanged { stream: self.stream.clone(), why });
        if leader != self.leader {
            return changed(format!("server {leader:?} leads it now, and the list is of {:?}", self.leader));
        }
        // Where nothing was written meanwhile, all that was counted has come, but for what is removed.
        if let Some(list) = self.list.filter(|list| self.average.is_some() && last_seq == list.upto) {
            let counted = list.messages.min(subject_count);
            if self.bus.attempts().lacks_messages(&self.stream, self.listed < counted) {
                return changed(format!("the list has {} of {counted} messages", self.listed));
            }
        }
        self.list = None;
        if let Some(pulls) = &mut self.pulls {
            pulls.list_ended();
        }
        Ok(())
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
        if let Some(list) = self.list.filter(|list| state.last_seq < list.upto) {
            return changed(format!("its last sequence is {}, and its list goes up to {}", state.last_seq, list.upto));
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
        self.remove_unused();
        let listing = self.is_listing();
        let mut config = starting_at(self.place.after + 1, self.inactive);
        // Where each message is the last of its subject, all are asked for: the server need not look which are.
        if listing && self.average.is_some() {
            config.deliver_policy = DeliverPolicy::LastPerSubject;
            // The server wants to be told of which subjects.
            config.filter_subject = ">".into();
        }
        if let Some(filter) = &self.filter {
            config.filter_subject.clone_from(filter);
        }
        let leader = listing.then_some(self.leader.as_str());
        let info = consumer(&self.bus, &self.stream, &config, leader).await?;
        self.consumer.clone_from(&info.name);
        if let Some(list) = self.list.as_mut().filter(|_| listing) {
            list.messages = info.num_pending;
        }
        let list =
            self.average.filter(|_| listing).map(|average| self.bus.attempts().list_pulls(&self.stream, average));
        // Of a list the server forgets a message when no pull waits for it: it is never left without one.
        let paced = self.paced && list.is_none();
        let pulls = Pulls::start(&self.bus, &self.link, &self.stream, &self.consumer, u64::MAX, list, paced).await;
        let pulls = pulls.map_err(|e| BusError::other("pull", format!("{}: {e}", self.stream)))?;
        self.place.consumer_seq = 0;
        Ok(pulls)
    }

    /// Has the server remove the consumer, without waiting for it: an account or a stream may have room for a few only.
    fn remove_unused(&mut self) {
        let consumer = std::mem::take(&mut self.consumer);
        if !consumer.is_empty() {
            forget_consumer(&self.bus, &self.stream, &consumer);
        }
    }

    /// Opens again where it stood, as long as it takes; ends only when the stream contradicts what was read.
    async fn reopen(&mut self, why: &str) -> Result<(), BusError> {
        if self.is_listing() && (self.pulls.is_some() || self.place.after > 0 || self.consumer.is_empty()) {
            let why = format!("the list was interrupted: {why}");
            return Err(BusError::StreamChanged { stream: self.stream.clone(), why });
        }
        tracing::info!(stream = self.stream, after = self.place.after, why, "opening the stream again");
        self.pulls = None;
        let old = std::mem::take(&mut self.consumer);
        if !old.is_empty() {
            // What the server ends at once, each time, is not asked for without end.
            if !self.brought && self.opened_at.elapsed() < LASTS {
                self.due = Instant::now() + self.retry.failed(&why);
            }
            remove_consumer(&self.bus, &self.stream, &old).await;
        }
        loop {
            sleep_until(self.due.into()).await;
            if self.apart && self.link.is_over() {
                match self.bus.another_link().await {
                    Ok(link) => self.link = link,
                    Err(error) => {
                        self.due = Instant::now() + self.retry.failed(&error);
                        continue;
                    }
                }
            }
            let losses = self.bus.losses();
            let error = match self.bus.stream_state(&self.stream).await {
                Ok(state) => {
                    self.check(&state)?;
                    self.inactive = kept_for(&state);
                    match self.subscribe().await {
                        Ok(pulls) => match self.bus.stream_state(&self.stream).await {
                            Ok(state) => {
                                self.check(&state)?;
                                // Another server than ours may have restarted unseen.
                                if self.opened(losses, &state, !self.bus.leads(&state)) {
                                    self.pulls = Some(pulls);
                                    (self.opened_at, self.brought) = (Instant::now(), false);
                                    return Ok(());
                                }
                                BusError::other("connection", LOST)
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
            self.due = Instant::now() + self.retry.failed(&error);
        }
    }

    /// It was opened again by what was asked when the connection for answers had been lost so often; false: it was lost meanwhile,
    /// and nobody knows which server has answered.
    fn opened(&mut self, losses: u64, state: &StreamState, suspect: bool) -> bool {
        let server_id = self.bus.server_id();
        if self.bus.losses() != losses {
            return false;
        }
        // Another leader may lack what the one before it had, though its server never went.
        let changed = self.server_id != server_id || self.led_by != state.leader;
        self.restarts += u64::from(suspect || changed);
        (self.server_id, self.losses) = (server_id, losses);
        self.led_by.clone_from(&state.leader);
        true
    }

    /// Waits for a message, then takes what is ready, at most `most`; none when the reader was opened again on another server,
    /// or on one that had restarted.
    ///
    /// Cancel safe as far as messages go: one that was taken is returned.
    pub async fn next_ready(&mut self, most: usize, out: &mut Vec<StreamMessage>) -> Result<(), BusError> {
        let restarts = self.restarts;
        while out.is_empty() && self.restarts == restarts {
            if self.parts.is_some() {
                self.next_of_parts(most, out).await?;
                continue;
            }
            // The connection for answers was lost, which need not be the one that messages come over. Its server may have lost the
            // messages that are still under way, and whoever compares the stream after the loss must not be handed those. A list
            // goes on: the server that leads the stream confirms it at its end.
            let losses = self.bus.losses();
            if self.losses != losses && !self.is_listing() {
                self.reopen(LOST).await?;
                continue;
            }
            let Some(pulls) = self.pulls.as_mut() else {
                self.reopen("it was not open").await?;
                continue;
            };
            let place = &mut self.place;
            let taken = pulls.next_ready(most, CHUNK_BYTES, |message| place.take(message, out));
            let taken = tokio::select! {
                biased;
                // None: the connection for answers was lost while no message was there to take.
                taken = self.bus.unless_lost_since(losses, taken) => taken,
                () = sleep_until((self.opened_at + LASTS).into()), if self.retry.is_failing() => {
                    self.retry.over();
                    continue;
                }
            };
            if !out.is_empty() {
                self.brought = true;
                self.retry.over();
            }
            if let Some(list) = self.list {
                self.listed += out.iter().filter(|message| message.seq <= list.upto).count() as u64;
            }
            if matches!(taken, Some(Err(_))) && self.pulls.as_ref().is_some_and(Pulls::fell_short) {
                self.bus.attempts().list_fell_short(&self.stream);
            }
            if let Some(Err(why)) = taken {
                if out.is_empty() {
                    // A list of which nothing has come is no other one when it is begun again.
                    self.pulls = self.pulls.take().filter(|pulls| !pulls.is_refused());
                    self.reopen(&why).await?;
                } else {
                    // What was taken is good; the next call opens again.
                    self.pulls = None;
                }
            }
        }
        Ok(())
    }

    /// Ends it, so that the server need not find out that nobody reads any more.
    pub async fn close(mut self) {
        self.pulls = None;
        let consumer = std::mem::take(&mut self.consumer);
        remove_consumer(&self.bus, &self.stream, &consumer).await;
    }

    /// How often the connection on which answers come had been lost, at least, when the server sent what was handed out last.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// Times that the reader was opened again on another server, or on one that had restarted.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.remove_unused();
    }
}

impl Place {
    pub(crate) fn new(after: u64) -> Self {
        Self { after, consumer_seq: 0 }
    }

    pub(crate) fn take(&mut self, message: Message, out: &mut Vec<StreamMessage>) -> Result<(), String> {
        let reply = || String::from_utf8_lossy(message.reply()).into_owned();
        let told = told(message.reply()).ok_or_else(|| format!("a message with the reply subject {:?}", reply()))?;
        if told.consumer_seq != self.consumer_seq + 1 {
            return Err(format!("message {} of the consumer came after {}", told.consumer_seq, self.consumer_seq));
        }
        if told.stream_seq <= self.after {
            return Err(format!("message {} came after {}", told.stream_seq, self.after));
        }
        self.consumer_seq = told.consumer_seq;
        self.after = told.stream_seq;
        out.push(StreamMessage::new(told, message));
        Ok(())
    }
}
