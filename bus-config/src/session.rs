//! The client library's connection: for what we send and the answers to it.

use crate::{error::BusError, frames::credentials::Proof, refusals::Refusals, settings::Target, troubles::Troubles};
use async_nats::{
    Auth, AuthError, Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError,
    jetstream::{Context, context::ContextBuilder},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// Answers that may wait in the client library before it drops them.
const SUBSCRIPTION_CAPACITY: usize = 65_536;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent is given up after two of these: a network that was cut off and came back is found again soon.
const PING: Duration = Duration::from_secs(5);
const API_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was lost is opened again after this, and then at least this often.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(500);
/// The wait grows by this with each attempt.
const STEP: Duration = Duration::from_millis(100);

/// The client library's connection.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) js: Context,
    /// How often earlier sessions and their connections were lost.
    pub(crate) lost_before: u64,
}

/// Opens sessions of the client library, one after the other.
pub(crate) struct Opener {
    pub(crate) target: Arc<Target>,
    pub(crate) troubles: Troubles,
    pub(crate) refusals: Refusals,
    pub(crate) lost: watch::Sender<u64>,
    /// Told when the library's task for a session has ended.
    pub(crate) ended: mpsc::Sender<()>,
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
    pub(crate) async fn open(&self) -> Result<Session, ConnectError> {
        let lost_before = *self.lost.borrow();
        let client = self.options().connect(self.target.servers.all.as_slice()).await?;
        let api = self.target.api.as_str();
        let js = ContextBuilder::new().timeout(API_TIMEOUT).api_prefix(api).build(client.clone());
        Ok(Session { client, js, lost_before })
    }

    fn options(&self) -> ConnectOptions {
        let (target, lost, ending) = (Arc::clone(&self.target), self.lost.clone(), Ending(self.ended.clone()));
        let (troubles, refusals) = (self.troubles.clone(), self.refusals.clone());
        let tls = &self.target.tls;
        // Both are asked for at each connection: files may have changed.
        let mut options = ConnectOptions::with_auth_callback(move |nonce| auth(Arc::clone(&target), nonce))
            .name(&self.target.name)
            .require_tls(tls.wanted())
            .custom_inbox_prefix(&self.target.inbox_prefix)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING)
            .reconnect_delay_callback(|attempts| if attempts < 2 { SOON } else { LATER.min(STEP * attempts as u32) })
            .event_callback(move |event| {
                let _lives_as_long = &ending;
                note(&troubles, &refusals, &event);
                if matches!(event, Event::Disconnected) {
                    lost.send_modify(|losses| *losses += 1);
                }
                std::future::ready(())
            });
        if let Some(ca) = &tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((certificate, key)) = &tls.pair {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        if tls.first { options.tls_first() } else { options }
    }

    /// What keeps a session from being opened.
    pub(crate) fn refused(&self, error: &ConnectError) -> BusError {
        let url = self.target.servers.shown.clone();
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                BusError::Credentials { url }
            }
            _ => BusError::Unreachable { url, why: error.to_string() },
        }
    }
}

/// What a new connection of the library proves itself with.
async fn auth(target: Arc<Target>, nonce: Vec<u8>) -> Result<Auth, AuthError> {
    let proof = target.credentials.prove(&String::from_utf8_lossy(&nonce)).await;
    let Proof { user, password, token, nkey, jwt, signature } = proof.map_err(AuthError::new)?;
    let mut auth = Auth::new();
    (auth.username, auth.password, auth.token) = (user, password, token);
    (auth.nkey, auth.jwt, auth.signature) = (nkey, jwt, signature);
    Ok(auth)
}

/// What happens to the connection is stated for a while.
fn note(troubles: &Troubles, refusals: &Refusals, event: &Event) {
    let now = Instant::now();
    match event {
        Event::Connected => refusals.connected(),
        Event::Disconnected => troubles.happened("connection to NATS", &"it was lost", now),
        Event::SlowConsumer(_) => {
            let what = "messages come faster than they are taken: some were dropped (slow consumer)";
            troubles.happened("subscription", &what, now);
        }
        Event::ServerError(ServerError::Other(words)) => refusals.said(words, troubles),
        Event::ServerError(error) => troubles.happened("answers of NATS", error, now),
        _ => {}
    }
}
