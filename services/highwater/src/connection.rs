//! How to reach NATS: flags and variables as the nats CLI has them, over a context of the nats CLI.

use clap::{
    ArgMatches, Args as ClapArgs, Command,
    builder::{FalseyValueParser, OsStringValueParser, TypedValueParser},
    parser::ValueSource,
};
use highwater_bus::{BusError, ConnectSettings};
use std::{env, path::PathBuf};

const CONTEXT: &str = "NATS_CONTEXT";
/// The nats CLI has it; it is refused rather than ignored.
const SOCKS_PROXY: &str = "NATS_SOCKS_PROXY";

/// Where NATS is, and who we are there.
#[derive(ClapArgs, Clone)]
pub(crate) struct Nats {
    /// URL of nats-server, several separated by commas; none: that of the context, else nats://127.0.0.1:4222.
    #[arg(
        long = "nats-url",
        visible_alias = "server",
        env = "NATS_URL",
        hide_env_values = true,
        help_heading = "NATS"
    )]
    url: Option<String>,
    /// Context of the nats CLI that says what no flag or variable does; none: the one that is selected there.
    #[arg(long, env = CONTEXT, help_heading = "NATS")]
    context: Option<String>,
    #[command(flatten)]
    access: Access,
}

/// The same for `dev`. Flags decide whether it joins a server; variables do not.
#[derive(ClapArgs, Clone)]
pub(crate) struct JoinedNats {
    /// Use this nats-server instead of starting one.
    #[arg(
        long = "nats-url",
        visible_alias = "server",
        hide_env_values = true,
        conflicts_with = "nats_port",
        help_heading = "NATS"
    )]
    url: Option<String>,
    /// Use the nats-server of this context of the nats CLI.
    #[arg(long, conflicts_with = "nats_port", help_heading = "NATS")]
    context: Option<String>,
    #[command(flatten)]
    access: Access,
}

/// Who we are for NATS, how connections are encrypted, and how JetStream is reached.
#[derive(ClapArgs, Clone)]
struct Access {
    /// User; without a password a token.
    #[arg(
        long = "nats-user",
        visible_alias = "user",
        env = "NATS_USER",
        hide_env_values = true,
        help_heading = "NATS"
    )]
    user: Option<String>,
    #[arg(
        long = "nats-password",
        visible_alias = "password",
        env = "NATS_PASSWORD",
        hide_env_values = true,
        allow_hyphen_values = true,
        help_heading = "NATS"
    )]
    password: Option<String>,
    #[arg(
        long = "nats-token",
        visible_alias = "token",
        env = "NATS_TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true,
        help_heading = "NATS"
    )]
    token: Option<String>,
    /// A credentials file.
    #[arg(long = "nats-creds", visible_alias = "creds", env = "NATS_CREDS", value_parser = path(), help_heading = "NATS")]
    creds: Option<PathBuf>,
    /// An nkey seed, or a file with one.
    #[arg(
        long = "nats-nkey",
        visible_alias = "nkey",
        env = "NATS_NKEY",
        hide_env_values = true,
        help_heading = "NATS"
    )]
    nkey: Option<String>,
    /// The client's TLS certificate.
    #[arg(long, env = "NATS_CERT", value_parser = path(), help_heading = "NATS")]
    tlscert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, env = "NATS_KEY", value_parser = path(), help_heading = "NATS")]
    tlskey: Option<PathBuf>,
    /// Certificates of authorities to trust instead of those that the system does.
    #[arg(long, env = "NATS_CA", value_parser = path(), help_heading = "NATS")]
    tlsca: Option<PathBuf>,
    /// Encrypt the connection before the server says anything.
    #[arg(long, env = "NATS_TLSFIRST", value_parser = FalseyValueParser::new(), help_heading = "NATS")]
    tlsfirst: bool,
    /// The domain whose JetStream to use.
    #[arg(long, env = "NATS_JS_DOMAIN", help_heading = "NATS")]
    js_domain: Option<String>,
    /// Stands for $JS.API, where another account's JetStream is imported.
    #[arg(long, env = "NATS_JS_API_PREFIX", help_heading = "NATS")]
    js_api_prefix: Option<String>,
    /// Stands for _INBOX, for users that may not subscribe to that.
    #[arg(long, env = "NATS_INBOX_PREFIX", help_heading = "NATS")]
    inbox_prefix: Option<String>,
    /// Use no context, not even the one that is selected.
    #[arg(long, help_heading = "NATS")]
    no_context: bool,
}

/// A path. It may be empty, as a variable may that says nothing.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

impl Nats {
    /// `name`: for the server's list of connections.
    pub(crate) fn settings(&self, name: &str) -> Result<ConnectSettings, BusError> {
        self.access.settings(self.url.as_ref(), self.context.as_ref(), name)
    }
}

impl JoinedNats {
    /// Whether flags are in the command line that matter only for a server that is joined, and none is named there.
    pub(crate) fn check(matches: &ArgMatches) -> Result<(), String> {
        let Some(dev) = matches.subcommand_matches("dev") else { return Ok(()) };
        let is_given = |id: &str| dev.value_source(id) == Some(ValueSource::CommandLine);
        let access = Access::augment_args(Command::new("dev"));
        let unused =
            access.get_arguments().find(|flag| flag.get_id() != "no_context" && is_given(flag.get_id().as_str()));
        match unused.and_then(|flag| flag.get_long()).filter(|_| !is_given("url") && !is_given("context")) {
            Some(flag) => {
                Err(format!("--{flag} is for a nats-server that is joined: name it with --nats-url or --context"))
            }
            None => Ok(()),
        }
    }

    /// None: no server was named, so one is to be started.
    pub(crate) fn settings(&self, name: &str) -> Result<Option<ConnectSettings>, BusError> {
        if self.url.is_none() && self.context.is_none() {
            return Ok(None);
        }
        let context = self.context.clone().or_else(|| env::var(CONTEXT).ok());
        self.access.settings(self.url.as_ref(), context.as_ref(), name).map(Some)
    }
}

impl Access {
    fn settings(
        &self,
        url: Option<&String>,
        context: Option<&String>,
        name: &str,
    ) -> Result<ConnectSettings, BusError> {
        if env::var_os(SOCKS_PROXY).is_some_and(|proxy| !proxy.is_empty()) {
            return Err(BusError::Settings(format!("{SOCKS_PROXY} is set, and proxies cannot be used")));
        }
        // An empty variable says nothing.
        let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let context = context.filter(|name| !name.is_empty()).map(String::as_str);
        let path = |value: &Option<PathBuf>| value.clone().filter(|value| !value.as_os_str().is_empty());
        let set = ConnectSettings {
            url: url.cloned().unwrap_or_default(),
            user: text(&self.user),
            password: text(&self.password),
            token: text(&self.token),
            creds: path(&self.creds),
            nkey: text(&self.nkey),
            user_jwt: None,
            user_seed: None,
            tls_cert: path(&self.tlscert),
            tls_key: path(&self.tlskey),
            tls_ca: path(&self.tlsca),
            tls_first: self.tlsfirst,
            js_domain: text(&self.js_domain),
            js_api_prefix: text(&self.js_api_prefix),
            inbox_prefix: text(&self.inbox_prefix),
            name: name.into(),
        };
        if self.no_context { Ok(set) } else { set.with_context(context) }
    }
}
