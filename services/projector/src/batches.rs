//! Atomic batches (ADR-50), of which nobody may see a part.
//!
//! The messages of a batch have consecutive sequences, and each says by its headers which of the batch it is; the last one that
//! was stored says that it is the last. So every one of them shows where its batch begins, and a position is *whole* when no
//! batch has messages both at or below it and above it. Only whole positions are offered to those who make timestamps.
//!
//! With a short history the beginning, the middle and the end of a batch may be overwritten before they are read. The end is
//! behind us once the next batch has begun, or a message is read that belongs to none, or the store has nothing further: twice,
//! [`SETTLED`] apart, for it is the whole bucket that would wait for an end that never comes. What was overwritten is in a
//! message that comes later: where such a batch was is a hole, and [`crate::cover`] says when nothing of it is hidden any more.
//! It is told that the hole begins where the batch does.
//!
//! Headers can say anything: whoever claims to be in a batch that begins at or before another message than its own is believed
//! in nothing, and so is who claims to go on with a batch that has lasted longer than [`LONGEST`]: a server stores a batch at once,
//! but servers before 2.12 also store these headers from whoever sends them.

use std::time::Duration;

/// A batch of which the store has nothing further is over when it says so again after this time.
pub const SETTLED: Duration = Duration::from_secs(1);

/// Between the first message of a batch that was read and the last one, by the server's clock, in nanoseconds.
pub const LONGEST: i64 = 10_000_000_000;

/// What the headers of a message say of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Tells the batch from others.
    pub batch: u64,
    /// Which message of the batch it is; the first is 1.
    pub sequence: u64,
    /// It is the last one.
    pub commit: bool,
}

/// A batch that is not known to be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    batch: u64,
    /// The sequence of its first message.
    first: u64,
    /// When the first message of it that was read was stored, nanoseconds since the epoch by the server's clock.
    since: i64,
}

/// Where the batches of a stream begin and end, as far as it was read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Batches {
    /// That of the message read last.
    open: Option<Open>,
    last: Option<u64>,
    seen: bool,
    /// The position above which the store had nothing further, and when it said so first.
    nothing: Option<(u64, Duration)>,
}

impl Batches {
    /// The next message was read, stored at `time`. Answers where a hole right before it begins at the latest: it may have taken a
    /// part of a batch of which another part was read.
    pub fn message(&mut self, seq: u64, time: i64, part: Option<Part>) -> u64 {
        let claimed = part.and_then(|part| {
            let first = seq.checked_add(1)?.checked_sub(part.sequence)?;
            // The first message of a stream is 1, that of a batch too.
            (first > 0 && part.sequence > 0).then_some(Open { batch: part.batch, first, since: time })
        });
        let believed = claimed.and_then(|claimed| match self.open {
            Some(open) if (open.batch, open.first) == (claimed.batch, claimed.first) => {
                (time.saturating_sub(open.since) <= LONGEST).then_some(open)
            }
            _ => Some(claimed).filter(|claimed| self.last.is_none_or(|last| last < claimed.first)),
        });
        let begins = [self.open, believed].into_iter().flatten().map(|open| open.first).min().unwrap_or(u64::MAX);
        self.seen |= believed.is_some();
        self.open = believed.filter(|_| part.is_some_and(|part| !part.commit));
        self.last = Some(seq);
        self.nothing = None;
        begins
    }

    /// The highest whole position up to the one that is reached.
    pub fn whole(&self, position: u64) -> u64 {
        self.open.map_or(position, |open| position.min(open.first - 1))
    }

    /// Where a hole right behind what was read begins at the latest.
    pub fn begins(&self) -> u64 {
        self.open.map_or(u64::MAX, |open| open.first)
    }

    /// The end of a batch is yet to come.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The stream has had batches.
    pub fn seen(&self) -> bool {
        self.seen
    }

    /// The store had no message above `position`, asked after all up to there was read. True: so the batch that was open is over.
    pub fn nothing_follows(&mut self, position: u64, now: Duration) -> bool {
        if self.open.is_none() {
            return false;
        }
        let since = match self.nothing {
            Some((at, since)) if at == position => since,
            _ => {
                self.nothing = Some((position, now));
                return false;
            }
        };
        let over = now.saturating_sub(since) >= SETTLED;
        if over {
            self.open = None;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(batch: u64, sequence: u64) -> Part {
        Part { batch, sequence, commit: false }
    }

    fn end(batch: u64, sequence: u64) -> Part {
        Part { batch, sequence, commit: true }
    }

    /// What is whole after each message.
    fn read(batches: &mut Batches, messages: &[(u64, Option<Part>)]) -> Vec<u64> {
        let whole = messages.iter().map(|(seq, part)| {
            batches.message(*seq, 0, *part);
            batches.whole(*seq)
        });
        whole.collect()
    }

    #[test]
    fn no_position_inside_of_a_batch_is_whole() {
        let mut b = Batches::default();
        let whole =
            read(&mut b, &[(1, None), (2, Some(part(7, 1))), (3, Some(part(7, 2))), (4, Some(end(7, 3))), (5, None)]);
        assert_eq!(whole, [1, 1, 1, 4, 5]);
        assert!(b.seen());
    }

    #[test]
    fn batches_back_to_back_are_whole_between_them() {
        let mut b = Batches::default();
        let whole = read(
            &mut b,
            &[
                (1, Some(part(7, 1))),
                (2, Some(end(7, 2))),
                (3, Some(end(8, 1))),
                (4, Some(part(9, 1))),
                (5, Some(end(9, 2))),
            ],
        );
        assert_eq!(whole, [0, 2, 3, 3, 5]);
    }

    #[test]
    fn what_is_left_of_a_batch_shows_where_it_begins() {
        let mut b = Batches::default();
        b.message(3, 0, None);
        // The first two are overwritten.
        assert_eq!(b.message(6, 0, Some(part(7, 3))), 4);
        assert_eq!(b.whole(6), 3);
        // And the fourth.
        assert_eq!(b.message(8, 0, Some(end(7, 5))), 4);
        assert_eq!(b.whole(8), 8);
    }

    #[test]
    fn an_end_that_was_overwritten_is_behind_the_next_message() {
        let mut b = Batches::default();
        assert_eq!(read(&mut b, &[(1, Some(part(7, 1))), (2, Some(part(7, 2))), (6, None)]), [0, 0, 6]);
        let mut b = Batches::default();
        assert_eq!(read(&mut b, &[(1, Some(part(7, 1))), (2, Some(part(7, 2))), (9, Some(part(8, 3)))]), [0, 0, 6]);
    }

    #[test]
    fn a_hole_begins_where_the_batch_around_it_does() {
        let mut b = Batches::default();
        b.message(1, 0, None);
        assert_eq!(b.message(2, 0, Some(part(7, 1))), 2);
        assert_eq!(b.begins(), 2);
        assert_eq!(b.message(5, 0, None), 2, "3 may be of the batch");
        assert_eq!(b.begins(), u64::MAX);
        assert_eq!(b.message(9, 0, None), u64::MAX);
    }

    #[test]
    fn a_reader_may_begin_inside_of_a_batch() {
        let mut b = Batches::default();
        assert_eq!(read(&mut b, &[(11, Some(part(7, 2))), (12, Some(end(7, 3)))]), [9, 12]);
    }

    #[test]
    fn an_end_that_never_comes_is_waited_for_until_the_store_has_said_twice_that_nothing_follows() {
        let mut b = Batches::default();
        assert!(!b.nothing_follows(0, Duration::ZERO));
        read(&mut b, &[(1, Some(part(7, 1)))]);
        assert!(!b.nothing_follows(1, Duration::from_millis(10)));
        assert!(!b.nothing_follows(1, Duration::from_millis(1_009)));
        b.message(2, 0, Some(part(7, 2)));
        assert!(!b.nothing_follows(2, Duration::from_millis(1_010)), "it went on");
        assert!(!b.nothing_follows(4, Duration::from_secs(3)), "what went on was removed");
        assert!(b.nothing_follows(4, Duration::from_secs(4)));
        assert_eq!((b.whole(4), b.is_open()), (4, false));
    }

    #[test]
    fn claims_that_contradict_are_not_believed() {
        let mut b = Batches::default();
        // Before the stream; no number at all; around a message that is of another batch, or of none.
        let whole = read(
            &mut b,
            &[(1, Some(part(7, 3))), (2, Some(part(7, 0))), (3, Some(part(7, u64::MAX))), (4, Some(part(7, 2)))],
        );
        assert_eq!(whole, [1, 2, 3, 4]);
        // Each the second of another batch.
        let whole = read(&mut b, &(5..100).map(|seq| (seq, Some(part(seq, 2)))).collect::<Vec<_>>());
        assert_eq!(whole, (5..100).collect::<Vec<_>>());
        // Each the first of one without an end: what was before it is whole.
        let whole = read(&mut b, &(100..200).map(|seq| (seq, Some(part(seq, 1)))).collect::<Vec<_>>());
        assert_eq!(whole, (99..199).collect::<Vec<_>>());
        assert!(!Batches::default().nothing_follows(u64::MAX, Duration::MAX));
        let mut b = Batches::default();
        b.message(u64::MAX, 0, Some(part(1, 1)));
        assert_eq!(b.whole(u64::MAX), u64::MAX, "no sequence is above it");
    }

    #[test]
    fn a_batch_that_lasts_too_long_is_none_and_a_large_one_is_one() {
        let mut b = Batches::default();
        b.message(1, 0, None);
        b.message(2, 5, Some(part(7, 1)));
        b.message(3, 5 + LONGEST, Some(part(7, 2)));
        assert_eq!(b.whole(3), 1);
        b.message(4, 6 + LONGEST, Some(part(7, 3)));
        assert_eq!((b.whole(4), b.is_open()), (4, false));
        b.message(5, 7 + LONGEST, Some(part(7, 4)));
        assert_eq!(b.whole(5), 5, "who claims to go on with it is believed no more");
        let mut b = Batches::default();
        for sequence in 1..=100_000 {
            b.message(sequence, 0, Some(part(7, sequence)));
            assert_eq!(b.whole(sequence), 0);
        }
        b.message(100_001, 0, Some(end(7, 100_001)));
        assert_eq!(b.whole(100_001), 100_001);
    }

    /// Batches and single messages at random, of which a reader gets what is not overwritten: it never offers a position inside
    /// of one, and offers the last one in the end.
    #[test]
    fn whatever_is_overwritten_no_position_inside_of_a_batch_is_whole() {
        let seed = 0x5eed;
        let mut state: u64 = seed;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..2_000 {
            let (mut stream, mut inside) = (Vec::new(), vec![false; 200]);
            let mut seq = 1;
            while seq < 100 {
                let size = [1, 1, 2, 3, 5, 17][next(6) as usize];
                let (batched, first) = (size > 1 || next(4) == 0, seq);
                for at in 0..size {
                    let part = Part { batch: first, sequence: at + 1, commit: at + 1 == size };
                    stream.push((seq, batched.then_some(part)));
                    inside[seq as usize] = at + 1 < size;
                    seq += 1;
                }
            }
            let lost = next(100);
            let there: Vec<_> = stream.iter().filter(|(seq, _)| *seq == 1 || next(100) >= lost).collect();
            let from = next((there.len() as u64 / 2).max(1)) as usize;
            let mut batches = Batches::default();
            let mut before = None;
            for (seq, part) in &there[from..] {
                let begins = batches.message(*seq, 0, *part);
                let whole = batches.whole(*seq);
                assert!(
                    !inside[whole as usize],
                    "seed {seed:#x} round {round}: {whole} is inside, at {seq} of {there:?}"
                );
                if let Some(before) = before {
                    let hole = begins.min(before + 1);
                    assert!(
                        before + 1 == *seq || hole == 1 || !inside[hole as usize - 1],
                        "round {round}: {hole} of {there:?}"
                    );
                }
                before = Some(*seq);
            }
            let last = there.last().map_or(0, |(seq, _)| *seq);
            if batches.is_open() {
                assert!(!batches.nothing_follows(last, Duration::ZERO));
                assert!(batches.nothing_follows(last, SETTLED));
            }
            assert_eq!(batches.whole(last), last);
        }
    }
}
