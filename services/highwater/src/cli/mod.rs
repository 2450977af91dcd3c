//! The CLI: requests over NATS, replies as tables for people or JSON for programs.

mod cluster;
mod ddl;
mod diagnosis;
mod ping;
mod query;
mod show;
mod status;

pub(crate) use cluster::{state, topic};
pub(crate) use ddl::{bucket, index};
pub(crate) use diagnosis::slice;
pub(crate) use ping::ping;
pub(crate) use query::{count, scan};
pub(crate) use status::status;

use crate::args::Client;
use anyhow::{Result, anyhow};
use highwater_bus::{Bus, BusError};
use highwater_schemas::api;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::time::Duration;

/// A connection with the command's options.
struct Session {
    bus: Bus,
    json: bool,
    timeout: Duration,
}

impl Session {
    async fn open(client: &Client) -> Result<Self> {
        let bus = Bus::connect(&client.nats.settings("highwater cli")).await?;
        Ok(Self { bus, json: client.json, timeout: Duration::from_millis(client.timeout_ms) })
    }

    /// Asks; a refusal is an error.
    async fn ask<T: Serialize>(&self, subject: &str, request: &T) -> Result<Value> {
        self.ask_within(subject, request, self.timeout).await
    }

    /// The same of what may take longer than other requests.
    async fn ask_within<T: Serialize>(&self, subject: &str, request: &T, within: Duration) -> Result<Value> {
        // The service gives up first, and says why.
        let patience = within + Duration::from_secs(1);
        let reply = self.bus.request(subject, serde_json::to_vec(request)?, patience).await.map_err(|e| match e {
            BusError::NoResponders { subject } => {
                anyhow!("no Highwater service answers on {subject}: is it running on this NATS?")
            }
            other => other.into(),
        })?;
        Ok(api::reply(&reply.payload)?)
    }

    async fn typed<Q: Serialize, R: DeserializeOwned>(&self, subject: &str, request: &Q) -> Result<(Value, R)> {
        let value = self.ask(subject, request).await?;
        let typed = serde_json::from_value(value.clone())?;
        Ok((value, typed))
    }
}

/// Prints the JSON when it was asked for; else what `people` makes of it.
fn print(json: bool, value: &Value, people: impl FnOnce() -> String) {
    if json {
        println!("{value}");
    } else {
        println!("{}", people());
    }
}
