//! A connection, checked, and the core of the bus: publish, request, subscribe.

use crate::{codes::unavailable, error::BusError, troubles::Troubles};
use async_nats::{
    Client, ConnectErrorKind, Event, HeaderMap,
    client::RequestErrorKind,
    jetstream::{self, Context, response::Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// A log directive that silences the NATS client: what matters of it is in our own errors.
pub const CLIENT_LOG_OFF: &str = "async_nats=off";
/// The oldest server that Highwater supports.
const OLDEST_SERVER: &str = "2.11";
/// Messages that may wait in one subscription before the client drops them; a reader never asks for more than this at once.
const SUBSCRIPTION_CAPACITY: usize = 65_536;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent is given up after two of these: a network that was cut off and came back is found again soon.
const PING: Duration = Duration::from_secs(5);
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// JetStream is given this long to say that it is there.
const CHECKED_WITHIN: Duration = Duration::from_secs(2);

/// How to reach NATS.
#[derive(Debug, Clone, Default)]
pub struct ConnectSettings {
    /// One or more URLs, comma separated; may carry user and password.
    pub url: String,
    pub user: Option<String>,
    pub password: Option<String>,
    pub token: Option<String>,
    /// A credentials file.
    pub creds: Option<PathBuf>,
    /// An nkey seed.
    pub nkey: Option<String>,
    /// Shown in the server's connection list.
    pub name: String,
}

/// A connection to NATS with JetStream.
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) troubles: Troubles,
    /// As it was given.
    url: String,
    /// Rises when the connection is lost.
    lost: watch::Receiver<u64>,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    pub payload: Bytes,
    /// Code and number from the service error headers.
    pub error: Option<(String, u16)>,
}

/// A message of a subscription.
#[derive(Debug, Clone)]
pub struct Incoming {
    pub subject: String,
    pub payload: Bytes,
    pub reply: Option<String>,
}

/// A core subscription.
#[derive(Debug)]
pub struct Subscription {
    inner: async_nats::Subscriber,
}

impl Subscription {
    /// The next message; None when the connection is closed.
    pub async fn next(&mut self) -> Option<Incoming> {
        let message = self.inner.next().await?;
        Some(Incoming {
            subject: message.subject.to_string(),
            payload: message.payload,
            reply: message.reply.map(|r| r.to_string()),
        })
    }
}

impl Bus {
    /// Connects and checks the version. Later losses of the connection are healed by the client.
    pub async fn connect(settings: &ConnectSettings) -> Result<Self, BusError> {
        let url = settings.url.clone();
        let troubles = Troubles::default();
        let noted = troubles.clone();
        let (losses, lost) = watch::channel(0);
        let mut options = async_nats::ConnectOptions::new()
            .name(&settings.name)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING)
            .reconnect_delay_callback(|attempts| Duration::from_millis((attempts as u64 * 20).min(500)))
            .event_callback(move |event| {
                note(&noted, &event);
                if matches!(event, Event::Disconnected) {
                    losses.send_modify(|losses| *losses += 1);
                }
                std::future::ready(())
            });
        if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
            options = options.user_and_password(user.clone(), password.clone());
        } else if let Some(token) = &settings.token {
            options = options.token(token.clone());
        } else if let Some(seed) = &settings.nkey {
            if nkeys_seed_is_damaged(seed) {
                return Err(BusError::Settings(
                    "the nkey seed is damaged: it begins with SU and has 58 characters".into(),
                ));
            }
            options = options.nkey(seed.clone());
        } else if let Some(path) = &settings.creds {
            let text = std::fs::read_to_string(path)
                .map_err(|e| BusError::Settings(format!("cannot read credentials file {}: {e}", path.display())))?;
            options = options
                .credentials(&text)
                .map_err(|e| BusError::Settings(format!("credentials file {} is damaged: {e}", path.display())))?;
        }
        let servers: Vec<&str> = url.split(',').collect();
        let client = options.connect(servers).await.map_err(|e| match e.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                BusError::Credentials { url: url.clone() }
            }
            ConnectErrorKind::ServerParse => BusError::Settings(format!("{url} is not a NATS URL")),
            _ => BusError::Unreachable { url: url.clone(), why: e.to_string() },
        })?;
        let version = client.server_info().version;
        if !new_enough(&version) {
            return Err(BusError::OldServer { found: version, needed: OLDEST_SERVER });
        }
        let js = jetstream::context::ContextBuilder::new().timeout(API_TIMEOUT).build(client.clone());
        Ok(Self { client, js, troubles, url, lost })
    }

    /// Whether JetStream answers now. When servers have no leader among them, or change it, it does later.
    ///
    /// # Errors
    /// There is none for this account.
    pub async fn jetstream_answers(&self) -> Result<bool, BusError> {
        let request = async_nats::Request::new().timeout(Some(CHECKED_WITHIN));
        match self.client.send_request("$JS.API.INFO", request).await {
            Ok(reply) => match serde_json::from_slice::<Response<serde_json::Value>>(&reply.payload) {
                Ok(Response::Ok(_)) => Ok(true),
                Ok(Response::Err { error }) if unavailable(&error) => Ok(false),
                Ok(Response::Err { error }) => Err(BusError::other("JetStream", error)),
                Err(error) => Err(BusError::other("JetStream", error)),
            },
            Err(e) if e.kind() == RequestErrorKind::NoResponders => {
                Err(BusError::NoJetStream { url: self.url.clone() })
            }
            Err(e) if e.kind() == RequestErrorKind::TimedOut => Ok(false),
            Err(e) => Err(BusError::other("JetStream", e)),
        }
    }

    /// The largest message that the server takes, bytes.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Changes when the connection moved to another server or the server restarted.
    pub fn server_id(&self) -> String {
        self.client.server_info().server_id
    }

    /// Whether the server that we are connected to leads a stream: its restarts do not go unseen.
    pub fn leads(&self, state: &crate::StreamState) -> bool {
        state.leader.is_empty() || state.leader == self.client.server_info().server_name
    }

    /// How often the connection was lost.
    pub fn losses(&self) -> u64 {
        *self.lost.borrow()
    }

    /// What was sent before the connection was lost is not answered any more, and the client would wait for it until it is too
    /// late; None: it was lost meanwhile.
    pub(crate) async fn unless_lost<F: Future>(&self, answer: F) -> Option<F::Output> {
        self.unless_lost_since(self.losses(), answer).await
    }

    /// The same for what was sent when it had been lost so often.
    pub(crate) async fn unless_lost_since<F: Future>(&self, losses: u64, answer: F) -> Option<F::Output> {
        let mut lost = self.lost.clone();
        tokio::select! {
            biased;
            answer = answer => Some(answer),
            Ok(_) = lost.wait_for(|now| *now != losses) => None,
        }
    }

    /// Core publish: may be lost.
    pub async fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), BusError> {
        self.client.publish(subject.to_owned(), payload.into()).await.map_err(|e| BusError::other("publish", e))
    }

    /// Publishes an answer.
    pub async fn respond(&self, reply: &str, payload: Vec<u8>) -> Result<(), BusError> {
        self.publish(reply, payload).await
    }

    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, BusError> {
        let inner = self.client.subscribe(subject.to_owned()).await.map_err(|e| BusError::other("subscribe", e))?;
        Ok(Subscription { inner })
    }

    /// Waits until the server has seen what was sent so far, subscriptions included.
    pub async fn flush(&self) -> Result<(), BusError> {
        self.client.flush().await.map_err(|e| BusError::other("flush", e))
    }

    pub async fn request(&self, subject: &str, payload: Vec<u8>, timeout: Duration) -> Result<Reply, BusError> {
        let request = async_nats::Request::new().payload(payload.into()).timeout(Some(timeout));
        let message = self.client.send_request(subject.to_owned(), request).await.map_err(|e| match e.kind() {
            RequestErrorKind::NoResponders => BusError::NoResponders { subject: subject.into() },
            RequestErrorKind::TimedOut => BusError::Timeout { subject: subject.into() },
            _ => BusError::other("request", e),
        })?;
        let error = message.headers.as_ref().and_then(error_headers);
        Ok(Reply { payload: message.payload, error })
    }
}

/// What happens to the connection is stated for a while.
fn note(troubles: &Troubles, event: &Event) {
    let now = Instant::now();
    match event {
        Event::Disconnected => troubles.happened("connection to NATS", &"it was lost", now),
        Event::SlowConsumer(_) => {
            let what = "messages come faster than they are taken: some were dropped (slow consumer)";
            troubles.happened("subscription", &what, now);
        }
        Event::ServerError(error) => troubles.happened("answers of NATS", error, now),
        _ => {}
    }
}

/// The client would only say that the server refused it.
fn nkeys_seed_is_damaged(seed: &str) -> bool {
    seed.len() != 58
        || !seed.starts_with("SU")
        || !seed.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
}

fn error_headers(headers: &HeaderMap) -> Option<(String, u16)> {
    let code = headers.get("Nats-Service-Error")?.to_string();
    let number = headers.get("Nats-Service-Error-Code").and_then(|n| n.as_str().parse().ok()).unwrap_or(500);
    Some((code, number))
}

fn new_enough(version: &str) -> bool {
    let mut parts = version.split(['.', '-']).map(|p| p.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    found >= (2, 11)
}

#[cfg(test)]
mod tests {
    use super::new_enough;

    #[test]
    fn servers_before_2_11_are_too_old() {
        for (version, good) in [
            ("2.9.25", false),
            ("2.10.22", false),
            ("2.11.0", true),
            ("2.15.1", true),
            ("3.0.0-beta", true),
            ("", false),
        ] {
            assert_eq!(new_enough(version), good, "{version}");
        }
    }
}
