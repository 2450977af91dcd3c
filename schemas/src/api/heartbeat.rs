//! What a heartbeat may be: how often, how large, and which terms are believed.

use super::Join;
use crate::names;
use std::{ops::RangeInclusive, time::Duration};

/// How often a cluster manager may have nodes report, milliseconds.
pub const HEARTBEAT_MS: RangeInclusive<u64> = 50..=10_000;
/// Maximum size of a heartbeat, bytes.
pub const MOST_HEARTBEAT: usize = 16 * 1024;

/// The highest term that is believed at first sight.
const MAX_FIRST_TERM: u64 = 1 << 48;
/// The largest step above the highest known term, or above [`MAX_FIRST_TERM`], that is believed.
const MAX_TERM_STEP: u64 = 1 << 32;

/// Whether a received term is plausible. An election raises the term by one, so a term near the maximum is garbage, and whoever
/// believed it would leave no term for the next election.
pub fn is_plausible_term(known: u64, term: u64) -> bool {
    term <= known.max(MAX_FIRST_TERM).saturating_add(MAX_TERM_STEP).min(u64::MAX - MAX_TERM_STEP)
}

/// Decodes a heartbeat from the bus.
///
/// # Errors
/// Why it is none: more than [`MOST_HEARTBEAT`] bytes, no JSON of that shape, or a bad node name.
pub fn read_heartbeat(payload: &[u8]) -> Result<Join, String> {
    if payload.len() > MOST_HEARTBEAT {
        return Err(format!("a heartbeat of {} bytes; at most {MOST_HEARTBEAT} are taken", payload.len()));
    }
    // serde would take a list for an object's fields in order.
    if payload.first() != Some(&b'{') {
        return Err("it is not a JSON object".into());
    }
    let join: Join = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    names::check("node", &join.node).map_err(|error| error.message)?;
    Ok(join)
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
        for term in [0, 1, 1 << 40, MAX_FIRST_TERM, MAX_FIRST_TERM + MAX_TERM_STEP] {
            assert!(is_plausible_term(0, term), "{term}");
        }
        for term in [MAX_FIRST_TERM + MAX_TERM_STEP + 1, 1 << 53, 1 << 63, u64::MAX - 1, u64::MAX] {
            assert!(!is_plausible_term(0, term), "{term}");
        }
        assert!(is_plausible_term(1 << 50, (1 << 50) + MAX_TERM_STEP));
        assert!(!is_plausible_term(u64::MAX, u64::MAX));
    }

    #[test]
    fn a_heartbeat_is_read_up_to_its_bound() {
        let join = |padding: usize| {
            let mut payload = serde_json::to_vec(&Join::new(super::super::NodeKind::Indexer, "i", 1)).unwrap();
            payload.resize(padding, b' ');
            payload
        };
        assert!(read_heartbeat(&join(MOST_HEARTBEAT)).is_ok());
        assert!(read_heartbeat(&join(MOST_HEARTBEAT + 1)).unwrap_err().contains("16385 bytes"));
        for garbage in [&b""[..], b"[]", b"{", b"null", br#"{"node":"a.b"}"#] {
            assert!(read_heartbeat(garbage).is_err());
        }
    }
}
