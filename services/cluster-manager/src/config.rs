//! Settings of a cluster manager.

use highwater_bus::StreamSettings;
use std::{ops::RangeInclusive, time::Duration};

/// What the settings may be.
pub mod allowed {
    use super::RangeInclusive;
    pub use highwater_schemas::api::HEARTBEAT_MS;

    pub const MISSES: RangeInclusive<u64> = 2..=20;
    /// NATS keeps a message no shorter than a second.
    pub const LEASE_MS: RangeInclusive<u64> = 1_000..=60_000;
    /// Copies that NATS keeps of a stream.
    pub const REPLICAS: [usize; 3] = [1, 3, 5];
}

/// Settings with their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub node: String,
    /// One per start of the process.
    pub incarnation: u64,
    /// How often every node reports.
    pub heartbeat: Duration,
    /// A node that misses this many heartbeats is down.
    pub misses: u32,
    /// How long the active one may be silent before another takes over.
    pub lease: Duration,
    /// Of the bucket that holds the lease.
    pub streams: StreamSettings,
}

impl Config {
    pub fn new(node: impl Into<String>, incarnation: u64) -> Self {
        Self {
            node: node.into(),
            incarnation,
            heartbeat: Duration::from_millis(500),
            misses: 3,
            lease: Duration::from_secs(3),
            streams: StreamSettings::default(),
        }
    }

    /// Whether every setting is within its limits; the first that is not is named.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, allowed: RangeInclusive<u64>| {
            let (least, most) = (*allowed.start(), *allowed.end());
            if allowed.contains(&value) { Ok(()) } else { Err(format!("{name} {value} is not {least} to {most}")) }
        };
        within("heartbeat, milliseconds:", self.heartbeat.as_millis() as u64, allowed::HEARTBEAT_MS)?;
        within("misses:", u64::from(self.misses), allowed::MISSES)?;
        within("lease, milliseconds:", self.lease.as_millis() as u64, allowed::LEASE_MS)?;
        match self.streams.replicas {
            Some(replicas) if !allowed::REPLICAS.contains(&replicas) => {
                Err(format!("stream replicas: {replicas} is not 1, 3 or 5"))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn heartbeat_ms(&self) -> u64 {
        self.heartbeat.as_millis() as u64
    }

    pub(crate) fn lease_ms(&self) -> u64 {
        self.lease.as_millis() as u64
    }
}
