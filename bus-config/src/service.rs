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
        let (body, headers) = match answer {
            Ok(body) => (body, HeaderMap::new()),
            Err(error) => {
                *self.errors.lock().unwrap_or_else(PoisonError::into_inner).entry(self.subject.clone()).or_default() +=
                    1;
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Service-Error", error.code.as_str());
                headers.insert("Nats-Service-Error-Code", error.code.number().to_string().as_str());
                (api::failure(&error), headers)
            }
        };
        self.send(body, headers).await;
    }

    /// Passes on another service's answer with its error headers.
    pub async fn pass_on(self, reply: crate::Reply) {
        let mut headers = HeaderMap::new();
        if let Some((code, number)) = &reply.error {
            headers.insert("Nats-Service-Error", code.as_str());
            headers.insert("Nats-Service-Error-Code", number.to_string().as_str());
        }
        self.send(reply.payload.to_vec(), headers).await;
    }

    async fn send(self, body: Vec<u8>, mut headers: HeaderMap) {
        // The server ends the connection of who sends more than it takes.
        let body = if body.len() + HEADROOM > self.max_payload {
            let message = format!("the reply has {} bytes, more than NATS takes in one message", body.len());
            headers.insert("Nats-Service-Error", ErrorCode::ReplyTooLarge.as_str());
            headers.insert("Nats-Service-Error-Code", ErrorCode::ReplyTooLarge.number().to_string().as_str());
            api::failure(&ApiError::new(ErrorCode::ReplyTooLarge, message))
        } else {
            body
        };
        if let Err(error) = self.inner.respond_with_headers(Ok(body.into()), headers).await {
            tracing::debug!(subject = self.subject, %error, "the requester is gone");
        }
    }
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
