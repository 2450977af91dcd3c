//! What a node's report holds.

use highwater_schemas::{
    api::{SessionReading, SliceReport, Suspicion, VbReads},
    report::{Item, Key, MOST_ITEMS, ReportPart},
    state::SliceName,
    timestamp::StabilityTimestamp,
};
use std::collections::{BTreeMap, BTreeSet};

/// A report as far as it was received.
#[derive(Default)]
pub(super) struct Reported {
    /// The term in which its edition was told; 0 before that is whole.
    pub(super) term: u64,
    /// By bucket.
    pub(super) slices: BTreeMap<String, BTreeMap<SliceName, SliceReport>>,
    pub(super) applied: BTreeMap<String, StabilityTimestamp>,
    pub(super) suspicions: BTreeMap<(String, u16), Suspicion>,
    /// Sessions that cannot go on.
    pub(super) broken: BTreeSet<(String, u64)>,
    /// Buckets of which a reconcile with a higher number is asked for.
    pub(super) reconciles: BTreeMap<String, u64>,
    /// The same of a reconcile of documents that it names.
    pub(super) named: BTreeMap<String, u64>,
    /// Buckets of which one cannot wait.
    pub(super) urgent: BTreeSet<String>,
    /// Chains, by bucket, vbucket and generation, that it cannot go on with.
    pub(super) lost: BTreeSet<(String, u16, u64)>,
    /// How far it has read for sessions, by bucket, session and vbucket.
    pub(super) reading: BTreeMap<(String, u64, u16), SessionReading>,
    /// What it has read of vbuckets.
    pub(super) reads: BTreeMap<(String, u16), VbReads>,
    items: usize,
}

/// What a part has changed.
#[derive(Default)]
pub(super) struct Changes {
    /// The coordinator may have to act on one of the changes.
    pub(super) matters: bool,
    /// Buckets with slices that had none before.
    pub(super) opened: BTreeSet<String>,
}

impl Reported {
    pub(super) fn take(&mut self, part: ReportPart, changes: &mut Changes) {
        changes.matters |= !part.gone.is_empty();
        for item in part.items {
            changes.matters |= !item.is_count();
            // A node that follows the protocol reports no more items than this.
            if self.items < MOST_ITEMS {
                self.put(item, changes);
            }
        }
        for (bucket, key) in part.gone {
            self.remove(bucket, &key);
        }
    }

    fn put(&mut self, item: Item, changes: &mut Changes) {
        let known = match item {
            Item::Applied { bucket, st } => self.applied.insert(bucket, st).is_some(),
            Item::Slice(slice) => {
                let name = slice.name();
                // Most parts are of few buckets: no key is made for each slice.
                if !self.slices.contains_key(&slice.bucket) {
                    changes.opened.insert(slice.bucket.clone());
                    self.slices.insert(slice.bucket.clone(), BTreeMap::new());
                }
                let slices = self.slices.get_mut(&slice.bucket);
                slices.is_some_and(|slices| slices.insert(name, slice.into()).is_some())
            }
            Item::Suspicion(found) => self.suspicions.insert((found.bucket.clone(), found.vb), found).is_some(),
            Item::BrokenSession { bucket, session } => !self.broken.insert((bucket, session)),
            Item::Reconcile { bucket, after } => self.reconciles.insert(bucket, after).is_some(),
            Item::Named { bucket, after } => self.named.insert(bucket, after).is_some(),
            Item::Urgent { bucket } => !self.urgent.insert(bucket),
            Item::LostChain { bucket, vb, generation } => !self.lost.insert((bucket, vb, generation)),
            Item::Reading(read) => self.reading.insert((read.bucket.clone(), read.session, read.vb), read).is_some(),
            Item::Reads(read) => self.reads.insert((read.bucket.clone(), read.vb), read).is_some(),
        };
        self.items += usize::from(!known);
    }

    fn remove(&mut self, bucket: String, key: &Key) {
        let known = match *key {
            Key::Applied => self.applied.remove(&bucket).is_some(),
            Key::Slice { index, partition } => {
                let Some(slices) = self.slices.get_mut(&bucket) else { return };
                let known = slices.remove(&SliceName { index, partition }).is_some();
                if slices.is_empty() {
                    self.slices.remove(&bucket);
                }
                known
            }
            Key::Suspicion { vb } => self.suspicions.remove(&(bucket, vb)).is_some(),
            Key::BrokenSession { session } => self.broken.remove(&(bucket, session)),
            Key::Reconcile => self.reconciles.remove(&bucket).is_some(),
            Key::Named => self.named.remove(&bucket).is_some(),
            Key::Urgent => self.urgent.remove(&bucket),
            Key::LostChain { vb, generation } => self.lost.remove(&(bucket, vb, generation)),
            Key::Reading { session, vb } => self.reading.remove(&(bucket, session, vb)).is_some(),
            Key::Reads { vb } => self.reads.remove(&(bucket, vb)).is_some(),
        };
        self.items -= usize::from(known);
    }
}
