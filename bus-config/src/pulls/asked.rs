//! Account of the messages and bytes that a reader's pulls have asked for and not received. It says how much the next pull asks
//! for; deliveries and the server's status messages change it.

use crate::frames::headers::Headers;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Messages that one pull asks for.
const BATCH: u64 = 8_192;
/// The same of a reader that leaves the server time for others.
const PACED_BATCH: u64 = 256;
/// Bytes of the subject and the reply subject of a message, at most.
const BESIDES: u64 = 64 * 1024;
/// Bytes that one pull asks for, of servers whose messages may not be larger.
const BYTES: u64 = 1024 * 1024;
/// And at most, for a stream that holds larger messages than the server takes now: no message is larger.
const MOST_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Bytes that the pulls of all readers of a process ask for.
const TOGETHER: u64 = 8 * 1024 * 1024;
/// A reader's share of these is never less.
const LEAST_SHARE: u64 = 32 * 1024;

/// The number of a process's readers that pull now.
pub(crate) type Pulling = Arc<AtomicU64>;

/// A reader that counts as one that pulls until this is dropped.
pub(super) struct Counted(Pulling);

impl Counted {
    pub(super) fn new(pulling: &Pulling) -> Self {
        pulling.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(pulling))
    }

    /// Bytes that one of the readers may ask for at a time.
    pub(super) fn share(&self) -> u64 {
        (TOGETHER / self.0.load(Ordering::Relaxed).max(1)).max(LEAST_SHARE)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a list is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListPulls {
    /// With room for so many times as many messages of this size, bytes.
    Room { size: u64, times: u64 },
    /// With room for the largest ones, and without a limit of bytes.
    Largest,
}

/// What was asked for and has not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// A list that is not complete is pulled.
    pub(super) list: Option<ListPulls>,
    messages: u64,
    bytes: u64,
    /// Messages that one pull asks for.
    batch: u64,
    /// Bytes that one pull asks for when few pull: enough for the largest message.
    full: u64,
    /// Bytes without which a message did not come; less again once one has come.
    needed: u64,
    /// Bytes that the last pull asked for.
    pub(super) pull: u64,
    /// Messages that are wanted and have not come.
    wanted: u64,
    /// One pull at a time, of few messages; not for lists, of which one is always to come.
    paced: bool,
    /// A pull of a list had no room or time for a message.
    pub(super) fell_short: bool,
    /// A message came since the last pull.
    delivered: bool,
}

impl Asked {
    pub(super) fn new(max_payload: u64, wanted: u64, list: Option<ListPulls>, paced: bool) -> Self {
        let full = max_payload.saturating_add(BESIDES).clamp(BYTES, MOST_BYTES);
        Self {
            list,
            messages: 0,
            bytes: 0,
            batch: if paced { PACED_BATCH } else { BATCH },
            paced,
            full,
            needed: 0,
            pull: 0,
            wanted,
            fell_short: false,
            delivered: false,
        }
    }

    /// Messages that one pull with so many bytes asks for.
    fn batch(&self, bytes: u64) -> u64 {
        let fit = match self.list {
            None => return self.batch,
            Some(ListPulls::Room { size, times }) => bytes / size.saturating_mul(times).max(1),
            Some(ListPulls::Largest) => bytes / self.full,
        };
        fit.clamp(1, self.batch)
    }

    /// What the server is told of the bytes of the pull that was asked for last; None: nothing. In a list any message has room whose
    /// reader has a small share.
    pub(super) fn max_bytes(&self) -> Option<u64> {
        match self.list {
            None => Some(self.pull),
            Some(ListPulls::Room { .. }) => Some(self.pull.max(self.full)),
            Some(ListPulls::Largest) => None,
        }
    }

    /// How many messages the next pull of a reader with this share asks for, if one is due; they and its bytes count as asked for
    /// from then on.
    pub(super) fn next_pull(&mut self, share: u64) -> Option<u64> {
        // Bytes that are used up end the pulls, but for those of a list.
        if self.messages == 0 || self.bytes == 0 && self.list.is_none() {
            (self.messages, self.bytes) = (0, 0);
        }
        let pull = match self.list {
            Some(ListPulls::Largest) => share,
            _ => self.full.min(share).max(self.needed),
        };
        let whole = self.batch(pull);
        let batch = whole.min(self.wanted.saturating_sub(self.messages));
        let left = if self.needed > share { 0 } else { pull / 2 };
        let due = batch > 0
            && match self.list {
                // It has room for its messages: bytes need not be looked at. One is always still to come, if two of the largest fit.
                Some(_) => self.messages <= (whole / 2).max(u64::from(self.full <= share / 2)),
                None if self.paced => self.messages == 0 || self.bytes <= left,
                None => self.messages <= whole / 2 && self.needed <= share || self.bytes <= left,
            };
        due.then(|| {
            self.pull = pull;
            self.messages += batch;
            self.bytes += pull;
            self.delivered = false;
            batch
        })
    }

    /// Nothing that was asked for is still to come.
    pub(super) fn is_served(&self) -> bool {
        self.messages == 0
    }

    pub(super) fn came(&mut self, size: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.wanted = self.wanted.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size as u64);
        self.delivered = true;
    }

    /// The server said something about a pull.
    ///
    /// # Errors
    /// The reading is over, for this reason.
    pub(super) fn status(&mut self, headers: Headers<'_>) -> Result<(), String> {
        // What is no status is of somebody who writes to inboxes.
        let Some((code, text)) = headers.status() else { return Ok(()) };
        let left = |name| headers.number(name);
        let ended = |asked: &mut Self| {
            asked.messages = left("Nats-Pending-Messages").map_or(0, |left| asked.messages.saturating_sub(left));
            asked.bytes = left("Nats-Pending-Bytes").map_or(asked.bytes, |left| asked.bytes.saturating_sub(left));
        };
        let limit = || text.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).filter(|limit| *limit > 0);
        let no_room = code == 409 && text.contains("MaxBytes") && !text.contains("Exceeded");
        if self.list.is_some() && (no_room || code == 408) {
            self.fell_short = true;
            return Err(format!(
                "a pull of a list ended with {code} {text}, and the server may have forgotten a message"
            ));
        }
        match code {
            // A heartbeat, or flow control.
            100 => {}
            404 | 408 => ended(self),
            409 if no_room => {
                ended(self);
                if !self.delivered && self.bytes == 0 {
                    self.needed = self.pull.saturating_mul(2).min(MOST_BYTES);
                } else if self.delivered {
                    // The next message may be small again.
                    self.needed /= 2;
                }
            }
            409 if text.contains("Batch Completed") => ended(self),
            409 if text.contains("Exceeded MaxRequestBatch") && limit().is_some_and(|limit| limit < self.batch) => {
                let refused = self.batch;
                self.batch = limit().unwrap_or(refused);
                self.messages = self.messages.saturating_sub(refused);
                self.bytes = self.bytes.saturating_sub(self.pull);
            }
            code => return Err(format!("the server answered {code} {text}")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        let mut asked = Asked::new(1024 * 1024, u64::MAX, None, false);
        assert_eq!((asked.next_pull(TOGETHER), asked.next_pull(TOGETHER)), (Some(BATCH), None));
        asked
    }

    #[test]
    fn another_pull_is_due_at_half_of_the_messages_or_of_the_bytes() {
        let mut small = asked();
        (0..BATCH / 2 - 1).for_each(|_| small.came(10));
        assert_eq!(small.next_pull(TOGETHER), None);
        small.came(10);
        assert_eq!((small.next_pull(TOGETHER), small.next_pull(TOGETHER)), (Some(BATCH), None));
        let mut large = asked();
        large.came(large.full as usize / 2 - 1);
        assert_eq!(large.next_pull(TOGETHER), None);
        large.came(2);
        assert_eq!((large.next_pull(TOGETHER), large.next_pull(TOGETHER)), (Some(BATCH), None));
        assert!(large.bytes <= large.full * 3 / 2, "no more is under way than one and a half pulls");
    }

    #[test]
    fn who_is_paced_asks_for_few_messages_and_again_when_all_have_come() {
        let mut paced = Asked::new(1024 * 1024, u64::MAX, None, true);
        assert_eq!((paced.next_pull(TOGETHER), paced.next_pull(TOGETHER)), (Some(PACED_BATCH), None));
        (1..PACED_BATCH).for_each(|_| paced.came(10));
        assert!(!paced.is_served() && paced.next_pull(TOGETHER).is_none());
        paced.came(10);
        assert!(paced.is_served());
        assert_eq!(paced.next_pull(TOGETHER), Some(PACED_BATCH));
        let mut large = Asked::new(1024 * 1024, u64::MAX, None, true);
        assert_eq!(large.next_pull(TOGETHER), Some(PACED_BATCH));
        large.came(large.full as usize);
        assert_eq!(large.next_pull(TOGETHER), Some(PACED_BATCH), "its bytes are used up");
    }

    #[test]
    fn a_status_ends_a_pull_or_the_reading() {
        let after = |block: &str| {
            let mut asked = Asked { messages: 100, bytes: 1_000, ..asked() };
            asked.status(Headers::new(block.as_bytes())).map(|()| (asked.messages, asked.bytes, asked.batch))
        };
        let left = |n| format!("Nats-Pending-Messages: {n}\r\nNats-Pending-Bytes: 300\r\n\r\n");
        assert_eq!(after("NATS/1.0 100 Idle Heartbeat\r\n\r\n"), Ok((100, 1_000, BATCH)));
        assert_eq!(after(&format!("NATS/1.0 408 Request Timeout\r\n{}", left(60))), Ok((40, 700, BATCH)));
        assert_eq!(after(&format!("NATS/1.0 409 Message Size Exceeds MaxBytes\r\n{}", left(7))), Ok((93, 700, BATCH)));
        assert_eq!(after("NATS/1.0 404 No Messages\r\n\r\n"), Ok((0, 1_000, BATCH)));
        assert_eq!(after("NATS/1.0 409 Exceeded MaxRequestBatch of 256\r\n\r\n"), Ok((0, 0, 256)));
        assert!(after("NATS/1.0 409 Exceeded MaxRequestExpires of 1s\r\n\r\n").is_err());
        assert!(after("NATS/1.0 409 Consumer Deleted\r\n\r\n").is_err());
        assert!(after("NATS/1.0 503\r\n\r\n").is_err());
        assert_eq!(after("rubbish"), Ok((100, 1_000, BATCH)));
    }

    #[test]
    fn a_message_that_no_pull_has_room_for_gets_a_larger_one() {
        let mut asked = asked();
        let first = asked.full;
        let refused = format!(
            "NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: {BATCH}\r\nNats-Pending-Bytes: {first}\r\n\r\n"
        );
        asked.status(Headers::new(refused.as_bytes())).unwrap();
        assert_eq!((asked.next_pull(TOGETHER), asked.bytes), (Some(BATCH), first * 2));
    }

    #[test]
    fn many_readers_ask_for_less_each_and_for_no_more_together() {
        let pulling = Pulling::default();
        for readers in [1, 15, 16, 64, 256] {
            let counted: Vec<Counted> = (0..readers).map(|_| Counted::new(&pulling)).collect();
            let mut together = 0;
            for one in &counted {
                let mut asked = Asked::new(1024 * 1024, u64::MAX, None, false);
                while asked.next_pull(one.share()).is_some() {}
                asked.came((asked.bytes - asked.pull / 2) as usize);
                while asked.next_pull(one.share()).is_some() {}
                together += asked.bytes;
            }
            assert!(together <= TOGETHER * 3 / 2, "{readers} readers ask for {together} bytes");
        }
        assert_eq!(pulling.load(Ordering::Relaxed), 0, "who has ended takes no share");
    }

    #[test]
    fn a_message_larger_than_the_share_is_asked_for_alone() {
        const SHARE: u64 = 256 * 1024;
        let refused = |left: u64| {
            format!(
                "NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: {BATCH}\r\nNats-Pending-Bytes: {left}\r\n\r\n"
            )
        };
        let mut asked = Asked::new(1024 * 1024, u64::MAX, None, false);
        assert_eq!(asked.next_pull(SHARE), Some(BATCH));
        for bytes in [SHARE, 2 * SHARE] {
            assert_eq!(asked.bytes, bytes);
            asked.status(Headers::new(refused(bytes).as_bytes())).unwrap();
            assert_eq!((asked.next_pull(SHARE), asked.next_pull(SHARE)), (Some(BATCH), None));
        }
        // It comes, and the next one has no room in what is left.
        asked.came(900_000);
        assert_eq!(asked.next_pull(SHARE), None, "nothing beside it");
        asked.status(Headers::new(refused(4 * SHARE - 900_000).as_bytes())).unwrap();
        assert_eq!((asked.next_pull(SHARE), asked.bytes), (Some(BATCH), 2 * SHARE), "it may be small");
        asked.status(Headers::new(refused(2 * SHARE).as_bytes())).unwrap();
        assert_eq!((asked.next_pull(SHARE), asked.bytes), (Some(BATCH), 4 * SHARE), "it is not");
        asked.came(900_000);
        for left in [4 * SHARE - 900_000, 2 * SHARE] {
            asked.status(Headers::new(refused(left).as_bytes())).unwrap();
            asked.next_pull(SHARE);
            asked.came(10);
        }
        assert!(asked.needed <= SHARE, "small ones are asked for by the share again");
    }

    fn list(pulls: ListPulls) -> Asked {
        Asked::new(1024 * 1024, u64::MAX, Some(pulls), false)
    }

    #[test]
    fn a_pull_of_a_list_has_room_for_its_messages() {
        for size in [1, 100, 1_000, 100_000, 1_000_000, 50_000_000] {
            let mut asked = list(ListPulls::Room { size, times: 2 });
            while asked.next_pull(TOGETHER).is_some() {}
            assert!(asked.messages * size <= asked.bytes.max(2 * size), "{size}: {asked:?}");
            assert!(asked.bytes <= 2 * asked.full && asked.max_bytes() == Some(asked.full), "{size}: {asked:?}");
        }
        let room = 1024 * 1024 + BESIDES;
        for (share, most) in [(TOGETHER, 7), (4 * room, 4), (2 * room, 2), (room, 1), (LEAST_SHARE, 1)] {
            let mut asked = list(ListPulls::Largest);
            let mut messages = 0;
            while let Some(batch) = asked.next_pull(share) {
                messages += batch;
            }
            let least = if most == 1 { 1 } else { most.max(2) };
            assert!((least..=most * 3 / 2).contains(&messages), "{share}: {messages}");
            assert_eq!(asked.max_bytes(), None);
            (0..100).for_each(|_| {
                asked.came(900_000);
                asked.next_pull(share);
                assert!((least / 2 + 1..=most * 3 / 2).contains(&asked.messages), "{share}: {asked:?}");
            });
        }
    }

    #[test]
    fn a_pull_of_a_list_without_room_or_time_ends_the_list() {
        for pulls in [ListPulls::Room { size: 100, times: 2 }, ListPulls::Largest] {
            let status =
                |what: &str| format!("NATS/1.0 {what}\r\nNats-Pending-Messages: 1\r\nNats-Pending-Bytes: 3\r\n\r\n");
            for ended in ["409 Message Size Exceeds MaxBytes", "408 Request Timeout"] {
                let mut asked = list(pulls);
                assert!(asked.status(Headers::new(status(ended).as_bytes())).is_err() && asked.fell_short, "{ended}");
                asked.list = None;
                asked.status(Headers::new(status(ended).as_bytes())).unwrap();
            }
            let mut asked = list(pulls);
            // Its messages have all come, and there was room for more.
            for good in ["100 Idle Heartbeat", "409 Batch Completed", "409 Exceeded MaxRequestBatch of 7"] {
                asked.status(Headers::new(status(good).as_bytes())).unwrap();
            }
            assert!(!asked.fell_short);
            assert_eq!(asked.next_pull(TOGETHER).map(|batch| batch <= 7), Some(true));
        }
    }

    #[test]
    fn no_more_is_asked_for_than_is_wanted() {
        let mut asked = Asked::new(1024 * 1024, BATCH + 10, None, false);
        assert_eq!((asked.next_pull(TOGETHER), asked.next_pull(TOGETHER)), (Some(BATCH), None));
        (0..BATCH).for_each(|_| asked.came(10));
        assert_eq!((asked.next_pull(TOGETHER), asked.next_pull(TOGETHER)), (Some(10), None));
        // What a pull did not bring is asked for again.
        let left = "NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 7\r\nNats-Pending-Bytes: 0\r\n\r\n";
        (0..3).for_each(|_| asked.came(10));
        asked.status(Headers::new(left.as_bytes())).unwrap();
        assert_eq!((asked.next_pull(TOGETHER), asked.next_pull(TOGETHER)), (Some(7), None));
        (0..7).for_each(|_| asked.came(10));
        assert_eq!(asked.next_pull(TOGETHER), None);
    }
}
