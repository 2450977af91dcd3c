//! Hidden revisions, and what a reader may claim to have covered.
//!
//! With a history of one, an overwritten revision is gone at once. A reader that meets a missing sequence *g* may be missing an
//! acknowledged write whose successor lies ahead. It asks the stream's last sequence L *after* meeting the hole; the hole is
//! closed when it has read up to L without meeting a further one on the way. Every further hole renews L for the whole window.
//! Until then `covered` stays below the first hole.
//!
//! A closed hole says that nothing is hidden where the reader is, and nothing of the positions on the way there. So inside of an
//! atomic batch no hole is closed: its end is the next position that may be spoken of.

/// How far a reader is, and how much of that nothing can be hidden in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cover {
    position: u64,
    /// Holes met so far: tells an answer that was asked for before the last one.
    holes: u64,
    window: Option<Window>,
    /// The position is inside of an atomic batch.
    inside: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    first_hole: u64,
    /// The stream's last sequence, asked after the last hole.
    until: Option<u64>,
}

/// What must be handed back with the answer to a question for the stream's last sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question(u64);

impl Cover {
    /// A reader that begins after `covered`.
    pub fn new(covered: u64) -> Self {
        Self { position: covered, holes: 0, window: None, inside: false }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn covered(&self) -> u64 {
        self.window.map_or(self.position, |w| w.first_hole - 1)
    }

    /// A message was read. A hole right before it begins at `begins` at the latest: there the batch begins that it may have taken
    /// a part of. `inside`: the end of its batch is yet to come.
    pub fn message(&mut self, seq: u64, begins: u64, inside: bool) {
        debug_assert!(seq > self.position, "messages come in order");
        if seq > self.position + 1 {
            self.hole(begins);
        }
        self.position = seq;
        self.inside = inside;
        self.close();
    }

    /// The batch that the position was inside of is over.
    pub fn batch_is_over(&mut self) {
        self.inside = false;
        self.close();
    }

    /// What was read last may have been lost, and nothing is missed once the end of the stream is reached: as a hole right here,
    /// that begins at `begins` at the latest.
    pub fn doubt(&mut self, begins: u64) {
        self.hole(begins);
    }

    fn hole(&mut self, begins: u64) {
        self.holes += 1;
        let begins = begins.min(self.position + 1);
        let first_hole = self.window.map_or(begins, |w| w.first_hole.min(begins));
        self.window = Some(Window { first_hole, until: None });
    }

    /// The next one of a list: what lies between was overwritten before.
    pub fn listed(&mut self, seq: u64) {
        self.position = self.position.max(seq);
    }

    /// The list is complete, up to this seqno. What was overwritten while it was read is in it no more: nothing is covered
    /// before what took its place was read.
    pub fn list_complete(&mut self, upto: u64) {
        self.position = self.position.max(upto);
        self.holes += 1;
        self.window = Some(Window { first_hole: 1, until: None });
    }

    /// True while an answer to [`Self::question`] is needed.
    pub fn needs_answer(&self) -> bool {
        self.window.is_some_and(|w| w.until.is_none())
    }

    /// Nothing that was read can be hidden.
    pub fn is_closed(&self) -> bool {
        self.window.is_none()
    }

    /// To be taken right before the stream's last sequence is asked for.
    pub fn question(&self) -> Question {
        Question(self.holes)
    }

    /// The stream's last sequence was `last_seq` at some time after the question was taken.
    pub fn answer(&mut self, question: Question, last_seq: u64) {
        if question.0 != self.holes {
            return;
        }
        if let Some(window) = &mut self.window {
            window.until = Some(window.until.unwrap_or(last_seq).min(last_seq));
        }
        self.close();
    }

    /// The stream's last sequence was `last_seq`, and after that the server had nothing more for this reader: the messages
    /// between were removed. False: a hole was met since the question was taken.
    pub fn nothing_more(&mut self, question: Question, last_seq: u64) -> bool {
        if question.0 != self.holes {
            return false;
        }
        self.position = self.position.max(last_seq);
        if let Some(window) = &mut self.window {
            window.until = Some(self.position);
        }
        self.close();
        true
    }

    fn close(&mut self) {
        if !self.inside && self.window.and_then(|w| w.until).is_some_and(|until| self.position >= until) {
            self.window = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No batch is there.
    const NONE: u64 = u64::MAX;

    #[test]
    fn without_holes_everything_read_is_covered() {
        let mut c = Cover::new(0);
        for seq in 1..=5 {
            c.message(seq, NONE, false);
            assert_eq!((c.position(), c.covered(), c.needs_answer()), (seq, seq, false));
        }
    }

    #[test]
    fn a_hole_stays_open_until_the_last_sequence_asked_after_it_is_reached() {
        let mut c = Cover::new(0);
        c.message(1, NONE, false);
        c.message(4, NONE, false);
        assert_eq!(c.covered(), 1);
        assert!(c.needs_answer());
        let q = c.question();
        c.answer(q, 6);
        c.message(5, NONE, false);
        assert_eq!(c.covered(), 1);
        c.message(6, NONE, false);
        assert_eq!(c.covered(), 6);
    }

    #[test]
    fn an_answer_asked_for_before_the_last_hole_does_not_count() {
        let mut c = Cover::new(0);
        c.message(2, NONE, false);
        let early = c.question();
        c.message(4, NONE, false);
        c.answer(early, 4);
        assert_eq!(c.covered(), 0, "the hole at 3 was met after the question");
        let q = c.question();
        c.answer(q, 4);
        assert_eq!(c.covered(), 4);
    }

    #[test]
    fn a_further_hole_renews_the_whole_window() {
        let mut c = Cover::new(0);
        c.message(2, NONE, false);
        let q = c.question();
        c.answer(q, 5);
        c.message(5, NONE, false);
        assert_eq!(c.covered(), 0, "3 and 4 are missing: what was asked before does not close them");
        let q = c.question();
        c.answer(q, 5);
        assert_eq!(c.covered(), 5);
    }

    #[test]
    fn in_doubt_nothing_more_is_covered_before_the_end_is_reached() {
        let mut c = Cover::new(3);
        c.doubt(NONE);
        assert_eq!((c.covered(), c.needs_answer()), (3, true));
        c.message(4, NONE, false);
        let q = c.question();
        c.answer(q, 5);
        assert_eq!(c.covered(), 3);
        c.message(5, NONE, false);
        assert_eq!(c.covered(), 5);
    }

    #[test]
    fn a_removed_last_message_raises_the_position() {
        let mut c = Cover::new(3);
        c.message(5, NONE, false);
        let early = c.question();
        c.doubt(NONE);
        assert!(!c.nothing_more(early, 7));
        let q = c.question();
        assert!(c.nothing_more(q, 7));
        assert_eq!((c.position(), c.covered()), (7, 7));
    }

    #[test]
    fn a_hole_in_a_batch_begins_where_the_batch_does() {
        let mut c = Cover::new(0);
        c.message(1, NONE, false);
        c.message(2, 2, true);
        c.message(4, 2, false);
        assert_eq!(c.covered(), 1, "3 may be of the batch that begins at 2");
        c.message(8, 6, false);
        assert_eq!(c.covered(), 1);
        let q = c.question();
        c.answer(q, 8);
        assert_eq!(c.covered(), 8);
        c.message(12, 10, false);
        assert_eq!(c.covered(), 8, "9 is before that batch");
    }

    #[test]
    fn inside_of_a_batch_no_hole_is_closed() {
        let mut c = Cover::new(0);
        c.message(1, NONE, false);
        // 2 is missing: 4 may have overwritten it, and the batch begins at 3.
        c.message(4, 3, true);
        let q = c.question();
        c.answer(q, 4);
        assert_eq!(c.covered(), 1, "at 2 and 3 something is hidden");
        c.message(5, 3, false);
        assert_eq!(c.covered(), 5);
        c.message(8, 7, true);
        let q = c.question();
        assert!(c.nothing_more(q, 9));
        assert_eq!((c.position(), c.covered()), (9, 5));
        c.batch_is_over();
        assert_eq!(c.covered(), 9);
    }
}
