//! Decides when a contradiction between a source and what was read of it proves a loss.
//!
//! A stream that is kept by one server is what that server says. A replicated stream may get a new leader at any time. The new
//! leader has every acknowledged message in its log, but may not have applied all of them to the stream yet; and an old leader
//! that does not know of the election answers from old data. For a moment messages that were read seem to be missing, though
//! nothing is lost.
//!
//! So a contradiction of a replicated stream counts only when a *current* leader has repeated it. A leader is current when, since
//! it contradicted first,
//! - it has led without interruption and has heard from a majority of the replicas, so that no other leader was elected; and
//! - the stream has not changed for [`SETTLED`], so that no messages are left to apply, or it has led for [`LONGEST`]: a server
//!   applies in this time whatever its log held when it was elected.
//!
//! The times of messages say nothing: those that are left to apply were stamped by the clock of the leader before.

use highwater_bus::StreamState;
use std::time::Duration;

/// A leader of which the stream does not change for so long has taken in all that it has. A server that lost the others notices in
/// this time that it does not hear them: they answer it every second.
pub const SETTLED: Duration = Duration::from_secs(5);
/// A stream that goes on changing is judged after this time.
pub const LONGEST: Duration = Duration::from_secs(20);

/// A contradiction that was found, perhaps not for the first time.
#[derive(Debug, Default)]
pub struct Contradiction {
    first: Option<First>,
}

#[derive(Debug)]
struct First {
    state: StreamState,
    /// When it was found first, and when the stream was seen to change last, by our own clock.
    at: Duration,
    changed: Duration,
    /// The leader is current.
    current: bool,
}

impl Contradiction {
    /// It was found again: all of it was asked for before `state`, and that was the state of the stream at `now`, by our own clock.
    /// True: it counts. Else it is to be looked for again in a moment.
    pub fn counts(&mut self, state: &StreamState, now: Duration) -> bool {
        if !state.replicated {
            return true;
        }
        let same = |first: &&mut First| first.state.leader == state.leader && first.state.created == state.created;
        let Some(first) = self.first.as_mut().filter(|first| same(first)) else {
            self.first = Some(First { state: state.clone(), at: now, changed: now, current: false });
            return false;
        };
        let before = first.current;
        let heard = state.majority_heard < now.saturating_sub(first.at);
        let ends = |state: &StreamState| (state.first_seq, state.last_seq, state.messages);
        if ends(&first.state) != ends(state) {
            first.changed = now;
            (first.state.first_seq, first.state.last_seq, first.state.messages) = ends(state);
        }
        let settled = now.saturating_sub(first.changed) >= SETTLED || now.saturating_sub(first.at) >= LONGEST;
        first.current |= heard && settled;
        before && heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A stream that ends at `last`, as `leader` says, which heard of the others half a second ago.
    fn state(leader: &str, last: u64) -> StreamState {
        StreamState {
            created: 1,
            leader: leader.into(),
            replicated: true,
            first_seq: 1,
            last_seq: last,
            messages: last,
            majority_heard: SECOND / 2,
            ..StreamState::default()
        }
    }

    #[test]
    fn of_a_stream_that_one_server_keeps_it_counts_at_once() {
        let state = StreamState { replicated: false, ..state("a", 5) };
        assert!(Contradiction::default().counts(&state, Duration::ZERO));
    }

    #[test]
    fn a_leader_that_changes_nothing_is_current_after_a_while_and_must_repeat_it() {
        let mut found = Contradiction::default();
        let at = |s: u32| SECOND * s;
        assert!(!found.counts(&state("a", 5), at(0)));
        assert!(!found.counts(&state("a", 7), at(3)), "it takes in what it has");
        assert!(!found.counts(&state("a", 7), at(7)));
        assert!(!found.counts(&state("a", 7), at(8)), "from now on it is current");
        assert!(found.counts(&state("a", 7), at(9)));
    }

    #[test]
    fn the_clock_of_the_leader_before_makes_nobody_current() {
        let mut found = Contradiction::default();
        // The messages that are left to apply are from a leader whose clock is an hour ahead.
        let applied = |last: u64| StreamState {
            last_time: 3_600_000_000_000 + last as i64,
            now: last as i64,
            ..state("a", last)
        };
        for s in 0..10 {
            assert!(!found.counts(&applied(5 + s), SECOND * s as u32), "{s}");
        }
    }

    #[test]
    fn another_leader_begins_anew() {
        let mut found = Contradiction::default();
        for s in 0..100 {
            let leader = if s % 4 < 2 { "a" } else { "b" };
            assert!(!found.counts(&state(leader, 5), SECOND * s), "{s}");
        }
    }

    #[test]
    fn who_hears_of_no_majority_is_believed_in_nothing() {
        let mut found = Contradiction::default();
        for s in 0..30u32 {
            let alone = StreamState { majority_heard: SECOND * (s + 1), ..state("a", 5) };
            assert!(!found.counts(&alone, SECOND * s), "{s}");
        }
        // The others are there again: nobody else was elected meanwhile.
        assert!(!found.counts(&state("a", 5), SECOND * 31));
        assert!(found.counts(&state("a", 5), SECOND * 32));
    }

    #[test]
    fn a_stream_that_never_rests_is_judged_in_the_end() {
        let mut found = Contradiction::default();
        let counted = (0..200u32).find(|s| found.counts(&state("a", 5 + u64::from(*s)), SECOND * *s));
        assert_eq!(counted, Some(LONGEST.as_secs() as u32 + 1));
    }
}
