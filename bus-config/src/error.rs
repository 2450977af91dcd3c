//! What can go wrong on the bus.

/// An error of the bus; each displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("cannot reach nats-server at {url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("nats-server at {url} refused the credentials")]
    Credentials { url: String },
    #[error("{0}")]
    Settings(String),
    #[error("nats-server {found} is too old: {needed} or newer is needed")]
    OldServer { found: String, needed: &'static str },
    #[error("JetStream is not enabled on nats-server at {url}: start it with -js, or enable it for this account")]
    NoJetStream { url: String },
    #[error("no one answers on {subject}")]
    NoResponders { subject: String },
    #[error("no answer on {subject} in time")]
    Timeout { subject: String },
    #[error("there is no stream {0}")]
    NoStream(String),
    #[error("stream {stream} exists but differs: {why}")]
    StreamDiffers { stream: String, why: String },
    #[error("stream {stream} is not what it was: {why}")]
    StreamChanged { stream: String, why: String },
    #[error("{what}: {why}")]
    Other { what: &'static str, why: String },
}

impl BusError {
    pub(crate) fn other(what: &'static str, why: impl std::fmt::Display) -> Self {
        Self::Other { what, why: why.to_string() }
    }
}
