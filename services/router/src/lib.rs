//! The router: key versions → subscribers' mutation and catchup subjects, and SYNC.
//!
//! # Layout
//! - `packer`: the pure core: chunks in, batches out, one unbroken chain of intervals for each subscriber
//! - `window`: what has been sent and not yet acknowledged, and how far everything is
//! - `lane`: one task per lane: takes chunks, publishes batches, speaks SYNC
//! - `pace`: when a lane does something though nothing comes
//! - `service`: takes up lanes
//!
//! # Tasks and channels
//! One task per lane, ended by its input's end or by the service. A lane takes no chunk while its window is full, so a slow
//! subscriber's stream holds up the projector, not memory.
//!
//! # Invariants
//! - A batch counts as published when its acknowledgement is in, and only then does SYNC speak of it.
//! - Every subscriber sees every interval of the chain, also those in which nothing is routed to it.
//! - The router never looks into a key.

mod lane;
mod pace;
pub mod packer;
mod service;
pub mod window;

pub use service::run;
