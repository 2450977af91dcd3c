//! Where a batch meets a store.

mod staged;

pub(crate) use staged::Staged;

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
use xxhash_rust::xxh3::xxh3_64;

/// What a list of present documents has named so far.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Up to here a seqno names one message, whichever branch it was read from.
    pub(crate) proven: u64,
    seqnos: RoaringTreemap,
    /// Above that, a document of an abandoned branch may have the seqno of another one: hashes of document ids, ascending once
    /// the list is complete.
    docids: Vec<u64>,
    /// Bytes that the seqnos take, after the last batch.
    bytes: usize,
}

impl Named {
    pub(crate) fn new(proven: u64) -> Self {
        Self { proven, ..Self::default() }
    }

    fn insert(&mut self, docid: &str, seqno: u64) {
        if seqno <= self.proven {
            self.seqnos.insert(seqno);
        } else {
            self.docids.push(xxh3_64(docid.as_bytes()));
        }
    }

    /// Everything was named; before that [`Self::contains`] says nothing.
    pub(crate) fn complete(&mut self) {
        self.docids.sort_unstable();
        self.docids.dedup();
    }

    /// Whether a document that is there with this seqno was named, after what differed was replaced.
    pub(crate) fn contains(&self, docid: &str, seqno: u64) -> bool {
        if seqno <= self.proven {
            self.seqnos.contains(seqno)
        } else {
            self.docids.binary_search(&xxh3_64(docid.as_bytes())).is_ok()
        }
    }

    /// How many documents.
    pub(crate) fn len(&self) -> u64 {
        self.seqnos.len() + self.docids.len() as u64
    }

    /// Bytes held, about.
    pub(crate) fn memory(&self) -> usize {
        self.bytes + self.docids.capacity() * size_of::<u64>()
    }
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
    each(info, slice, batch, inside(range), |doc| {
        if bulk {
            store.bulk(batch.vb, doc.docid, doc.seqno, doc.entries, doc.reason)
        } else {
            store.replace(batch.vb, doc.docid, doc.seqno, doc.entries, doc.reason)
        }
    })
}

/// As [`replace`], of a slice that is being compared with a list meanwhile.
pub(crate) fn replace_beside(
    store: &mut LmdbStore,
    info: &SliceInfo,
    slice: SliceName,
    batch: &Batch,
    range: RangeInclusive<u64>,
    staged: &mut Staged,
) -> Result<(), StoreError> {
    each(info, slice, batch, inside(range), |doc| {
        if doc.entries.is_empty() && doc.reason.is_none() {
            staged.removed(doc.docid, doc.seqno);
        } else {
            // What the list had already left out when the chain brought it.
            staged.look(doc.docid, doc.seqno);
        }
        store.replace(batch.vb, doc.docid, doc.seqno, doc.entries, doc.reason)
    })
}

/// Stages what differs from documents that are present in the source.
pub(crate) fn stage(
    store: &LmdbStore,
    info: &SliceInfo,
    slice: SliceName,
    batch: &Batch,
    range: RangeInclusive<u64>,
    staged: &mut Staged,
) -> Result<(), StoreError> {
    each(info, slice, batch, inside(range), |doc| {
        let found = store.seqno(batch.vb, doc.docid)?;
        staged.present((doc.docid, doc.seqno), doc.entries, doc.reason, found);
        Ok(())
    })?;
    staged.taken();
    Ok(())
}

/// The same for documents that are present in the source.
pub(crate) fn compare(
    store: &mut LmdbStore,
    info: &SliceInfo,
    slice: SliceName,
    batch: &Batch,
    range: RangeInclusive<u64>,
    named: &mut Named,
) -> Result<(), StoreError> {
    each(info, slice, batch, inside(range), |doc| {
        named.insert(doc.docid, doc.seqno);
        store.compare(batch.vb, doc.docid, doc.seqno, doc.entries, doc.reason)
    })?;
    named.bytes = named.seqnos.serialized_size();
    Ok(())
}

/// What a round of named documents has done to a slice.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// An older revision of one may be what is present now.
    pub(crate) came_back: bool,
    /// Of one the session that the slice was filled by may have read less, or more: it must be compared.
    pub(crate) unclear: bool,
}

/// Brings the documents that a round names to what it says of them.
///
/// `read`: a session has read the source up to there, before the slice joined the chain below. `staged`: what the slice has found
/// to differ from a list so far, which comes after the round and may be of before it.
pub(crate) fn name(
    store: &mut LmdbStore,
    info: &SliceInfo,
    slice: SliceName,
    batch: &Batch,
    read: u64,
    mut staged: Option<&mut Staged>,
) -> Result<Outcome, StoreError> {
    let (at, mut outcome) = (batch.to.seqno, Outcome::default());
    each(
        info,
        slice,
        batch,
        |_| true,
        |doc| {
            // What is below the floor has gone since it was looked up.
            let gone = doc.seqno < batch.floor || doc.entries.is_empty() && doc.reason.is_none();
            match store.seqno(batch.vb, doc.docid)? {
                Some(seqno) if seqno > at => return Ok(()),
                // The session may have read that it was deleted, or a revision that expired and has nothing in this index.
                None if read > at => {
                    outcome.unclear |= !gone;
                    return Ok(());
                }
                _ => {}
            }
            let (entries, reason) = if gone { (&[][..], None) } else { (doc.entries, doc.reason) };
            if let Some(staged) = &mut staged {
                staged.overrule(doc.docid, at);
            }
            outcome.came_back |= !gone;
            store.compare(batch.vb, doc.docid, doc.seqno, entries, reason)
        },
    )?;
    Ok(outcome)
}

/// Above the start of a range, and up to its end.
fn inside(range: RangeInclusive<u64>) -> impl Fn(u64) -> bool {
    move |seqno| seqno > *range.start() && seqno <= *range.end()
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
    within: impl Fn(u64) -> bool,
    mut take: impl FnMut(Taken<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let Some(view) = batch.versions() else { return Ok(()) };
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for doc in view.docs() {
        if !within(doc.seqno) || partition_of(doc.docid, info.partitions) != slice.partition {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_what_is_proven_a_seqno_does_not_tell_a_document_from_one_that_is_gone() {
        let mut named = Named::new(10);
        named.insert("kept", 10);
        named.insert("new", 11);
        named.insert("new", 12);
        named.complete();
        assert!(named.contains("kept", 10) && named.contains("new", 11));
        assert!(!named.contains("gone", 11), "another document has its seqno now");
        assert!(!named.contains("gone", 9));
        assert_eq!(named.len(), 2);
    }
}
