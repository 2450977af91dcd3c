//! Every message, subject name, timestamp type and the key encoding of Highwater: the one thing that all services share.
//!
//! # Layout
//! - [`names`], [`subjects`]: what things are called on the bus; [`pattern`], [`prefix`]: subjects with wildcards, and
//!   what those of documents begin with
//! - [`error`]: the coded errors of the public face
//! - [`timestamp`]: positions, timestamps and stability timestamps
//! - [`definition`]: buckets and indexes as users declare them, and their compiled form
//! - [`expr`]: the `where` language; [`collation`]: the order-preserving key encoding; [`readable`]: JSON for every reader;
//!   [`language`]: the versions of their rules
//! - [`report`]: what nodes report to the coordinator, in parts
//! - [`wire`]: the rkyv messages of the data path; [`api`]: the JSON messages of people and foreign clients
//! - [`state`]: the replicated log of changes and the StateContext it yields
//! - [`lane`]: the bounded in-process channel between projector and router
//!
//! Invariant: nothing here performs I/O, reads a clock or draws a random number.

pub mod api;
pub mod collation;
pub mod definition;
pub mod error;
pub mod expr;
pub mod lane;
pub mod language;
pub mod names;
pub mod pattern;
pub mod prefix;
pub mod readable;
pub mod report;
pub mod state;
pub mod subjects;
pub mod timestamp;
pub mod wire;

pub use error::{ApiError, ErrorCode};
pub use timestamp::{Position, StVb, StabilityTimestamp};
