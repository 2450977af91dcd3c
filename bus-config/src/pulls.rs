//! Overlapping pulls from one consumer, over our own connection.
//!
//! Each pull asks for a number of messages and of bytes, so that no more than some MiB is ever under way, whatever the size of the
//! messages: a server that has more to send than its client takes ends the connection. Half of what was asked for is always
//! still to come, so the server never waits for the reader. The readers of a process share [`TOGETHER`] bytes: one of many asks
//! for less at a time. A message that is larger than a reader's share is asked for with as many bytes as it takes, but then
//! with nothing else beside it.
//!
//! The server serves waiting pulls in turn. It says when one ends early (its time is over, or the next message is larger than
//! what is left of its bytes) and what was left of it; one whose last message was sent ends without a word. What is left of
//! the bytes of such a pull is not known, so that count may be too high: the count of messages asks in its place then.

use crate::{
    connect::Bus,
    frames::{Interest, Link, codec::Message, headers::Headers, inbox::Arrived},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Messages that one pull asks for.
const BATCH: u64 = 8_192;
/// What a message of the largest payload has besides: its subject and its reply subject, bytes.
const BESIDES: u64 = 64 * 1024;
/// Bytes that one pull asks for, of servers whose messages may not be larger.
const BYTES: u64 = 1024 * 1024;
/// And at most, for a stream that holds larger messages than the server takes now.
const MOST_BYTES: u64 = 128 * 1024 * 1024;
/// Bytes that the pulls of all readers of a process ask for.
const TOGETHER: u64 = 16 * 1024 * 1024;
/// A reader's share of these is never less.
const LEAST_SHARE: u64 = 64 * 1024;
const EXPIRES: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A server that says nothing for so long has lost the pulls.
const SILENCE: Duration = Duration::from_millis(4_500);

/// Pulls from a consumer.
pub(crate) struct Pulls {
    interest: Interest,
    /// Where to ask, for the answers to go to the inbox.
    next: String,
    inbox: String,
    asked: Asked,
    /// Arrived and not handed out.
    ready: VecDeque<Message>,
    /// When the server last said something.
    heard: Instant,
    counted: Counted,
}

/// The number of a process's readers that pull now.
pub(crate) type Pulling = Arc<AtomicU64>;

/// A reader that counts as one that pulls until this is dropped.
struct Counted(Pulling);

impl Counted {
    fn new(pulling: &Pulling) -> Self {
        pulling.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(pulling))
    }

    /// Bytes that one of the readers may ask for at a time.
    fn share(&self) -> u64 {
        (TOGETHER / self.0.load(Ordering::Relaxed).max(1)).max(LEAST_SHARE)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What was asked for and has not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    messages: u64,
    bytes: u64,
    /// Messages that one pull asks for.
    batch: u64,
    /// Bytes that one pull asks for when few pull: enough for the largest message.
    full: u64,
    /// Bytes without which a message did not come; less again once one has come.
    needed: u64,
    /// Bytes that the last pull asked for.
    pull: u64,
    /// Messages that are wanted and have not come.
    wanted: u64,
    /// A message came since the last pull.
    delivered: bool,
}

impl Asked {
    fn new(max_payload: u64, wanted: u64) -> Self {
        let full = max_payload.saturating_add(BESIDES).clamp(BYTES, MOST_BYTES);
        Self { messages: 0, bytes: 0, batch: BATCH, full, needed: 0, pull: 0, wanted, delivered: false }
    }

    /// How many messages the next pull of a reader with this share asks for, if one is due; they and its bytes count as asked for
    /// from then on.
    fn next_pull(&mut self, share: u64) -> Option<u64> {
        if self.messages == 0 || self.bytes == 0 {
            (self.messages, self.bytes) = (0, 0);
        }
        let batch = self.batch.min(self.wanted.saturating_sub(self.messages));
        let pull = self.full.min(share).max(self.needed);
        let left = if self.needed > share { 0 } else { pull / 2 };
        let due = batch > 0 && (self.messages <= self.batch / 2 && self.needed <= share || self.bytes <= left);
        due.then(|| {
            self.pull = pull;
            self.messages += batch;
            self.bytes += pull;
            self.delivered = false;
            batch
        })
    }

    fn came(&mut self, size: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.wanted = self.wanted.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size as u64);
        self.delivered = true;
    }

    /// The server said something about a pull.
    ///
    /// # Errors
    /// The reading is over, for this reason.
    fn status(&mut self, headers: Headers<'_>) -> Result<(), String> {
        // What is no status is of somebody who writes to inboxes.
        let Some((code, text)) = headers.status() else { return Ok(()) };
        let left = |name| headers.number(name);
        let ended = |asked: &mut Self| {
            asked.messages = left("Nats-Pending-Messages").map_or(0, |left| asked.messages.saturating_sub(left));
            asked.bytes = left("Nats-Pending-Bytes").map_or(asked.bytes, |left| asked.bytes.saturating_sub(left));
        };
        let limit = || text.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).filter(|limit| *limit > 0);
        match code {
            // A heartbeat, or flow control.
            100 => {}
            404 | 408 => ended(self),
            409 if text.contains("MaxBytes") && !text.contains("Exceeded") => {
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

impl Pulls {
    /// Begins to pull on this connection. Never more than `wanted` messages are asked for in all.
    pub(crate) async fn start(
        bus: &Bus,
        link: &Link,
        stream: &str,
        consumer: &str,
        wanted: u64,
    ) -> Result<Self, String> {
        let inbox = format!("_INBOX.{}", bus.unique_id());
        let mut interest = link.interest();
        interest.add(&inbox, None).await;
        let mut pulls = Self {
            interest,
            next: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            inbox,
            asked: Asked::new(bus.max_payload() as u64, wanted),
            ready: VecDeque::new(),
            heard: Instant::now(),
            counted: Counted::new(bus.pulling()),
        };
        pulls.ask()?;
        Ok(pulls)
    }

    fn ask(&mut self) -> Result<(), String> {
        while let Some(batch) = self.asked.next_pull(self.counted.share()) {
            let request = serde_json::json!({
                "batch": batch, "max_bytes": self.asked.pull,
                "expires": EXPIRES.as_nanos() as u64, "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
            });
            if !self.interest.link().publish(&self.next, &self.inbox, request.to_string().as_bytes()) {
                return Err("too much waits to be sent".into());
            }
        }
        Ok(())
    }

    /// Waits for a message, then hands what is ready to `take`, at most `most` and, but for the first, `most_bytes`. Cancel safe:
    /// nothing is waited for once a message was taken.
    pub(crate) async fn next_ready(
        &mut self,
        most: usize,
        most_bytes: usize,
        mut take: impl FnMut(Message) -> Result<(), String>,
    ) -> Result<(), String> {
        loop {
            let (mut taken, mut bytes) = (0, 0);
            while taken < most && bytes < most_bytes {
                if self.ready.is_empty() {
                    self.interest.inbox().take_all(&mut self.ready);
                    if !self.ready.is_empty() {
                        self.heard = Instant::now();
                    }
                }
                let Some(message) = self.ready.pop_front() else { break };
                if message.reply().starts_with(b"$JS.ACK.") {
                    self.asked.came(message.size());
                    taken += 1;
                    bytes += message.size();
                    take(message)?;
                } else {
                    self.asked.status(Headers::new(message.headers()))?;
                }
            }
            self.ask()?;
            if taken > 0 {
                self.heard = Instant::now();
                return Ok(());
            }
            if self.ready.is_empty() {
                self.wait().await?;
            }
        }
    }

    async fn wait(&mut self) -> Result<(), String> {
        match tokio::time::timeout(SILENCE.saturating_sub(self.heard.elapsed()), self.interest.inbox().arrived(0)).await
        {
            Ok(Arrived::Messages) => {
                self.heard = Instant::now();
                Ok(())
            }
            Ok(Arrived::Lost(_)) => Err("the connection was lost meanwhile".into()),
            Ok(Arrived::Closed) => Err("the connection ended".into()),
            Err(_) => Err("the server says nothing".into()),
        }
    }
}

/// What the reply subject of a delivered message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) stream_seq: u64,
    pub(crate) consumer_seq: u64,
    /// Server time, nanoseconds since the epoch.
    pub(crate) time: i64,
    /// Messages that the server still held for the consumer.
    pub(crate) pending: u64,
}

/// Reads `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, or the newer form with domain
/// and account before the stream and a token at the end.
pub(crate) fn told(reply: &[u8]) -> Option<Told> {
    let rest = reply.strip_prefix(b"$JS.ACK.")?;
    let numbers = match memchr::memchr_iter(b'.', rest).count() {
        6 => 3,
        8.. => 5,
        _ => return None,
    };
    let mut tokens = rest.split(|byte| *byte == b'.').skip(numbers);
    let mut number = || {
        tokens.next().filter(|digits| !digits.is_empty())?.iter().try_fold(0u64, |number, digit| {
            number.checked_mul(10)?.checked_add(u64::from(digit.is_ascii_digit().then(|| digit - b'0')?))
        })
    };
    let (stream_seq, consumer_seq, time, pending) = (number()?, number()?, number()?, number()?);
    Some(Told { stream_seq, consumer_seq, time: i64::try_from(time).ok()?, pending })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        let mut asked = Asked::new(1024 * 1024, u64::MAX);
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
                let mut asked = Asked::new(1024 * 1024, u64::MAX);
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
        let mut asked = Asked::new(1024 * 1024, u64::MAX);
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

    #[test]
    fn no_more_is_asked_for_than_is_wanted() {
        let mut asked = Asked::new(1024 * 1024, BATCH + 10);
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

    #[test]
    fn reply_subjects_of_both_forms_are_read_and_others_refused() {
        let told_is = Told { stream_seq: 17, consumer_seq: 4, time: 1_700_000_000_000_000_000, pending: 9 };
        assert_eq!(told(b"$JS.ACK.KV_users.c1.1.17.4.1700000000000000000.9"), Some(told_is));
        assert_eq!(told(b"$JS.ACK.hub.ACC.KV_users.c1.1.17.4.1700000000000000000.9.token"), Some(told_is));
        assert_eq!(told(b"$JS.ACK.hub.ACC.KV_users.c1.1.17.4.1700000000000000000.9"), Some(told_is));
        for other in [
            "",
            "_INBOX.1",
            "$JS.ACK.KV_users.c1.1.17.4",
            "$JS.ACK.a.b.1.x.4.5.9",
            "$JS.ACK.a.b.1.99999999999999999999.4.5.9",
        ] {
            assert_eq!(told(other.as_bytes()), None, "{other}");
        }
    }
}
