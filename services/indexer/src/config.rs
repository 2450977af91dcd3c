//! Settings of the indexer.

use crate::store::StoreLimits;
use std::{path::PathBuf, time::Duration};

/// Settings with their defaults.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: String,
    /// Slices live below it.
    pub data_dir: PathBuf,
    /// One per start of the process.
    pub incarnation: u64,
    pub heartbeat: Duration,
    /// What all slices together may hold in memory, bytes; then the larger ones are made durable out of turn. At twice as much,
    /// builds and catchups wait.
    pub memory_quota: usize,
    /// How long an ST stays readable after a newer one, unless it is leased.
    pub snapshot_age: Duration,
    /// Scans that run at once; more wait for their turn.
    pub scans: usize,
    /// The limits of each slice. Its map is smaller where many slices share the address space.
    pub store: StoreLimits,
}

/// Batches of the mutation topic that may be in memory, bytes; beyond it the topic is not read.
pub const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Batches of sessions that may be in memory, bytes.
pub const SESSION_BYTES: usize = 16 * 1024 * 1024;
/// Scans that may be taken up, waiting ones included; more are refused.
pub const MOST_SCANS: usize = 1_024;
/// Address space that all maps of a node share, bytes: a quarter of what a process has on x86-64.
pub const ADDRESS_SPACE: usize = 32 << 40;

impl Config {
    pub fn new(node: impl Into<String>, data_dir: PathBuf, incarnation: u64) -> Self {
        Self {
            node: node.into(),
            data_dir,
            incarnation,
            heartbeat: Duration::from_millis(500),
            memory_quota: 96 * 1024 * 1024,
            snapshot_age: Duration::from_secs(2),
            scans: 32,
            store: StoreLimits::default(),
        }
    }

    /// The limits of a slice on a node with so many of them.
    pub(crate) fn limits(&self, slices: usize) -> StoreLimits {
        /// Maps are reserved in units of this, whatever the page size.
        const UNIT: usize = 1 << 20;
        let share = (ADDRESS_SPACE / slices.max(1)).max(UNIT) / UNIT * UNIT;
        StoreLimits { map_size: self.store.map_size.min(share), ..self.store.clone() }
    }
}
