//! A client of NATS and of Highwater's public subjects that shares no code with the services.

use crate::fleet::Size;
use anyhow::{Context, Result, anyhow, bail, ensure};
use async_nats::{Client, ConnectOptions, Request, client::RequestErrorKind};
use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// A request that has no answer for so long is followed by another one.
const AGAIN: Duration = Duration::from_millis(300);
/// Between two looks at an index that is to become active.
const POLL: Duration = Duration::from_millis(1);

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
        let answer = self.ask_for(subject, request, within).await;
        answer.map_err(|refused| anyhow!("{subject} {request} answered {}", refused.text))
    }

    /// Like `insist`, where a request is lost when it went to someone who dies: further ones follow, `request(n)` is the nth. A
    /// refusal with the code `done` says that an earlier one was carried out. Returns the number of the one that was answered
    /// first.
    pub async fn insist_anew<D: Display>(
        &self,
        subject: &'static str,
        request: impl Fn(u32) -> D,
        done: Option<&str>,
        within: Duration,
    ) -> Result<u32> {
        let attempt = |n: u32, request: D| async move { (n, self.ask_for(subject, &request, within).await) };
        let (mut n, mut attempts, mut last) = (0, FuturesUnordered::new(), "nothing".to_owned());
        let mut again = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                _ = again.tick() => {
                    attempts.push(attempt(n, request(n)));
                    n += 1;
                }
                Some((n, answer)) = attempts.next() => match answer {
                    Ok(_) => return Ok(n),
                    Err(refused) if done.is_some() && refused.code.as_deref() == done => return Ok(n),
                    Err(refused) => last = refused.text,
                },
            }
            ensure!(AGAIN * n < within, "{subject} {} answered {last}", request(n));
        }
    }

    async fn ask_for(&self, subject: &'static str, request: &impl Display, within: Duration) -> Result<Value, Refused> {
        let deadline = Instant::now() + within;
        loop {
            match self.ask(subject, request).await {
                Err(refused) if refused.retry && Instant::now() < deadline => tokio::time::sleep(RETRY_AFTER).await,
                answer => return answer,
            }
        }
    }

    /// What the cluster says of itself.
    pub async fn status(&self, within: Duration) -> Result<Value> {
        self.insist("hw.cluster.members", &"{}", within).await
    }

    /// Waits until somebody coordinates, has done every step to it, and all nodes are alive; returns what the cluster says then.
    pub async fn formed(&self, size: &Size, within: Duration) -> Result<Value> {
        let since = Instant::now();
        loop {
            let status = self.status(within).await?;
            let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
            let alive = |kind: &str| members.iter().filter(|m| m["kind"] == kind && m["alive"] == true).count();
            let steps = status["bootstrap"].as_array().map(Vec::as_slice).unwrap_or_default();
            let done = !steps.is_empty() && steps.iter().all(|step| step["done_ms"].is_u64());
            let all = size.iter().all(|(kind, count)| alive(&kind.replace('-', "_")) == *count);
            if done && all && coordinator(&status).is_some() {
                return Ok(status);
            }
            ensure!(since.elapsed() < within, "the nodes do not find each other: {status}");
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Waits until a list shows an index active.
    pub async fn active(&self, bucket: &str, name: &str, within: Duration) -> Result<()> {
        let since = Instant::now();
        loop {
            // The catalog may not have heard of the bucket yet.
            let listed = self.indexes(bucket).await;
            if listed.iter().flatten().any(|index| index["name"] == name && index["state"] == "active") {
                return Ok(());
            }
            ensure!(since.elapsed() < within, "index {name} of {bucket} does not become active: {listed:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The indexes of a bucket with their state and progress.
    pub async fn indexes(&self, bucket: &str) -> Result<Vec<Value>> {
        self.list(json!({"bucket": bucket})).await
    }

    /// The indexes of all buckets.
    pub async fn all_indexes(&self) -> Result<Vec<Value>> {
        self.list(json!({})).await
    }

    /// All pages of a list.
    async fn list(&self, mut request: Value) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        loop {
            let mut reply = self.call("hw.query.list", &request).await?;
            let Value::Array(indexes) = reply["indexes"].take() else {
                bail!("hw.query.list answered without indexes: {reply}")
            };
            all.extend(indexes);
            match all.last().filter(|_| reply["more"] == true) {
                Some(last) => request["after"] = json!([last["bucket"], last["name"]]),
                None => return Ok(all),
            }
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

/// The index manager that coordinates, by what the cluster says of itself.
pub fn coordinator(status: &Value) -> Option<&str> {
    status["coordinator"].as_str().filter(|name| !name.is_empty())
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
