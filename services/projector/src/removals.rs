//! What vanishes from a source without a message, as far as the stream's state and reconciles show it (design section 4).
//!
//! A first sequence that rose says that everything below it is gone. What vanished above it a reconcile finds: of the documents that
//! are known to have vanished ([`crate::vanished`]), or of all, a list of the present ones that the slices compare. Each goes into
//! the chain once everything up to the last sequence that was read with it, or after it, is covered: what is still on its way may
//! be newer than what is removed.
//!
//! Whether all are to be compared the number of messages tells. It never falls by itself: a new message takes the place of one at
//! most, its document's oldest. Messages that went below the first sequence are no reason, as far as they explain how much it fell;
//! in a stream with gaps there were fewer of them than sequences. Nor are those whose documents are known to have vanished.

use highwater_bus::StreamState;
use highwater_schemas::{timestamp::Dropped, wire::Removal};

/// What was to be seen of the stream last.
#[derive(Debug, Clone, Copy)]
struct Seen {
    first_seq: u64,
    last_seq: u64,
    messages: u64,
    /// Sequences from the first to the last that have no message.
    gaps: u64,
}

/// A reconcile that is to be put into the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staged {
    pub id: u64,
    /// Of the documents that this chain names.
    pub named: bool,
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
    /// A reconcile that may be put into the chain, and a last sequence that was asked for after that was known.
    staged: Option<(Staged, Option<u64>)>,
    /// Messages that went, and that nothing explains.
    missing: u64,
    /// Messages of documents that are known to have vanished, at most.
    explained: u64,
}

impl Removals {
    /// Of a chain whose rounds so far have dropped this; `fresh`: it is the first one of its vbucket.
    pub fn new(dropped: Dropped, fresh: bool) -> Self {
        Self { dropped, fresh, ..Self::default() }
    }

    /// The stream's state.
    pub fn state(&mut self, state: &StreamState) {
        let StreamState { first_seq, last_seq, .. } = *state;
        // Where a new message takes the place of its document's only one, the server may be asked between the two.
        let single = state.max_messages_per_subject == 1;
        let messages = if single { state.subject_count } else { state.messages };
        let gaps = (last_seq + 1).saturating_sub(first_seq).saturating_sub(messages);
        let before = self.seen.replace(Seen { first_seq, last_seq, messages, gaps });
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
        // What grows old goes at the beginning, and markers go as messages do that say that something went: neither is remarkable.
        let usual = state.expires || state.marker_life.is_some();
        let gaps = if usual { 0 } else { before.map_or(0, |b| b.gaps) };
        let began_above = before.is_some_and(|b| first_seq > b.last_seq);
        if !began_above {
            self.missing += fell.saturating_sub(rose.saturating_sub(gaps));
        }
        self.account();
    }

    /// Something vanished that nothing explains: only a comparison of all documents finds it.
    pub fn is_missing(&self) -> bool {
        self.missing > 0
    }

    /// All are to be compared.
    pub fn settle(&mut self) {
        (self.missing, self.explained) = (0, 0);
    }

    fn account(&mut self) {
        let explained = self.missing.min(self.explained);
        self.missing -= explained;
        self.explained -= explained;
    }

    /// So many messages at most are known to have gone.
    pub fn explain(&mut self, messages: u64) {
        self.explained = self.explained.saturating_add(messages);
        self.account();
    }

    /// What was known is in the stream's state by now: what is left of it explains nothing that goes later.
    pub fn explained(&mut self) {
        self.explained = 0;
    }

    /// The reconcile that the log says may be put into the chain.
    pub fn staged(&mut self, staged: Option<Staged>) {
        let staged = staged.filter(|staged| staged.id > self.dropped.reconciled);
        if self.staged.map(|(staged, _)| staged) != staged {
            self.staged = staged.map(|staged| (staged, None));
        }
    }

    /// True while the stream's last sequence must be asked for.
    pub fn needs_answer(&self) -> bool {
        self.staged.is_some_and(|(_, last)| last.is_none())
    }

    /// To be taken before the stream's last sequence is asked for.
    pub fn question(&self) -> Option<u64> {
        self.staged.map(|(staged, _)| staged.id)
    }

    /// The stream's last sequence at some time after the question was taken.
    pub fn answer(&mut self, question: Option<u64>, last_seq: u64) {
        if let Some((staged, last)) = &mut self.staged
            && question == Some(staged.id)
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
        let (Staged { id, named }, _) = self.staged.take_if(|(_, last)| last.is_some_and(|last| last <= covered))?;
        self.dropped.reconciled = id;
        Some(if named { Removal::Named { session: id } } else { Removal::Listed { session: id, upto: covered } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(first_seq: u64, last_seq: u64, messages: u64) -> StreamState {
        StreamState { first_seq, last_seq, messages, ..StreamState::default() }
    }

    fn listed(id: u64) -> Staged {
        Staged { id, named: false }
    }

    fn seen(removals: &mut Removals, of: (u64, u64, u64)) -> bool {
        removals.state(&state(of.0, of.1, of.2));
        let missing = removals.is_missing();
        removals.settle();
        missing
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
        removals.staged(Some(listed(7)));
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
        removals.staged(Some(listed(5)));
        assert!(!removals.needs_answer(), "the chain has it");
        let before = removals.question();
        removals.staged(Some(listed(8)));
        removals.answer(before, 20);
        assert!(removals.needs_answer());
        let question = removals.question();
        removals.answer(question, 30);
        assert_eq!(removals.due(29), None);
        assert_eq!(removals.due(31), Some(Removal::Listed { session: 8, upto: 31 }));
        removals.staged(Some(listed(8)));
        assert_eq!(removals.due(31), None);
    }
    #[test]
    fn in_a_stream_with_gaps_a_first_sequence_that_rose_explains_less() {
        // One old document, and sixty that were rewritten ten times each.
        let before = (1, 601, 61);
        for (after, wanted) in [((542, 601, 60), false), ((542, 601, 40), true), ((1, 601, 61), false)] {
            let mut removals = Removals::new(Dropped::default(), true);
            seen(&mut removals, before);
            assert_eq!(seen(&mut removals, after), wanted, "{after:?}");
        }
        // Without gaps all of them were at the beginning.
        let mut removals = Removals::new(Dropped::default(), true);
        seen(&mut removals, (541, 600, 60));
        assert!(!seen(&mut removals, (561, 600, 40)));
        let mut removals = Removals::new(Dropped::default(), true);
        seen(&mut removals, (541, 600, 60));
        assert!(!seen(&mut removals, (601, 600, 0)), "everything is below");
    }

    #[test]
    fn messages_that_grow_old_or_markers_that_go_are_no_reason() {
        let expires = StreamState { expires: true, ..state(1, 601, 61) };
        let marked = StreamState { marker_life: Some(std::time::Duration::from_secs(1)), ..state(1, 601, 61) };
        for before in [expires, marked] {
            let mut removals = Removals::new(Dropped::default(), true);
            removals.state(&before);
            removals.state(&StreamState { first_seq: 542, messages: 40, ..before.clone() });
            assert!(!removals.is_missing());
            removals.state(&StreamState { first_seq: 542, messages: 39, ..before });
            assert!(removals.is_missing(), "it did not rise");
        }
    }

    #[test]
    fn documents_that_are_known_to_have_vanished_explain_what_is_missing() {
        for first in [true, false] {
            for (messages, missing) in [(21, false), (20, true), (u64::MAX, false), (0, true)] {
                let mut removals = Removals::new(Dropped::default(), true);
                removals.state(&state(1, 601, 61));
                if first {
                    removals.explain(messages);
                }
                removals.state(&state(1, 601, 40));
                if !first {
                    removals.explain(messages);
                }
                assert_eq!(removals.is_missing(), missing, "{messages} messages, known before: {first}");
            }
        }
        let mut removals = Removals::new(Dropped::default(), true);
        removals.state(&state(1, 601, 61));
        removals.explain(30);
        removals.explained();
        removals.state(&state(1, 601, 60));
        assert!(removals.is_missing(), "what was left over explains nothing later");
    }

    #[test]
    fn named_documents_are_a_round_of_their_own_kind() {
        let mut removals = Removals::new(Dropped::default(), true);
        removals.staged(Some(Staged { id: 3, named: true }));
        removals.answer(removals.question(), 20);
        assert_eq!(removals.due(20), Some(Removal::Named { session: 3 }));
        removals.staged(Some(Staged { id: 3, named: true }));
        assert_eq!(removals.due(20), None);
    }
}
