//! What a slice in step has found to differ from a list of the present documents.

use crate::store::{Entry, LmdbStore, SliceStore, StoreError};
use highwater_schemas::wire::Unindexable;
use roaring::RoaringTreemap;
use std::collections::HashMap;
use xxhash_rust::xxh3::xxh3_64;

/// What a record takes beside its document id and entries, bytes.
const OVERHEAD: usize = 64;

/// Of one vbucket.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// The list goes up to this seqno.
    pub(crate) upto: u64,
    named: RoaringTreemap,
    /// As they are present, other than in the slice.
    differing: Vec<Differing>,
    /// In the slice, and not present.
    gone: Vec<(String, u64)>,
    /// Documents, by the hash of their id, of which the chain has left nothing in the slice since, with its seqno.
    absent: HashMap<u64, u64>,
    bytes: usize,
    /// Bytes that the seqnos take, after the last batch.
    named_bytes: usize,
}

#[derive(Debug)]
struct Differing {
    docid: String,
    seqno: u64,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    reason: Option<Unindexable>,
}

impl Staged {
    /// A document is present with this; `found` is the seqno that the slice holds it with.
    pub(super) fn present(
        &mut self,
        (docid, seqno): (&str, u64),
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
        found: Option<u64>,
    ) {
        self.named.insert(seqno);
        if found == Some(seqno) || (found.is_none() && entries.is_empty() && reason.is_none()) {
            return;
        }
        let entries: Vec<_> = entries.iter().map(|e| (e.key.to_vec(), e.include.to_vec())).collect();
        self.bytes += OVERHEAD + docid.len() + entries.iter().map(|(k, i)| OVERHEAD + k.len() + i.len()).sum::<usize>();
        self.differing.push(Differing { docid: docid.to_owned(), seqno, entries, reason });
    }

    /// The chain left nothing of a document.
    pub(super) fn removed(&mut self, docid: &str, seqno: u64) {
        self.absent.insert(xxh3_64(docid.as_bytes()), seqno);
    }

    /// A document that the slice holds, or gets: whether it was named, once the list is complete.
    pub(crate) fn look(&mut self, docid: &str, seqno: u64) {
        if seqno <= self.upto && !self.named.contains(seqno) {
            self.bytes += OVERHEAD + docid.len();
            self.gone.push((docid.to_owned(), seqno));
        }
    }

    /// Bytes held, about.
    pub(crate) fn size(&self) -> usize {
        self.bytes + self.named_bytes + self.absent.len() * 24
    }

    /// A batch of the list was taken.
    pub(super) fn taken(&mut self) {
        self.named_bytes = self.named.serialized_size();
    }

    /// How many documents are present, differ, and are not present.
    pub(crate) fn counts(&self) -> (u64, usize, usize) {
        (self.named.len(), self.differing.len(), self.gone.len())
    }

    /// Brings the slice to what the list said, as far as the chain has not changed it since. True: documents came back.
    ///
    /// What is present below `floor` has gone meanwhile.
    pub(crate) fn apply(&self, store: &mut LmdbStore, vb: u16, floor: u64) -> Result<bool, StoreError> {
        for (docid, seqno) in &self.gone {
            store.remove(vb, docid, *seqno)?;
        }
        for one in self.differing.iter().filter(|one| one.seqno >= floor) {
            let newer = match store.seqno(vb, &one.docid)? {
                Some(seqno) => seqno == one.seqno || seqno > self.upto,
                None => self.absent.get(&xxh3_64(one.docid.as_bytes())).is_some_and(|seqno| *seqno > self.upto),
            };
            if !newer {
                let entries: Vec<Entry<'_>> = one.entries.iter().map(|(key, include)| Entry { key, include }).collect();
                store.compare(vb, &one.docid, one.seqno, &entries, one.reason)?;
            }
        }
        Ok(!self.differing.is_empty())
    }
}
