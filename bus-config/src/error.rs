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

/// URLs of servers, separated by commas, as they may be shown: user, password and token are left out.
pub fn without_credentials(urls: &str) -> String {
    let shown = urls.split(',').map(|url| {
        let Some((before, host)) = url.rsplit_once('@') else { return url.trim().to_owned() };
        let scheme = before.split_once("://").map_or_else(String::new, |(scheme, _)| format!("{}://", scheme.trim()));
        format!("{scheme}{host}")
    });
    shown.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::without_credentials;

    #[test]
    fn what_is_secret_in_a_url_is_not_shown() {
        for (url, shown) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("nats://me:s3cret@host:4222", "nats://host:4222"),
            ("tls://token@a, nats://u:p@b:1", "tls://a,nats://b:1"),
            ("u:p@with:an@host", "host"),
            ("nats://u:p/://@host", "nats://host"),
            ("host", "host"),
            ("", ""),
        ] {
            assert_eq!(without_credentials(url), shown, "{url}");
        }
    }
}
