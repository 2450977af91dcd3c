//! Reads a long range of a stream over several connections at once, and hands its messages out in order.
//!
//! nats-server serves a consumer with one goroutine, and one connection carries its messages: both limit the rate. So the range is
//! cut into shares of equally many sequences. The readers take the shares in turn; each reader has a connection of its own, and
//! makes a consumer for each share. The messages of a share wait in a bounded queue until all earlier shares were handed out.
//!
//! A share is complete when its last sequence or a later one arrived, or when the stream's leader has no message between the last
//! one that arrived and the end of the share. The readers are connected to the server that leads the stream, and their consumers
//! are on that server. A restart of the server or a new leader ends the connections or the consumers, and with them the reading
//! in parts, because later messages may belong to another history. The stream is then read by a single reader for a while; so it
//! is where the server refuses further connections or consumers.

use crate::{
    connect::Bus,
    consumers,
    faults::fault,
    frames::Link,
    jetstream::StreamState,
    message::StreamMessage,
    pulls::Pulls,
    reader::Place,
    supervise::{self, Task},
};
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
    vec,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

/// Readers of one range. More than two were not measured.
const READERS: usize = 2;
/// A shorter range, in sequences, is read by one reader.
const LONG: u64 = 65_536;
/// Sequences of a share.
const SHARE: u64 = 8_192;
/// Bytes of a reader that may wait for earlier shares; the last chunk may exceed the limit.
const MOST_WAITING: usize = 4 * 1024 * 1024;
/// Messages of a chunk.
const CHUNK: usize = 512;
/// Bytes of a chunk, but for a single larger message.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks and ends of shares in a queue; the bytes are what bounds it.
const QUEUE: usize = 64;
/// A share of which nothing comes for so long may be complete.
const SILENCE: Duration = Duration::from_millis(100);
/// After a pause of this length the reader makes a new consumer: the server removes one that gets no requests.
const IDLE: Duration = Duration::from_secs(5);

/// Sequences above `after`, up to `upto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    after: u64,
    pub(crate) upto: u64,
}

impl Stretch {
    /// The range above `after`, if reading it in parts pays: it is long, and has more messages than gaps.
    pub(crate) fn of(state: &StreamState, after: u64) -> Option<Self> {
        let after = after.max(state.first_seq.saturating_sub(1));
        let span = state.last_seq.saturating_sub(state.first_seq);
        let stretch = Self { after, upto: state.last_seq };
        (stretch.upto.saturating_sub(after) >= LONG && state.messages > span / 2).then_some(stretch)
    }

    fn shares(self) -> u64 {
        (self.upto - self.after).div_ceil(SHARE)
    }

    /// The sequences of a share: above the start, up to and with the end.
    fn share(self, number: u64) -> Range<u64> {
        let start = self.after + number * SHARE;
        start..start.saturating_add(SHARE).min(self.upto)
    }
}

enum Brought {
    /// With the room that they take in the queue.
    Messages(Vec<StreamMessage>, OwnedSemaphorePermit),
    ShareEnds,
    Failed(String),
}

/// The readers of a stretch.
pub(crate) struct Parts {
    queues: Vec<mpsc::Receiver<Brought>>,
    /// Whose share is handed out.
    turn: usize,
    /// Shares that were not handed out as a whole.
    left: u64,
    ready: vec::IntoIter<StreamMessage>,
    room: Option<OwnedSemaphorePermit>,
    /// Dropping them ends them.
    _readers: Vec<Task>,
    /// Limits how many ranges a process reads in parts at once.
    _turn: OwnedSemaphorePermit,
}

impl Parts {
    /// Begins to read the stretch of a stream whose state this is; None: one reader must do, as there is no room for more, or they
    /// would not be connected to the stream's leader.
    pub(crate) async fn start(bus: &Bus, stream: &str, state: &StreamState, stretch: Stretch) -> Option<Self> {
        let turn = bus.attempts().turn_in_parts(stream)?;
        let (mut queues, mut readers) = (Vec::new(), Vec::new());
        for number in 0..READERS {
            let (out, queue) = mpsc::channel(QUEUE);
            let link = bus.another_link().await.ok()?;
            if !state.leader.is_empty() && state.leader != link.server_name() {
                return None;
            }
            let reader = Reader {
                losses: link.losses(),
                link,
                bus: bus.clone(),
                stream: stream.to_owned(),
                leader: state.leader.clone(),
                created: state.created,
                inactive: consumers::kept_for(state),
                room: Arc::new(Semaphore::new(MOST_WAITING)),
                out,
            };
            let what = format!("reading a part of stream {stream}");
            readers.push(supervise::task(&bus.incidents(), what, reader.run(stretch, number as u64)));
            queues.push(queue);
        }
        let left = stretch.shares();
        let ready = Vec::new().into_iter();
        Some(Self { queues, turn: 0, left, ready, room: None, _readers: readers, _turn: turn })
    }

    /// Waits for messages, then takes what is ready, at most `most`; false: all of the stretch was handed out. Cancel safe.
    ///
    /// # Errors
    /// Why a reader could not go on.
    pub(crate) async fn next_ready(&mut self, most: usize, out: &mut Vec<StreamMessage>) -> Result<bool, String> {
        while self.ready.len() == 0 {
            self.room = None;
            let Some(queue) = self.queues.get_mut(self.turn).filter(|_| self.left > 0) else { return Ok(false) };
            match queue.recv().await {
                Some(Brought::Messages(messages, room)) => (self.ready, self.room) = (messages.into_iter(), Some(room)),
                Some(Brought::ShareEnds) => {
                    self.left -= 1;
                    self.turn = (self.turn + 1) % self.queues.len();
                }
                Some(Brought::Failed(why)) => return Err(why),
                None => return Err("the reader of a part has ended".into()),
            }
        }
        out.extend(self.ready.by_ref().take(most));
        Ok(true)
    }
}

struct Reader {
    bus: Bus,
    link: Link,
    /// How often the connection had been lost before the first share.
    losses: u64,
    stream: String,
    leader: String,
    created: i64,
    /// How long the server keeps a consumer that nobody uses.
    inactive: Duration,
    room: Arc<Semaphore>,
    out: mpsc::Sender<Brought>,
}

impl Reader {
    async fn run(self, stretch: Stretch, number: u64) {
        for share in (number..stretch.shares()).step_by(READERS) {
            let brought = match self.share(stretch.share(share)).await {
                // After a loss of the connection the server may have restarted with another history.
                Ok(()) if self.link.losses() != self.losses => Brought::Failed("the connection was lost".into()),
                Ok(()) => Brought::ShareEnds,
                Err(why) => Brought::Failed(why),
            };
            let over = matches!(brought, Brought::Failed(_));
            if self.out.send(brought).await.is_err() || over {
                return;
            }
        }
    }

    async fn share(&self, mut share: Range<u64>) -> Result<(), String> {
        while share.start < share.end {
            fault("part", &self.stream);
            let from = consumers::starting_at(share.start + 1, self.inactive);
            let made = consumers::consumer(&self.bus, &self.stream, &from, Some(&self.leader)).await;
            let consumer = made.map_err(|error| error.to_string())?.name;
            let read = self.read(&consumer, share.clone()).await;
            consumers::remove_consumer(&self.bus, &self.stream, &consumer).await;
            share.start = read?;
        }
        Ok(())
    }

    /// Reads from one consumer, until the share is complete or what was read was not taken for long; answers how far.
    async fn read(&self, consumer: &str, share: Range<u64>) -> Result<u64, String> {
        let wanted = share.end - share.start;
        let mut pulls = Pulls::start(&self.bus, &self.link, &self.stream, consumer, wanted, None, false).await?;
        let mut place = Place::new(share.start);
        while place.after < share.end {
            let mut messages = Vec::with_capacity(CHUNK);
            let read = pulls.next_ready(CHUNK, CHUNK_BYTES, |message| place.take(message, &mut messages));
            match timeout(SILENCE, read).await {
                Ok(read) => read?,
                Err(_) if messages.is_empty() => {
                    if self.is_complete(place.after, share.end).await {
                        return Ok(share.end);
                    }
                }
                Err(_) => {}
            }
            messages.truncate(messages.partition_point(|message| message.seq <= share.end));
            // After a loss of the connection the server may have restarted with another history.
            if self.link.losses() != self.losses {
                return Err("the connection was lost".into());
            }
            let since = Instant::now();
            self.hand_on(messages).await?;
            if since.elapsed() >= IDLE.min(self.inactive / 2) {
                break;
            }
        }
        Ok(place.after.min(share.end))
    }

    /// Whether the stream's leader has no message of the share above `after`. False also if another server leads, or none answers:
    /// the caller asks again.
    async fn is_complete(&self, after: u64, end: u64) -> bool {
        let Ok(next) = self.bus.next_message(&self.stream, after + 1).await else { return false };
        if next.is_some_and(|next| next.seq <= end) {
            return false;
        }
        let same = |now: StreamState| now.leader == self.leader && now.created == self.created && now.last_seq >= end;
        self.bus.stream_state(&self.stream).await.is_ok_and(same)
    }

    async fn hand_on(&self, messages: Vec<StreamMessage>) -> Result<(), String> {
        if messages.is_empty() {
            return Ok(());
        }
        let bytes: usize = messages.iter().map(StreamMessage::size).sum();
        let room = u32::try_from(bytes.min(MOST_WAITING)).unwrap_or(u32::MAX);
        let unwanted = || "nobody takes what is read".to_owned();
        let room = Arc::clone(&self.room).acquire_many_owned(room).await.map_err(|_| unwanted())?;
        self.out.send(Brought::Messages(messages, room)).await.map_err(|_| unwanted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(first_seq: u64, last_seq: u64, messages: u64) -> StreamState {
        StreamState { first_seq, last_seq, messages, ..StreamState::default() }
    }

    #[test]
    fn shares_are_next_to_each_other_and_make_up_the_stretch() {
        for length in [LONG, LONG + 1, 10 * SHARE - 1, 10 * SHARE, 10 * SHARE + 1] {
            let stretch = Stretch::of(&stream(5, 100 + length, 100 + length), 100).unwrap();
            assert_eq!((stretch.after, stretch.upto), (100, 100 + length));
            let mut at = 100;
            for share in (0..stretch.shares()).map(|number| stretch.share(number)) {
                assert!(share.start == at && share.end > at && share.end - at <= SHARE, "{share:?} at {at}");
                at = share.end;
            }
            assert_eq!(at, stretch.upto);
        }
    }

    #[test]
    fn what_is_short_or_has_more_gaps_than_messages_is_read_by_one() {
        let is_read_in_parts = |state: StreamState, after| Stretch::of(&state, after).is_some();
        assert!(is_read_in_parts(stream(1, LONG, LONG), 0));
        assert!(!is_read_in_parts(stream(1, LONG, LONG), 1));
        assert!(!is_read_in_parts(stream(2, LONG, LONG - 1), 0), "there is nothing below the first message");
        assert!(is_read_in_parts(stream(1, 4 * LONG, 2 * LONG), 0));
        assert!(!is_read_in_parts(stream(1, 4 * LONG, 2 * LONG - 1), 0));
        assert!(!is_read_in_parts(StreamState::default(), 0));
        assert!(!is_read_in_parts(stream(1, LONG, LONG), u64::MAX));
    }
}
