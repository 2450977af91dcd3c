//! Everything Highwater says to NATS: the only crate that uses the NATS client.
//!
//! # Layout
//! - [`ConnectSettings`]: where NATS is and who we are there, filled up from a context of the nats CLI
//! - [`Bus`]: a connection, checked for JetStream and its version; core publish, request, subscribe
//! - [`StreamSpec`]: our streams as data, made or taken as they are; [`StreamConfig`]: what is read of a stream's configuration
//! - [`StreamReader`]: gap-checked, re-opening reader of one stream, `AckPolicy::None`
//! - [`Publisher`]: acknowledged publishing
//! - [`StateLog`], [`StateFollower`]: the replicated log `HW_STATE`; [`StateTail`]: reads it again when it cannot be followed;
//!   [`StateView`]: what it adds up to
//! - [`ClusterBucket`]: the cluster managers' lease, and the registered index managers
//! - [`Heart`]: a node's heartbeats, as often as the active cluster manager asks for; [`leave`]: its goodbye
//! - [`Retry`]: what is tried until it succeeds, and stated in the heartbeats meanwhile
//! - [`supervise`]: how every task, thread and job is started, and how its end is heard; [`fault`]: how tests break them
//! - [`Endpoints`]: ADR-32 services with coded errors
//!
//! Invariant: services see these handles and never the client, so that a simulated bus can stand in.

mod account;
mod api_prefix;
mod attempts;
mod codes;
mod connect;
mod consumers;
mod context;
mod error;
mod faults;
mod forward;
pub mod frames;
mod heart;
mod jetstream;
mod lease;
mod listing;
mod message;
mod parts;
mod paths;
mod publisher;
mod pulls;
mod reader;
mod refusals;
mod service;
mod session;
mod settings;
mod state_log;
mod state_view;
mod stream_config;
mod stream_spec;
mod streams;
mod subscription;
pub mod supervise;
mod troubles;

pub use connect::{Bus, CLIENT_LOG_OFF, Reply};
pub use error::{BusError, without_credentials};
pub use faults::fault;
pub use heart::{Heart, bounded as bounded_heartbeat, leave};
pub use jetstream::{Looked, StreamState};
pub use lease::ClusterBucket;
pub use listing::is_literal;
pub use message::{AtomicBatch, Meaning, Operation, StreamMessage};
pub use publisher::{Ack, PublishFailure, Publisher};
pub use reader::{List, ReadFrom, StreamReader};
pub use refusals::Action;
pub use service::{Endpoints, ServiceRequest, ServiceSpec};
pub use settings::ConnectSettings;
pub use state_log::{Appended, Followed, LogContents, StateFollower, StateLog};
pub use state_view::{StateTail, StateView};
pub use stream_config::{StreamConfig, Transform, Upstream};
pub use stream_spec::{StreamSettings, StreamSpec, allowed};
pub use streams::Ensured;
pub use subscription::{Incoming, Subscription};
pub use supervise::{Ending, Incidents, TaskSet};
pub use troubles::Retry;

pub use bytes::Bytes;
