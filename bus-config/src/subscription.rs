//! A core subscription: broadcasts that any client may have sent.

use crate::{
    api_prefix::ApiPrefix,
    connect::Bus,
    error::BusError,
    frames::{Interest, codec::Message, inbox::Arrived},
};
use bytes::Bytes;

/// A message of a subscription.
#[derive(Debug, Clone)]
pub struct Incoming {
    pub subject: String,
    pub payload: Bytes,
    /// None: no answer is expected, or its subject is none that we can write.
    pub reply: Option<String>,
}

/// A core subscription.
pub struct Subscription {
    interest: Interest,
    api: ApiPrefix,
    /// Losses of the connection that were passed over.
    losses: u64,
}

impl Subscription {
    /// The next message; None when the connection is closed for good. Cancel safe.
    pub async fn next(&mut self) -> Option<Incoming> {
        let message = loop {
            let message = next(&self.interest, &mut self.losses).await?;
            if !message.is_oversized() {
                break message;
            }
            let subject = String::from_utf8_lossy(message.subject());
            tracing::debug!(%subject, bytes = message.size(), "a message is too large to be one of ours");
        };
        Some(Incoming {
            // Our subjects are text; one that is not differs in what a wildcard stands for, and names nothing that we know.
            subject: String::from_utf8_lossy(message.subject()).into_owned(),
            payload: Bytes::copy_from_slice(message.payload()),
            reply: reply(&self.api, &message),
        })
    }
}

impl Bus {
    /// Takes messages of a subject from now on, as the server has confirmed unless it is away.
    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, BusError> {
        Ok(self.subscribe_all(&[subject.to_owned()]).await)
    }

    /// Takes what anybody asks JetStream's API for from now on, such as `STREAM.PURGE.*`.
    pub async fn subscribe_api(&self, request: &str) -> Result<Subscription, BusError> {
        Ok(self.subscribe_all(&self.api().heard(request)).await)
    }

    async fn subscribe_all(&self, subjects: &[String]) -> Subscription {
        let mut interest = self.link().interest();
        for subject in subjects {
            interest.add(subject, None).await;
        }
        interest.confirmed().await;
        Subscription { interest, api: self.api().clone(), losses: 0 }
    }
}

/// The next message of an interest; what is lost with a connection is passed over. None when none will come.
pub(crate) async fn next(interest: &Interest, losses: &mut u64) -> Option<Message> {
    loop {
        if let Some(message) = interest.inbox().take_one() {
            return Some(message);
        }
        match interest.inbox().arrived(*losses).await {
            Arrived::Messages => {}
            Arrived::Lost(now) => *losses = now,
            Arrived::Closed => return None,
        }
    }
}

/// The subject for an answer, if it is text and not one of NATS or Highwater. A service publishes with its own rights, which most
/// clients do not have: by a reply subject they could have it write into a bucket, the state log, or the API of JetStream.
pub(crate) fn reply(api: &ApiPrefix, message: &Message) -> Option<String> {
    let reply = std::str::from_utf8(message.reply()).ok()?;
    is_answerable(api, reply).then(|| reply.to_owned())
}

fn is_answerable(api: &ApiPrefix, reply: &str) -> bool {
    !reply.is_empty() && !reply.starts_with('$') && reply.split('.').next() != Some("hw") && !api.covers(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_goes_where_only_services_publish() {
        let api = ApiPrefix::new(None, Some("js.hub")).unwrap();
        for reply in ["_INBOX.abc.1", "replies.of.mine", "hwx.y", "a.$KV", "js.other.STREAM"] {
            assert!(is_answerable(&api, reply), "{reply}");
        }
        let refused = [
            "",
            "$KV.people.ada",
            "$JS.API.STREAM.PURGE.KV_people",
            "$SYS.x",
            "hw",
            "hw.state.log",
            "hw.query.scan",
            "js.hub.STREAM.PURGE.KV_people",
        ];
        for reply in refused {
            assert!(!is_answerable(&api, reply), "{reply}");
        }
    }
}
