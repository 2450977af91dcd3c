//! Acknowledged publishing into JetStream.

use crate::{connect::Bus, error::BusError};
use async_nats::{HeaderMap, header, jetstream::context::PublishErrorKind};
use bytes::Bytes;
use std::{future::Future, pin::Pin};

/// An acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub seq: u64,
    pub duplicate: bool,
}

/// Why a publish was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishFailure {
    /// The stream is full (10077, 10167): later messages may have got in.
    #[error("the stream is full: {0}")]
    Full(String),
    #[error("no stream takes this subject")]
    NoStream,
    /// The outcome is unknown.
    #[error("no acknowledgement in time")]
    TimedOut,
    #[error("{0}")]
    Other(String),
}

/// Publishes with acknowledgement; the caller bounds how many are under way.
#[derive(Debug, Clone)]
pub struct Publisher {
    bus: Bus,
}

type AckFuture = Pin<Box<dyn Future<Output = Result<Ack, PublishFailure>> + Send>>;

impl Publisher {
    pub fn new(bus: Bus) -> Self {
        Self { bus }
    }

    /// Sends a message at once; the future answers when it is acknowledged.
    pub async fn send(&self, subject: &str, id: &str, payload: Bytes) -> Result<AckFuture, BusError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, id);
        let (losses, refusals) = (self.bus.losses(), self.bus.refusals().last());
        let sent = self.bus.js().publish_with_headers(subject.to_owned(), headers, payload).await;
        let future = match sent {
            Ok(future) => future,
            Err(e) if e.kind() == PublishErrorKind::MaxPayloadExceeded => {
                return Err(BusError::other("publish", e));
            }
            Err(e) => {
                let failure = classify(&e);
                return Ok(Box::pin(async move { Err(failure) }));
            }
        };
        let (bus, subject) = (self.bus.clone(), subject.to_owned());
        Ok(Box::pin(async move {
            match bus.unless_lost_since(losses, future.into_future()).await {
                Some(Ok(ack)) => Ok(Ack { seq: ack.sequence, duplicate: ack.duplicate }),
                Some(Err(e)) => Err(match (classify(&e), bus.refused(refusals, |refused| refused == subject)) {
                    (PublishFailure::TimedOut, Some(refusal)) => {
                        PublishFailure::Other(BusError::from(refusal).to_string())
                    }
                    (failure, _) => failure,
                }),
                None => Err(PublishFailure::TimedOut),
            }
        }))
    }
}

fn classify(error: &async_nats::jetstream::context::PublishError) -> PublishFailure {
    use std::error::Error;
    match error.kind() {
        PublishErrorKind::StreamNotFound => PublishFailure::NoStream,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => PublishFailure::TimedOut,
        PublishErrorKind::MaxAckPending => PublishFailure::Full("too many publishes under way".into()),
        _ => {
            let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            if why.contains("10077") || why.contains("10167") || why.contains("maximum bytes exceeded") {
                PublishFailure::Full(why)
            } else {
                PublishFailure::Other(why)
            }
        }
    }
}
