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
    slices: AtomicUsize,
}

/// What one worker has entered.
#[derive(Debug, Default)]
pub(crate) struct Entered {
    bytes: usize,
    slices: usize,
}

impl Ledger {
    /// `quota`: bytes that all slices together should not exceed.
    pub(crate) fn new(quota: usize) -> Self {
        Self { quota, totals: Arc::default() }
    }

    /// Replaces what a worker has entered.
    pub(crate) fn enter(&self, entered: &mut Entered, bytes: usize, slices: usize) {
        // Wrapping: the sum of all entries is right once they are all in.
        self.totals.bytes.fetch_add(bytes.wrapping_sub(entered.bytes), Ordering::Relaxed);
        self.totals.slices.fetch_add(slices.wrapping_sub(entered.slices), Ordering::Relaxed);
        *entered = Entered { bytes, slices };
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
        (bytes > bound).then(|| bytes / self.totals.slices.load(Ordering::Relaxed).max(1))
    }

    /// Twice the quota: sessions bring nothing more before something is durable.
    pub(crate) fn is_full(&self) -> bool {
        self.totals.bytes.load(Ordering::Relaxed) > self.quota.saturating_mul(2)
    }

    /// Four times the quota, as when nothing can be made durable any more: live changes are not applied either. It is more
    /// than a running persist takes, which counts twice.
    pub(crate) fn is_overfull(&self) -> bool {
        self.totals.bytes.load(Ordering::Relaxed) > self.quota.saturating_mul(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_slice_always_holds_its_share() {
        let ledger = Ledger::new(100);
        let (mut a, mut b) = (Entered::default(), Entered::default());
        ledger.enter(&mut a, 90, 3);
        assert_eq!((ledger.too_much(), ledger.is_full()), (None, false));
        ledger.enter(&mut b, 130, 1);
        assert_eq!((ledger.too_much(), ledger.is_full()), (Some(55), true));
        ledger.enter(&mut b, 20, 1);
        assert_eq!((ledger.too_much(), ledger.is_full()), (Some(27), false));
        assert_eq!(ledger.much(), Some(27));
        ledger.enter(&mut a, 0, 0);
        assert_eq!((ledger.too_much(), ledger.much()), (None, None));
    }
}
