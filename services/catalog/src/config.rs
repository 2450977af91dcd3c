//! Settings, with their limits.

use crate::CatalogError;
use highwater_schemas::names;
use std::{ops::RangeInclusive, time::Duration};

/// Requests that are worked on at once, unless set.
pub const DEFAULT_IN_FLIGHT: usize = 256;
/// Each may hold a reply of the server's `max_payload`.
pub const MAX_IN_FLIGHT: usize = 4_096;
/// What deadlines may be, milliseconds; a page's stability timestamp is leased for 30 s and renewed with each page.
pub const TIMEOUT_MS: RangeInclusive<u64> = 1..=600_000;
/// How many bytes of rows a reply may have: the largest is what NATS takes in one message at most.
pub const PAGE_BYTES: RangeInclusive<u64> = 16 * 1_024..=64 * 1_024 * 1_024;

/// How long requests may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Of a request that does not say.
    pub unsaid: Duration,
    /// The longest that a request may ask for.
    pub most: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { unsaid: Duration::from_secs(5), most: Duration::from_secs(60) }
    }
}

/// Settings of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// Requests that are worked on at once; one more is answered `too_many_requests`.
    pub in_flight: usize,
    pub deadlines: Deadlines,
    /// The most bytes of a page, if it has more than one row; and never more than the server takes in a message.
    pub page_bytes: usize,
}

impl Config {
    pub fn new(node: impl Into<String>) -> Self {
        let page_bytes = *PAGE_BYTES.end() as usize;
        Self { node: node.into(), in_flight: DEFAULT_IN_FLIGHT, deadlines: Deadlines::default(), page_bytes }
    }

    pub fn check(&self) -> Result<(), CatalogError> {
        names::check("node", &self.node).map_err(|e| CatalogError::Config(e.message))?;
        let Deadlines { unsaid, most } = self.deadlines;
        within("in_flight", self.in_flight as u64, 1..=MAX_IN_FLIGHT as u64)?;
        within("max_scan_timeout", most.as_millis() as u64, TIMEOUT_MS)?;
        within("scan_timeout", unsaid.as_millis() as u64, *TIMEOUT_MS.start()..=most.as_millis() as u64)?;
        within("page_bytes", self.page_bytes as u64, PAGE_BYTES)
    }
}

fn within(name: &str, value: u64, limits: RangeInclusive<u64>) -> Result<(), CatalogError> {
    if limits.contains(&value) {
        return Ok(());
    }
    Err(CatalogError::Config(format!("{name} must be {} to {}, not {value}", limits.start(), limits.end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_their_limits_are_refused() {
        assert!(Config::new("catalog-1").check().is_ok());
        assert!(Config::new("no name").check().is_err());
        for in_flight in [0, MAX_IN_FLIGHT + 1] {
            assert!(Config { in_flight, ..Config::new("c") }.check().is_err());
        }
        let seconds = Duration::from_secs;
        for (unsaid, most, page_bytes, wrong) in [
            (seconds(5), seconds(601), 65_536, "max_scan_timeout"),
            (seconds(5), seconds(4), 65_536, "scan_timeout"),
            (seconds(0), seconds(4), 65_536, "scan_timeout"),
            (seconds(5), seconds(5), 100, "page_bytes"),
        ] {
            let config = Config { deadlines: Deadlines { unsaid, most }, page_bytes, ..Config::new("c") };
            assert!(config.check().unwrap_err().to_string().starts_with(&format!("{wrong} must be")));
        }
    }
}
