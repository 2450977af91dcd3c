//! Settings of the indexer.

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
    /// A slice that has collected this much in memory is made durable, bytes.
    pub memory_quota: usize,
}

/// Batches of the mutation topic that may be in memory, bytes; beyond it the topic is not read.
pub const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Batches of sessions that may be in memory, bytes.
pub const SESSION_BYTES: usize = 16 * 1024 * 1024;
/// How long an ST stays readable.
pub const HELD: Duration = Duration::from_secs(2);
/// Scans that run at once; more wait for their turn.
pub const SCANS: usize = 32;
/// Scans that may be taken up, waiting ones included; more are refused.
pub const MOST_SCANS: usize = 1_024;

impl Config {
    pub fn new(node: impl Into<String>, data_dir: PathBuf, incarnation: u64) -> Self {
        Self {
            node: node.into(),
            data_dir,
            incarnation,
            heartbeat: Duration::from_millis(500),
            memory_quota: 96 * 1024 * 1024,
        }
    }
}
