//! Overlapping pulls from one consumer, over our own connection.
//!
//! Each pull asks for a number of messages and of bytes, so that no more than some MiB is ever under way, whatever the size of the
//! messages: a server that has more to send than its client takes ends the connection. Half of what was asked for is always
//! still to come, so the server never waits for the reader. The readers of a process share 8 MiB: one of many asks
//! for less at a time. A message that is larger than a reader's share is asked for with as many bytes as it takes, but then
//! with nothing else beside it.
//!
//! The server serves waiting pulls in turn. It says when one ends early (its time is over, or the next message is larger than
//! what is left of its bytes) and what was left of it. One whose messages were all sent ends with "Batch Completed" if it had
//! bytes left, else without a word: then the count of bytes may be too high, and the count of messages asks in its place.
//!
//! **Lists.** A server that sends the last message of every subject forgets the message that no waiting pull has room or time for
//! (nats-server 2.11 to 2.15: it has taken it off its list already, and counts it as pending for ever). So a pull of a list asks
//! for so few messages that they have room, going by their average size, and one that ends early, or a lost connection, ends
//! the list. It is begun again with more room, and in the end without a limit of bytes, for no more messages than have room if
//! all were as large as may be.
//!
//! The server sleeps at each message that was removed after the list was begun, until a new message or a pull wakes it. So a list
//! of which nothing comes is *nudged*, again and again, by a pull for one message that soon expires.

mod asked;

use crate::{
    connect::Bus,
    error::BusError,
    frames::{Interest, Link, codec::Message, headers::Headers, inbox::Arrived},
};
use asked::{Asked, Counted};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};
use tokio::time::sleep;

pub(crate) use asked::{ListPulls, Pulling};

const EXPIRES: Duration = Duration::from_secs(10);
/// A pull of a list must not run out.
const LIST_EXPIRES: Duration = Duration::from_secs(300);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A server that says nothing for so long has lost the pulls.
const SILENCE: Duration = Duration::from_millis(4_500);
/// A list of which nothing comes is nudged this often.
const NUDGED_EVERY: Duration = Duration::from_millis(2);
/// A pull that nudges waits so long at the server.
const NUDGE_EXPIRES: Duration = Duration::from_millis(20);
/// Suffix of the subject on which those pulls are answered.
const NUDGE: &str = ".nudge";
/// A list that is nudged in vain so often is begun again: too much of this one was removed.
const MOST_NUDGES: u32 = 1_000;
/// A reader that is paced rests so many times as long as it was served.
const RESTS: u32 = 2;
const LONGEST_REST: Duration = Duration::from_millis(20);

/// Has a reader rest twice as long as the server served it: writers find the server and its stream free for most of the time.
#[derive(Debug, Default)]
struct Pace {
    /// When the pull that is under way was sent.
    asked: Option<Instant>,
    rests_until: Option<Instant>,
}

impl Pace {
    /// All has come that was asked for.
    fn served(&mut self, now: Instant) {
        if let Some(asked) = self.asked.take() {
            self.rests_until = Some(now + (now.saturating_duration_since(asked) * RESTS).min(LONGEST_REST));
        }
    }

    /// How long it still rests; None: it does not.
    fn rests(&self, now: Instant) -> Option<Duration> {
        self.rests_until.and_then(|until| until.checked_duration_since(now)).filter(|rest| !rest.is_zero())
    }
}

/// Pulls from a consumer.
pub(crate) struct Pulls {
    bus: Bus,
    interest: Interest,
    /// Where to ask, for the answers to go to the inbox.
    next: String,
    inbox: String,
    asked: Asked,
    /// How often the connection had been lost when it began, and the last of NATS's refusals then.
    losses: u64,
    refusals: u64,
    /// NATS does not permit this user to pull, or to get what is pulled.
    refused: bool,
    /// Arrived and not handed out.
    ready: VecDeque<Message>,
    /// When the server last said something.
    heard: Instant,
    /// How often a list was nudged since a message came.
    nudges: u32,
    /// How it leaves the server time for others; None: it does not.
    pace: Option<Pace>,
    counted: Counted,
}

impl Pulls {
    /// Begins to pull on this connection. Never more than `wanted` messages are asked for in all. `list`: the last message of every
    /// subject, until [`Self::list_ended`].
    pub(crate) async fn start(
        bus: &Bus,
        link: &Link,
        stream: &str,
        consumer: &str,
        wanted: u64,
        list: Option<ListPulls>,
        paced: bool,
    ) -> Result<Self, String> {
        let inbox = bus.new_inbox();
        let (losses, refusals) = (link.losses(), bus.refusals().last());
        let mut interest = link.interest();
        interest.add(&inbox, None).await;
        if list.is_some() {
            interest.add(&format!("{inbox}{NUDGE}"), None).await;
        }
        let mut pulls = Self {
            bus: bus.clone(),
            interest,
            next: bus.api().of(&format!("CONSUMER.MSG.NEXT.{stream}.{consumer}")),
            inbox,
            asked: Asked::new(bus.max_payload() as u64, wanted, list, paced),
            losses,
            refusals,
            refused: false,
            ready: VecDeque::new(),
            heard: Instant::now(),
            nudges: 0,
            pace: paced.then(Pace::default),
            counted: Counted::new(bus.pulling()),
        };
        pulls.ask()?;
        Ok(pulls)
    }

    fn ask(&mut self) -> Result<(), String> {
        if let Some(pace) = &mut self.pace {
            let now = Instant::now();
            if self.asked.is_served() {
                pace.served(now);
            }
            if pace.rests(now).is_some() {
                return Ok(());
            }
            pace.asked.get_or_insert(now);
        }
        while let Some(batch) = self.asked.next_pull(self.counted.share()) {
            self.pull(batch)?;
        }
        Ok(())
    }

    fn pull(&self, batch: u64) -> Result<(), String> {
        let expires = if self.asked.list.is_some() { LIST_EXPIRES } else { EXPIRES };
        let mut request = serde_json::json!({
            "batch": batch,
            "expires": expires.as_nanos() as u64, "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        if let Some(bytes) = self.asked.max_bytes() {
            request["max_bytes"] = bytes.into();
        }
        let sent = self.interest.link().publish(&self.next, &self.inbox, request.to_string().as_bytes());
        sent.then_some(()).ok_or_else(|| "too much waits to be sent".into())
    }

    /// A list ended because a message had no room or time.
    pub(crate) fn fell_short(&self) -> bool {
        self.asked.fell_short
    }

    /// They ended because NATS does not permit them.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused
    }

    /// The list is complete: what comes now is read on.
    pub(crate) fn list_ended(&mut self) {
        self.asked.list = None;
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
            // Pulls are gone with the connection, and a message of a list with them: what was sent afterwards does not show that.
            if self.asked.list.is_some() && self.interest.link().losses() != self.losses {
                return Err("the connection was lost meanwhile".into());
            }
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
                } else if !message.subject().ends_with(NUDGE.as_bytes()) {
                    self.asked.status(Headers::new(message.headers()))?;
                }
            }
            self.ask()?;
            if taken > 0 {
                (self.heard, self.nudges) = (Instant::now(), 0);
                return Ok(());
            }
            if self.ready.is_empty() {
                self.wait().await?;
            }
        }
    }

    /// Wakes a server that sleeps in the middle of a list. Whatever message it sends for that comes as any other.
    fn nudge(&mut self) -> Result<(), String> {
        self.nudges += 1;
        if self.nudges > MOST_NUDGES {
            return Err("nothing comes of a list that is not complete".into());
        }
        let request = serde_json::json!({"batch": 1, "expires": NUDGE_EXPIRES.as_nanos() as u64}).to_string();
        let inbox = format!("{}{NUDGE}", self.inbox);
        let sent = self.interest.link().publish(&self.next, &inbox, request.as_bytes());
        sent.then_some(()).ok_or_else(|| "too much waits to be sent".into())
    }

    async fn wait(&mut self) -> Result<(), String> {
        if let Some(rest) = self.pace.as_ref().and_then(|pace| pace.rests(Instant::now())) {
            // What the server says meanwhile waits.
            sleep(rest).await;
            self.heard = Instant::now();
            return Ok(());
        }
        let silence = SILENCE.saturating_sub(self.heard.elapsed());
        let patience = if self.asked.list.is_some() { silence.min(NUDGED_EVERY) } else { silence };
        let arrived = tokio::select! {
            biased;
            arrived = tokio::time::timeout(patience, self.interest.inbox().arrived(0)) => arrived,
            refusal = self.bus.refusals().wait_on(self.refusals, &self.next, &self.inbox) => {
                self.refused = true;
                return Err(BusError::from(refusal).to_string());
            }
        };
        match arrived {
            Err(_) if patience < silence => self.nudge(),
            Ok(Arrived::Messages) => {
                self.heard = Instant::now();
                Ok(())
            }
            Ok(Arrived::Lost(_)) => Err("the connection was lost meanwhile".into()),
            Ok(Arrived::Closed) => Err("the connection ended".into()),
            Err(_) => {
                // A pull whose bytes are used up to the last one ends without a word.
                self.asked.fell_short = self.asked.list.is_some();
                Err("the server says nothing".into())
            }
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

    #[test]
    fn who_is_paced_rests_twice_as_long_as_it_was_served_within_limits() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.served(now);
        assert_eq!(pace.rests(now), None, "nothing was asked for");
        for (served, rest) in [(3, 6), (9, 18), (500, 20)] {
            let served = now + Duration::from_millis(served);
            pace.asked = Some(now);
            pace.served(served);
            assert_eq!(pace.rests(served), Some(Duration::from_millis(rest)));
            assert_eq!(pace.rests(served + LONGEST_REST), None);
        }
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
