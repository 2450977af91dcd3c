//! Where a batch meets a store.

use crate::{
    core::Batch,
    store::{Entry, LmdbStore, SliceStore, StoreError},
    worker::SliceInfo,
};
use highwater_schemas::{
    state::SliceName,
    wire::{DocOp, partition_of},
};
use std::ops::RangeInclusive;

/// Puts the documents of a batch above the start of `range` and up to its end into a slice.
pub(crate) fn replace(
    store: &mut LmdbStore,
    info: &SliceInfo,
    slice: SliceName,
    batch: &Batch,
    range: RangeInclusive<u64>,
    bulk: bool,
) -> Result<(), StoreError> {
    let Some(view) = batch.versions() else { return Ok(()) };
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for doc in view.docs() {
        if doc.seqno <= *range.start()
            || doc.seqno > *range.end()
            || partition_of(doc.docid, info.partitions) != slice.partition
        {
            continue;
        }
        let mut reason = match doc.op {
            DocOp::Unindexable(reason) => Some(reason),
            DocOp::Put | DocOp::Delete => None,
        };
        entries.clear();
        for key in doc.keys().filter(|k| k.index == slice.index) {
            match key.reason {
                Some(why) => reason = Some(why),
                None => entries.push(Entry { key: key.key, include: key.include }),
            }
        }
        if reason.is_some() {
            entries.clear();
        }
        if bulk {
            store.bulk(batch.vb, doc.docid, doc.seqno, &entries, reason)?;
        } else {
            store.replace(batch.vb, doc.docid, doc.seqno, &entries, reason)?;
        }
    }
    Ok(())
}
