//! A long stretch of a stream, read over several connections at once and handed out in order.
//!
//! One consumer brings what one goroutine of the server and one connection carry. So the stretch is cut into shares of equally
//! many sequences, which readers take in turn, each with a connection of its own and a consumer for each share. What a reader has
//! brought waits, in a bounded queue, until the shares before it were handed out.
//!
//! A share is complete when its last sequence came, or a later one, or the store has nothing between the last message that came and
//! the end of the share. Whatever else ends a reader ends the whole: what comes next would not join on.

use crate::{
    connect::Bus,
    frames::Link,
    jetstream::StreamState,
    message::StreamMessage,
    pulls::Pulls,
    reader::{self, Place},
    supervise::{self, Task},
};
use std::{ops::Range, sync::Arc, time::Duration, vec};
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
        start..(start + SHARE).min(self.upto)
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
    /// Begins to read the stretch; None: as many others as may are being read in parts. `leader`: the server that the consumers
    /// must be on.
    ///
    /// # Errors
    /// No connection could be opened.
    pub(crate) async fn start(
        bus: &Bus,
        stream: &str,
        leader: Option<&str>,
        stretch: Stretch,
    ) -> Result<Option<Self>, crate::BusError> {
        let Some(turn) = bus.turn_in_parts() else { return Ok(None) };
        let (mut queues, mut readers) = (Vec::new(), Vec::new());
        for number in 0..READERS {
            let (out, queue) = mpsc::channel(QUEUE);
            let reader = Reader {
                link: bus.another_link().await?,
                bus: bus.clone(),
                stream: stream.to_owned(),
                leader: leader.map(str::to_owned),
                room: Arc::new(Semaphore::new(MOST_WAITING)),
                out,
            };
            let what = format!("reading a part of stream {stream}");
            readers.push(supervise::task(&bus.incidents(), what, reader.run(stretch, number as u64)));
            queues.push(queue);
        }
        let left = stretch.shares();
        let ready = Vec::new().into_iter();
        Ok(Some(Self { queues, turn: 0, left, ready, room: None, _readers: readers, _turn: turn }))
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
    stream: String,
    leader: Option<String>,
    room: Arc<Semaphore>,
    out: mpsc::Sender<Brought>,
}

impl Reader {
    async fn run(self, stretch: Stretch, number: u64) {
        for share in (number..stretch.shares()).step_by(READERS) {
            let brought = match self.share(stretch.share(share)).await {
                Ok(()) => Brought::ShareEnds,
                Err(why) => Brought::Failed(why),
            };
            let over = matches!(brought, Brought::Failed(_));
            if self.out.send(brought).await.is_err() || over {
                return;
            }
        }
    }

    async fn share(&self, share: Range<u64>) -> Result<(), String> {
        let from = reader::starting_at(share.start + 1);
        let made = reader::consumer(&self.bus, &self.stream, &from, self.leader.as_deref()).await;
        let consumer = made.map_err(|error| error.to_string())?.name;
        let read = self.read(&consumer, share).await;
        reader::remove_consumer(&self.bus, &self.stream, &consumer).await;
        read
    }

    async fn read(&self, consumer: &str, share: Range<u64>) -> Result<(), String> {
        let wanted = share.end - share.start;
        let mut pulls = Pulls::start(&self.bus, &self.link, &self.stream, consumer, wanted).await?;
        let mut place = Place::new(share.start);
        while place.after < share.end {
            let mut messages = Vec::with_capacity(CHUNK);
            let read = pulls.next_ready(CHUNK, CHUNK_BYTES, |message| place.take(message, &mut messages));
            match timeout(SILENCE, read).await {
                Ok(read) => read?,
                Err(_) if messages.is_empty() => {
                    if self.is_complete(place.after, share.end).await? {
                        return Ok(());
                    }
                }
                Err(_) => {}
            }
            messages.truncate(messages.partition_point(|message| message.seq <= share.end));
            self.hand_on(messages).await?;
        }
        Ok(())
    }

    /// Whether the store has nothing of the share above `after`.
    async fn is_complete(&self, after: u64, end: u64) -> Result<bool, String> {
        let next = self.bus.next_message(&self.stream, after + 1).await.map_err(|error| error.to_string())?;
        Ok(next.is_none_or(|next| next.seq > end))
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
