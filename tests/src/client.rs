//! A plain NATS client of Highwater's public subjects.

use crate::{
    oracle::Index,
    wait::{deadline, until},
};
use anyhow::{Context, Result, ensure};
use async_nats::{
    ConnectOptions, Request,
    client::RequestErrorKind,
    jetstream::{self, stream::LastRawMessageErrorKind},
};
use highwater_schemas::{api::Lease, subjects};
use serde_json::{Value, json};
use std::{
    fmt,
    time::{Duration, Instant},
};

/// How long a reply may take; longer than any timeout that a request may ask for by far is a hang.
const REPLY_WITHIN: Duration = Duration::from_secs(20);
const STATUS_WITHIN: Duration = Duration::from_secs(1);
const RETRY_AFTER: Duration = Duration::from_millis(10);
const FORMED_WITHIN: Duration = Duration::from_secs(20);

/// A reply with `"ok":false`, or no reply at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// As in the reply; `no_responders`, `no_reply` or `not_json` where there is none.
    pub code: String,
    pub message: String,
    pub retry: bool,
    /// The headers `Nats-Service-Error` and `Nats-Service-Error-Code`.
    pub headers: (Option<String>, Option<String>),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refused {}

impl Refused {
    pub(crate) fn without_reply(code: &str, message: impl Into<String>, retry: bool) -> Self {
        Self { code: code.into(), message: message.into(), retry, headers: (None, None) }
    }
}

/// A connection.
#[derive(Clone)]
pub struct Client {
    pub nats: async_nats::Client,
    pub js: jetstream::Context,
}

impl Client {
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(url, ConnectOptions::new()).await
    }

    /// As [`Self::connect`], with these credentials and the like.
    pub async fn connect_with(url: &str, options: ConnectOptions) -> Result<Self> {
        let servers: Vec<&str> = url.split(',').collect();
        let nats = options.connect(&servers[..]).await.with_context(|| format!("cannot connect to {url}"))?;
        Ok(Self { js: jetstream::new(nats.clone()), nats })
    }

    /// One request, one reply.
    pub async fn request(&self, subject: &str, request: &Value) -> Result<Value, Refused> {
        self.request_raw(subject, request.to_string().into_bytes()).await
    }

    /// As [`Self::request`] for those who do not wait long.
    pub async fn request_within(&self, subject: &str, request: &Value, within: Duration) -> Result<Value, Refused> {
        self.request_bytes(subject, request.to_string().into_bytes(), within).await
    }

    /// As [`Self::request`] with any payload.
    pub async fn request_raw(&self, subject: &str, payload: Vec<u8>) -> Result<Value, Refused> {
        self.request_bytes(subject, payload, REPLY_WITHIN).await
    }

    async fn request_bytes(&self, subject: &str, payload: Vec<u8>, within: Duration) -> Result<Value, Refused> {
        let request = Request::new().payload(payload.into()).timeout(Some(within));
        let reply = self.nats.send_request(subject.to_owned(), request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Refused::without_reply("no_responders", "no service answers", true),
            _ => Refused::without_reply("no_reply", format!("{subject}: {error}"), false),
        })?;
        let text = String::from_utf8_lossy(&reply.payload);
        let value: Value = serde_json::from_slice(&reply.payload)
            .map_err(|error| Refused::without_reply("not_json", format!("{error}: {text}"), false))?;
        if value["ok"] == true {
            return Ok(value);
        }
        let header = |name: &str| Some(reply.headers.as_ref()?.get(name)?.as_str().to_owned());
        let error = &value["error"];
        Err(Refused {
            code: error["code"].as_str().unwrap_or("no code").to_owned(),
            message: error["message"].as_str().unwrap_or("no message").to_owned(),
            retry: error["retry"] == true,
            headers: (header("Nats-Service-Error"), header("Nats-Service-Error-Code")),
        })
    }

    /// As [`Self::request`], again while the refusal says that it may help.
    pub async fn insist(&self, subject: &str, request: &Value, within: Duration) -> Result<Value> {
        let deadline = deadline(within);
        loop {
            match self.request(subject, request).await {
                Ok(reply) => return Ok(reply),
                Err(refused) if refused.retry && Instant::now() < deadline => tokio::time::sleep(RETRY_AFTER).await,
                Err(refused) => return Err(refused).with_context(|| format!("{subject} {request}")),
            }
        }
    }

    /// The cluster as `hw.cluster.members` shows it.
    pub async fn members(&self) -> Result<Value, Refused> {
        // Who was killed or sleeps may have been asked.
        self.request_within("hw.cluster.members", &json!({}), STATUS_WITHIN).await
    }

    /// A bucket as `hw.cluster.members` shows it.
    pub async fn bucket(&self, name: &str) -> Result<Value, Refused> {
        let mut members = self.members().await?;
        let mut buckets = members["buckets"].as_array_mut().into_iter().flatten();
        let found = buckets.find(|bucket| bucket["name"] == *name).map(Value::take);
        found.ok_or_else(|| Refused::without_reply("not_listed", name, true))
    }

    /// Who holds the lease of the cluster managers, if it is there.
    pub async fn lease_holder(&self) -> Result<Option<String>> {
        let stream = self.js.get_stream(subjects::CLUSTER_STREAM).await?;
        match stream.get_last_raw_message_by_subject(subjects::CLUSTER_LEASE).await {
            Ok(message) => Ok(Some(serde_json::from_slice::<Lease>(&message.payload)?.holder)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until somebody coordinates and these nodes are alive.
    pub async fn wait_formed(&self, nodes: &[&str]) -> Result<()> {
        until("the nodes find each other", FORMED_WITHIN, async || {
            let status = self.members().await.map_err(|refused| refused.to_string())?;
            let members = status["members"].as_array().cloned().unwrap_or_default();
            let alive = |node: &&str| members.iter().any(|m| m["node"] == **node && m["alive"] == true);
            let formed = status["coordinator"] != "" && nodes.iter().all(alive);
            if formed { Ok(()) } else { Err(status.to_string()) }
        })
        .await
    }

    /// Waits until somebody coordinates in a later term than `above`; answers who, and the term.
    pub async fn wait_term(&self, above: u64, within: Duration) -> Result<(String, u64)> {
        until(&format!("somebody coordinates in a later term than {above}"), within, async || {
            let status = self.members().await.map_err(|refused| refused.to_string())?;
            match (status["coordinator"].as_str(), status["term"].as_u64()) {
                (Some(node), Some(term)) if !node.is_empty() && term > above => Ok((node.to_owned(), term)),
                _ => Err(status.to_string()),
            }
        })
        .await
    }

    /// `hw.query.scan` with every page; the reply of the first page with the rows of all.
    pub async fn scan(&self, request: &Value) -> Result<Value, Refused> {
        self.scan_within(request, REPLY_WITHIN).await
    }

    /// As [`Self::scan`] for those who do not wait long for a page.
    pub async fn scan_within(&self, request: &Value, within: Duration) -> Result<Value, Refused> {
        let mut first = self.request_within("hw.query.scan", request, within).await?;
        let mut token = first["page_token"].take();
        let mut asked = request.clone();
        while !token.is_null() {
            asked["page_token"] = token;
            let mut page = self.request_within("hw.query.scan", &asked, within).await?;
            if page["st"] != first["st"] || page["exact"] != first["exact"] || page["timestamp"] != first["timestamp"] {
                let message = format!("pages of different timestamps: {} and {}", first["st"], page["st"]);
                return Err(Refused::without_reply("torn_pages", message, false));
            }
            token = page["page_token"].take();
            if let (Some(all), Value::Array(rows)) = (first["rows"].as_array_mut(), page["rows"].take()) {
                all.extend(rows);
            }
        }
        Ok(first)
    }

    /// `hw.query.count`.
    pub async fn count(&self, request: &Value) -> Result<u64, Refused> {
        let reply = self.request("hw.query.count", request).await?;
        reply["count"].as_u64().ok_or_else(|| Refused::without_reply("no_count", reply.to_string(), false))
    }

    /// The indexes of a bucket with their state and progress.
    pub async fn list(&self, bucket: &str) -> Result<Vec<Value>, Refused> {
        let (mut all, mut request) = (Vec::new(), json!({"bucket": bucket}));
        loop {
            let mut reply = self.request("hw.query.list", &request).await?;
            let Value::Array(indexes) = reply["indexes"].take() else {
                return Err(Refused::without_reply("no_indexes", reply.to_string(), false));
            };
            all.extend(indexes);
            match all.last().filter(|_| reply["more"] == true) {
                Some(last) => request["after"] = json!([last["bucket"], last["name"]]),
                None => return Ok(all),
            }
        }
    }

    /// One index as `hw.query.list` shows it.
    pub async fn index(&self, bucket: &str, name: &str) -> Result<Value, Refused> {
        let found = self.list(bucket).await?.into_iter().find(|index| index["name"] == name);
        found.ok_or_else(|| Refused::without_reply("not_listed", name, true))
    }

    /// Creates an index; the definition is that of `hw.admin.index.create`.
    pub async fn create_index(&self, definition: &Value) -> Result<()> {
        let reply = self.insist("hw.admin.index.create", definition, REPLY_WITHIN).await?;
        ensure!(reply["index"]["name"] == definition["name"], "odd reply {reply}");
        Ok(())
    }

    /// Creates indexes, and waits until each is active.
    pub async fn create_indexes(&self, bucket: &str, indexes: &[Index], within: Duration) -> Result<()> {
        for index in indexes {
            self.create_index(&index.definition(bucket)).await?;
        }
        for index in indexes {
            self.wait_active(bucket, &index.name, within).await?;
        }
        Ok(())
    }

    pub async fn drop_index(&self, bucket: &str, name: &str) -> Result<()> {
        self.insist("hw.admin.index.drop", &json!({"bucket": bucket, "name": name}), REPLY_WITHIN).await?;
        Ok(())
    }

    /// Waits until an index is active.
    pub async fn wait_active(&self, bucket: &str, name: &str, within: Duration) -> Result<Value> {
        until(&format!("index {bucket}.{name} active"), within, || async {
            let index = self.index(bucket, name).await.map_err(|refused| refused.to_string())?;
            if index["state"] == "active" { Ok(index) } else { Err(index.to_string()) }
        })
        .await
    }
}
