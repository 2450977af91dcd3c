//! Settings of the coordinator.

use std::{path::PathBuf, time::Duration};

/// Settings with their defaults.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: String,
    /// Holds the local copy of the log.
    pub data_dir: PathBuf,
    /// One per start of the process.
    pub incarnation: u64,
    /// The shortest time between two stability timestamps that nobody asked for.
    pub stability_interval: Duration,
    /// How often an ST is marked to be made durable, if anything changed.
    pub persistence_interval: Duration,
    /// How often nodes report.
    pub heartbeat: Duration,
}

/// A node that misses this many heartbeats is taken to be gone.
pub const MISSES: u32 = 3;
/// ST numbers reserved at once.
pub const NUMBER_BLOCK: u64 = 10_000;

impl Config {
    pub fn new(node: impl Into<String>, data_dir: PathBuf, incarnation: u64) -> Self {
        Self {
            node: node.into(),
            data_dir,
            incarnation,
            stability_interval: Duration::from_millis(10),
            persistence_interval: Duration::from_secs(5),
            heartbeat: Duration::from_millis(500),
        }
    }
}
