//! Who follows which term: a node that says that it follows a term applies no timestamp of a lower one any more.
//!
//! A worker may be busy with a whole slice when the log begins a term. The node says so at once all the same, and the worker finds
//! the gate shut before it applies anything more: so what one bucket does never holds up the first timestamps of the others.

use crate::core::Action;
use highwater_schemas::StabilityTimestamp;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The gate of one bucket. Its lock is never held for long.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The term that the node follows.
    term: u64,
    /// The worker decides what to apply.
    deciding: bool,
    /// The newest timestamp that was applied, or is about to be.
    applied: Option<StabilityTimestamp>,
}

/// The worker has decided when it is dropped, also by a panic.
struct Deciding<'a>(&'a Gate);

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.0.lock().deciding = false;
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in it is changed in two steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing of a lower term is applied. False, and nothing changes: the worker decides just now, by another one.
    pub(crate) fn follow(&self, term: u64) -> bool {
        let mut state = self.lock();
        if !state.deciding {
            state.term = term;
        }
        state.term == term
    }

    /// The newest timestamp that was applied, or is about to be.
    pub(crate) fn applied(&self) -> Option<StabilityTimestamp> {
        self.lock().applied.clone()
    }

    /// Decides what to apply in this term; nothing if the node follows a later one.
    pub(super) fn apply(&self, term: u64, decide: impl FnOnce() -> Vec<Action>) -> Vec<Action> {
        let mut state = self.lock();
        if state.term > term {
            return Vec::new();
        }
        state.deciding = true;
        drop(state);
        let decided = Deciding(self);
        let actions = decide();
        for action in &actions {
            if let Action::Apply { st, .. } = action {
                self.lock().note(st);
            }
        }
        drop(decided);
        actions
    }

    /// A slice was opened that shows this timestamp.
    pub(super) fn opened(&self, st: &StabilityTimestamp) {
        self.lock().note(st);
    }
}

impl State {
    fn note(&mut self, st: &StabilityTimestamp) {
        if self.applied.as_ref().is_none_or(|newest| newest.number < st.number) {
            self.applied = Some(st.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::state::SliceName;
    use std::sync::Arc;

    fn apply(number: u64) -> Vec<Action> {
        let st = StabilityTimestamp { number, term: 3, ..StabilityTimestamp::default() };
        let slice = SliceName { index: 1, partition: 0 };
        vec![Action::Apply { slice, steps: Vec::new(), st: Arc::new(st), readable: true }]
    }

    fn applied(gate: &Gate) -> Option<u64> {
        gate.applied().map(|st| st.number)
    }

    #[test]
    fn what_was_applied_before_a_term_is_told_and_nothing_of_a_lower_one_follows() {
        let gate = Gate::default();
        assert!(gate.follow(2));
        assert_eq!(applied(&gate), None);
        gate.opened(&StabilityTimestamp { number: 7, term: 1, ..StabilityTimestamp::default() });
        assert_eq!(gate.apply(3, || apply(9)).len(), 1);
        assert!(gate.follow(4));
        assert_eq!(applied(&gate), Some(9));
        assert!(gate.apply(3, || panic!("decides in a term that is over")).is_empty());
        assert_eq!(gate.apply(4, || apply(11)).len(), 1);
        assert_eq!(applied(&gate), Some(11));
    }

    #[test]
    fn nobody_waits_for_a_worker_that_decides() {
        let gate = Gate::default();
        gate.apply(1, || {
            assert!(!gate.follow(2));
            Vec::new()
        });
        assert!(gate.follow(2));
        gate.apply(2, || {
            assert!(gate.follow(2), "it followed it before");
            Vec::new()
        });
        assert!(gate.apply(1, || apply(1)).is_empty());
    }
}
