//! What a bucket's core decides.

use super::{Batch, Step};
use crate::store::SliceMark;
use highwater_schemas::{StabilityTimestamp, state::SliceName};
use std::sync::Arc;

/// What brings a slice from one ST to the next, with the vbucket of each step.
pub type Steps = Vec<(u16, Step)>;

/// Why something is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A persistence timestamp.
    Timestamp,
    /// Memory is short, a session goes on, or the node ends.
    Interim,
    /// A build has read enough to join the live chain.
    Built,
}

/// What to do, in this order.
#[derive(Debug)]
pub enum Action {
    /// Open the store of a slice, from scratch when `reset`, and tell with [`BucketCore::opened`].
    Open { slice: SliceName, reset: bool },
    /// The source's history is another one: as [`Action::Open`], and nothing is answered meanwhile.
    Rewind { slice: SliceName },
    /// Go back to the kept snapshot of this ST, durably, and tell with [`BucketCore::opened`].
    RollBack { slice: SliceName, st: u64 },
    /// The slice is no longer hosted: close its store and remove its files.
    Remove { slice: SliceName },
    /// Apply the steps, seal, and offer the snapshot as this ST if `readable`.
    Apply { slice: SliceName, steps: Steps, st: Arc<StabilityTimestamp>, readable: bool },
    /// Take a session's batch: its documents above `after`. In bulk while the slice was never readable.
    Collect { slice: SliceName, batch: Arc<Batch>, after: u64, bulk: bool },
    /// Take a batch of a session's list: its documents above `after` are present. A seqno up to `proven` names one message.
    Compare { slice: SliceName, session: u64, batch: Arc<Batch>, after: u64, proven: u64 },
    /// The list of a vbucket is complete: what it did not name is gone. Tell with [`BucketCore::walked`].
    Sweep { slice: SliceName, session: u64, vb: u16, walk: u64 },
    /// What the list of a reconcile's session tells is to be staged.
    BeginStage { slice: SliceName, reconcile: u64, vbs: u16 },
    /// Take a batch of the list: its documents above `after` are present.
    Stage { slice: SliceName, batch: Arc<Batch>, after: u64 },
    /// The list of a vbucket is complete, up to this seqno: what it did not name is to go. Tell with [`BucketCore::walked`].
    EndStage { slice: SliceName, vb: u16, upto: u64, walk: u64 },
    /// What is staged counts no more.
    DropStage { slice: SliceName },
    /// Drop the documents of a vbucket below this seqno, of a slice that nobody reads. Tell with [`BucketCore::walked`].
    Floor { slice: SliceName, vb: u16, floor: u64, walk: u64 },
    /// Write what is there with this mark, then tell with [`BucketCore::persisted`].
    Persist { slice: SliceName, mark: SliceMark, topic: u64, why: Why },
    /// The messages of a session below this sequence are durable.
    Purge { session: u64, below: u64 },
    /// These wanted STs of the term that is followed did not come: the coordinator broadcasts them again.
    Ask { numbers: Vec<u64> },
    /// The states of slices changed: the coordinator should know.
    Report,
}

impl Action {
    /// Whether it goes on from what was applied to a slice before.
    pub(crate) fn follows(&self, of: SliceName) -> bool {
        matches!(self, Self::Apply { slice, .. } | Self::Persist { slice, .. } if *slice == of)
    }
}
