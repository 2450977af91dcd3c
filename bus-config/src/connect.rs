//! A connection, checked, and the core of the bus: publish, request, subscribe.

use crate::{
    attempts::Attempts,
    codes::unavailable,
    error::{BusError, without_credentials},
    faults::fault,
    frames::{Dial, Link, credentials::Credentials},
    pulls::Pulling,
    supervise::{self, Task},
    troubles::Troubles,
};
use async_nats::{
    Client, ConnectError, ConnectErrorKind, Event, HeaderMap,
    client::RequestErrorKind,
    jetstream::{self, Context, response::Response},
};
use bytes::Bytes;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// A log directive that silences the NATS client: what matters of it is in our own errors.
pub const CLIENT_LOG_OFF: &str = "async_nats=off";
/// The oldest server that Highwater supports.
const OLDEST_SERVER: &str = "2.11";
/// Answers that may wait in the client library before it drops them.
const SUBSCRIPTION_CAPACITY: usize = 65_536;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent is given up after two of these: a network that was cut off and came back is found again soon.
const PING: Duration = Duration::from_secs(5);
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// A server takes lines of 4,096 bytes if nothing else is configured: with the command, a subject for the answer and two numbers.
const LONGEST_SUBJECT: usize = 3_900;
/// A connection that was lost is opened again after this, and then at least this often.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(500);
/// After a connection could not be opened, it is tried again after this.
const AGAIN: Duration = Duration::from_millis(200);
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

/// Connections to NATS with JetStream: the client library's, for what we send and the answers to it, and one of our own
/// ([`crate::frames`]) for what any client may have sent.
#[derive(Debug, Clone)]
pub struct Bus {
    inner: Arc<Inner>,
    pub(crate) troubles: Troubles,
}

#[derive(Debug)]
struct Inner {
    /// URLs of the servers, without credentials.
    url: String,
    session: RwLock<Session>,
    link: Link,
    dial: Arc<Dial>,
    /// Rises when the client library's connection is lost.
    lost: watch::Sender<u64>,
    keeper: Mutex<Option<Task>>,
    attempts: Attempts,
    pulling: Pulling,
}

/// The client library's connection.
#[derive(Debug, Clone)]
struct Session {
    client: Client,
    js: Context,
    /// How often earlier sessions and their connections were lost.
    lost_before: u64,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    pub payload: Bytes,
    /// Code and number from the service error headers.
    pub error: Option<(String, u16)>,
}

/// Opens sessions of the client library, one after the other.
struct Opener {
    servers: Vec<String>,
    name: String,
    credentials: Credentials,
    troubles: Troubles,
    lost: watch::Sender<u64>,
    /// Told when the library's task for a session has ended.
    ended: mpsc::Sender<()>,
}

/// Is dropped with the library's task for a session, however that ends.
struct Ending(mpsc::Sender<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        // One that waits already tells as much.
        let _ = self.0.try_send(());
    }
}

impl Opener {
    async fn open(&self) -> Result<Session, ConnectError> {
        let (troubles, lost, ending) = (self.troubles.clone(), self.lost.clone(), Ending(self.ended.clone()));
        let mut options = async_nats::ConnectOptions::new()
            .name(&self.name)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING)
            .reconnect_delay_callback(
                |attempts| if attempts < 2 { SOON } else { LATER.min(AGAIN * attempts as u32 / 2) },
            )
            .event_callback(move |event| {
                let _lives_as_long = &ending;
                note(&troubles, &event);
                if matches!(event, Event::Disconnected) {
                    lost.send_modify(|losses| *losses += 1);
                }
                std::future::ready(())
            });
        options = match &self.credentials {
            Credentials::None => options,
            Credentials::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
            Credentials::Token(token) => options.token(token.clone()),
            Credentials::Nkey(seed) => options.nkey(seed.clone()),
            // It was read before.
            Credentials::File { text, .. } => {
                options.credentials(text).map_err(|e| ConnectError::with_source(ConnectErrorKind::Authentication, e))?
            }
        };
        let lost_before = *self.lost.borrow();
        let client = options.connect(self.servers.as_slice()).await?;
        let js = jetstream::context::ContextBuilder::new().timeout(API_TIMEOUT).build(client.clone());
        Ok(Session { client, js, lost_before })
    }
}

/// Opens a new session when the library's task has ended: by a panic, as nothing else ends it while it is used.
async fn keep_open(bus: &Weak<Inner>, opener: Opener, mut ended: mpsc::Receiver<()>) {
    while ended.recv().await.is_some() {
        if bus.strong_count() == 0 {
            return;
        }
        fault("keeper", "");
        let why = "the NATS client ended unexpectedly; it is connected again";
        tracing::error!("{why}");
        opener.troubles.happened("connection to NATS", &why, Instant::now());
        opener.lost.send_modify(|losses| *losses += 1);
        let mut retry = opener.troubles.retry("connecting to NATS").within(AGAIN);
        let session = loop {
            match opener.open().await {
                Ok(session) => break session,
                Err(error) => retry.wait(&error).await,
            }
        };
        retry.over();
        let Some(bus) = bus.upgrade() else { return };
        *bus.session.write().unwrap_or_else(PoisonError::into_inner) = session;
    }
}

impl Bus {
    /// Connects and checks the version. Later losses of the connections are healed, also when the client library's own task ends.
    pub async fn connect(settings: &ConnectSettings) -> Result<Self, BusError> {
        let url = without_credentials(&settings.url);
        let credentials = Credentials::of(settings)?;
        let troubles = Troubles::default();
        let lost = watch::Sender::new(0);
        let (ending, ended) = mpsc::channel(1);
        let dial = Dial::new(&settings.url, credentials.clone(), &settings.name)
            .map_err(|_| BusError::Settings(format!("{url} is not a NATS URL")))?;
        let opener = Opener {
            // The library logs them.
            servers: settings.url.split(',').map(|url| without_credentials(url.trim())).collect(),
            name: settings.name.clone(),
            credentials,
            troubles: troubles.clone(),
            lost: lost.clone(),
            ended: ending,
        };
        let session = opener.open().await.map_err(|e| match e.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                BusError::Credentials { url: url.clone() }
            }
            ConnectErrorKind::ServerParse => BusError::Settings(format!("{url} is not a NATS URL")),
            _ => BusError::Unreachable { url: url.clone(), why: e.to_string() },
        })?;
        let version = session.client.server_info().version;
        if !new_enough(&version) {
            return Err(BusError::OldServer { found: version, needed: OLDEST_SERVER });
        }
        let dial = Arc::new(dial);
        let link = Link::connect(Arc::clone(&dial), troubles.clone(), "")
            .await
            .map_err(|why| BusError::Unreachable { url: url.clone(), why })?;
        let inner = Arc::new(Inner {
            url,
            session: RwLock::new(session),
            link,
            dial,
            lost,
            keeper: Mutex::default(),
            attempts: Attempts::default(),
            pulling: Pulling::default(),
        });
        let bus = Arc::downgrade(&inner);
        let kept = supervise::task(&troubles.clone().into(), "the keeper of the NATS client", async move {
            let incidents = opener.troubles.clone().into();
            let ending =
                supervise::caught(&incidents, "reopening the NATS client", keep_open(&bus, opener, ended)).await;
            if let (supervise::Ending::Panicked(_), Some(bus)) = (ending, bus.upgrade()) {
                // Nobody would open the client again: who waits for messages hears that the bus has ended.
                bus.link.close();
            }
        });
        // It ends with the last handle of the bus.
        *inner.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(Self { inner, troubles })
    }

    fn session(&self) -> RwLockReadGuard<'_, Session> {
        self.inner.session.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn client(&self) -> Client {
        self.session().client.clone()
    }

    pub(crate) fn js(&self) -> Context {
        self.session().js.clone()
    }

    pub(crate) fn link(&self) -> &Link {
        &self.inner.link
    }

    /// A connection of its own, for who reads so much that others would wait.
    pub(crate) async fn another_link(&self) -> Result<Link, BusError> {
        let link = Link::connect(Arc::clone(&self.inner.dial), self.troubles.clone(), "apart").await;
        link.map_err(|why| BusError::other("connect", why))
    }

    /// Failures that the next reader of a stream takes into account.
    pub(crate) fn attempts(&self) -> &Attempts {
        &self.inner.attempts
    }

    /// The number of readers that pull now.
    pub(crate) fn pulling(&self) -> &Pulling {
        &self.inner.pulling
    }

    /// The number of this connection's readers that read now, at least 1.
    pub fn readers(&self) -> usize {
        usize::try_from(self.inner.pulling.load(Ordering::Relaxed)).unwrap_or(usize::MAX).max(1)
    }

    /// A text that no other call and no other process gets.
    pub(crate) fn unique_id(&self) -> String {
        let inbox = self.client().new_inbox();
        inbox.rsplit('.').next().unwrap_or(&inbox).to_owned()
    }

    /// Whether JetStream answers now. When servers have no leader among them, or change it, it does later.
    ///
    /// # Errors
    /// There is none for this account.
    pub async fn jetstream_answers(&self) -> Result<bool, BusError> {
        Ok(self.jetstream_info().await?.is_some())
    }

    /// What JetStream says of the account; None: it does not answer now.
    pub(crate) async fn jetstream_info(&self) -> Result<Option<serde_json::Value>, BusError> {
        let request = async_nats::Request::new().timeout(Some(CHECKED_WITHIN));
        match self.client().send_request("$JS.API.INFO", request).await {
            Ok(reply) => match serde_json::from_slice::<Response<serde_json::Value>>(&reply.payload) {
                Ok(Response::Ok(info)) => Ok(Some(info)),
                Ok(Response::Err { error }) if unavailable(&error) => Ok(None),
                Ok(Response::Err { error }) => Err(BusError::other("JetStream", error)),
                Err(error) => Err(BusError::other("JetStream", error)),
            },
            Err(e) if e.kind() == RequestErrorKind::NoResponders => {
                Err(BusError::NoJetStream { url: self.inner.url.clone() })
            }
            Err(e) if e.kind() == RequestErrorKind::TimedOut => Ok(None),
            Err(e) => Err(BusError::other("JetStream", e)),
        }
    }

    /// The largest message that the server takes, bytes.
    pub fn max_payload(&self) -> usize {
        self.client().max_payload()
    }

    /// Changes when the connection on which answers come moved to another server, or its server restarted.
    pub fn server_id(&self) -> String {
        self.client().server_info().server_id
    }

    /// Whether the server that we are connected to leads a stream: its restarts do not go unseen.
    pub fn leads(&self, state: &crate::StreamState) -> bool {
        state.leader.is_empty() || state.leader == self.client().server_info().server_name
    }

    /// How often the connection was lost on which answers come. Never less than [`Self::server_id`] shows: the client library tells
    /// of a loss by an event that may come later than the next connection does.
    pub fn losses(&self) -> u64 {
        let session = self.session();
        let connected = session.client.statistics().connects.load(Ordering::Relaxed);
        let reconnected = session.lost_before + connected.saturating_sub(1);
        reconnected.max(*self.inner.lost.borrow())
    }

    /// What was sent before the connection was lost is not answered any more, and the client would wait for it until it is too
    /// late; None: it was lost meanwhile.
    pub(crate) async fn unless_lost<F: Future>(&self, answer: F) -> Option<F::Output> {
        self.unless_lost_since(self.losses(), answer).await
    }

    /// The same for what was sent when it had been lost so often.
    pub(crate) async fn unless_lost_since<F: Future>(&self, losses: u64, answer: F) -> Option<F::Output> {
        let mut lost = self.inner.lost.subscribe();
        tokio::select! {
            biased;
            answer = answer => Some(answer),
            Ok(_) = lost.wait_for(|now| *now > losses) => None,
        }
    }

    /// Core publish: may be lost.
    pub async fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), BusError> {
        sendable(subject)?;
        self.client().publish(subject.to_owned(), payload.into()).await.map_err(|e| BusError::other("publish", e))
    }

    /// Publishes an answer.
    pub async fn respond(&self, reply: &str, payload: Vec<u8>) -> Result<(), BusError> {
        self.publish(reply, payload).await
    }

    /// Waits until the server has seen what was sent so far, subscriptions included.
    pub async fn flush(&self) -> Result<(), BusError> {
        let (sent, subscribed) = (self.client(), self.link());
        let (sent, subscribed) = tokio::join!(sent.flush(), subscribed.flush());
        sent.map_err(|e| BusError::other("flush", e))?;
        if subscribed { Ok(()) } else { Err(BusError::other("flush", "the connection was lost")) }
    }

    pub async fn request(&self, subject: &str, payload: Vec<u8>, timeout: Duration) -> Result<Reply, BusError> {
        sendable(subject)?;
        let request = async_nats::Request::new().payload(payload.into()).timeout(Some(timeout));
        let message = self.client().send_request(subject.to_owned(), request).await.map_err(|e| match e.kind() {
            RequestErrorKind::NoResponders => BusError::NoResponders { subject: subject.into() },
            RequestErrorKind::TimedOut => BusError::Timeout { subject: subject.into() },
            _ => BusError::other("request", e),
        })?;
        let error = message.headers.as_ref().and_then(error_headers);
        Ok(Reply { payload: message.payload, error })
    }
}

/// The server ends the connection of who sends a longer line, and takes a subject with white space for several words.
///
/// # Errors
/// The subject cannot be sent.
pub(crate) fn sendable(subject: &str) -> Result<(), BusError> {
    if subject.len() > LONGEST_SUBJECT {
        let why = format!("a subject of {} bytes is longer than {LONGEST_SUBJECT}", subject.len());
        return Err(BusError::other("publish", why));
    }
    if subject.is_empty() || subject.contains(|c: char| c == ' ' || c.is_ascii_control()) {
        return Err(BusError::other("publish", format!("{subject:?} is no subject")));
    }
    Ok(())
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
