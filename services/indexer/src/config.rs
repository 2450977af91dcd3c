//! Settings of the indexer.

use crate::{
    IndexerError,
    store::{SLOTS, StoreLimits},
};
use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

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
/// What a session brings at most before a slice of it is made durable, bytes of batches.
pub const SESSION_DURABLE: usize = 128 * 1024 * 1024;
/// Scans that may be taken up, waiting ones included; more are refused.
pub const MOST_SCANS: usize = 1_024;
/// Address space that all maps of a node share, bytes: a quarter of what a process has on x86-64.
pub const ADDRESS_SPACE: usize = 32 << 40;

/// What the settings may be.
pub mod allowed {
    use super::{MIB, MOST_SCANS_AT_ONCE, RangeInclusive, SLOTS};

    /// Bytes; a build of a few documents takes some MiB.
    pub const MEMORY_QUOTA: RangeInclusive<u64> = 8 * MIB..=1 << 44;
    /// More make every scan slow, fewer cannot be merged.
    pub const MERGE_LAYERS: RangeInclusive<u64> = 2..=64;
    /// Milliseconds.
    pub const SNAPSHOT_AGE_MS: RangeInclusive<u64> = 100..=300_000;
    pub const SCANS: RangeInclusive<u64> = 1..=MOST_SCANS_AT_ONCE as u64;
    /// Bytes of address space.
    pub const MAP: RangeInclusive<u64> = 16 * MIB..=1 << 44;
    /// Bytes.
    pub const UNDO_QUOTA: RangeInclusive<u64> = MIB..=1 << 44;
    /// Seconds; a persistence timestamp comes every 5 s, and each snapshot takes one of the undo slots.
    pub const KEPT_FOR_S: RangeInclusive<u64> = 0..=3_600;
    pub const KEPT_LEAST: RangeInclusive<u64> = 1..=SLOTS as u64;
    /// Bytes.
    pub const BUILD_MEMORY: RangeInclusive<u64> = MIB..=1 << 40;
}

const MIB: u64 = 1 << 20;
/// Each scan has a reader of its own, and LMDB's table has 1,024 for several commits.
const MOST_SCANS_AT_ONCE: usize = 256;
/// Maps are reserved in units of this, whatever the page size.
const UNIT: usize = 1 << 20;

impl Config {
    /// Refuses settings that are out of their limits, by name.
    pub fn check(&self) -> Result<(), IndexerError> {
        let store = &self.store;
        let all = [
            ("memory_quota", self.memory_quota as u64, allowed::MEMORY_QUOTA),
            ("merge_layers", store.merge_layers as u64, allowed::MERGE_LAYERS),
            ("snapshot_age", self.snapshot_age.as_millis() as u64, allowed::SNAPSHOT_AGE_MS),
            ("scans", self.scans as u64, allowed::SCANS),
            ("map_size", store.map_size as u64, allowed::MAP),
            ("map_growth", store.map_growth as u64, allowed::MAP),
            ("undo_quota", store.undo_quota, allowed::UNDO_QUOTA),
            ("kept_for", store.kept_for.as_secs(), allowed::KEPT_FOR_S),
            ("kept_least", store.kept_least as u64, allowed::KEPT_LEAST),
            ("build_memory", store.build_memory as u64, allowed::BUILD_MEMORY),
        ];
        match all.into_iter().find(|(_, value, allowed)| !allowed.contains(value)) {
            Some((name, value, allowed)) => {
                let (least, most) = (allowed.start(), allowed.end());
                Err(IndexerError::Config(format!("{name} must be {least} to {most}, not {value}")))
            }
            None => Ok(()),
        }
    }

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
        let units = |bytes: usize| bytes.max(UNIT) / UNIT * UNIT;
        let share = units(ADDRESS_SPACE / slices.max(1));
        StoreLimits {
            map_size: units(self.store.map_size).min(share),
            map_growth: units(self.store.map_growth),
            // Scans may all be of one slice.
            most_readers: self.store.most_readers.max(self.scans),
            ..self.store.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes one setting wrong.
    type Change = fn(&mut Config);

    #[test]
    fn settings_out_of_their_limits_are_refused_by_name() {
        let good = Config::new("n", PathBuf::new(), 1);
        assert!(good.check().is_ok());
        let wrong: [(&str, Change); 4] = [
            ("memory_quota", |c| c.memory_quota = 1),
            ("kept_least", |c| c.store.kept_least = 0),
            ("merge_layers", |c| c.store.merge_layers = 1),
            ("scans", |c| c.scans = 0),
        ];
        for (name, change) in wrong {
            let mut config = good.clone();
            change(&mut config);
            assert!(config.check().unwrap_err().to_string().starts_with(&format!("{name} must be")), "{name}");
        }
        let odd = Config { store: StoreLimits { map_size: (20 << 20) + 5, ..StoreLimits::default() }, ..good };
        assert_eq!(odd.limits(1).map_size, 20 << 20);
        assert_eq!(odd.limits(1 << 22).map_size, ADDRESS_SPACE >> 22);
    }
}
