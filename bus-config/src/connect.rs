//! A connection, checked, and the core of the bus: publish, request, subscribe.

use crate::{
    api_prefix::ApiPrefix,
    attempts::Attempts,
    codes::unavailable,
    error::BusError,
    faults::fault,
    frames::{Dial, Link},
    pulls::Pulling,
    refusals::{Refusal, Refusals},
    session::{Opener, Session},
    settings::{ConnectSettings, Target},
    supervise::{self, Task},
    troubles::Troubles,
};
use async_nats::{
    Client, HeaderMap,
    client::RequestErrorKind,
    jetstream::{Context, response::Response},
};
use bytes::Bytes;
use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// A log directive that silences the NATS client: what matters of it is in our own errors.
pub const CLIENT_LOG_OFF: &str = "async_nats=off";
/// The oldest server that Highwater supports.
const OLDEST_SERVER: &str = "2.11";
/// A server takes lines of 4,096 bytes if nothing else is configured: with the command, a subject for the answer and two numbers.
const LONGEST_SUBJECT: usize = 3_900;
/// After a connection could not be opened, it is tried again after this.
const AGAIN: Duration = Duration::from_millis(200);
/// JetStream is given this long to say that it is there.
const CHECKED_WITHIN: Duration = Duration::from_secs(2);

/// Connections to NATS with JetStream: the client library's, for what we send and the answers to it, and one of our own
/// ([`crate::frames`]) for what any client may have sent.
#[derive(Debug, Clone)]
pub struct Bus {
    inner: Arc<Inner>,
    pub(crate) troubles: Troubles,
}

#[derive(Debug)]
struct Inner {
    target: Arc<Target>,
    session: RwLock<Session>,
    link: Link,
    dial: Arc<Dial>,
    refusals: Refusals,
    /// Rises when the client library's connection is lost.
    lost: watch::Sender<u64>,
    keeper: Mutex<Option<Task>>,
    attempts: Attempts,
    pulling: Pulling,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Reply {
    pub payload: Bytes,
    /// Code and number from the service error headers.
    pub error: Option<(String, u16)>,
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
        let target = Arc::new(Target::of(settings)?);
        let (troubles, refusals) = (Troubles::default(), Refusals::new(target.api.clone()));
        let dial = Arc::new(Dial::new(Arc::clone(&target), troubles.clone()));
        // A file that cannot be used is said before anybody is asked.
        dial.check().await.map_err(BusError::Settings)?;
        let link = Link::connect(Arc::clone(&dial), troubles.clone(), refusals.clone(), "").await?;
        let version = link.server_version();
        if !new_enough(&version) {
            return Err(BusError::OldServer { found: version, needed: OLDEST_SERVER });
        }
        let lost = watch::Sender::new(0);
        let (ending, ended) = mpsc::channel(1);
        let opener = Opener {
            target: Arc::clone(&target),
            troubles: troubles.clone(),
            refusals: refusals.clone(),
            lost: lost.clone(),
            ended: ending,
        };
        let session = opener.open().await.map_err(|e| opener.refused(&e))?;
        let inner = Arc::new(Inner {
            target,
            session: RwLock::new(session),
            link,
            dial,
            refusals,
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
        let inner = &self.inner;
        Link::connect(Arc::clone(&inner.dial), self.troubles.clone(), inner.refusals.clone(), "apart").await
    }

    /// Under which subject JetStream is asked.
    pub(crate) fn api(&self) -> &ApiPrefix {
        &self.inner.target.api
    }

    /// What NATS does not permit this user.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.inner.refusals
    }

    /// What keeps an answer away that has been waited for since refusal number `since`.
    pub(crate) fn refused(&self, since: u64, published: impl Fn(&str) -> bool) -> Option<Refusal> {
        self.inner.refusals.found(since, published, &self.inner.target.inbox_prefix)
    }

    /// Waits for an answer to what is published to such subjects: who may not publish there, or not hear the answer, gets none.
    ///
    /// # Errors
    /// [`BusError::NotPermitted`].
    pub(crate) async fn permitted<F: Future>(
        &self,
        published: impl Fn(&str) -> bool,
        answer: F,
    ) -> Result<F::Output, BusError> {
        let since = self.inner.refusals.last();
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            refusal = self.inner.refusals.wait(since, published, &self.inner.target.inbox_prefix) => Err(refusal.into()),
        }
    }

    /// The same for requests to JetStream about a stream.
    pub(crate) async fn permitted_about<F: Future>(&self, stream: &str, answer: F) -> Result<F::Output, BusError> {
        let about = |subject: &str| self.api().covers(subject) && subject.split('.').any(|word| word == stream);
        self.permitted(about, answer).await
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

    /// A subject for answers that no other call and no other process gets.
    pub(crate) fn new_inbox(&self) -> String {
        self.client().new_inbox()
    }

    /// A text that no other call and no other process gets.
    pub(crate) fn unique_id(&self) -> String {
        let inbox = self.new_inbox();
        inbox.rsplit('.').next().unwrap_or(&inbox).to_owned()
    }

    /// Whether JetStream answers now. When servers have no leader among them, or change it, it does later.
    ///
    /// # Errors
    /// There is none for this account; [`BusError::NotPermitted`]: this user may not ask.
    pub async fn jetstream_answers(&self) -> Result<bool, BusError> {
        Ok(self.jetstream_info().await?.is_some())
    }

    /// What JetStream says of the account; None: it does not answer now.
    pub(crate) async fn jetstream_info(&self) -> Result<Option<serde_json::Value>, BusError> {
        let subject = self.api().of("INFO");
        let request = async_nats::Request::new().timeout(Some(CHECKED_WITHIN));
        let client = self.client();
        match self.permitted(|refused| refused == subject, client.send_request(subject.clone(), request)).await? {
            Ok(reply) => match serde_json::from_slice::<Response<serde_json::Value>>(&reply.payload) {
                Ok(Response::Ok(info)) => Ok(Some(info)),
                Ok(Response::Err { error }) if unavailable(&error) => Ok(None),
                Ok(Response::Err { error }) => Err(BusError::other("JetStream", error)),
                Err(error) => Err(BusError::other("JetStream", error)),
            },
            Err(e) if e.kind() == RequestErrorKind::NoResponders => {
                Err(BusError::NoJetStream { url: self.inner.target.servers.shown.clone(), subject })
            }
            Err(e) if e.kind() == RequestErrorKind::TimedOut => Ok(None),
            Err(e) => Err(BusError::other("JetStream", e)),
        }
    }

    /// The largest message that the server takes of this user, bytes. The client library knows the limit of the server alone.
    pub fn max_payload(&self) -> usize {
        self.client().max_payload().min(self.link().max_payload())
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
        let client = self.client();
        let answer = client.send_request(subject.to_owned(), request);
        let message = self.permitted(|refused| refused == subject, answer).await?.map_err(|e| match e.kind() {
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
