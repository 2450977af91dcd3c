//! A client of NATS and of Highwater's public subjects that shares no code with the services.

use anyhow::{Context, Result, anyhow, bail};
use async_nats::{Client, ConnectOptions, Request, client::RequestErrorKind};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// A refused or failed request.
#[derive(Debug)]
pub struct Refused {
    pub text: String,
    /// The code of a service; none where no service answered.
    pub code: Option<String>,
    pub retry: bool,
}

impl Refused {
    fn without_answer(text: impl Into<String>, retry: bool) -> Self {
        Self { text: text.into(), code: None, retry }
    }
}

/// Connects to a nats-server.
pub async fn connect(url: &str) -> Result<Client> {
    let options = ConnectOptions::new().name("xtask").client_capacity(4096).subscription_capacity(65_536);
    options.connect(url).await.with_context(|| format!("cannot connect to {url}"))
}

/// Highwater's public face.
#[derive(Clone)]
pub struct Highwater {
    client: Client,
}

impl Highwater {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Sends a request and returns the reply as it came.
    pub async fn raw(&self, subject: &'static str, payload: Bytes) -> Result<Bytes> {
        self.once(subject, payload).await.map_err(|refused| anyhow!("{subject}: {}", refused.text))
    }

    /// Sends a request and returns the reply, or the error that it carries.
    pub async fn call(&self, subject: &'static str, request: &impl Display) -> Result<Value> {
        let reply = self.raw(subject, request.to_string().into()).await?;
        read(&reply).map_err(|refused| anyhow!("{subject} {request} answered {}", refused.text))
    }

    /// Sends a request once; a refusal is given with its code.
    pub async fn ask(&self, subject: &'static str, request: &impl Display) -> Result<Value, Refused> {
        read(&self.once(subject, request.to_string().into()).await?)
    }

    /// Like `call`, again and again while the error says that it may help.
    pub async fn insist(&self, subject: &'static str, request: &impl Display, within: Duration) -> Result<Value> {
        let deadline = Instant::now() + within;
        loop {
            match self.ask(subject, request).await {
                Ok(value) => return Ok(value),
                Err(refused) if refused.retry && Instant::now() < deadline => tokio::time::sleep(RETRY_AFTER).await,
                Err(refused) => bail!("{subject} {request} answered {}", refused.text),
            }
        }
    }

    /// The indexes of a bucket with their state and progress.
    pub async fn indexes(&self, bucket: &str) -> Result<Vec<Value>> {
        let mut reply = self.call("hw.query.list", &json!({"bucket": bucket})).await?;
        match reply["indexes"].take() {
            Value::Array(indexes) => Ok(indexes),
            _ => bail!("hw.query.list answered without indexes: {reply}"),
        }
    }

    async fn once(&self, subject: &'static str, payload: Bytes) -> Result<Bytes, Refused> {
        let request = Request::new().payload(payload).timeout(Some(PATIENCE));
        let reply = self.client.send_request(subject, request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Refused::without_answer("no service answers", true),
            RequestErrorKind::TimedOut => {
                Refused::without_answer(format!("no reply within {} s", PATIENCE.as_secs()), false)
            }
            _ => Refused::without_answer(error.to_string(), false),
        })?;
        Ok(reply.payload)
    }
}

fn read(reply: &[u8]) -> Result<Value, Refused> {
    let value: Value = serde_json::from_slice(reply)
        .map_err(|error| Refused::without_answer(format!("something that is not JSON: {error}"), false))?;
    if value["ok"] == true {
        return Ok(value);
    }
    let error = &value["error"];
    let code = error["code"].as_str().map(str::to_owned);
    let message = error["message"].as_str().unwrap_or("no message");
    let text = format!("{}: {message}", code.as_deref().unwrap_or("no code"));
    Err(Refused { text, code, retry: error["retry"] == true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_gives_its_code_and_message() {
        let refused = read(br#"{"ok":false,"error":{"code":"timeout","message":"late","retry":true}}"#).unwrap_err();
        assert_eq!(refused.text, "timeout: late");
        assert_eq!(refused.code.as_deref(), Some("timeout"));
        assert!(refused.retry);
        assert!(read(br#"{"ok":true,"count":3}"#).is_ok());
    }
}
