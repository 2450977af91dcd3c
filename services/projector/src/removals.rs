//! What vanishes from a source without a message, as far as the stream's state and reconciles show it (design section 4).
//!
//! A first sequence that rose says that everything below it is gone. What vanished above it only a reconcile finds: a list of the
//! present documents, compared by the slices. Either goes into the chain once everything up to the last sequence that was read
//! with it, or after it, is covered: what is still on its way may be newer than what is removed.

use highwater_bus::StreamState;
use highwater_schemas::{timestamp::Dropped, wire::Removal};

/// What was to be seen of the stream last.
#[derive(Debug, Clone, Copy)]
struct Seen {
    first_seq: u64,
    last_seq: u64,
    messages: u64,
}

/// What is to be put into the chain of one vbucket.
#[derive(Debug, Default)]
pub struct Removals {
    dropped: Dropped,
    /// Nobody can hold anything from before.
    fresh: bool,
    seen: Option<Seen>,
    /// Something went since a floor was taken last.
    vanished: bool,
    /// A first sequence, and the last one that was read with it.
    below: Option<(u64, u64)>,
    /// A reconcile that the slices have staged, and a last sequence that was asked for after that.
    staged: Option<(u64, Option<u64>)>,
}

impl Removals {
    /// Of a chain whose rounds so far have dropped this; `fresh`: it is the first one of its vbucket.
    pub fn new(dropped: Dropped, fresh: bool) -> Self {
        Self { dropped, fresh, ..Self::default() }
    }

    /// The stream's state; true: something vanished that only a reconcile finds.
    pub fn state(&mut self, state: &StreamState) -> bool {
        let StreamState { first_seq, last_seq, .. } = *state;
        // Where a new message takes the place of its document's only one, the server may be asked between the two.
        let single = state.max_messages_per_subject == 1;
        let messages = if single { state.subject_count } else { state.messages };
        let before = self.seen.replace(Seen { first_seq, last_seq, messages });
        // A new message takes away one at most, its document's oldest: the number of messages never falls by itself.
        let fell = before.map_or(0, |b| b.messages.saturating_sub(messages));
        let rose = before.map_or(0, |b| first_seq.saturating_sub(b.first_seq));
        self.vanished |= match before {
            Some(b) => state.expires || fell > 0 || first_seq > b.last_seq,
            None => !self.fresh,
        };
        // Where the source has lost its end, nothing up to there is on its way any more.
        if let Some((_, last)) = &mut self.below {
            *last = last_seq.min(*last);
        }
        // Nothing is below the first one that there can be.
        if first_seq > self.dropped.floor.max(1) && self.vanished && self.below.is_none() {
            self.vanished = false;
            self.below = Some((first_seq, last_seq));
        }
        fell > rose
    }

    /// The reconcile that the log says is staged.
    pub fn staged(&mut self, id: Option<u64>) {
        let id = id.filter(|id| *id > self.dropped.reconciled);
        if self.staged.map(|(id, _)| id) != id {
            self.staged = id.map(|id| (id, None));
        }
    }

    /// True while the stream's last sequence must be asked for.
    pub fn needs_answer(&self) -> bool {
        self.staged.is_some_and(|(_, last)| last.is_none())
    }

    /// To be taken before the stream's last sequence is asked for.
    pub fn question(&self) -> Option<u64> {
        self.staged.map(|(id, _)| id)
    }

    /// The stream's last sequence at some time after the question was taken.
    pub fn answer(&mut self, question: Option<u64>, last_seq: u64) {
        if let Some((id, last)) = &mut self.staged
            && question == Some(*id)
        {
            // Lower than before where the source has lost its end.
            *last = Some(last.unwrap_or(last_seq).min(last_seq));
        }
    }

    /// The next round, if this much is covered.
    pub fn due(&mut self, covered: u64) -> Option<Removal> {
        if let Some((floor, _)) = self.below.take_if(|(_, last)| *last <= covered) {
            self.dropped.floor = floor;
            return Some(Removal::Below(floor));
        }
        let (session, _) = self.staged.take_if(|(_, last)| last.is_some_and(|last| last <= covered))?;
        self.dropped.reconciled = session;
        Some(Removal::Listed { session, upto: covered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(first_seq: u64, last_seq: u64, messages: u64) -> StreamState {
        StreamState { first_seq, last_seq, messages, ..StreamState::default() }
    }

    fn seen(removals: &mut Removals, of: (u64, u64, u64)) -> bool {
        removals.state(&state(of.0, of.1, of.2))
    }

    #[test]
    fn a_first_sequence_that_rose_is_a_round_once_what_was_read_with_it_is_covered() {
        let mut removals = Removals::new(Dropped::default(), true);
        assert!(!seen(&mut removals, (1, 10, 10)));
        assert!(!seen(&mut removals, (6, 12, 7)), "the first five and no others");
        assert_eq!(removals.due(11), None);
        assert_eq!(removals.due(12), Some(Removal::Below(6)));
        assert_eq!(removals.due(12), None);
        assert!(!seen(&mut removals, (6, 13, 8)));
        assert_eq!(removals.due(13), None, "it did not rise further");
    }

    #[test]
    fn what_goes_while_a_round_waits_is_the_next_one() {
        let mut removals = Removals::new(Dropped::default(), true);
        seen(&mut removals, (1, 10, 10));
        seen(&mut removals, (3, 10, 8));
        seen(&mut removals, (5, 11, 7));
        assert_eq!(removals.due(11), Some(Removal::Below(3)));
        seen(&mut removals, (5, 12, 8));
        assert_eq!(removals.due(12), Some(Removal::Below(5)));
    }

    #[test]
    fn a_source_that_lost_its_end_holds_up_no_round() {
        let mut removals = Removals::new(Dropped::default(), true);
        seen(&mut removals, (1, 100, 100));
        seen(&mut removals, (6, 100, 95));
        removals.staged(Some(7));
        removals.answer(removals.question(), 100);
        assert_eq!(removals.due(60), None);
        seen(&mut removals, (6, 60, 55));
        removals.answer(removals.question(), 60);
        assert_eq!(removals.due(59), None);
        assert_eq!(removals.due(60), Some(Removal::Below(6)));
        assert_eq!(removals.due(60), Some(Removal::Listed { session: 7, upto: 60 }));
    }

    #[test]
    fn overwriting_the_oldest_is_no_removal() {
        let mut removals = Removals::new(Dropped::default(), true);
        seen(&mut removals, (1, 10, 10));
        assert!(!seen(&mut removals, (2, 11, 10)));
        assert_eq!(removals.due(11), None);
    }

    #[test]
    fn fewer_messages_than_the_first_sequence_explains_want_a_reconcile() {
        let mut removals = Removals::new(Dropped::default(), true);
        seen(&mut removals, (1, 10, 10));
        assert!(seen(&mut removals, (1, 11, 8)));
        assert!(seen(&mut removals, (3, 11, 5)), "two at the beginning, and one more");
        assert_eq!(removals.due(11), Some(Removal::Below(3)));
    }

    #[test]
    fn a_chain_that_goes_on_drops_what_may_have_gone_meanwhile() {
        let mut removals = Removals::new(Dropped { floor: 4, reconciled: 0 }, false);
        seen(&mut removals, (4, 10, 7));
        assert_eq!(removals.due(10), None);
        let mut removals = Removals::new(Dropped { floor: 3, reconciled: 0 }, false);
        seen(&mut removals, (4, 10, 7));
        assert_eq!(removals.due(10), Some(Removal::Below(4)));
    }

    #[test]
    fn what_is_staged_waits_for_a_last_sequence_that_was_asked_for_afterwards() {
        let mut removals = Removals::new(Dropped { floor: 0, reconciled: 5 }, true);
        removals.staged(Some(5));
        assert!(!removals.needs_answer(), "the chain has it");
        let before = removals.question();
        removals.staged(Some(8));
        removals.answer(before, 20);
        assert!(removals.needs_answer());
        let question = removals.question();
        removals.answer(question, 30);
        assert_eq!(removals.due(29), None);
        assert_eq!(removals.due(31), Some(Removal::Listed { session: 8, upto: 31 }));
        removals.staged(Some(8));
        assert_eq!(removals.due(31), None);
    }
}
