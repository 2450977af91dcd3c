//! Walks over all documents of a vbucket: after a list, and when a slice joins a chain whose rounds have dropped what is old.
//!
//! They take as long as the vbucket is large, so whoever carries them out does so page by page beside everything else, and tells
//! when one has ended. Until then the slice neither joins nor follows the chain, or has not staged what the walk is to find. A
//! slice that falls out, or is opened again, forgets its walks: what they would do belongs to what it was before.

use super::{Action, BucketCore};
use highwater_schemas::state::SliceName;
use std::collections::BTreeMap;

/// What a walk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// The list of a session is complete.
    Sweep,
    /// The list of a reconcile is complete.
    EndStage,
    /// The chain has dropped what is below a seqno.
    Floor,
}

/// The walks of a slice that have not ended, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walks(BTreeMap<u64, Walk>);

impl Walks {
    /// Some walk of this kind has not ended.
    pub fn has(&self, walk: Walk) -> bool {
        self.0.values().any(|of| *of == walk)
    }

    pub(super) fn begin(&mut self, number: &mut u64, walk: Walk) -> u64 {
        *number += 1;
        self.0.insert(*number, walk);
        *number
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What was to be staged is of no use any more.
    pub(super) fn forget_stage(&mut self) {
        self.0.retain(|_, walk| *walk != Walk::EndStage);
    }
}

impl BucketCore {
    /// Whether a walk still counts.
    pub fn is_walking(&self, name: SliceName, walk: u64) -> bool {
        self.slices.get(&name).is_some_and(|slice| slice.walks.0.contains_key(&walk))
    }

    /// A walk has ended.
    pub fn walked(&mut self, name: SliceName, walk: u64) -> Vec<Action> {
        let mut out = Vec::new();
        let Some(slice) = self.slices.get_mut(&name) else { return out };
        if slice.walks.0.remove(&walk).is_some() {
            slice.complete_stage(&mut out);
            self.merge_sessions(&mut out);
        }
        out
    }
}
