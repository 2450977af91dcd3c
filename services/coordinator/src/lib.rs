//! Index managers: any number of instances, of which the elected one is the index coordinator. It owns definitions, topology,
//! vbucket owners, sessions, stability and persistence timestamps; the others follow the log and stand by.
//!
//! # Layout
//! - [`manager`]: replica, candidate, coordinator: nominations, the log, its loss; a state machine
//! - [`core`]: what the coordinator does in its term: DDL, members, owners, sessions, timestamps; a state machine
//! - `service`: the only async part: one task that turns messages into events and actions into messages
//! - `copy`: the durable copy of the log, `keeper`: writes it beside the loop
//! - `topics`: the streams behind the topics, `turns`: in which order they are made and deleted
//! - `admin`: requests of administrators; `source`: whether a bucket's streams can be followed; `room`: limits of what messages fill
//! - [`Config`]: settings with limits
//!
//! Both state machines are `(now, event) -> actions` without I/O, clock or randomness; they are public for the simulation.
//!
//! # Tasks and channels
//! One task runs everything in turn. Appends, reads of the log, requests to hosts and all that is done to streams run beside it
//! in short tasks, whose outcomes, a panic among them, come back through a channel of 1,024; at most 256 requests wait for them, and as many are
//! being passed on. While an append is not settled, what nodes and administrators publish waits in its subscriptions; what
//! other index managers pass on is taken, and waits in the state machine. Records become durable in a task of the blocking
//! kind, one write at a time, of all that came since the last; answers wait for theirs. All end with the task, or at their own
//! timeouts.
//!
//! # Invariants
//! - The StateContext changes only by records that the log has acknowledged; a DDL reply leaves after that, and after the
//!   record is durable in the local copy too.
//! - Nothing is done in a term before its first record is acknowledged; terms only rise.
//! - An ST number names one timestamp for ever: numbers are reserved in the log before they are used.
//! - No ST is issued, and no vbucket assigned, before every live indexer follows the term and has reported what it applied.
//! - The coordinator never reads a document.

mod admin;
mod config;
mod copy;
pub mod core;
mod keeper;
pub mod manager;
mod room;
mod service;
mod source;
mod topics;
mod turns;

pub use config::{Config, RECONCILE_INTERVAL_S};
pub use copy::CopyError;
pub use service::run;

/// Why an index manager ended.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error(transparent)]
    Bus(#[from] highwater_bus::BusError),
    #[error("local copy of the state: {0}")]
    Copy(#[from] CopyError),
    #[error("the connection to NATS has ended")]
    Disconnected,
    /// Its state machine may be in any state.
    #[error("the index manager panicked: {0}")]
    Panicked(String),
}
