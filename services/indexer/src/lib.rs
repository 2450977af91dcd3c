//! The indexer: mutation queues → slices on local disk → scans.
//!
//! # Layout
//! - [`core`]: one bucket's queue, slices, sessions and stability timestamps; pure, and public for the simulation
//! - [`store`]: one slice's forward and back index on disk, with stability layers in memory
//! - `worker`: one thread per bucket: owns the core and the stores
//! - `documents`: puts a batch's documents into a store
//! - `held`: the snapshots that scans may use; `scan` serves them, on the threads of `read_threads`
//! - `feeds`: the tasks that read mutation topic, sessions and stability broadcasts into a worker
//! - `service`: follows the replicated log, answers requests, reports
//! - `dumps`: slices as people read them; [`stopped`]: those of a node that does not run
//! - `files`: the directories of slices; `marks`: how far slices are that had nothing to write
//! - `jobs`: persists, builds and merges beside the workers; `ledger`: what all slices hold in memory
//!
//! # Threads, tasks and channels
//! Per bucket one worker thread (inbox of `worker::EVENTS`), and tasks for its topic, its sessions, its stability broadcasts and
//! its HWT. Received batches count against `config::QUEUE_BYTES` and `config::SESSION_BYTES`: a feed waits when these are used
//! up, and the topic holds the data. Per node the lanes of `jobs`: one slice persists at a time,
//! two builds and one merge run beside it. Scans run on the threads of `read_threads`, `Config::scans` at once. The service's loop
//! and its tasks never wait for a slice, and a worker's thread is its bucket's alone. The service ends all of them.
//!
//! # Invariants
//! - The indexer never looks at a source stream.
//! - Positions live in the store, in the same transaction as the data.
//! - A slice shows exactly the mutations at or below the ST that it names.

pub mod config;
pub mod core;
mod documents;
mod dumps;
mod feeds;
mod files;
mod held;
mod jobs;
mod ledger;
mod marks;
mod payload;
mod read_threads;
mod report;
mod scan;
mod service;
pub mod stopped;
pub mod store;
mod worker;

pub use config::Config;
pub use payload::Payload;
pub use service::{IndexerError, run};
