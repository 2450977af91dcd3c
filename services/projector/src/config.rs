//! Settings of the projector.

use std::time::Duration;

/// Settings with their defaults.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: String,
    /// One per start of the process.
    pub incarnation: u64,
    pub heartbeat: Duration,
    /// The largest document that is looked into, bytes; larger ones are counted as unindexable.
    pub max_document: usize,
}

impl Config {
    pub fn new(node: impl Into<String>, incarnation: u64) -> Self {
        Self { node: node.into(), incarnation, heartbeat: Duration::from_millis(500), max_document: 1024 * 1024 }
    }
}
