//! What arrived for one subscriber and was not taken yet.
//!
//! The connection's task puts messages in and never waits. What exceeds the limits is dropped and counted: a subscriber that asked
//! for so much at once that it could be does not exist, and one that is too slow for broadcasts and requests hears of it by
//! the count, which its connection states as an incident.

use super::codec::Message;
use std::{
    collections::VecDeque,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Messages that may wait for one subscriber.
pub(crate) const MOST_WAITING: usize = 65_536;
/// Bytes that may wait for one subscriber, the largest message aside.
pub(crate) const MOST_BYTES: usize = 32 * 1024 * 1024;

/// The messages of one subscriber.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Message>,
    bytes: usize,
    /// Times that the connection was lost since the inbox was made.
    lost: u64,
    closed: bool,
}

/// What waiting for messages came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// Some are there.
    Messages,
    /// None is there, and the connection was lost more often than the subscriber knows: this often.
    Lost(u64),
    /// None is there, and none will come.
    Closed,
}

impl Inbox {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes these in; answers how many had to be dropped.
    pub(crate) fn put(&self, messages: &mut Vec<Message>) -> usize {
        let mut waiting = self.waiting();
        let mut dropped = 0;
        for message in messages.drain(..) {
            let full = waiting.messages.len() >= MOST_WAITING || waiting.bytes >= MOST_BYTES;
            if full || waiting.closed {
                dropped += usize::from(full);
                continue;
            }
            waiting.bytes += message.held();
            waiting.messages.push_back(message);
        }
        drop(waiting);
        self.arrived.notify_one();
        dropped
    }

    /// Takes all that is there, in the place of what `out` holds, which must be empty.
    pub(crate) fn take_all(&self, out: &mut VecDeque<Message>) {
        debug_assert!(out.is_empty());
        let mut waiting = self.waiting();
        waiting.bytes = 0;
        mem::swap(&mut waiting.messages, out);
    }

    pub(crate) fn take_one(&self) -> Option<Message> {
        let mut waiting = self.waiting();
        let message = waiting.messages.pop_front()?;
        waiting.bytes -= message.held();
        Some(message)
    }

    /// The connection was lost: what was asked for does not come any more, subscriptions are made again.
    pub(crate) fn lose(&self) {
        self.waiting().lost += 1;
        self.arrived.notify_one();
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        self.waiting().closed = true;
        self.arrived.notify_one();
    }

    /// Waits for messages, or for a loss of the connection beyond those that the subscriber knows. Cancel safe; one waits at a
    /// time.
    pub(crate) async fn arrived(&self, known_losses: u64) -> Arrived {
        loop {
            {
                let waiting = self.waiting();
                if !waiting.messages.is_empty() {
                    return Arrived::Messages;
                }
                if waiting.closed {
                    return Arrived::Closed;
                }
                if waiting.lost > known_losses {
                    return Arrived::Lost(waiting.lost);
                }
            }
            self.arrived.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::codec, *};
    use bytes::BytesMut;

    fn messages(count: usize, size: usize) -> Vec<Message> {
        let one = [format!("MSG a 1 {size}\r\n").as_bytes(), &vec![b'x'; size], b"\r\n"].concat();
        let mut buffer = BytesMut::from(one.as_slice());
        let Ok(Some(codec::Frame::Message(message))) = codec::decode(&mut buffer, &mut 0) else {
            panic!("one message")
        };
        vec![message; count]
    }

    #[test]
    fn what_exceeds_the_number_of_messages_is_dropped_and_counted() {
        let inbox = Inbox::default();
        assert_eq!(inbox.put(&mut messages(MOST_WAITING, 0)), 0);
        assert_eq!(inbox.put(&mut messages(3, 0)), 3);
        assert!(inbox.take_one().is_some());
        assert_eq!(inbox.put(&mut messages(2, 0)), 1);
        let mut all = VecDeque::new();
        inbox.take_all(&mut all);
        assert_eq!(all.len(), MOST_WAITING);
    }

    #[test]
    fn what_exceeds_the_bytes_is_dropped_and_counted() {
        let inbox = Inbox::default();
        let size = 1024 * 1024;
        // A message's subject counts too, so one fewer fills the inbox.
        let full = MOST_BYTES / size;
        assert_eq!(inbox.put(&mut messages(full + 2, size)), 2);
        assert!(inbox.take_one().is_some());
        assert_eq!(inbox.put(&mut messages(1, size)), 0, "there is room again");
    }

    #[tokio::test]
    async fn who_waits_hears_of_messages_losses_and_the_end() {
        let inbox = Inbox::default();
        inbox.lose();
        assert_eq!(inbox.arrived(0).await, Arrived::Lost(1));
        assert_eq!(inbox.put(&mut messages(1, 2)), 0);
        assert_eq!(inbox.arrived(0).await, Arrived::Messages, "messages first");
        assert!(inbox.take_one().is_some());
        let (arrived, ()) = tokio::join!(inbox.arrived(1), async { inbox.close() });
        assert_eq!(arrived, Arrived::Closed);
        assert_eq!((inbox.put(&mut messages(1, 2)), inbox.take_one()), (0, None));
    }
}
