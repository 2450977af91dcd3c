//! Where a batch meets a store.

use crate::{
    core::Batch,
    store::{Entry, LmdbStore, SliceStore, StoreError},
    worker::SliceInfo,
};
use highwater_schemas::{
    state::SliceName,
    wire::{DocOp, Unindexable, partition_of},
};
use roaring::RoaringTreemap;
use std::ops::RangeInclusive;

/// What a list of present documents tells.
pub(crate) struct Present<'a> {
    /// The seqnos that it named.
    pub(crate) named: &'a mut RoaringTreemap,
    /// A seqno up to here names one message.
    pub(crate) proven: u64,
}

/// Puts the documents of a batch above the start of `range` and up to its end into a slice.
pub(crate) fn replace(
    store: &mut LmdbStore,
    info: &SliceInfo,
    slice: SliceName,
    batch: &Batch,
    range: RangeInclusive<u64>,
    bulk: bool,
) -> Result<(), StoreError> {
    each(info, slice, batch, range, |doc| {
        if bulk {
            store.bulk(batch.vb, doc.docid, doc.seqno, doc.entries, doc.reason)
        } else {
            store.replace(batch.vb, doc.docid, doc.seqno, doc.entries, doc.reason)
        }
    })
}

/// The same for documents that are present in the source.
pub(crate) fn compare(
    store: &mut LmdbStore,
    info: &SliceInfo,
    slice: SliceName,
    batch: &Batch,
    range: RangeInclusive<u64>,
    present: &mut Present<'_>,
) -> Result<(), StoreError> {
    each(info, slice, batch, range, |doc| {
        present.named.insert(doc.seqno);
        store.compare(batch.vb, doc.docid, doc.seqno, doc.entries, doc.reason, present.proven)
    })
}

/// A document as a slice takes it.
struct Taken<'a> {
    docid: &'a str,
    seqno: u64,
    entries: &'a [Entry<'a>],
    reason: Option<Unindexable>,
}

fn each(
    info: &SliceInfo,
    slice: SliceName,
    batch: &Batch,
    range: RangeInclusive<u64>,
    mut take: impl FnMut(Taken<'_>) -> Result<(), StoreError>,
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
        take(Taken { docid: doc.docid, seqno: doc.seqno, entries: &entries, reason })?;
    }
    Ok(())
}
