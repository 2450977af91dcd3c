//! The harness of the tests that run real processes against a real nats-server.
//!
//! Highwater is met here as its users meet it: through its binary and its public subjects. Nothing of how it evaluates documents
//! or orders keys is used, so that [`oracle`] can disagree with it.
//!
//! # Layout
//! - [`binaries`]: which programs are tested
//! - [`child`]: a child process with its output in files
//! - [`nats`]: a nats-server on a free port, or a cluster of them
//! - [`cluster`]: the services as processes of their own, to be killed and restarted
//! - [`made`]: keys, JWTs and certificates; [`secured`]: a server that demands them
//! - [`leaders`]: which server leads a replicated stream
//! - [`cli`]: the command line, run to its end
//! - [`backup`]: a stream's backup, through the JetStream API or as a copy of its files
//! - [`files`]: directories are kept and put back; what a node has on its disk
//! - [`client`]: requests to the public subjects; [`raw`]: any bytes, such as those of [`foreign`]
//! - [`source`]: writes documents into a key-value bucket or into keyed streams, and [`log`] remembers them
//! - [`order`], [`oracle`]: what an index must hold, computed naively
//! - [`ask`]: random scans compared with the oracle
//! - [`checker`]: scans in the background, each proven to keep its promises
//! - [`documents`]: random documents and the indexes over them
//! - [`load`]: writes and scans in the background; [`busy`]: work that keeps the processor busy
//! - [`branches`]: the history of a bucket's sources
//! - [`memory`]: how much memory a process takes
//! - [`stated`]: what nodes state to fail; [`beats`]: their heartbeats
//! - [`history`]: the replicated log; [`sessions`]: what it tells of builds, catchups and comparisons
//! - [`watch`]: stability timestamps and the membership as they are told
//! - [`trial`]: a deployment of several of each, and what must hold of it whoever dies
//! - [`scenarios`]: what is done to such a deployment, on one nats-server and on several
//! - [`rng`], [`wait`]: seeded randomness, waiting for an event

pub mod ask;
pub mod backup;
pub mod beats;
pub mod binaries;
pub mod branches;
pub mod checker;
pub mod child;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod deleting;
pub mod documents;
pub mod faults;
pub mod files;
pub mod foreign;
pub mod history;
pub mod leaders;
pub mod load;
pub mod log;
pub mod made;
pub mod memory;
pub mod nats;
pub mod oracle;
pub mod order;
pub mod proxy;
pub mod raw;
pub mod rng;
pub mod scenarios;
pub mod secured;
pub mod sessions;
pub mod source;
pub mod stated;
pub mod trial;
pub mod wait;
pub mod watch;

/// Set to `1`, tests that repeat a round do it more often.
pub const LONG: &str = "HIGHWATER_LONG";

/// How many rounds a test makes: so many in the usual run, and so many where there is time.
pub fn rounds(usual: u64, long: u64) -> u64 {
    if std::env::var(LONG).is_ok_and(|value| value == "1") { long } else { usual }
}

/// Everything that most tests need.
pub mod prelude {
    pub use crate::{
        ask,
        checker::Checker,
        client::{Client, Refused},
        cluster::Cluster,
        documents,
        oracle::Index,
        rng::Rng,
        source::{Op, Source, Write},
        wait::until,
    };
    pub use anyhow::{Context, Result, bail, ensure};
    pub use serde_json::{Value, json};
    pub use std::time::{Duration, Instant};
}
