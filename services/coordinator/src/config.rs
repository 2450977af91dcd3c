//! Settings of an index manager.

use highwater_bus::StreamSettings;
use std::{ops::RangeInclusive, time::Duration};

/// Settings with their defaults.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: String,
    /// One per start of the process.
    pub incarnation: u64,
    /// The shortest time between two stability timestamps that nobody asked for.
    pub stability_interval: Duration,
    /// How often an ST is marked to be made durable, if anything changed.
    pub persistence_interval: Duration,
    /// How often the slices of a bucket are compared with its source though nobody asks for it.
    pub reconcile_interval: Duration,
    /// How often nodes report, until the cluster manager says otherwise.
    pub heartbeat: Duration,
    /// Heartbeats that a node may miss.
    pub misses: u32,
    /// The topics of every bucket are looked for this often; one that is lost is made again, and the chain shows what is missing.
    pub topic_check: Duration,
    /// Records in the log from which on it is compacted.
    pub compact_above: usize,
    /// Of the streams that Highwater makes.
    pub streams: StreamSettings,
}

/// What [`Config::reconcile_interval`] may be, seconds.
pub const RECONCILE_INTERVAL_S: RangeInclusive<u64> = 1..=31_536_000;
/// ST numbers reserved at once.
pub const NUMBER_BLOCK: u64 = 10_000;
/// A log that is published anew goes on so many versions above the copy that it is made from: far more than a log can have lost.
/// Topology versions are record versions, and what was packed under a lost one may still be in a topic.
pub const VERSION_BLOCK: u64 = 1 << 20;

impl Config {
    pub fn new(node: impl Into<String>, incarnation: u64) -> Self {
        Self {
            node: node.into(),
            incarnation,
            stability_interval: Duration::from_millis(10),
            persistence_interval: Duration::from_secs(5),
            reconcile_interval: Duration::from_secs(3_600),
            heartbeat: Duration::from_millis(500),
            misses: 3,
            topic_check: Duration::from_secs(5),
            compact_above: 2_000,
            streams: StreamSettings::default(),
        }
    }

    /// How long a node may be silent, milliseconds.
    pub fn patience(&self) -> u64 {
        self.heartbeat_ms() * u64::from(self.misses)
    }

    pub(crate) fn heartbeat_ms(&self) -> u64 {
        self.heartbeat.as_millis() as u64
    }
}
