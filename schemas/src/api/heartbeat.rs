//! What a heartbeat may be: how often, how large, and which terms are believed.

use std::{ops::RangeInclusive, time::Duration};

/// How often a cluster manager may have nodes report, milliseconds.
pub const HEARTBEAT_MS: RangeInclusive<u64> = 50..=10_000;
/// Bytes of a heartbeat.
pub const MOST_HEARTBEAT: usize = 16 * 1024;

/// Terms up to this one are believed of whoever speaks of them.
const ANY_TERM: u64 = 1 << 48;
/// A higher one is believed when it is no further than this above the highest that is known.
const FURTHEST_TERM: u64 = 1 << 32;

/// Whether a term that somebody speaks of may be one: terms rise by one with each election, and where the highest number of all were
/// believed no election could follow.
pub fn is_plausible_term(known: u64, term: u64) -> bool {
    term <= known.max(ANY_TERM).saturating_add(FURTHEST_TERM).min(u64::MAX - FURTHEST_TERM)
}

/// How often to report, as a cluster manager says it, within [`HEARTBEAT_MS`].
pub fn heartbeat(told_ms: u64) -> Duration {
    Duration::from_millis(told_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_that_no_election_can_follow_are_not_believed() {
        for term in [0, 1, 1 << 40, ANY_TERM, ANY_TERM + FURTHEST_TERM] {
            assert!(is_plausible_term(0, term), "{term}");
        }
        for term in [ANY_TERM + FURTHEST_TERM + 1, 1 << 53, 1 << 63, u64::MAX - 1, u64::MAX] {
            assert!(!is_plausible_term(0, term), "{term}");
        }
        assert!(is_plausible_term(1 << 50, (1 << 50) + FURTHEST_TERM));
        assert!(!is_plausible_term(u64::MAX, u64::MAX));
    }
}
