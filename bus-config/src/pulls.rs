//! Overlapping pulls from one consumer, over the client's core messages.
//!
//! The client's own stream of a consumer gives every message a handle to acknowledge it with. A reader that acknowledges
//! nothing, of a stream with half a million messages a second, spends a sixth of its time on these.
//!
//! Half of what was asked for is always still to come, so the server never waits for the reader; it never has more than
//! `asked` to send, which is far less than the client holds for a subscription.

use async_nats::{Client, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// Messages asked for at once of a stream of documents, and of a topic of packed batches: megabytes, also when they are large.
pub(crate) const DOCUMENTS: u64 = 8_192;
pub(crate) const PACKED: u64 = 64;
const EXPIRES: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A server that says nothing for so long has lost the pulls.
const SILENCE: Duration = Duration::from_millis(4_500);
/// While nothing comes, the connection is looked at this often: the server forgets pulls of one that was lost.
const LOOK: Duration = Duration::from_millis(250);

/// Pulls from a consumer.
pub(crate) struct Pulls {
    client: Client,
    subscriber: Subscriber,
    /// Where to ask, for the answers to go to the inbox.
    next: Subject,
    inbox: Subject,
    request: Bytes,
    /// Messages asked for at once.
    batch: u64,
    /// Messages asked for that have not come.
    asked: u64,
    /// Times that the client had connected when the pulls began.
    connects: u64,
    /// When the server last said something.
    heard: Instant,
}

impl Pulls {
    /// Begins to pull.
    pub(crate) async fn start(client: &Client, stream: &str, consumer: &str, batch: u64) -> Result<Self, String> {
        let inbox = Subject::from(client.new_inbox());
        let subscriber = client.subscribe(inbox.clone()).await.map_err(|e| e.to_string())?;
        let request = serde_json::json!({
            "batch": batch, "expires": EXPIRES.as_nanos() as u64, "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
        });
        let mut pulls = Self {
            connects: connects(client),
            heard: Instant::now(),
            client: client.clone(),
            subscriber,
            next: Subject::from(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")),
            inbox,
            request: Bytes::from(request.to_string()),
            batch,
            asked: 0,
        };
        pulls.ask().await?;
        Ok(pulls)
    }

    async fn ask(&mut self) -> Result<(), String> {
        while self.asked <= self.batch / 2 {
            let (next, inbox) = (self.next.clone(), self.inbox.clone());
            let sent = self.client.publish_with_reply(next, inbox, self.request.clone()).await;
            sent.map_err(|e| e.to_string())?;
            self.asked += self.batch;
        }
        Ok(())
    }

    /// Waits for a message, then hands what is ready to `take`, at most `most`. Cancel safe.
    pub(crate) async fn next_ready(
        &mut self,
        most: usize,
        mut take: impl FnMut(Message) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut taken = 0;
        while taken < most {
            self.ask().await?;
            let message = match self.subscriber.next().now_or_never() {
                Some(ready) => ready,
                None if taken > 0 => break,
                None => self.wait().await?,
            };
            let message = message.ok_or("the subscription ended")?;
            match message.status {
                None => {
                    self.asked = self.asked.saturating_sub(1);
                    taken += 1;
                    take(message)?;
                }
                Some(status) => self.asked = still_asked(self.asked, status, &message)?,
            }
        }
        self.heard = Instant::now();
        Ok(())
    }

    async fn wait(&mut self) -> Result<Option<Message>, String> {
        loop {
            if let Ok(message) = tokio::time::timeout(LOOK, self.subscriber.next()).await {
                self.heard = Instant::now();
                return Ok(message);
            }
            if connects(&self.client) != self.connects {
                return Err("the connection was lost meanwhile".into());
            }
            if self.heard.elapsed() >= SILENCE {
                return Err("the server says nothing".into());
            }
        }
    }
}

fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// How many messages are still to come after a status; an error when it ends the reading.
fn still_asked(asked: u64, status: StatusCode, message: &Message) -> Result<u64, String> {
    let text = message.description.as_deref().unwrap_or_default();
    let left = message.headers.as_ref().and_then(|h| h.get("Nats-Pending-Messages"));
    let ended = || left.and_then(|n| n.as_str().parse::<u64>().ok()).map_or(0, |left| asked.saturating_sub(left));
    match status.as_u16() {
        // A heartbeat, or flow control.
        100 => Ok(asked),
        404 | 408 => Ok(ended()),
        409 if text.contains("MaxBytes") || text.contains("Batch Completed") => Ok(ended()),
        code => Err(format!("the server answered {code} {text}")),
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
pub(crate) fn told(reply: &str) -> Option<Told> {
    let rest = reply.strip_prefix("$JS.ACK.")?;
    let numbers = match rest.split('.').count() {
        7 => 3,
        9.. => 5,
        _ => return None,
    };
    let mut tokens = rest.split('.').skip(numbers);
    let mut number = || tokens.next()?.parse::<u64>().ok();
    let (stream_seq, consumer_seq, time, pending) = (number()?, number()?, number()?, number()?);
    Some(Told { stream_seq, consumer_seq, time: time as i64, pending })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, text: &str, left: Option<&str>) -> (StatusCode, Message) {
        let status = StatusCode::from_u16(code).unwrap();
        let headers = left.map(|left| {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Pending-Messages", left);
            headers
        });
        let message = Message {
            subject: "inbox".into(),
            reply: None,
            payload: Bytes::new(),
            headers,
            status: Some(status),
            description: Some(text.into()),
            length: 0,
        };
        (status, message)
    }

    #[test]
    fn a_status_ends_a_pull_or_the_reading() {
        let still = |code, text, left| {
            let (status, message) = status(code, text, left);
            still_asked(100, status, &message)
        };
        assert_eq!(still(100, "Idle Heartbeat", None), Ok(100));
        assert_eq!(still(408, "Request Timeout", Some("60")), Ok(40));
        assert_eq!(still(409, "Message Size Exceeds MaxBytes", Some("7")), Ok(93));
        assert_eq!(still(404, "No Messages", None), Ok(0));
        assert!(still(409, "Consumer Deleted", None).is_err());
        assert!(still(503, "", None).is_err());
    }

    #[test]
    fn reply_subjects_of_both_forms_are_read_and_others_refused() {
        let told_is = Told { stream_seq: 17, consumer_seq: 4, time: 1_700_000_000_000_000_000, pending: 9 };
        assert_eq!(told("$JS.ACK.KV_users.c1.1.17.4.1700000000000000000.9"), Some(told_is));
        assert_eq!(told("$JS.ACK.hub.ACC.KV_users.c1.1.17.4.1700000000000000000.9.token"), Some(told_is));
        assert_eq!(told("$JS.ACK.hub.ACC.KV_users.c1.1.17.4.1700000000000000000.9"), Some(told_is));
        for other in ["", "_INBOX.1", "$JS.ACK.KV_users.c1.1.17.4", "$JS.ACK.a.b.1.x.4.5.9"] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
