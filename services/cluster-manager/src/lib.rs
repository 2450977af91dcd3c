//! The cluster manager: who is there, and which index manager coordinates.
//!
//! # Layout
//! - [`core`]: the state machine, `(now, event) -> actions`; no I/O, clock or randomness of its own
//! - `service`: the only async part: one task that turns messages into events and actions into messages
//! - `questions`: what that task has asked beside it
//! - [`Config`]: settings with limits
//!
//! # Tasks and channels
//! One task runs everything in turn. What waits for an answer (the lease, the bucket, bootstraps) is done by short tasks of one
//! set, at most `service::MOST_TASKS` of them, and replies that ask the master by at most `service::MOST_ASKING`; their results
//! come back as the tasks end, so there is no channel. All end with the service.
//!
//! # Invariants
//! - Any number of instances; without the lease none publishes, nominates or answers a heartbeat.
//! - A holder stops before an observer takes over: it counts from before its renewal was sent, the observer from after it saw it.
//! - Every nomination has a higher term than any that was heard of; index managers keep terms, so they also rise when the bucket
//!   is lost.
//! - Nobody is down who was not listened to for the heartbeats that may be missed.
//! - It starts no processes and reads no documents; it reports what is missing.

mod config;
pub mod core;
mod questions;
mod service;

pub use config::{Config, allowed};
pub use service::{ClusterManagerError, run};
