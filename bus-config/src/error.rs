//! What can go wrong on the bus.

use crate::refusals::Action;

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
    #[error(
        "JetStream is not enabled on nats-server at {url}: start it with -js, or enable it for this account (nobody answers {subject})"
    )]
    NoJetStream { url: String, subject: String },
    #[error("NATS does not permit this user to {action} to {subject}")]
    NotPermitted { action: Action, subject: String },
    #[error("no one answers on {subject}")]
    NoResponders { subject: String },
    #[error("no answer on {subject} in time")]
    Timeout { subject: String },
    #[error("there is no stream {0}")]
    NoStream(String),
    #[error("stream {stream} was made beforehand and cannot serve: {why}")]
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

/// URLs of servers, separated by commas, as they may be shown: user, password and token are left out, and what stands in the place
/// of a port and is none.
pub fn without_credentials(urls: &str) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut secret = false;
    for url in urls.split(',').rev() {
        // What ends with credentials and has no beginning is the end of a password with a comma.
        if !secret || url.contains('@') {
            shown.push(url.rsplit_once('@').map_or(url, |(_, host)| host).trim().to_owned());
        }
        if let Some((scheme, _)) = url.split_once("://").filter(|_| secret || url.contains('@'))
            && let Some(last) = shown.last_mut()
        {
            *last = format!("{}://{last}", scheme.trim());
        }
        secret = (secret || url.contains('@')) && !url.contains("://");
    }
    shown.reverse();
    shown.iter().map(|url| without_odd_port(url)).collect::<Vec<_>>().join(",")
}

/// Who forgets the host behind user and password has the password where a port would be.
fn without_odd_port(url: &str) -> &str {
    let host = url.find("://").map_or(0, |scheme| scheme + 3);
    // The colons of an IPv6 address are in brackets.
    let address = url.get(host..).filter(|rest| rest.starts_with('[')).and_then(|rest| rest.find(']'));
    let host = host + address.unwrap_or_default();
    let Some(colon) = url.get(host..).and_then(|rest| rest.find(':')) else { return url };
    let (before, port) = url.split_at(host + colon);
    if port.len() == 1 || port[1..].parse::<u16>().is_ok() { url } else { before }
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
            ("nats://me:12,34@host, nats://b", "nats://host,nats://b"),
            ("nats://a,nats://me:s3,cr,et@host", "nats://a,nats://host"),
            ("nats://me:s3cret", "nats://me"),
            ("nats://me:s3]cret", "nats://me"),
            ("me:s3cret, nats://[::1]:4222", "me,nats://[::1]:4222"),
            ("nats://[::1]", "nats://[::1]"),
            ("tls://a,b,c", "tls://a,b,c"),
            ("host", "host"),
            ("", ""),
        ] {
            assert_eq!(without_credentials(url), shown, "{url}");
        }
    }
}
