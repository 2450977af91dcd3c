//! A list of URLs, read: where servers are, and as whom to log in. Nothing of it is shown with its password.

use crate::error::{BusError, without_credentials};
use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;

/// How to write in a URL what would end a user or a password there.
const ESCAPED: &str = "in a user or password write % as %25, / as %2F, ? as %3F, # as %23, @ as %40 and , as %2C";

/// What a URL says of the user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    /// None: the user is a token.
    pub(crate) password: Option<String>,
}

/// Servers without credentials.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) all: Vec<ServerAddr>,
    pub(crate) login: Option<Login>,
    /// As the list may be shown.
    pub(crate) shown: String,
}

impl Servers {
    /// # Errors
    /// A URL of the comma separated list is none, or two of them log in differently.
    pub(crate) fn of(urls: &str) -> Result<Self, BusError> {
        let shown = without_credentials(urls);
        let refused = |why: &str| BusError::Settings(format!("{shown} is not a NATS URL: {why}"));
        let (mut all, mut login) = (Vec::new(), None);
        let mut has_scheme = false;
        for url in urls.split(',').map(str::trim) {
            // The end of a password with a comma looks like a further server.
            if has_scheme && url.contains('@') && !url.contains("://") {
                return Err(refused(ESCAPED));
            }
            has_scheme |= url.contains("://");
            // What is wrong with it may have the password in it.
            let mut address = url.parse::<ServerAddr>().map_err(|_| refused(ESCAPED))?.into_inner();
            if !matches!(address.scheme(), "nats" | "tls") {
                return Err(refused("it begins with nats:// or tls://"));
            }
            if !matches!(address.path(), "" | "/") || address.query().is_some() || address.fragment().is_some() {
                return Err(refused(ESCAPED));
            }
            let found = login_of(address.username(), address.password()).map_err(|()| refused(ESCAPED))?;
            if let Some(found) = found {
                if login.as_ref().is_some_and(|known| *known != found) {
                    return Err(refused("its servers have different users or passwords; one is for all"));
                }
                login = Some(found);
            }
            if address.host_str().is_none_or(str::is_empty)
                || address.set_username("").is_err()
                || address.set_password(None).is_err()
            {
                return Err(refused("it has no host"));
            }
            all.push(ServerAddr::from_url(address).map_err(|_| refused(ESCAPED))?);
        }
        Ok(Self { all, login, shown })
    }
}

fn login_of(user: &str, password: Option<&str>) -> Result<Option<Login>, ()> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| ());
    if user.is_empty() {
        // A password alone lets nobody in.
        return if password.is_none() { Ok(None) } else { Err(()) };
    }
    Ok(Some(Login { user: decoded(user)?, password: password.map(decoded).transpose()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(urls: &str) -> Option<(String, Option<String>)> {
        Servers::of(urls).unwrap().login.map(|login| (login.user, login.password))
    }

    #[test]
    fn a_url_may_carry_a_user_or_a_token() {
        let ada = Some(("ada".into(), Some("p@s/,s".into())));
        assert_eq!(login("nats://ada:p%40s%2F%2Cs@127.0.0.1:4222"), ada);
        assert_eq!(login("nats://127.0.0.1:4222, nats://ada:p%40s%2F%2Cs@127.0.0.1:4223"), ada);
        assert_eq!(login("nats://s3cret@127.0.0.1"), Some(("s3cret".into(), None)));
        assert_eq!(login("127.0.0.1:4222"), None);
        let servers = Servers::of("tls://ada:s3cret@a, nats://ada:s3cret@b:4333").unwrap();
        assert_eq!(servers.shown, "tls://a,nats://b:4333");
        let all: Vec<_> =
            servers.all.iter().map(|server| (server.host(), server.port(), server.tls_required())).collect();
        assert_eq!(all, [("a", 4222, true), ("b", 4333, false)]);
        assert!(servers.all.iter().all(|server| !server.has_user_pass()));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for urls in [
            "nats://ada:s3/cret@host",
            "nats://ada/s3:cret@host",
            "nats://s3/cret@host",
            "nats://ada:s3?cret@host",
            "nats://ada:s3#cret@host",
            "nats://ada:s3,cret@host",
            "nats://ada:12,s3cret@host",
            "nats://ada:s3%FFcret@host",
            "nats://ada:s3cret@ho st",
            "http://ada:s3cret@host",
            "wss://ada:s3cret@host",
            "nats://ada:s3cret@a,nats://ada:other@b",
            "nats://:s3cret@host",
            "nats://",
            "",
        ] {
            let Err(error) = Servers::of(urls) else { panic!("{urls} is taken") };
            let said = error.to_string();
            for secret in ["s3", "cret", "ada", "12"] {
                assert!(!said.contains(secret), "{urls}: {said}");
            }
        }
    }
}
