//! Key versions in columns: what the projector yields, the router packs and the indexer applies.
//!
//! Three flat vectors instead of nested ones: validation is a bounds check per record, nothing is allocated per document,
//! and the archive can be looked at again for free. `bytes` holds, document by document, the docid and then for each of its
//! entries the encoded key and the included fields; the records hold the ends.

use super::WireError;
use rkyv::{Archive, Deserialize, Serialize};

/// The most that one index keeps of one document, bytes: its encoded key and its included fields. What is more is not indexed, so
/// that whether a document is indexed depends on it and on the index alone.
pub const MAX_ENTRY: usize = 256 * 1024;

/// What happened to a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocOp {
    Put,
    Delete,
    /// The whole document cannot be indexed; old entries are removed.
    Unindexable(Unindexable),
}

/// Why a document or one of its entries is not indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Unindexable {
    NotJson = 1,
    TooDeep = 2,
    TooLarge = 3,
    KeyTooLong = 4,
    IdTooLong = 5,
    /// A key is a number of more digits than numbers hold, see [`crate::collation::EncodeError::Inexact`].
    InexactNumber = 6,
    /// A key is no value that every reader of JSON takes: a number beyond f64, or half a surrogate pair.
    BadValue = 7,
    /// Key and included fields have more than [`MAX_ENTRY`] bytes.
    EntryTooLarge = 8,
    /// The subject is not UTF-8, so that it cannot be a docid.
    IdNotText = 9,
    /// The subject is not what the bucket's codec makes of a docid.
    IdNotDecoded = 10,
}

impl Unindexable {
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::NotJson,
            2 => Self::TooDeep,
            3 => Self::TooLarge,
            4 => Self::KeyTooLong,
            5 => Self::IdTooLong,
            6 => Self::InexactNumber,
            7 => Self::BadValue,
            8 => Self::EntryTooLarge,
            9 => Self::IdNotText,
            10 => Self::IdNotDecoded,
            _ => return None,
        })
    }
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::TooDeep => "too_deep",
            Self::TooLarge => "too_large",
            Self::KeyTooLong => "key_too_long",
            Self::IdTooLong => "id_too_long",
            Self::InexactNumber => "inexact_number",
            Self::BadValue => "bad_value",
            Self::EntryTooLarge => "entry_too_large",
            Self::IdNotText => "id_not_text",
            Self::IdNotDecoded => "id_not_decoded",
        }
    }
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
struct DocRecord {
    seqno: u64,
    docid_end: u32,
    /// Number of key records up to and including this document's.
    keys_end: u32,
    /// 0 put, 1 delete, 16 + reason unindexable.
    op: u8,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
struct KeyRecord {
    index: u32,
    key_end: u32,
    include_end: u32,
    /// 0, or why this index cannot take the document; the key is empty then.
    reason: u8,
}

/// The key versions of a run of documents of one vbucket, in seqno order.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyVersions {
    docs: Vec<DocRecord>,
    keys: Vec<KeyRecord>,
    bytes: Vec<u8>,
}

impl KeyVersions {
    pub fn is_empty(&self) -> bool {
        self.docs.is_empty()
    }
    /// Number of documents.
    pub fn len(&self) -> usize {
        self.docs.len()
    }
    /// About how many bytes the archive takes.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.docs.len() * 17 + self.keys.len() * 13
    }
    pub fn clear(&mut self) {
        self.docs.clear();
        self.keys.clear();
        self.bytes.clear();
    }

    /// Begins a document. Its entries follow with [`Self::push_key`].
    pub fn push_doc(&mut self, seqno: u64, docid: &str, op: DocOp) {
        self.bytes.extend_from_slice(docid.as_bytes());
        let op = match op {
            DocOp::Put => 0,
            DocOp::Delete => 1,
            DocOp::Unindexable(reason) => 16 + reason as u8,
        };
        self.docs.push(DocRecord { seqno, docid_end: self.bytes.len() as u32, keys_end: self.keys.len() as u32, op });
    }

    /// Adds an entry of the last document: `write` appends the encoded key, then `include` the included fields.
    ///
    /// If `write` answers a reason, or both write more than [`MAX_ENTRY`] bytes, what was written is taken back and the entry says
    /// that this index cannot take the document.
    pub fn push_key(
        &mut self,
        index: u32,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), Unindexable>,
        include: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        let mut refused = write(&mut self.bytes).err();
        let mut key_end = self.bytes.len() as u32;
        if refused.is_none() {
            include(&mut self.bytes);
            refused = (self.bytes.len() - start > MAX_ENTRY).then_some(Unindexable::EntryTooLarge);
        }
        if refused.is_some() {
            self.bytes.truncate(start);
            key_end = start as u32;
        }
        let reason = refused.map_or(0, |reason| reason as u8);
        self.keys.push(KeyRecord { index, key_end, include_end: self.bytes.len() as u32, reason });
        if let Some(doc) = self.docs.last_mut() {
            doc.keys_end = self.keys.len() as u32;
        }
    }

    /// Copies a document of another set, with the entries that `keep` accepts.
    pub fn push_view(&mut self, doc: &DocView<'_>, keep: impl Fn(u32) -> bool) {
        self.push_doc(doc.seqno, doc.docid, doc.op);
        for key in doc.keys() {
            if keep(key.index) {
                self.push_key(
                    key.index,
                    |out| {
                        if let Some(reason) = key.reason {
                            Err(reason)
                        } else {
                            out.extend_from_slice(key.key);
                            Ok(())
                        }
                    },
                    |out| out.extend_from_slice(key.include),
                );
            }
        }
    }

    /// Appends a whole set.
    pub fn append(&mut self, other: &KeyVersions) {
        let (bytes, keys) = (self.bytes.len() as u32, self.keys.len() as u32);
        self.bytes.extend_from_slice(&other.bytes);
        self.docs.extend(other.docs.iter().map(|d| DocRecord {
            docid_end: d.docid_end + bytes,
            keys_end: d.keys_end + keys,
            ..*d
        }));
        self.keys.extend(other.keys.iter().map(|k| KeyRecord {
            key_end: k.key_end + bytes,
            include_end: k.include_end + bytes,
            ..*k
        }));
    }

    /// A view for reading.
    pub fn view(&self) -> VersionsView<'_> {
        VersionsView { columns: Columns::Owned(self) }
    }
}

impl ArchivedKeyVersions {
    /// Checks that every record stays within its column, that ends never fall, and that docids are UTF-8.
    pub fn check(&self) -> Result<(), WireError> {
        let (mut at, mut key, mut seqno) = (0u32, 0u32, 0u64);
        let total = self.bytes.len() as u32;
        for doc in self.docs.iter() {
            let (docid_end, keys_end) = (doc.docid_end.to_native(), doc.keys_end.to_native());
            if docid_end < at || docid_end > total {
                return Err(WireError::Content("docid out of range"));
            }
            if std::str::from_utf8(&self.bytes[at as usize..docid_end as usize]).is_err() {
                return Err(WireError::Content("docid is not UTF-8"));
            }
            if keys_end < key || keys_end as usize > self.keys.len() {
                return Err(WireError::Content("keys out of range"));
            }
            if doc.seqno.to_native() < seqno {
                return Err(WireError::Content("seqnos fall"));
            }
            if doc.op > 1 && Unindexable::from_code(doc.op.wrapping_sub(16)).is_none() {
                return Err(WireError::Content("unknown operation"));
            }
            seqno = doc.seqno.to_native();
            at = docid_end;
            for record in &self.keys[key as usize..keys_end as usize] {
                let (key_end, include_end) = (record.key_end.to_native(), record.include_end.to_native());
                if key_end < at || include_end < key_end || include_end > total {
                    return Err(WireError::Content("key out of range"));
                }
                if record.reason != 0 && Unindexable::from_code(record.reason).is_none() {
                    return Err(WireError::Content("unknown reason"));
                }
                if record.reason != 0 && include_end != at {
                    return Err(WireError::Content("a key beside a reason against it"));
                }
                at = include_end;
            }
            key = keys_end;
        }
        if at != total || key as usize != self.keys.len() {
            return Err(WireError::Content("bytes or keys that belong to no document"));
        }
        Ok(())
    }

    /// The first and the last seqno.
    pub(super) fn seqnos(&self) -> Option<(u64, u64)> {
        Some((self.docs.first()?.seqno.to_native(), self.docs.last()?.seqno.to_native()))
    }

    /// A view for reading; only after [`Self::check`].
    pub fn view(&self) -> VersionsView<'_> {
        VersionsView { columns: Columns::Archived(self) }
    }
}

#[derive(Clone, Copy)]
enum Columns<'a> {
    Owned(&'a KeyVersions),
    Archived(&'a ArchivedKeyVersions),
}

impl<'a> Columns<'a> {
    fn doc(self, i: usize) -> Option<DocRecord> {
        match self {
            Self::Owned(v) => v.docs.get(i).copied(),
            Self::Archived(v) => v.docs.get(i).map(|d| DocRecord {
                seqno: d.seqno.to_native(),
                docid_end: d.docid_end.to_native(),
                keys_end: d.keys_end.to_native(),
                op: d.op,
            }),
        }
    }
    fn key(self, i: usize) -> Option<KeyRecord> {
        match self {
            Self::Owned(v) => v.keys.get(i).copied(),
            Self::Archived(v) => v.keys.get(i).map(|k| KeyRecord {
                index: k.index.to_native(),
                key_end: k.key_end.to_native(),
                include_end: k.include_end.to_native(),
                reason: k.reason,
            }),
        }
    }
    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Owned(v) => &v.bytes,
            Self::Archived(v) => &v.bytes,
        }
    }
}

/// Reads key versions, owned or archived.
#[derive(Clone, Copy)]
pub struct VersionsView<'a> {
    columns: Columns<'a>,
}

impl<'a> VersionsView<'a> {
    pub fn len(&self) -> usize {
        match self.columns {
            Columns::Owned(v) => v.docs.len(),
            Columns::Archived(v) => v.docs.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The documents in seqno order.
    pub fn docs(self) -> impl Iterator<Item = DocView<'a>> {
        let columns = self.columns;
        let (mut i, mut at, mut key) = (0usize, 0usize, 0usize);
        std::iter::from_fn(move || {
            let doc = columns.doc(i)?;
            let bytes = columns.bytes();
            let docid = std::str::from_utf8(bytes.get(at..doc.docid_end as usize)?).ok()?;
            let (first, last) = (key, doc.keys_end as usize);
            let keys_at = doc.docid_end as usize;
            at = if last > first { columns.key(last - 1)?.include_end as usize } else { keys_at };
            key = last;
            i += 1;
            let op = match doc.op {
                0 => DocOp::Put,
                1 => DocOp::Delete,
                code => DocOp::Unindexable(Unindexable::from_code(code.wrapping_sub(16))?),
            };
            Some(DocView { seqno: doc.seqno, docid, op, columns, first, last, keys_at })
        })
    }
}

/// One document's key versions.
pub struct DocView<'a> {
    pub seqno: u64,
    pub docid: &'a str,
    pub op: DocOp,
    columns: Columns<'a>,
    first: usize,
    last: usize,
    keys_at: usize,
}

impl<'a> DocView<'a> {
    /// About how many bytes it takes in a message, with the entries of these indexes.
    pub fn size_of(&self, of: impl Fn(u32) -> bool) -> usize {
        let entries = self.keys().filter(|k| of(k.index)).map(|k| k.key.len() + k.include.len() + 13);
        self.docid.len() + 17 + entries.sum::<usize>()
    }
    /// The entries of all indexes; an index without one has no entry for this document.
    pub fn keys(&self) -> impl Iterator<Item = KeyView<'a>> + use<'a> {
        let (columns, last) = (self.columns, self.last);
        let (mut i, mut at) = (self.first, self.keys_at);
        std::iter::from_fn(move || {
            if i >= last {
                return None;
            }
            let record = columns.key(i)?;
            let bytes = columns.bytes();
            let key = bytes.get(at..record.key_end as usize)?;
            let include = bytes.get(record.key_end as usize..record.include_end as usize)?;
            at = record.include_end as usize;
            i += 1;
            Some(KeyView { index: record.index, key, include, reason: Unindexable::from_code(record.reason) })
        })
    }
}

/// One entry of a document in one index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyView<'a> {
    pub index: u32,
    /// The encoded secondary key, without docid.
    pub key: &'a [u8],
    /// The included fields as a JSON object, or empty.
    pub include: &'a [u8],
    /// Set when this index cannot take the document.
    pub reason: Option<Unindexable>,
}

/// The hash partition that a document belongs to.
pub fn partition_of(docid: &str, num_partition: u32) -> u32 {
    if num_partition <= 1 {
        return 0;
    }
    (xxhash_rust::xxh3::xxh3_64(docid.as_bytes()) % u64::from(num_partition)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Batch, BatchView, encode};

    /// What becomes of an entry of so many bytes, between two others of its document.
    fn entry_of(bytes: usize) -> (Option<Unindexable>, usize) {
        let mut versions = KeyVersions::default();
        versions.push_doc(1, "before", DocOp::Put);
        for (index, bytes) in [(1, MAX_ENTRY), (2, bytes), (3, MAX_ENTRY)] {
            let key = bytes.min(9);
            let write = |out: &mut Vec<u8>| {
                out.resize(out.len() + key, b'k');
                Ok(())
            };
            versions.push_key(index, write, |out| out.resize(out.len() + bytes - key, b'i'));
        }
        let (view, mut found) = (versions.view(), None);
        for key in view.docs().flat_map(|doc| doc.keys()) {
            if key.index == 2 {
                found = Some((key.reason, key.key.len() + key.include.len()));
            } else {
                assert_eq!((key.reason, key.key.len() + key.include.len()), (None, MAX_ENTRY), "its neighbours");
            }
        }
        found.expect("it is there")
    }

    #[test]
    fn an_entry_may_be_as_large_as_the_limit_and_no_larger_whatever_is_beside_it() {
        assert_eq!(entry_of(MAX_ENTRY), (None, MAX_ENTRY));
        assert_eq!(entry_of(MAX_ENTRY + 1), (Some(Unindexable::EntryTooLarge), 0));
    }

    #[test]
    fn a_reason_beside_a_key_is_refused() {
        let mut versions = KeyVersions::default();
        versions.push_doc(1, "u1", DocOp::Put);
        versions.push_key(
            1,
            |out| {
                out.push(3);
                Ok(())
            },
            |_| {},
        );
        let to = crate::timestamp::Position::new(1, 0);
        let from = crate::timestamp::Position::ZERO;
        let mut batch = Batch {
            bucket: "users".into(),
            vb: 0,
            vbuuid: 1,
            generation: 1,
            topology: 1,
            session: 0,
            from,
            to,
            covered: 0,
            server_time: 0,
            hash: 0,
            attempt: 0,
            floor: 0,
            reconciled: 0,
            removal: None,
            only: Vec::new(),
            versions,
        };
        assert!(BatchView::parse("users", encode(&batch)).is_ok());
        batch.versions.keys[0].reason = Unindexable::TooLarge as u8;
        let error = BatchView::parse("users", encode(&batch)).unwrap_err();
        assert_eq!(error, WireError::Content("a key beside a reason against it"));
    }
}
