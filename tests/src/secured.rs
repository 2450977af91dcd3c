//! A server as careful people have it: TLS with certificates of clients, and users that may do no more than they need.

use crate::{cluster::Cluster, made::Authority};
use anyhow::{Context, Result};
use async_nats::ConnectOptions;

const INBOX_PREFIX: &str = "_I_tested";
const PASSWORD: &str = "p@ss:w/rd";
/// Of a service, as docs/connecting.md says.
const PERMITTED: &str = "publish: [\"hw.>\", \"$JS.API.>\", \"$KV.hw_cluster.>\", \"_I_tested.>\"], \
     subscribe: [\"hw.>\", \"$SRV.>\", \"_I_tested.>\", \"$JS.API.STREAM.PURGE.*\", \"$JS.API.STREAM.MSG.DELETE.*\"]";

impl Cluster {
    /// Only a nats-server that demands TLS, a certificate of its own authority and a password, and lets nobody subscribe to
    /// `_INBOX.>`. Nodes, commands and the tests' own clients have what it demands; the latter may do all else.
    pub fn secured() -> Result<Self> {
        let mut made = None;
        let cluster = Self::configured_by(|directory| {
            let authority = made.insert(Authority::new(directory, "ours")?);
            let user = |name: &str, permissions: &str| {
                format!("{{ user: {name}, password: \"{PASSWORD}\", permissions: {{ {permissions} }} }}")
            };
            let tests = user("tests", "publish: \">\", subscribe: { allow: \">\", deny: \"_INBOX.>\" }");
            Ok(format!(
                "jetstream: enabled\nhttp: \"127.0.0.1:-1\"\n{}authorization {{ timeout: 30, users: [ {}, {tests} ] }}\n",
                authority.mutual(),
                user("service", PERMITTED)
            ))
        })?;
        let authority = made.context("no authority")?;
        let mut access = authority.flags();
        access.extend(
            ["--nats-user", "service", "--nats-password", PASSWORD, "--inbox-prefix", INBOX_PREFIX].map(str::to_owned),
        );
        let options = ConnectOptions::with_user_and_password("tests".into(), PASSWORD.into());
        Ok(cluster.with_options(authority.options(options).custom_inbox_prefix(INBOX_PREFIX)).with_access(access))
    }
}
