//! How to reach NATS: what people set, and what of it was checked.

use crate::{
    api_prefix::{ApiPrefix, is_subject},
    error::{BusError, without_credentials},
    frames::{credentials::Credentials, servers::Servers, tls::Tls},
};
use std::{fmt, path::PathBuf};

/// Where the nats CLI connects if nothing is said.
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
const DEFAULT_INBOX_PREFIX: &str = "_INBOX";

/// How to reach NATS, and JetStream there. In paths `~` and variables of the environment are put in; files are read again at each
/// connection.
#[derive(Clone, Default)]
pub struct ConnectSettings {
    /// One or more URLs, comma separated; may carry a user and password, or a token, with what is special in URLs escaped. Empty:
    /// `nats://127.0.0.1:4222`.
    pub url: String,
    /// Without a password a token.
    pub user: Option<String>,
    pub password: Option<String>,
    pub token: Option<String>,
    /// A credentials file.
    pub creds: Option<PathBuf>,
    /// An nkey seed, or a file with one.
    pub nkey: Option<String>,
    /// A user's JWT, with the seed that belongs to it.
    pub user_jwt: Option<String>,
    pub user_seed: Option<String>,
    /// The client's certificate and key: with these, or an authority, every connection is encrypted.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// Certificates of authorities, in place of those that the system trusts.
    pub tls_ca: Option<PathBuf>,
    /// The connection is encrypted before the server says anything.
    pub tls_first: bool,
    /// The domain whose JetStream is used; counts more than the prefix.
    pub js_domain: Option<String>,
    /// Stands for `$JS.API`, where another account's JetStream is imported.
    pub js_api_prefix: Option<String>,
    /// Stands for `_INBOX`, for users that may not subscribe to that.
    pub inbox_prefix: Option<String>,
    /// Shown in the server's connection list.
    pub name: String,
}

impl fmt::Debug for ConnectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No secret, and nothing that could be one: a user alone is a token, and an nkey mostly a seed.
        f.debug_struct("ConnectSettings")
            .field("url", &without_credentials(&self.url))
            .field("creds", &self.creds)
            .field("tls_cert", &self.tls_cert)
            .field("tls_key", &self.tls_key)
            .field("tls_ca", &self.tls_ca)
            .field("tls_first", &self.tls_first)
            .field("js_domain", &self.js_domain)
            .field("js_api_prefix", &self.js_api_prefix)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl ConnectSettings {
    /// The URLs, which may be shown: without credentials.
    pub fn shown_url(&self) -> String {
        without_credentials(self.url())
    }

    fn url(&self) -> &str {
        if self.url.is_empty() { DEFAULT_URL } else { &self.url }
    }
}

/// Settings that agree with one another.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) servers: Servers,
    pub(crate) credentials: Credentials,
    pub(crate) tls: Tls,
    pub(crate) api: ApiPrefix,
    pub(crate) inbox_prefix: String,
    pub(crate) name: String,
}

impl Target {
    /// # Errors
    /// What is wrong with them; no file was read.
    pub(crate) fn of(settings: &ConnectSettings) -> Result<Self, BusError> {
        let servers = Servers::of(settings.url())?;
        let inbox_prefix = settings.inbox_prefix.as_deref().unwrap_or(DEFAULT_INBOX_PREFIX);
        // No service answers below these: see `subscription::is_answerable`.
        if !is_subject(inbox_prefix) || inbox_prefix.starts_with('$') || inbox_prefix.split('.').next() == Some("hw") {
            let why = "it is a subject without wildcards that begins with neither $ nor hw";
            return Err(BusError::Settings(format!("{inbox_prefix:?} is no prefix for inboxes: {why}")));
        }
        Ok(Self {
            credentials: Credentials::of(settings, servers.login.clone())?,
            tls: Tls::of(settings)?,
            api: ApiPrefix::new(settings.js_domain.as_deref(), settings.js_api_prefix.as_deref())?,
            inbox_prefix: inbox_prefix.into(),
            name: settings.name.clone(),
            servers,
        })
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("servers", &self.servers.shown).field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let text = |value: &str| Some(value.to_owned());
        let settings = ConnectSettings {
            url: "nats://ada:s3cret@host".into(),
            user: text("s3cret"),
            password: text("s3cret"),
            token: text("s3cret"),
            nkey: text("SUs3cret"),
            user_jwt: text("s3cret"),
            user_seed: text("s3cret"),
            ..ConnectSettings::default()
        };
        let shown = format!("{settings:?}");
        assert!(shown.contains("nats://host") && !shown.contains("s3cret") && !shown.contains("ada"), "{shown}");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let set = ConnectSettings::default;
        assert_eq!(Target::of(&set()).unwrap().servers.shown, DEFAULT_URL);
        for wrong in [
            ConnectSettings { tls_cert: Some("c".into()), ..set() },
            ConnectSettings { tls_key: Some("k".into()), ..set() },
            ConnectSettings { inbox_prefix: Some("hw.inbox".into()), ..set() },
            ConnectSettings { inbox_prefix: Some("$I".into()), ..set() },
            ConnectSettings { inbox_prefix: Some("_I.>".into()), ..set() },
            ConnectSettings { inbox_prefix: Some("_I.".into()), ..set() },
            ConnectSettings { js_domain: Some("a.b".into()), ..set() },
            ConnectSettings { nkey: Some("SUAA".into()), ..set() },
        ] {
            assert!(Target::of(&wrong).is_err(), "{wrong:?}");
        }
    }
}
