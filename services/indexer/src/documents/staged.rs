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
    /// Documents, by the hash of their id, that a round has named since, with the seqno up to which it knows better than the list.
    overruled: HashMap<u64, u64>,
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

    /// A round named a document: it knows better than the list, but for messages above this seqno.
    pub(super) fn overrule(&mut self, docid: &str, at: u64) {
        self.overruled.insert(xxh3_64(docid.as_bytes()), at);
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
        self.bytes + self.named_bytes + (self.absent.len() + self.overruled.len()) * 24
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
        let overruled = |docid: &str| self.overruled.get(&xxh3_64(docid.as_bytes())).copied();
        let counts = |docid: &str, seqno: u64| overruled(docid).is_none_or(|at| seqno > at);
        for (docid, seqno) in self.gone.iter().filter(|(docid, seqno)| counts(docid, *seqno)) {
            store.remove(vb, docid, *seqno)?;
        }
        for one in self.differing.iter().filter(|one| one.seqno >= floor && counts(&one.docid, one.seqno)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{SliceIdentity, StoreLimits};

    const OLD: [Entry<'_>; 1] = [Entry { key: b"\x01", include: b"" }];
    const NEW: [Entry<'_>; 1] = [Entry { key: b"\x02", include: b"" }];

    /// A slice that holds this document with this seqno.
    fn holding(docid: &str, seqno: u64) -> (tempfile::TempDir, LmdbStore) {
        let dir = tempfile::tempdir().expect("a directory");
        let limits = StoreLimits { map_size: 64 << 20, ..StoreLimits::default() };
        let mut store = LmdbStore::open(dir.path(), &SliceIdentity::default(), limits).expect("opens");
        store.compare(0, docid, seqno, &OLD, None).expect("replaces");
        (dir, store)
    }

    #[test]
    fn what_a_round_named_after_a_list_was_begun_stays_as_the_round_left_it() {
        // The list was read when the document still had message 9; the slice has not seen that one.
        let mut staged = Staged { upto: 20, ..Staged::default() };
        staged.present(("d", 9), &NEW, None, Some(5));
        for (overruled, expected) in [(false, Some(9)), (true, Some(5))] {
            let (_dir, mut store) = holding("d", 5);
            if overruled {
                staged.overrule("d", 15);
            }
            staged.apply(&mut store, 0, 0).expect("applies");
            assert_eq!(store.seqno(0, "d").expect("reads"), expected, "named by a round: {overruled}");
        }
        // The round says that message 5 is what is left. The list names it no more.
        let (_dir, mut store) = holding("d", 5);
        staged.look("d", 5);
        staged.apply(&mut store, 0, 0).expect("applies");
        assert_eq!(store.seqno(0, "d").expect("reads"), Some(5));
    }

    #[test]
    fn a_message_behind_a_round_is_what_the_list_says() {
        let (_dir, mut store) = holding("d", 5);
        let mut staged = Staged { upto: 20, ..Staged::default() };
        staged.overrule("d", 8);
        staged.present(("d", 9), &NEW, None, Some(5));
        staged.apply(&mut store, 0, 0).expect("applies");
        assert_eq!(store.seqno(0, "d").expect("reads"), Some(9));
    }
}
