//! Under which subject JetStream's API is found: the server's own, that of a domain, or that of an import from another account.
//!
//! Nobody else writes `$JS.API`. Plain subjects (`hw.>`) go by interest, so they reach streams of another domain as they are.

use crate::error::BusError;
use std::borrow::Cow;

/// The API of the JetStream that the server answers for itself.
const OWN: &str = "$JS.API";

/// A subject without its last dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiPrefix(String);

impl Default for ApiPrefix {
    fn default() -> Self {
        Self(OWN.into())
    }
}

impl ApiPrefix {
    /// A domain counts more than a prefix, as with other clients of NATS.
    ///
    /// # Errors
    /// The domain or the prefix cannot be part of a subject.
    pub(crate) fn new(domain: Option<&str>, prefix: Option<&str>) -> Result<Self, BusError> {
        match (domain, prefix) {
            (Some(domain), _) if domain.contains('.') || !is_subject(domain) => {
                Err(BusError::Settings(format!("{domain:?} is no JetStream domain: it is one word of a subject")))
            }
            (Some(domain), _) => Ok(Self(format!("$JS.{domain}.API"))),
            (None, Some(prefix)) => {
                let prefix = prefix.strip_suffix('.').unwrap_or(prefix);
                let why = || BusError::Settings(format!("{prefix:?} is no prefix of the JetStream API"));
                is_subject(prefix).then(|| Self(prefix.into())).ok_or_else(why)
            }
            (None, None) => Ok(Self::default()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The subject of a request, such as `STREAM.INFO.orders`.
    pub(crate) fn of(&self, request: &str) -> String {
        format!("{}.{request}", self.0)
    }

    /// Returns the subject by which a key of a key-value bucket is written: servers pass no `$KV.>` from one domain to another.
    pub(crate) fn key_value<'a>(&self, subject: &'a str) -> Cow<'a, str> {
        if self.0 == OWN { subject.into() } else { self.of(subject).into() }
    }

    /// The subjects under which a request can be heard that others send: with the prefix that is set, and with the server's own.
    pub(crate) fn heard(&self, request: &str) -> Vec<String> {
        let own = (self.0 != OWN).then(|| format!("{OWN}.{request}"));
        own.into_iter().chain([self.of(request)]).collect()
    }

    /// Whether a subject belongs to the API.
    pub(crate) fn covers(&self, subject: &str) -> bool {
        subject.strip_prefix(self.as_str()).is_some_and(|rest| rest.starts_with('.'))
    }
}

/// Whether it can be published to, or be the beginning of a subject: words without blanks and wildcards.
pub(crate) fn is_subject(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && !word.contains(|c: char| c == '*' || c == '>' || c.is_whitespace() || c.is_control())
    };
    text.split('.').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_keys_go_to_the_domain_or_the_prefix_that_is_set() {
        const KEY: &str = "$KV.b.k";
        for (domain, prefix, request, key) in [
            (None, None, "$JS.API.INFO", KEY),
            (Some("hub"), None, "$JS.hub.API.INFO", "$JS.hub.API.$KV.b.k"),
            (Some("hub"), Some("js.other"), "$JS.hub.API.INFO", "$JS.hub.API.$KV.b.k"),
            (None, Some("js.other"), "js.other.INFO", "js.other.$KV.b.k"),
            (None, Some("js.other."), "js.other.INFO", "js.other.$KV.b.k"),
            (None, Some("$JS.API"), "$JS.API.INFO", KEY),
        ] {
            let api = ApiPrefix::new(domain, prefix).unwrap();
            assert_eq!((api.of("INFO").as_str(), &*api.key_value(KEY)), (request, key), "{domain:?} {prefix:?}");
            assert!(api.covers(request) && !api.covers("$JS.APIS.INFO") && !api.covers(api.as_str()));
        }
    }

    #[test]
    fn what_is_no_part_of_a_subject_is_refused() {
        for domain in ["", "a.b", "*", "a b", "a>"] {
            assert!(ApiPrefix::new(Some(domain), None).is_err(), "{domain}");
        }
        for prefix in ["", ".", "a..b", "js.>", "js.*.x", "j s"] {
            assert!(ApiPrefix::new(None, Some(prefix)).is_err(), "{prefix}");
        }
    }
}
