//! Settings, with their limits.

use crate::CatalogError;
use highwater_schemas::names;

/// Requests that are worked on at once, unless set.
pub const DEFAULT_IN_FLIGHT: usize = 256;
/// Each may hold a reply of the server's `max_payload`.
pub const MAX_IN_FLIGHT: usize = 4_096;

/// Settings of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// Requests that are worked on at once; one more is answered `too_many_requests`.
    pub in_flight: usize,
}

impl Config {
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into(), in_flight: DEFAULT_IN_FLIGHT }
    }

    pub fn check(&self) -> Result<(), CatalogError> {
        names::check("node", &self.node).map_err(|e| CatalogError::Config(e.message))?;
        if self.in_flight == 0 || self.in_flight > MAX_IN_FLIGHT {
            return Err(CatalogError::Config(format!(
                "in_flight must be 1 to {MAX_IN_FLIGHT}, not {}",
                self.in_flight
            )));
        }
        Ok(())
    }
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
    }
}
