//! What a bucket's worker tells the rest of the node.

use highwater_schemas::{StabilityTimestamp, api::SliceReport};

/// The state of one bucket on this node.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct BucketReport {
    /// Rises with every change that the coordinator should hear of at once.
    pub(crate) notable: u64,
    /// The term that it follows.
    pub(crate) term: u64,
    pub(crate) slices: Vec<SliceReport>,
    /// The newest ST applied.
    pub(crate) applied: Option<StabilityTimestamp>,
    pub(crate) durable: u64,
    /// Batches that counted for nothing.
    pub(crate) void: u64,
}
