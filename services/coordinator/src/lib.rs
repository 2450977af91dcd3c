//! The index coordinator: owns definitions, topology, vbucket owners, sessions, stability and persistence timestamps.
//!
//! # Layout
//! - `core`: the state machine, `(now, event) -> actions`; no I/O, clock or randomness of its own
//! - `service`: the only async part: one task that turns messages into events and actions into messages
//! - `local_copy`: the coordinator's own durable copy of the log
//! - [`Config`]: settings with limits
//!
//! # Tasks and channels
//! One task runs everything in turn. Admin requests are probed (do the source streams exist?) in at most
//! `service::PROBES` short tasks that hand their findings back through a channel of the same capacity. All end with the task.
//!
//! # Invariants
//! - The StateContext changes only by records that the log has acknowledged; a DDL reply leaves after that.
//! - An ST number names one timestamp for ever: numbers are reserved in the log before they are used.
//! - No ST is issued, and no vbucket assigned, before every live indexer has reported what it has applied.
//! - The coordinator never reads a document.

mod config;
mod core;
mod local_copy;
mod service;

pub use config::Config;
pub use service::{CoordinatorError, run};
