//! The projector: source streams → key versions.
//!
//! # Layout
//! - [`cover`]: what a reader of a stream with hidden revisions may claim to have covered (design section 4)
//! - [`batches`]: where atomic batches begin and end, of which nobody may see a part
//! - [`contradiction`]: when what contradicts a replicated source counts
//! - [`removals`]: what vanishes without a message; [`vanished`]: documents of which that is known; [`expiries`]: when they expire
//! - [`verify`]: whether the source is still what was read; [`recent`]: what that
//!   takes where its end was overwritten
//! - `docid`: a subject → the docid
//! - [`evaluate`]: one document → its entries in every index
//! - `vbucket`: one task per vbucket and generation, and per vbucket of a session: reads, evaluates, hands to its lane
//! - [`pump`]: the task under it that takes messages off the stream; public for the test that no list lacks a document
//! - `plans`: what the log says of a vbucket; `service`: follows the replicated log, starts and stops vbucket tasks, reports; `reads`: how much they read; `panics`: how long what follows from a
//!   panic waits where they repeat themselves
//!
//! What is pure of `batches`, `contradiction`, `cover`, `recent`, `removals`, `vanished` and `verify` is public for the simulation.
//!
//! # Tasks and channels
//! Each vbucket task has a pump (channel of `pump::CAPACITY` chunks), a lane to the router (`lane::LANE_CAPACITY` chunks at most) and an
//! inbox of wants (`vbucket::WANTS`; what exceeds it is dropped, catalogs repeat their wants), and one of requests to remove messages
//! (`vbucket::HINTS`; where more wait, everything is compared). The service ends all of them.
//!
//! # Invariants
//! - Stateless: told which vbuckets, with which generation, from which position.
//! - Order within a vbucket is never changed; one message is evaluated once, for all indexes.
//! - The projector never knows which node hosts what: it hands the routes on to the router unread.

pub mod batches;
mod config;
pub mod contradiction;
pub mod cover;
mod docid;
pub mod evaluate;
pub mod expiries;
mod panics;
mod plans;
pub mod pump;
mod reads;
pub mod recent;
pub mod removals;
mod service;
pub mod vanished;
mod vbucket;
pub mod verify;

pub use config::Config;
pub use service::{ProjectorError, run};
