//! What all slices of the node hold in memory, beside the node's quota.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Shared by all workers of a node.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    quota: usize,
    totals: Arc<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    bytes: AtomicUsize,
    /// What lists have brought, and making slices durable does not give back.
    pinned: AtomicUsize,
    slices: AtomicUsize,
}

/// What one worker has entered.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Entered {
    /// What becomes free when it is made durable.
    pub(crate) bytes: usize,
    /// What lists have brought: stages, what was named, the oldest documents.
    pub(crate) pinned: usize,
    pub(crate) slices: usize,
}

impl Ledger {
    /// `quota`: bytes that all slices together should not exceed.
    pub(crate) fn new(quota: usize) -> Self {
        Self { quota, totals: Arc::default() }
    }

    /// Replaces what a worker has entered.
    pub(crate) fn enter(&self, entered: &mut Entered, now: Entered) {
        // Wrapping: the sum of all entries is right once they are all in.
        self.totals.bytes.fetch_add(now.bytes.wrapping_sub(entered.bytes), Ordering::Relaxed);
        self.totals.pinned.fetch_add(now.pinned.wrapping_sub(entered.pinned), Ordering::Relaxed);
        self.totals.slices.fetch_add(now.slices.wrapping_sub(entered.slices), Ordering::Relaxed);
        *entered = now;
    }

    /// What is left of a bound for what can become durable: what is pinned takes half of it at most, so that this always goes on.
    fn room(&self, bound: usize) -> usize {
        bound - self.totals.pinned.load(Ordering::Relaxed).min(bound / 2)
    }

    /// Above the quota: slices that hold this much should become durable, and at least one of the node does hold it.
    pub(crate) fn too_much(&self) -> Option<usize> {
        self.share_above(self.quota)
    }

    /// The same above half of the quota: a filled slice keeps what a persist writes until it is written, and as much comes
    /// together meanwhile.
    pub(crate) fn much(&self) -> Option<usize> {
        self.share_above(self.quota / 2)
    }

    fn share_above(&self, bound: usize) -> Option<usize> {
        let bytes = self.totals.bytes.load(Ordering::Relaxed);
        (bytes > self.room(bound)).then(|| bytes / self.totals.slices.load(Ordering::Relaxed).max(1))
    }

    /// Twice the quota: sessions bring nothing more before something is durable.
    pub(crate) fn is_full(&self) -> bool {
        self.totals.bytes.load(Ordering::Relaxed) > self.room(self.quota.saturating_mul(2))
    }

    /// Four times the quota, as when nothing can be made durable any more: live changes are not applied either. It is more
    /// than a running persist takes, which counts twice.
    pub(crate) fn is_overfull(&self) -> bool {
        self.totals.bytes.load(Ordering::Relaxed) > self.room(self.quota.saturating_mul(4))
    }

    /// What a slice may remember of its oldest documents, bytes: all slices together an eighth of the quota.
    pub(crate) fn room_for_oldest(&self) -> usize {
        self.quota / 8 / self.totals.slices.load(Ordering::Relaxed).max(1)
    }

    /// Lists have brought more than half of the quota: what is staged is given up, the largest first.
    pub(crate) fn stages_too_much(&self) -> bool {
        self.totals.pinned.load(Ordering::Relaxed) > self.quota / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(ledger: &Ledger, entered: &mut Entered, bytes: usize, slices: usize) {
        ledger.enter(entered, Entered { bytes, pinned: 0, slices });
    }

    #[test]
    fn what_lists_bring_takes_half_of_each_bound_at_most() {
        let ledger = Ledger::new(100);
        let (mut a, mut b) = (Entered::default(), Entered::default());
        ledger.enter(&mut a, Entered { bytes: 60, pinned: 50, slices: 2 });
        assert_eq!((ledger.too_much(), ledger.stages_too_much()), (Some(30), false));
        ledger.enter(&mut a, Entered { bytes: 49, pinned: 1_000, slices: 2 });
        assert!(ledger.too_much().is_none() && !ledger.is_full() && ledger.stages_too_much());
        ledger.enter(&mut b, Entered { bytes: 52, pinned: 0, slices: 1 });
        assert!(ledger.is_full() && !ledger.is_overfull());
        ledger.enter(&mut a, Entered::default());
        assert!(!ledger.is_full() && !ledger.stages_too_much());
    }

    #[test]
    fn all_slices_remember_an_eighth_of_the_quota_together() {
        let ledger = Ledger::new(800);
        assert_eq!(ledger.room_for_oldest(), 100);
        let (mut a, mut b) = (Entered::default(), Entered::default());
        enter(&ledger, &mut a, 0, 7);
        enter(&ledger, &mut b, 0, 3);
        assert_eq!(ledger.room_for_oldest(), 10);
    }

    #[test]
    fn the_largest_slice_always_holds_its_share() {
        let ledger = Ledger::new(100);
        let (mut a, mut b) = (Entered::default(), Entered::default());
        enter(&ledger, &mut a, 90, 3);
        assert_eq!((ledger.too_much(), ledger.is_full()), (None, false));
        enter(&ledger, &mut b, 130, 1);
        assert_eq!((ledger.too_much(), ledger.is_full()), (Some(55), true));
        enter(&ledger, &mut b, 20, 1);
        assert_eq!((ledger.too_much(), ledger.is_full()), (Some(27), false));
        assert_eq!(ledger.much(), Some(27));
        enter(&ledger, &mut a, 0, 0);
        assert_eq!((ledger.too_much(), ledger.much()), (None, None));
    }
}
