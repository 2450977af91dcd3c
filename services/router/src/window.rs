//! What has been sent and not yet acknowledged.

use crate::packer::Packed;
use std::collections::VecDeque;

/// Intervals under way at most.
pub const WINDOW: usize = 16;
/// A message that failed this often makes the router send its whole window again.
pub const FAILURES: u32 = 3;

/// One message of one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Part {
    pub interval: u64,
    pub node: usize,
    pub attempt: u32,
}

#[derive(Debug)]
struct Interval {
    id: u64,
    packed: Packed,
    acked: Vec<bool>,
    failures: u32,
}

/// The intervals under way, oldest first.
#[derive(Debug, Default)]
pub struct Window {
    open: VecDeque<Interval>,
    next: u64,
    attempt: u32,
}

/// What a failed publish asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Resend {
    Nothing,
    One(Part),
    /// In order.
    All(Vec<Part>),
}

impl Window {
    pub fn full(&self) -> bool {
        self.open.len() >= WINDOW
    }

    /// Takes an interval; answers the messages to send.
    pub fn push(&mut self, packed: Packed) -> Vec<Part> {
        let id = self.next;
        self.next += 1;
        let parts = (0..packed.nodes.len()).map(|node| Part { interval: id, node, attempt: self.attempt }).collect();
        let acked = vec![false; packed.nodes.len()];
        self.open.push_back(Interval { id, packed, acked, failures: 0 });
        parts
    }

    pub fn get_mut(&mut self, part: Part) -> Option<&mut Packed> {
        self.open.iter_mut().find(|i| i.id == part.interval).map(|i| &mut i.packed)
    }

    pub fn acked(&mut self, part: Part) {
        if let Some(interval) = self.open.iter_mut().find(|i| i.id == part.interval)
            && let Some(slot) = interval.acked.get_mut(part.node)
        {
            *slot = true;
        }
    }

    pub fn failed(&mut self, part: Part) -> Resend {
        let attempt = self.attempt;
        let Some(interval) = self.open.iter_mut().find(|i| i.id == part.interval) else { return Resend::Nothing };
        if part.attempt != attempt || interval.acked.get(part.node) != Some(&false) {
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
            for node in (0..interval.acked.len()).filter(|n| !interval.acked[*n]) {
                all.push(Part { interval: interval.id, node, attempt: self.attempt });
            }
        }
        Resend::All(all)
    }

    /// Drops what is wholly acknowledged from the front; answers the last such interval, with the newest bookmark of them all.
    pub fn published(&mut self) -> Option<Packed> {
        let mut last: Option<Packed> = None;
        while self.open.front().is_some_and(|i| i.acked.iter().all(|a| *a)) {
            let older = last.take().and_then(|packed| packed.bookmark);
            last = self.open.pop_front().map(|i| Packed { bookmark: i.packed.bookmark.or(older), ..i.packed });
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{
        Position,
        timestamp::{Bookmark, Dropped},
        wire::KeyVersions,
    };

    fn packed(to: u64, nodes: usize) -> Packed {
        Packed {
            topology: 1,
            from: Position::new(to - 1, 0),
            to: Position::new(to, 0),
            covered: to,
            server_time: 0,
            hash: 0,
            bookmark: None,
            removal: None,
            dropped_before: Dropped::default(),
            dropped: Dropped::default(),
            nodes: (0..nodes).map(|n| (format!("n{n}"), KeyVersions::default())).collect(),
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
    fn what_is_published_together_leaves_its_newest_bookmark() {
        let mut w = Window::default();
        let marked = |to| Packed { bookmark: Some(Bookmark { seqno: to, ..Bookmark::default() }), ..packed(to, 1) };
        let parts = [w.push(marked(1)), w.push(marked(2)), w.push(packed(3, 1))];
        parts.iter().rev().for_each(|part| w.acked(part[0]));
        let last = w.published().unwrap();
        assert_eq!((last.to.seqno, last.bookmark.map(|b| b.seqno)), (3, Some(2)));
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
        let again = |interval| Part { interval, node: 0, attempt: 1 };
        assert_eq!(w.failed(first), Resend::All(vec![again(0), again(1)]));
        assert_eq!(w.failed(second), Resend::Nothing, "of an earlier attempt");
        w.acked(first);
        assert_eq!(w.published().map(|p| p.to.seqno), Some(1), "a late acknowledgement counts");
    }
}
