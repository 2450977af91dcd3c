//! What has been sent and not yet acknowledged.

use crate::packer::Packed;
use highwater_schemas::{
    Position,
    timestamp::{Bookmark, Dropped},
};
use std::{collections::VecDeque, sync::Arc};

/// Intervals under way at most.
pub const WINDOW: usize = 16;
/// Bytes of theirs under way, but for the interval that reaches this.
const MOST_BYTES: usize = 2 * 1024 * 1024;
/// Bytes under way in the windows of all lanes of a process, which share them evenly, and what each has at least.
const TOGETHER: usize = 8 * 1024 * 1024;
const LEAST_BYTES: usize = 64 * 1024;
/// A message that failed this often makes the router send its whole window again.
pub const FAILURES: u32 = 3;

/// One message of one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Part {
    pub interval: u64,
    pub message: usize,
    pub attempt: u32,
}

#[derive(Debug)]
struct Interval {
    id: u64,
    packed: Packed,
    bytes: usize,
    acked: Vec<bool>,
    failures: u32,
}

/// Counts the running lanes of a process: each holds a clone, and so does what starts them.
pub type Lanes = Arc<()>;

/// The intervals under way, oldest first.
#[derive(Debug, Default)]
pub struct Window {
    lanes: Lanes,
    open: VecDeque<Interval>,
    /// Of the intervals in it.
    bytes: usize,
    next: u64,
    attempt: u32,
}

/// What intervals that are published say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Everything up to here is there.
    pub to: Position,
    pub covered: u64,
    /// What the rounds up to there have dropped.
    pub dropped: Dropped,
    /// The newest bookmark of them all.
    pub bookmark: Option<Bookmark>,
    /// The newest position that timestamps may name; None: no newer one than before.
    pub offered: Option<Offered>,
}

/// A position that timestamps may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered {
    pub position: Position,
    pub server_time: i64,
    pub hash: u64,
    /// What the rounds up to there have dropped.
    pub dropped: Dropped,
}

impl Offered {
    fn of(packed: &Packed) -> Option<Self> {
        packed.offer.map(|offer| Self {
            position: Position::new(offer.seqno, packed.to.round),
            server_time: offer.server_time,
            hash: offer.hash,
            dropped: packed.dropped,
        })
    }
}

/// What a failed publish asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Resend {
    Nothing,
    One(Part),
    /// In order.
    All(Vec<Part>),
}

fn size(packed: &Packed) -> usize {
    packed.messages.iter().map(|message| message.versions.size()).sum()
}

impl Window {
    /// That of one of many lanes.
    pub fn sharing(lanes: Lanes) -> Self {
        Self { lanes, ..Self::default() }
    }

    pub fn full(&self) -> bool {
        // The service that hands them out holds one too.
        let lanes = Arc::strong_count(&self.lanes).saturating_sub(1).max(1);
        let share = (TOGETHER / lanes).clamp(LEAST_BYTES, MOST_BYTES);
        self.open.len() >= WINDOW || self.bytes >= share
    }

    /// Takes an interval; answers the messages to send.
    pub fn push(&mut self, packed: Packed) -> Vec<Part> {
        let id = self.next;
        self.next += 1;
        let parts =
            (0..packed.messages.len()).map(|at| Part { interval: id, message: at, attempt: self.attempt }).collect();
        let acked = vec![false; packed.messages.len()];
        let bytes = size(&packed);
        self.bytes += bytes;
        self.open.push_back(Interval { id, packed, bytes, acked, failures: 0 });
        parts
    }

    pub fn get_mut(&mut self, part: Part) -> Option<&mut Packed> {
        self.open.iter_mut().find(|i| i.id == part.interval).map(|i| &mut i.packed)
    }

    pub fn acked(&mut self, part: Part) {
        if let Some(interval) = self.open.iter_mut().find(|i| i.id == part.interval)
            && let Some(slot) = interval.acked.get_mut(part.message)
        {
            *slot = true;
        }
    }

    pub fn failed(&mut self, part: Part) -> Resend {
        let attempt = self.attempt;
        let Some(interval) = self.open.iter_mut().find(|i| i.id == part.interval) else { return Resend::Nothing };
        if part.attempt != attempt || interval.acked.get(part.message) != Some(&false) {
            return Resend::Nothing;
        }
        interval.failures += 1;
        if interval.failures < FAILURES {
            return Resend::One(part);
        }
        self.attempt += 1;
        let mut all = Vec::new();
        for interval in &mut self.open {
            interval.failures = 0;
            for message in (0..interval.acked.len()).filter(|n| !interval.acked[*n]) {
                all.push(Part { interval: interval.id, message, attempt: self.attempt });
            }
        }
        Resend::All(all)
    }

    /// Drops what is wholly acknowledged from the front; None: nothing is.
    pub fn published(&mut self) -> Option<Published> {
        let mut all: Option<Published> = None;
        while self.open.front().is_some_and(|i| i.acked.iter().all(|a| *a)) {
            let Interval { packed, bytes, .. } = self.open.pop_front()?;
            self.bytes -= bytes;
            let (bookmark, offered) = all.take().map_or((None, None), |older| (older.bookmark, older.offered));
            all = Some(Published {
                to: packed.to,
                covered: packed.covered,
                dropped: packed.dropped,
                offered: Offered::of(&packed).or(offered),
                bookmark: packed.bookmark.or(bookmark),
            });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packer::Message;
    use highwater_schemas::{
        lane::Offer,
        wire::{DocOp, KeyVersions},
    };

    fn packed(to: u64, messages: usize) -> Packed {
        let message = |n| Message { subscriber: format!("n{n}"), only: Vec::new(), versions: KeyVersions::default() };
        Packed {
            topology: 1,
            from: Position::new(to - 1, 0),
            to: Position::new(to, 0),
            covered: to,
            server_time: 0,
            hash: 0,
            bookmark: None,
            offer: Some(Offer { seqno: to, server_time: 0, hash: 0 }),
            removal: None,
            dropped_before: Dropped::default(),
            dropped: Dropped::default(),
            messages: (0..messages).map(message).collect(),
        }
    }

    #[test]
    fn an_interval_counts_when_every_copy_and_all_before_it_are_acknowledged() {
        let mut w = Window::default();
        let (first, second) = (w.push(packed(1, 2)), w.push(packed(2, 2)));
        w.acked(first[0]);
        w.acked(second[0]);
        w.acked(second[1]);
        assert_eq!(w.published(), None);
        w.acked(first[1]);
        assert_eq!(w.published().map(|p| p.to.seqno), Some(2));
        assert_eq!(w.published(), None);
    }

    #[test]
    fn many_lanes_share_what_their_windows_hold() {
        let lanes = Lanes::default();
        let others: Vec<Lanes> = (0..63).map(|_| Lanes::clone(&lanes)).collect();
        let mut w = Window::sharing(Lanes::clone(&lanes));
        let mut large = packed(1, 1);
        large.messages[0].versions.push_doc(1, &"x".repeat(TOGETHER / 64), DocOp::Put);
        assert!(!w.full(), "one interval always has room");
        w.push(large);
        assert!(w.full());
        drop(others);
        assert!(!w.full(), "the others have ended");
        let _crowd: Vec<Lanes> = (0..10_000).map(|_| Lanes::clone(&lanes)).collect();
        w.push(packed(2, 1));
        assert!(w.full());
        assert!(!Window::sharing(lanes).full());
    }

    #[test]
    fn a_window_is_full_with_few_large_intervals() {
        let mut w = Window::default();
        let large = |to| {
            let mut packed = packed(to, 2);
            for message in &mut packed.messages {
                message.versions.push_doc(to, &"x".repeat(MOST_BYTES / 4), DocOp::Put);
            }
            packed
        };
        let first = w.push(large(1));
        assert!(!w.full());
        let second = w.push(large(2));
        assert!(w.full());
        for part in first {
            w.acked(part);
        }
        assert!(w.published().is_some() && !w.full());
        for part in second {
            w.acked(part);
        }
        assert!(w.published().is_some() && w.bytes == 0);
    }

    #[test]
    fn what_is_published_together_leaves_its_newest_bookmark() {
        let mut w = Window::default();
        let marked = |to| Packed { bookmark: Some(Bookmark { seqno: to, ..Bookmark::default() }), ..packed(to, 1) };
        let parts = [w.push(marked(1)), w.push(marked(2)), w.push(packed(3, 1))];
        parts.iter().rev().for_each(|part| w.acked(part[0]));
        let last = w.published().unwrap();
        assert_eq!((last.to.seqno, last.bookmark.map(|b| b.seqno)), (3, Some(2)));
    }

    #[test]
    fn what_is_published_together_offers_the_newest_position_that_may_be_named() {
        let mut w = Window::default();
        let inside = |to| Packed { offer: None, ..packed(to, 1) };
        let behind = |to| Packed { offer: Some(Offer { seqno: to - 2, server_time: 7, hash: 8 }), ..packed(to, 1) };
        let parts = [w.push(packed(1, 1)), w.push(behind(5)), w.push(inside(6))];
        parts.iter().rev().for_each(|part| w.acked(part[0]));
        let all = w.published().unwrap();
        let offered = all.offered.unwrap();
        assert_eq!((all.to.seqno, offered.position.seqno, offered.server_time, offered.hash), (6, 3, 7, 8));
        let part = w.push(inside(7));
        w.acked(part[0]);
        assert_eq!(w.published().unwrap().offered, None);
    }

    #[test]
    fn without_subscribers_an_interval_counts_at_once() {
        let mut w = Window::default();
        assert!(w.push(packed(1, 0)).is_empty());
        assert_eq!(w.published().map(|p| p.to.seqno), Some(1));
    }

    #[test]
    fn after_three_failures_the_window_is_sent_again_under_a_new_attempt() {
        let mut w = Window::default();
        let (first, second) = (w.push(packed(1, 1))[0], w.push(packed(2, 1))[0]);
        assert_eq!(w.failed(first), Resend::One(first));
        assert_eq!(w.failed(first), Resend::One(first));
        let again = |interval| Part { interval, message: 0, attempt: 1 };
        assert_eq!(w.failed(first), Resend::All(vec![again(0), again(1)]));
        assert_eq!(w.failed(second), Resend::Nothing, "of an earlier attempt");
        w.acked(first);
        assert_eq!(w.published().map(|p| p.to.seqno), Some(1), "a late acknowledgement counts");
    }
}
