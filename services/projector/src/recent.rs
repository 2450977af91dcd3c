//! The newest messages of a source as they were read, so that a history whose end was overwritten can be accounted for.
//!
//! With a history of one a busy stream soon has none of its newest messages any more: after a restart of its server nothing that
//! is there proves what was read last. But where the document of each of these messages is known, it can be shown that nothing is
//! missed even if some of them were lost and their seqnos given away again:
//! - what is still there of them is what was read there, and
//! - every document that was read above the newest of those has a newer message, above all that was read.
//!
//! Then who reads on has every document that was written as it is once a last sequence is reached that was asked for after that;
//! until then nothing more is covered ([`crate::cover::Cover::doubt`]). A message that had been removed without a message may be
//! there again all the same, which only a reconcile shows.

use std::collections::{BTreeSet, VecDeque};

/// Messages of one stream that are remembered at most.
pub const MOST: usize = 16_384;
/// Messages of all streams of a process that are remembered, as long as each has its least share.
const MOST_TOGETHER: usize = 16 * MOST;
/// Messages of one stream that are remembered at least.
const LEAST: usize = 2 * BEFORE as usize;
/// Sequences before its beginning that a reader looks at, so that it remembers something from the beginning.
pub const BEFORE: u64 = 2_048;
/// Bytes of subjects that are remembered, for each message on average.
const TEXT: usize = 128;
/// What is still there is looked for this close to the end first, then farther and farther from it.
const CLOSE: u64 = 64;
const FARTHER: u64 = 8;

#[derive(Debug, Clone, Copy)]
struct Mark {
    seqno: u64,
    time: i64,
    hash: u64,
    subject: usize,
}

/// The newest messages of a stream, in order.
#[derive(Debug)]
pub struct Recent {
    most: usize,
    /// All that was read above this is remembered.
    after: u64,
    /// Only once everything of the stream up to here is read.
    from: u64,
    /// Nothing was there between the last of them and this.
    passed: u64,
    marks: VecDeque<Mark>,
    /// Their subjects, one behind the other.
    text: VecDeque<u8>,
}

/// Looks for what is still there of the messages that are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// What lies below what is remembered is proven, or need not be.
    reaches: bool,
    /// Up to here the history is what was read.
    intact: u64,
    /// Nothing is there above this and up to `top`.
    empty: u64,
    top: u64,
    /// The first message above this is to be looked at.
    at: u64,
    step: u64,
}

impl Recent {
    /// Of a stream that is read after a seqno, and ended at `last` when that began.
    pub fn new(after: u64, last: u64, most: usize) -> Self {
        Self { most, after, from: last, passed: 0, marks: VecDeque::new(), text: VecDeque::new() }
    }

    /// How many messages of each stream are remembered by a process that may read so many streams.
    pub fn share(streams: usize) -> usize {
        (MOST_TOGETHER / streams.max(1)).clamp(LEAST, MOST)
    }

    /// A message was read.
    pub fn push(&mut self, seqno: u64, subject: &str, time: i64, hash: u64) {
        if seqno <= self.after {
            return;
        }
        self.text.extend(subject.as_bytes());
        self.marks.push_back(Mark { seqno, time, hash, subject: subject.len() });
        while self.marks.len() > self.most || self.text.len() > self.most.saturating_mul(TEXT) {
            let Some(oldest) = self.marks.pop_front() else { return };
            self.text.drain(..oldest.subject);
            self.after = oldest.seqno;
        }
    }

    /// The stream's last messages were removed before they were read.
    pub fn pass(&mut self, seqno: u64) {
        self.passed = seqno;
    }

    /// The last message that was read; what comes above it is yet to be read.
    pub fn last_read(&self) -> u64 {
        self.marks.back().map_or(self.after, |mark| mark.seqno)
    }

    fn last(&self) -> u64 {
        self.last_read().max(self.passed)
    }

    /// Accounts for what lies above `intact`, in a stream that begins with `first_seq`; None: not all of what anybody holds, up to
    /// `held`, is known to this reader.
    pub fn walk(&self, intact: u64, held: u64, first_seq: u64) -> Option<Walk> {
        // Where nothing is there below, nothing needs to be proven below.
        let reaches = intact >= self.after || first_seq > self.after;
        let (intact, top) = (intact.max(self.after), self.last());
        let at = top.saturating_sub(CLOSE).max(intact);
        (top >= held.max(self.from)).then_some(Walk { reaches, intact, empty: top, top, at, step: CLOSE })
    }

    fn is(&self, seqno: u64, time: i64, hash: u64) -> bool {
        let found = self.marks.binary_search_by_key(&seqno, |mark| mark.seqno);
        found.is_ok_and(|at| (self.marks[at].time, self.marks[at].hash) == (time, hash))
    }

    /// The subjects of what was read above a seqno.
    pub fn subjects_above(&mut self, seqno: u64) -> Vec<String> {
        let text = self.text.make_contiguous();
        let mut subjects: BTreeSet<&[u8]> = BTreeSet::new();
        let mut at = 0;
        for mark in &self.marks {
            let end = at + mark.subject;
            if mark.seqno > seqno {
                subjects.insert(&text[at..end]);
            }
            at = end;
        }
        subjects.iter().map(|subject| String::from_utf8_lossy(subject).into_owned()).collect()
    }
}

impl Walk {
    /// The first message above this sequence is to be looked up; None: it is over.
    pub fn next(&self) -> Option<u64> {
        (self.empty > self.intact).then_some(self.at)
    }

    /// What was found there, with time and hash; false: it is not what was read.
    pub fn found(&mut self, recent: &Recent, first: Option<(u64, i64, u64)>) -> bool {
        if let Some((seqno, time, hash)) = first.filter(|(seqno, ..)| *seqno <= self.empty) {
            if !recent.is(seqno, time, hash) {
                return false;
            }
            (self.intact, self.at, self.reaches) = (seqno, seqno, true);
        } else {
            self.empty = self.at;
            self.step = self.step.saturating_mul(FARTHER);
            self.at = self.at.saturating_sub(self.step).max(self.intact);
        }
        true
    }

    /// Up to here the history is what was read, and above nothing of it is there; None: nothing proves what lies below.
    pub fn intact(&self) -> Option<u64> {
        self.reaches.then_some(self.intact)
    }

    /// Whether there is anything above that.
    pub fn is_overwritten(&self) -> bool {
        self.intact < self.top
    }

    /// Whether who reads on meets a newer message of a document, of which this is the last one. If there is none it may be gone
    /// by a loss, and if it is an older one its newer ones are.
    pub fn is_newer(&self, last: Option<u64>) -> bool {
        last.is_some_and(|last| last > self.top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages 11 to 20, of documents `d0` to `d4` in turn.
    fn recent(most: usize) -> Recent {
        let mut recent = Recent::new(10, 20, most);
        for seqno in 11..=20 {
            recent.push(seqno, &format!("d{}", seqno % 5), seqno as i64, seqno * 7);
        }
        recent
    }

    /// Of these messages, each as it was read; answers how many were looked up.
    fn walked(recent: &Recent, walk: &mut Walk, there: &[u64]) -> usize {
        let mut looked_up = 0;
        while let Some(at) = walk.next() {
            looked_up += 1;
            let first = there.iter().find(|seqno| **seqno > at).map(|s| (*s, *s as i64, s * 7));
            assert!(walk.found(recent, first));
        }
        looked_up
    }

    #[test]
    fn the_newest_message_that_is_still_there_is_found_and_only_what_is_above_it_is_in_doubt() {
        let mut recent = recent(MOST);
        let mut walk = recent.walk(10, 20, 1).unwrap();
        walked(&recent, &mut walk, &[3, 12, 17, 23]);
        assert_eq!(walk.intact(), Some(17));
        assert_eq!(recent.subjects_above(17), ["d0", "d3", "d4"]);
        assert!(walk.is_newer(Some(21)) && !walk.is_newer(Some(19)) && !walk.is_newer(None));
    }

    #[test]
    fn where_nothing_is_there_any_more_everything_that_is_remembered_is_in_doubt() {
        let recent = recent(MOST);
        let mut walk = recent.walk(10, 20, 1).unwrap();
        walked(&recent, &mut walk, &[3, 23]);
        assert_eq!(walk.intact(), Some(10));
    }

    #[test]
    fn another_message_in_the_place_of_one_that_was_read_is_no_account() {
        let recent = recent(MOST);
        for first in [(15, 15, 1), (15, 1, 105)] {
            assert!(!recent.walk(10, 20, 1).unwrap().found(&recent, Some(first)));
        }
        let mut unread = Recent::new(10, 10, MOST);
        unread.push(20, "d0", 20, 140);
        assert!(!unread.walk(10, 20, 1).unwrap().found(&unread, Some((15, 15, 105))), "nobody read it");
    }

    #[test]
    fn what_was_passed_over_must_still_be_empty() {
        let mut recent = recent(MOST);
        recent.pass(25);
        let mut walk = recent.walk(20, 25, 1).unwrap();
        walked(&recent, &mut walk, &[20, 26]);
        assert!(walk.is_overwritten() && !walk.is_newer(Some(25)), "it may have been filled, and emptied again");
        assert!(!recent.walk(20, 25, 1).unwrap().found(&recent, Some((23, 23, 161))));
    }

    #[test]
    fn what_is_not_remembered_cannot_be_accounted_for() {
        let recent = recent(4);
        let intact = |intact, first_seq, there| {
            let mut walk = recent.walk(intact, 20, first_seq).unwrap();
            walked(&recent, &mut walk, there);
            walk.intact()
        };
        assert_eq!(intact(15, 1, &[15]), None, "16 was read, and forgotten");
        assert_eq!(intact(16, 1, &[16]), Some(16));
        assert_eq!(intact(0, 17, &[]), Some(16), "nothing is there of what was forgotten");
        assert_eq!(intact(0, 1, &[2, 18]), Some(18), "what is still there proves all that came before it");
        assert!(recent.walk(16, 21, 1).is_none(), "somebody holds more");
        let begun = Recent::new(16, 21, MOST);
        assert!(begun.walk(16, 16, 1).is_none(), "what was overwritten before it began is yet to be read");
    }

    #[test]
    fn many_streams_share_what_is_remembered() {
        assert_eq!([0, 1, 16, 64, 1_000].map(Recent::share), [MOST, MOST, MOST, MOST / 4, LEAST]);
        let (most, mut recent) = (Recent::share(64), Recent::new(0, 0, Recent::share(64)));
        (1..=MOST as u64).for_each(|seqno| recent.push(seqno, &"d".repeat(200), seqno as i64, seqno));
        assert!(recent.marks.len() <= most && recent.text.len() <= most * TEXT);
    }

    #[test]
    fn far_from_the_end_it_is_looked_for_in_ever_larger_steps() {
        let mut recent = Recent::new(0, 0, MOST);
        (1..=10_000).for_each(|seqno| recent.push(seqno, "d", seqno as i64, seqno * 7));
        let mut walk = recent.walk(0, 10_000, 1).unwrap();
        let looked_up = walked(&recent, &mut walk, &[1, 2, 3, 5_000]);
        assert_eq!((walk.intact(), looked_up), (Some(5_000), 8));
    }
}
