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
use std::{
    io::{self, Write},
    time::Duration,
};

/// A connection with the command's options.
struct Session {
    bus: Bus,
    json: bool,
    timeout: Duration,
}

impl Session {
    async fn open(client: &Client) -> Result<Self> {
        let bus = Bus::connect(&client.nats.settings("highwater cli")?).await?;
        Ok(Self { bus, json: client.json, timeout: Duration::from_millis(client.timeout_ms) })
    }

    /// Asks; a refusal is an error, of which programs also get the bytes.
    async fn ask<T: Serialize>(&self, subject: &str, request: &T) -> Result<Reply> {
        let reply = self.ask_within(subject, request, self.timeout).await?;
        if self.json && reply.check().is_err() {
            reply.print()?;
        }
        reply.check()?;
        Ok(reply)
    }

    /// Asks what may take longer than other requests; what came may be a refusal.
    async fn ask_within<T: Serialize>(&self, subject: &str, request: &T, within: Duration) -> Result<Reply> {
        // The service gives up first, and says why.
        let patience = within + Duration::from_secs(1);
        let reply = self.bus.request(subject, serde_json::to_vec(request)?, patience).await.map_err(|e| match e {
            BusError::NoResponders { subject } => {
                anyhow!("no Highwater service answers on {subject}: is it running on this NATS?")
            }
            other => other.into(),
        })?;
        Ok(Reply(reply.payload.to_vec()))
    }

    async fn typed<Q: Serialize, R: DeserializeOwned>(&self, subject: &str, request: &Q) -> Result<(Reply, R)> {
        let reply = self.ask(subject, request).await?;
        let typed = reply.read()?;
        Ok((reply, typed))
    }

    /// Asks for one page of a list after the other. `next` puts into the request where the next one begins, or answers false:
    /// there is none. The bytes of all, one reply a line.
    async fn pages<Q: Serialize, R: DeserializeOwned>(
        &self,
        subject: &str,
        mut request: Q,
        next: impl Fn(&mut Q, &R) -> bool,
    ) -> Result<(Reply, Vec<R>)> {
        let (mut replies, mut pages) = (Vec::new(), Vec::new());
        loop {
            let (reply, page): (_, R) = self.typed(subject, &request).await?;
            replies.push(reply.0);
            let more = next(&mut request, &page);
            pages.push(page);
            if !more {
                return Ok((Reply(replies.join(&b'\n')), pages));
            }
        }
    }
}

/// The bytes of a reply.
struct Reply(Vec<u8>);

impl Reply {
    /// Of what no single service has said.
    fn made(value: &serde_json::Value) -> Self {
        Self(value.to_string().into_bytes())
    }

    /// An error if it is a refusal.
    fn check(&self) -> Result<()> {
        Ok(api::check_reply(&self.0)?)
    }

    fn read<R: DeserializeOwned>(&self) -> Result<R> {
        Ok(serde_json::from_slice(&self.0)?)
    }

    /// Prints the very bytes, and ends the line.
    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(&self.0)?;
        out.write_all(b"\n")
    }
}

/// Prints the reply as it came when JSON was asked for; else what `people` makes of it.
fn print(json: bool, reply: &Reply, people: impl FnOnce() -> String) {
    if json {
        // As with println, nobody may be there to read.
        let _ = reply.print();
    } else {
        println!("{}", people());
    }
}
