//! ADR-32 services, whose requests any client may send.
//!
//! Requests and discovery (`$SRV.>`) are read by our own connection, so that nothing in them can end it; answers are published by
//! the client library. An error is answered with a body, with the error headers set, and counted in the statistics.

mod discovery;

use crate::{
    connect::{Bus, sendable},
    error::BusError,
    frames::{Interest, codec::Message},
    subscription,
};
use async_nats::HeaderMap;
use bytes::Bytes;
use discovery::Discovery;
use highwater_schemas::{ApiError, ErrorCode, api};
use std::{collections::HashMap, sync::Arc, time::Instant};

/// What headers may take of a message, bytes.
const HEADROOM: usize = 1_024;

/// What to offer.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    pub name: String,
    pub description: String,
    /// Endpoint name and subject.
    pub endpoints: Vec<(String, String)>,
    /// None: every instance gets every request.
    pub queue_group: Option<String>,
}

/// The requests of a service.
pub struct Endpoints {
    interest: Interest,
    losses: u64,
    /// The endpoint of each subscription, by its place in what was offered.
    places: HashMap<u64, usize>,
    discovery: Discovery,
    bus: Bus,
}

/// A request that waits for an answer.
pub struct ServiceRequest {
    pub subject: String,
    pub payload: Bytes,
    reply: Option<String>,
    endpoint: usize,
    came: Instant,
    discovery: Arc<discovery::Statistics>,
    bus: Bus,
}

impl ServiceRequest {
    /// Answers with a whole reply body, or with an error.
    pub async fn respond(self, answer: Result<Vec<u8>, ApiError>) {
        let (body, code) = reply(answer, self.bus.max_payload());
        let mut headers = HeaderMap::new();
        if let Some(code) = code {
            self.discovery.failed(self.endpoint, &self.subject, format!("{}:{}", code.number(), code.as_str()));
            headers.insert("Nats-Service-Error", code.as_str());
            headers.insert("Nats-Service-Error-Code", code.number().to_string().as_str());
        }
        self.send(body.into(), headers).await;
    }

    /// Passes on another service's answer with its error headers.
    pub async fn pass_on(self, reply: crate::Reply) {
        if too_large(reply.payload.len(), self.bus.max_payload()) {
            return self.respond(Ok(reply.payload.to_vec())).await;
        }
        let mut headers = HeaderMap::new();
        if let Some((code, number)) = &reply.error {
            self.discovery.failed(self.endpoint, &self.subject, format!("{number}:{code}"));
            headers.insert("Nats-Service-Error", code.as_str());
            headers.insert("Nats-Service-Error-Code", number.to_string().as_str());
        }
        self.send(reply.payload, headers).await;
    }

    async fn send(self, body: Bytes, headers: HeaderMap) {
        self.discovery.served(self.endpoint, self.came.elapsed());
        let Some(reply) = self.reply.filter(|reply| sendable(reply).is_ok()) else { return };
        let client = self.bus.client();
        let sent = if headers.is_empty() {
            client.publish(reply, body).await
        } else {
            client.publish_with_headers(reply, headers, body).await
        };
        if let Err(error) = sent {
            tracing::debug!(subject = self.subject, %error, "a request cannot be answered");
        }
    }
}

/// The server ends the connection of who sends more than it takes.
fn too_large(body: usize, max_payload: usize) -> bool {
    body + HEADROOM > max_payload
}

/// The body of an answer, and the code if it is an error.
fn reply(answer: Result<Vec<u8>, ApiError>, max_payload: usize) -> (Vec<u8>, Option<ErrorCode>) {
    let (body, code) = match answer {
        Ok(body) => (body, None),
        Err(error) => (api::failure(&error), Some(error.code)),
    };
    if too_large(body.len(), max_payload) {
        let message = format!("the reply has {} bytes, more than NATS takes in one message", body.len());
        let error = ApiError::new(ErrorCode::ReplyTooLarge, message);
        return (api::failure(&error), Some(error.code));
    }
    (body, code)
}

impl Bus {
    /// Starts a service.
    pub async fn service(&self, spec: &ServiceSpec) -> Result<Endpoints, BusError> {
        let mut interest = self.link().interest();
        let mut places = HashMap::new();
        for (place, (_, subject)) in spec.endpoints.iter().enumerate() {
            let group = spec.queue_group.as_deref().unwrap_or(discovery::DEFAULT_GROUP);
            places.insert(interest.add(subject, Some(group)).await, place);
        }
        let discovery = Discovery::start(self, spec).await;
        interest.confirmed().await;
        Ok(Endpoints { interest, losses: 0, places, discovery, bus: self.clone() })
    }
}

impl Endpoints {
    /// The next request; None when the connection is closed for good, or nobody answers discovery any more. Cancel safe.
    pub async fn next(&mut self) -> Option<ServiceRequest> {
        loop {
            let message = tokio::select! {
                message = subscription::next(&self.interest, &mut self.losses) => message?,
                () = self.discovery.ended() => return None,
            };
            let Some(request) = self.request(&message) else { continue };
            if !message.is_oversized() {
                return Some(request);
            }
            // What is left of it is no request.
            request.respond(Err(api::too_long(message.size()))).await;
        }
    }

    /// None: the subject is not text, so no request that we know.
    fn request(&self, message: &Message) -> Option<ServiceRequest> {
        let endpoint = *self.places.get(&message.sid)?;
        Some(ServiceRequest {
            subject: std::str::from_utf8(message.subject()).ok()?.to_owned(),
            payload: Bytes::copy_from_slice(message.payload()),
            reply: subscription::reply(self.bus.api(), message),
            endpoint,
            came: Instant::now(),
            discovery: self.discovery.statistics(),
            bus: self.bus.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_fit_is_an_error() {
        assert_eq!(reply(Ok(vec![b'x'; 1_000]), 4_096), (vec![b'x'; 1_000], None));
        let long = ApiError::new(ErrorCode::BadName, "x".repeat(4_000));
        for answer in [Ok(vec![b'x'; 4_000]), Err(long)] {
            let (body, code) = reply(answer, 4_096);
            assert_eq!(code, Some(ErrorCode::ReplyTooLarge));
            assert_eq!(api::reply(&body).unwrap_err().code, ErrorCode::ReplyTooLarge);
            assert!(!too_large(body.len(), 4_096));
        }
    }
}
