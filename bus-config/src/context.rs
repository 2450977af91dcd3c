//! Contexts of the nats CLI (ADR-21): named sets of settings in files of the user, of which one may be selected.
//!
//! `$XDG_CONFIG_HOME/nats`, else `~/.config/nats`, holds `context/<name>.json` for each and the name of the selected one in
//! `context.txt`. What we cannot do as the nats CLI would is an error that names the field; fields that nobody knows are ignored.

use crate::{error::BusError, paths, settings::ConnectSettings};
use serde::Deserialize;
use serde_json::Value;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// A context file is some hundred bytes.
const MOST_BYTES: u64 = 1024 * 1024;
/// Ways by which the nats CLI looks a value up elsewhere.
const ELSEWHERE: [&str; 4] = ["op://", "nsc://", "env://", "data:"];

/// The fields that we use or must refuse.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Fields {
    url: String,
    user: String,
    password: String,
    token: String,
    creds: String,
    nkey: String,
    user_jwt: String,
    user_seed: String,
    cert: String,
    key: String,
    ca: String,
    tls_first: bool,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    inbox_prefix: String,
    nsc: String,
    socks_proxy: String,
    windows_cert_store: String,
    windows_cert_match: String,
    windows_cert_match_by: String,
    windows_ca_certs_match: Option<Vec<Value>>,
}

impl ConnectSettings {
    /// Fills what is not set from the context of this name, or from the selected one, if there is one.
    ///
    /// Credentials belong together: where a way to log in is set, also in the URL, none is taken from the context, but for the user
    /// of a password that stands alone.
    ///
    /// # Errors
    /// There is no such context, or it asks for something that cannot be done.
    pub fn with_context(self, name: Option<&str>) -> Result<Self, BusError> {
        let Some(directory) = directory() else {
            let missing = |name| BusError::Settings(format!("there is no context {name}: the user has no directory"));
            return name.map_or(Ok(self), |name| Err(missing(name)));
        };
        match name.map(str::to_owned).or_else(|| selected(&directory)) {
            Some(name) => self.of_context(&directory, &name),
            None => Ok(self),
        }
    }

    fn of_context(self, directory: &Path, name: &str) -> Result<Self, BusError> {
        let (context, refused) = read(directory, name)?;
        match refused.into_iter().find(|refused| self.needs(refused.field)) {
            Some(Refused { why, .. }) => Err(BusError::Settings(format!("context {name}: {why}"))),
            None => Ok(self.filled(context)),
        }
    }

    /// Whether a way to log in is set.
    fn logs_in(&self) -> bool {
        let in_url = self.url.contains('@');
        in_url || [&self.user, &self.token, &self.nkey].into_iter().any(Option::is_some) || self.creds.is_some()
    }

    /// Whether a field of a context counts beside what is set.
    fn needs(&self, field: &str) -> bool {
        match field {
            "password" | "token" | "creds" | "nkey" | "user_jwt" | "user_seed" | "nsc" => {
                !self.logs_in() && self.password.is_none()
            }
            "cert" => self.tls_cert.is_none(),
            "key" => self.tls_key.is_none(),
            "ca" => self.tls_ca.is_none(),
            _ => true,
        }
    }

    fn filled(self, context: Self) -> Self {
        let context = if self.logs_in() {
            Self {
                user: None,
                password: None,
                token: None,
                creds: None,
                nkey: None,
                user_jwt: None,
                user_seed: None,
                ..context
            }
        } else if self.password.is_some() {
            Self { token: None, creds: None, nkey: None, user_jwt: None, user_seed: None, ..context }
        } else {
            context
        };
        // A domain and a prefix are two words for one thing.
        let has_api = self.js_domain.is_some() || self.js_api_prefix.is_some();
        let api = |of_context: Option<String>| of_context.filter(|_| !has_api);
        Self {
            url: if self.url.is_empty() { context.url } else { self.url },
            user: self.user.or(context.user),
            password: self.password.or(context.password),
            token: self.token.or(context.token),
            creds: self.creds.or(context.creds),
            nkey: self.nkey.or(context.nkey),
            user_jwt: self.user_jwt.or(context.user_jwt),
            user_seed: self.user_seed.or(context.user_seed),
            tls_cert: self.tls_cert.or(context.tls_cert),
            tls_key: self.tls_key.or(context.tls_key),
            tls_ca: self.tls_ca.or(context.tls_ca),
            tls_first: self.tls_first || context.tls_first,
            js_domain: self.js_domain.or_else(|| api(context.js_domain)),
            js_api_prefix: self.js_api_prefix.or_else(|| api(context.js_api_prefix)),
            inbox_prefix: self.inbox_prefix.or(context.inbox_prefix),
            name: self.name,
        }
    }
}

/// Where contexts are; None: the user has no directory.
fn directory() -> Option<PathBuf> {
    let set = env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    Some(set.or_else(|| Some(paths::home()?.join(".config")))?.join("nats"))
}

/// The name of the selected context. As for the nats CLI there is none where it cannot be read, so that a service need not see
/// the directories of users.
fn selected(directory: &Path) -> Option<String> {
    let text = bounded(&directory.join("context.txt")).ok()?;
    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
}

/// A field of a context that cannot be served.
#[derive(Debug)]
struct Refused {
    field: &'static str,
    why: String,
}

fn read(directory: &Path, name: &str) -> Result<(ConnectSettings, Vec<Refused>), BusError> {
    if name.is_empty() || name.contains("..") || name.contains(['/', '\\', '\0']) {
        return Err(BusError::Settings(format!("{name:?} is no name of a context")));
    }
    let file = directory.join("context").join(format!("{name}.json"));
    let text = bounded(&file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            BusError::Settings(format!("there is no context {name}: no file {}", file.display()))
        }
        _ => BusError::Settings(format!("cannot read context {name} ({}): {error}", file.display())),
    })?;
    // What serde says of a wrong value has the value in it.
    let damaged = |e: serde_json::Error| {
        format!("context {name} ({}) is damaged at line {}, column {}", file.display(), e.line(), e.column())
    };
    let fields: Fields = serde_json::from_str(&text).map_err(|e| BusError::Settings(damaged(e)))?;
    Ok(fields.settings())
}

fn bounded(file: &Path) -> io::Result<String> {
    if fs::metadata(file)?.len() > MOST_BYTES {
        return Err(io::Error::other("it is too large"));
    }
    fs::read_to_string(file)
}

impl Fields {
    /// What it sets, and what of it cannot be served.
    fn settings(self) -> (ConnectSettings, Vec<Refused>) {
        let mut refused = Vec::new();
        for (field, set) in [
            ("nsc", !self.nsc.is_empty()),
            ("socks_proxy", !self.socks_proxy.is_empty()),
            ("windows_cert_store", !self.windows_cert_store.is_empty()),
            ("windows_cert_match", !self.windows_cert_match.is_empty()),
            ("windows_cert_match_by", !self.windows_cert_match_by.is_empty()),
            ("windows_ca_certs_match", self.windows_ca_certs_match.is_some_and(|all| !all.is_empty())),
        ] {
            if set {
                refused.push(Refused { field, why: format!("its field {field} cannot be served") });
            }
        }
        let text = |value: String| Some(value).filter(|value| !value.is_empty());
        let mut local = |field: &'static str, value: String| {
            let Some(begins) = ELSEWHERE.iter().find(|begins| value.starts_with(**begins)) else { return text(value) };
            let why = format!("its field {field} begins with {begins}, which cannot be served");
            refused.push(Refused { field, why });
            None
        };
        let settings = ConnectSettings {
            url: self.url,
            password: local("password", self.password),
            user: text(self.user),
            token: local("token", self.token),
            creds: local("creds", self.creds).map(PathBuf::from),
            nkey: local("nkey", self.nkey),
            user_jwt: local("user_jwt", self.user_jwt),
            user_seed: local("user_seed", self.user_seed),
            tls_cert: local("cert", self.cert).map(PathBuf::from),
            tls_key: local("key", self.key).map(PathBuf::from),
            tls_ca: local("ca", self.ca).map(PathBuf::from),
            tls_first: self.tls_first,
            js_domain: text(self.jetstream_domain),
            js_api_prefix: text(self.jetstream_api_prefix),
            inbox_prefix: text(self.inbox_prefix),
            name: String::new(),
        };
        (settings, refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with a context `one`.
    struct Written(PathBuf);

    impl Written {
        fn new(test: &str, text: &str) -> Self {
            let directory = env::temp_dir().join(format!("highwater-context-{test}-{}", std::process::id()));
            fs::create_dir_all(directory.join("context")).unwrap();
            fs::write(directory.join("context/one.json"), text).unwrap();
            Self(directory)
        }
    }

    impl Drop for Written {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as settings hold it")]
    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn the_fields_of_a_context_are_read_and_others_ignored() {
        let written = Written::new(
            "fields",
            r#"{"description":"d","url":"tls://a","user":"ada","password":"p","creds":"~/c","nkey":"n","cert":"c","key":"k",
            "ca":"r","nsc":"","jetstream_domain":"hub","jetstream_api_prefix":"","jetstream_event_prefix":"e","inbox_prefix":"_I",
            "user_jwt":"j","user_seed":"s","color_scheme":"","tls_first":true,"windows_ca_certs_match":null,"later":[1]}"#,
        );
        let (read, refused) = read(&written.0, "one").unwrap();
        assert!(refused.is_empty(), "{refused:?}");
        assert_eq!((read.url.as_str(), read.user, read.password), ("tls://a", text("ada"), text("p")));
        assert_eq!((read.creds, read.nkey, read.tls_ca), (Some("~/c".into()), text("n"), Some("r".into())));
        assert_eq!((read.js_domain, read.js_api_prefix, read.inbox_prefix), (text("hub"), None, text("_I")));
        assert_eq!((read.user_jwt, read.user_seed, read.tls_first), (text("j"), text("s"), true));
        assert_eq!(selected(&written.0), None);
        fs::write(written.0.join("context.txt"), " one\n").unwrap();
        assert_eq!(selected(&written.0), text("one"));
    }

    #[test]
    fn what_cannot_be_served_is_named_and_no_secret_shown() {
        for (fields, said) in [
            (r#""nsc":"nsc://o/a/u""#, "nsc"),
            (r#""socks_proxy":"socks5://s3cret@p""#, "socks_proxy"),
            (r#""windows_cert_store":"user""#, "windows_cert_store"),
            (r#""password":"op://s3cret/x""#, "password"),
            (r#""creds":"nsc://o/a/u""#, "creds"),
            (r#""token":"env://T""#, "token"),
            (r#""ca":"data:;base64,s3cret""#, "ca"),
            (r#""password":["s3cret"]"#, "damaged"),
            (r#""password":"s3cret"#, "damaged"),
        ] {
            let written = Written::new("unserved", &format!("{{{fields}}}"));
            let Err(error) = ConnectSettings::default().of_context(&written.0, "one") else {
                panic!("{fields} is taken")
            };
            let error = error.to_string();
            assert!(error.contains("context one") && error.contains(said) && !error.contains("s3cret"), "{error}");
        }
        let written = Written::new("unneeded", r#"{"creds":"nsc://o/a/u","ca":"data:x","url":"nats://context"}"#);
        let set = ConnectSettings { creds: Some("c".into()), tls_ca: Some("ca".into()), ..ConnectSettings::default() };
        assert_eq!(set.clone().of_context(&written.0, "one").unwrap().url, "nats://context");
        assert!(ConnectSettings { tls_ca: None, ..set }.of_context(&written.0, "one").is_err());
        for name in ["two", "", "../one", "a/b"] {
            let written = Written::new("names", "{}");
            assert!(read(&written.0, name).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_set_wins() {
        let context = || ConnectSettings {
            url: "nats://context".into(),
            user: text("ada"),
            password: text("of the context"),
            creds: Some("c".into()),
            js_domain: text("hub"),
            inbox_prefix: text("_I"),
            tls_ca: Some("ca".into()),
            ..ConnectSettings::default()
        };
        let set = ConnectSettings::default;
        let all = set().filled(context());
        assert_eq!((all.url.as_str(), all.user, all.creds), ("nats://context", text("ada"), Some("c".into())));
        let token = ConnectSettings { token: text("t"), url: "nats://set".into(), ..set() }.filled(context());
        assert_eq!((token.url.as_str(), token.user, token.creds, token.token), ("nats://set", None, None, text("t")));
        assert_eq!((token.inbox_prefix, token.tls_ca), (text("_I"), Some("ca".into())));
        let in_url = ConnectSettings { url: "nats://u:p@set".into(), ..set() }.filled(context());
        assert_eq!((in_url.user, in_url.creds), (None, None));
        let password = ConnectSettings { password: text("set"), ..set() }.filled(context());
        assert_eq!((password.user, password.password, password.creds), (text("ada"), text("set"), None));
        let prefix = ConnectSettings { js_api_prefix: text("js"), ..set() }.filled(context());
        assert_eq!((prefix.js_domain, prefix.js_api_prefix), (None, text("js")));
    }
}
