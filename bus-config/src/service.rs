//! ADR-32 services whose error replies carry a body.
//!
//! The client's own error reply has an empty body, so an error is answered as a success with the error headers set, and counted
//! in the `data` of the service's statistics.

use crate::{connect::Bus, error::BusError};
use async_nats::{
    HeaderMap,
    service::{Service, ServiceExt, endpoint::Endpoint},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream::SelectAll};
use highwater_schemas::{ApiError, ErrorCode, api};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

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

type Errors = Arc<Mutex<HashMap<String, u64>>>;

/// The requests of a service.
pub struct Endpoints {
    // Dropping the service ends its discovery subscriptions.
    _service: Service,
    requests: SelectAll<Endpoint>,
    errors: Errors,
    bus: Bus,
}

/// A request that waits for an answer.
pub struct ServiceRequest {
    pub subject: String,
    pub payload: Bytes,
    inner: async_nats::service::Request,
    errors: Errors,
    max_payload: usize,
}

impl ServiceRequest {
    /// Answers with a whole reply body, or with an error.
    pub async fn respond(self, answer: Result<Vec<u8>, ApiError>) {
        let (body, code) = reply(answer, self.max_payload);
        let mut headers = HeaderMap::new();
        if let Some(code) = code {
            *self.errors.lock().unwrap_or_else(PoisonError::into_inner).entry(self.subject.clone()).or_default() += 1;
            headers.insert("Nats-Service-Error", code.as_str());
            headers.insert("Nats-Service-Error-Code", code.number().to_string().as_str());
        }
        self.send(body.into(), headers).await;
    }

    /// Passes on another service's answer with its error headers.
    pub async fn pass_on(self, reply: crate::Reply) {
        if too_large(reply.payload.len(), self.max_payload) {
            return self.respond(Ok(reply.payload.to_vec())).await;
        }
        let mut headers = HeaderMap::new();
        if let Some((code, number)) = &reply.error {
            headers.insert("Nats-Service-Error", code.as_str());
            headers.insert("Nats-Service-Error-Code", number.to_string().as_str());
        }
        self.send(reply.payload, headers).await;
    }

    async fn send(self, body: Bytes, headers: HeaderMap) {
        if let Err(error) = self.inner.respond_with_headers(Ok(body), headers).await {
            tracing::debug!(subject = self.subject, %error, "the requester is gone");
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
        let errors: Errors = Arc::default();
        let counted = Arc::clone(&errors);
        let mut builder = self.client.service_builder().description(&spec.description).stats_handler(move |_, _| {
            let errors = counted.lock().unwrap_or_else(PoisonError::into_inner);
            serde_json::json!({ "errors_by_subject": *errors })
        });
        if let Some(group) = &spec.queue_group {
            builder = builder.queue_group(group);
        }
        let service =
            builder.start(&spec.name, env!("CARGO_PKG_VERSION")).await.map_err(|e| BusError::other("service", e))?;
        let mut requests = SelectAll::new();
        for (name, subject) in &spec.endpoints {
            let mut endpoint = service.endpoint_builder().name(name);
            if let Some(group) = &spec.queue_group {
                endpoint = endpoint.queue_group(group);
            }
            requests.push(endpoint.add(subject).await.map_err(|e| BusError::other("service endpoint", e))?);
        }
        Ok(Endpoints { _service: service, requests, errors, bus: self.clone() })
    }
}

impl Endpoints {
    /// The next request; None when the connection is closed.
    pub async fn next(&mut self) -> Option<ServiceRequest> {
        let inner = self.requests.next().await?;
        Some(ServiceRequest {
            subject: inner.message.subject.to_string(),
            payload: inner.message.payload.clone(),
            inner,
            errors: Arc::clone(&self.errors),
            max_payload: self.bus.max_payload(),
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
