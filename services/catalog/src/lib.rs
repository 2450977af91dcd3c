//! The query catalog: answers `hw.query.*` for clients, and passes `hw.admin.*` on to the coordinator.
//!
//! A scan is planned here, bound to one stability timestamp that is new enough for what it asks, sent to the node of each needed
//! partition, and what they answer is merged in key order and written as JSON.
//!
//! # Layout
//! Pure: `request` (JSON → plan), `freshness` (which timestamp serves whom), `core` (what is known, and what a
//! waiting scan does next), `page` (what to ask of a partition, and the reply made of the answers) with `merge`, `render` and
//! `token`, `stats` (an index's numbers), `config`. Asynchronous: `service` (tasks and dispatch), `scan`, `list`.
//!
//! # Invariants
//! - Stateless for clients: a page token is good at any catalog, and losing a catalog loses only the requests it worked on.
//! - One reply is of one stability timestamp, over all partitions.
//! - What cannot be shown to be new enough is never answered: the request fails with a code.
//! - A reply stays below the server's `max_payload`.
//! - It never reads a document or an index file: the source is asked for its stream's state only.
//!
//! # Tasks and limits
//! | task | does | ends |
//! |---|---|---|
//! | the caller's, in [`run`] | takes requests, refuses above [`Config::in_flight`]; sends heartbeats | at `stop`, after up to 5 s for those in flight |
//! | follower | applies `HW_STATE` to the core; a log that cannot be followed is read again, every second | with `run` |
//! | listener | takes stability timestamps and nodes' reports | with `run` |
//! | one per request, at most [`Config::in_flight`] (256) | answers it | by its own deadline |
//!
//! The core stands behind a mutex that is never held across an await. One `watch` channel (capacity 1, the newest counts) tells
//! waiting scans that something changed. Subscriptions are bounded by the bus; what they lose is repeated by the senders.

mod config;
mod core;
mod fields;
mod freshness;
mod list;
mod merge;
mod page;
mod render;
mod request;
mod scan;
mod service;
mod stats;
mod token;

pub use config::{Config, DEFAULT_IN_FLIGHT, Deadlines, MAX_IN_FLIGHT, PAGE_BYTES, TIMEOUT_MS};
pub use request::{Mode, byte_ranges};
pub use service::run;

/// Why a catalog ended.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A setting is out of its limits.
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Bus(#[from] highwater_bus::BusError),
    /// We got something wrong.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}
