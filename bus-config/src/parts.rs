//! A long stretch of a stream, read over several connections at once and handed out in order.
//!
//! One consumer brings what one goroutine of the server and one connection carry. So the stretch is cut into shares of equally
//! many sequences, which readers take in turn, each with a connection of its own and a consumer for each share. What a reader has
//! brought waits, in a bounded queue, until the shares before it were handed out.
//!
//! A share is complete when its last sequence came, or a later one, or the stream's leader has nothing between the last message that
//! came and the end of the share. The readers are connected to the server that leads the stream, and their consumers are on it:
//! whoever restarts it, or takes over from it, ends their connections or their consumers, and that ends the whole. What comes next
//! would not join on. Then the stream is read by one reader for a while, also where the server has no room for further
//! connections or consumers.

use crate::{
    connect::Bus,
    faults::fault,
    frames::Link,
    jetstream::StreamState,
    message::StreamMessage,
    pulls::Pulls,
    reader::{self, Place},
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

/// Readers of a stretch. A third brings little more: then the server, which stores and sends, is the limit.
const READERS: usize = 2;
/// A stretch of fewer sequences is read by one reader.
const LONG: u64 = 65_536;
/// Sequences of a share.
const SHARE: u64 = 8_192;
/// Bytes that wait for the shares before them, of each reader; a chunk may go beyond it.
const MOST_WAITING: usize = 4 * 1024 * 1024;
/// Messages of a chunk.
const CHUNK: usize = 512;
/// Bytes of a chunk, but for a single larger message.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks and ends of shares in a queue; the bytes are what bounds it.
const QUEUE: usize = 64;
/// A share of which nothing comes for so long may be complete.
const SILENCE: Duration = Duration::from_millis(100);
/// A consumer that was not asked for so long is left for another: the server removes one that nobody asks.
const IDLE: Duration = Duration::from_secs(5);

/// Sequences above `after`, up to `upto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    after: u64,
    pub(crate) upto: u64,
}

impl Stretch {
    /// What of a stream above `after` is worth to be read in parts: much, with more messages than gaps.
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
    /// So many stretches at once may be read of one process.
    _turn: OwnedSemaphorePermit,
}

impl Parts {
    /// Begins to read the stretch of a stream whose state this is; None: one reader must do, as there is no room for more, or they
    /// would not be connected to the stream's leader.
    pub(crate) async fn start(bus: &Bus, stream: &str, state: &StreamState, stretch: Stretch) -> Option<Self> {
        let turn = bus.turn_in_parts(stream)?;
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
    /// How often that was lost before the first share.
    losses: u64,
    stream: String,
    leader: String,
    created: i64,
    room: Arc<Semaphore>,
    out: mpsc::Sender<Brought>,
}

impl Reader {
    async fn run(self, stretch: Stretch, number: u64) {
        for share in (number..stretch.shares()).step_by(READERS) {
            let brought = match self.share(stretch.share(share)).await {
                // What came before and after a loss may not be of the same store.
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
            let from = reader::starting_at(share.start + 1);
            let made = reader::consumer(&self.bus, &self.stream, &from, Some(&self.leader)).await;
            let consumer = made.map_err(|error| error.to_string())?.name;
            let read = self.read(&consumer, share.clone()).await;
            reader::remove_consumer(&self.bus, &self.stream, &consumer).await;
            share.start = read?;
        }
        Ok(())
    }

    /// Reads from one consumer, until the share is complete or what was read was not taken for long; answers how far.
    async fn read(&self, consumer: &str, share: Range<u64>) -> Result<u64, String> {
        let wanted = share.end - share.start;
        let mut pulls = Pulls::start(&self.bus, &self.link, &self.stream, consumer, wanted).await?;
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
            let since = Instant::now();
            self.hand_on(messages).await?;
            if since.elapsed() >= IDLE {
                break;
            }
        }
        Ok(place.after.min(share.end))
    }

    /// Whether the stream's leader, still the same, has nothing of the share above `after`. Who does not answer is asked again.
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
