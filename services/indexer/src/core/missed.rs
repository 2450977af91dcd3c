//! Wanted timestamps of which only the number came: they are asked for, and waited for a short while.
//!
//! A slice in step that is behind such a timestamp applies nothing beyond it meanwhile. After [`PATIENCE`] it goes on without
//! it, as it would have without knowing: a scan that waits at it is told that it has gone, and a timestamp that was to be made
//! durable is superseded by the next.

use super::{Action, BucketCore};
use highwater_schemas::wire::MOST_NAMED;
use std::collections::BTreeMap;

/// A timestamp is waited for so long, milliseconds.
pub(super) const PATIENCE: u64 = 100;
/// And asked for again after this, milliseconds.
pub(super) const ASK_AGAIN: u64 = 25;
/// Numbers known; the lowest go first.
const MOST: usize = 4 * MOST_NAMED;

/// What is known of a number that was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    /// Since when, and when it was asked for last.
    Asked {
        since: u64,
        last: u64,
    },
    GivenUp,
}

/// Timestamps that were named and did not come.
#[derive(Debug, Default)]
pub(super) struct Missing(BTreeMap<u64, State>);

impl Missing {
    /// The lowest one above this number that may still come.
    pub(super) fn awaited_after(&self, number: u64) -> Option<u64> {
        self.0.range(number.saturating_add(1)..).find(|(_, state)| **state != State::GivenUp).map(|(number, _)| *number)
    }
}

impl BucketCore {
    /// A broadcast of a term names wanted timestamps, all of them below its own.
    pub fn named(&mut self, term: u64, numbers: &[u64]) {
        if term != self.view.term {
            return;
        }
        let Some(lowest) = self.behind() else { return };
        for number in numbers.iter().rev().take(MOST_NAMED) {
            if *number > lowest && !self.pending.contains_key(number) {
                self.missed.0.entry(*number).or_insert(State::New);
            }
        }
        while self.missed.0.len() > MOST {
            self.missed.0.pop_first();
        }
    }

    /// What the slice that is furthest behind has applied, of those whose snapshots are asked for.
    fn behind(&self) -> Option<u64> {
        self.slices.values().filter(|s| s.in_step() && s.readable).map(|s| s.applied).min()
    }

    /// Asks for what is missing, gives up what did not come in time, and forgets what nobody needs.
    pub(super) fn ask_for_missed(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.missed.0.is_empty() {
            return;
        }
        let lowest = self.behind().unwrap_or(u64::MAX);
        let pending = &self.pending;
        self.missed.0.retain(|number, _| *number > lowest && !pending.contains_key(number));
        let mut numbers = Vec::new();
        for (number, state) in &mut self.missed.0 {
            let since = match *state {
                State::New => now,
                State::Asked { since, .. } if now >= since + PATIENCE => {
                    *state = State::GivenUp;
                    continue;
                }
                State::Asked { since, last } if now >= last + ASK_AGAIN => since,
                State::Asked { .. } | State::GivenUp => continue,
            };
            if numbers.len() < MOST_NAMED {
                *state = State::Asked { since, last: now };
                numbers.push(*number);
            }
        }
        if !numbers.is_empty() {
            out.push(Action::Ask { numbers });
        }
    }
}
