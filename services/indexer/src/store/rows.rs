//! Back index rows that are not durable yet: a hash map over one buffer, so that a document costs no allocation of its own.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher},
    ops::RangeInclusive,
};

/// Above this many rows, a cleared map gives its memory back instead of keeping it.
const KEEP_ROWS: usize = 1 << 14;
const NONE: u32 = u32::MAX;

/// Rows by key (vbucket, docid). A row without bytes says that the document has none.
#[derive(Default)]
pub(super) struct Rows {
    /// Hash of the key to the first record with it.
    index: HashMap<u64, u32, BuildHasherDefault<Identity>>,
    recs: Vec<Rec>,
    bytes: Vec<u8>,
}

struct Rec {
    hash: u64,
    key_at: u64,
    row_at: u64,
    row_len: u32,
    /// The next record with the same hash.
    next: u32,
    key_len: u16,
}

/// The hash under which [`Rows`] keep a key. Fixed keys: an attacker gains a longer chain at most.
pub(super) fn hash_key(key: &[u8]) -> u64 {
    let mut hasher = BuildHasherDefault::<DefaultHasher>::new().build_hasher();
    hasher.write(key);
    hasher.finish()
}

impl Rows {
    pub fn is_empty(&self) -> bool {
        self.recs.is_empty()
    }
    pub fn len(&self) -> usize {
        self.recs.len()
    }
    /// Bytes held, the index included.
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + self.recs.capacity() * size_of::<Rec>() + self.index.capacity() * 13
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let mut at = *self.index.get(&hash)?;
        while at != NONE {
            if self.key(at as usize) == key {
                return Some(at as usize);
            }
            at = self.recs[at as usize].next;
        }
        None
    }

    pub fn get(&self, hash: u64, key: &[u8]) -> Option<&[u8]> {
        self.find(hash, key).map(|i| self.row(i))
    }

    pub fn key(&self, i: usize) -> &[u8] {
        let rec = &self.recs[i];
        &self.bytes[rec.key_at as usize..][..usize::from(rec.key_len)]
    }

    pub fn row(&self, i: usize) -> &[u8] {
        let rec = &self.recs[i];
        &self.bytes[rec.row_at as usize..][..rec.row_len as usize]
    }

    /// The rows whose keys have hashes in this range.
    pub fn within(&self, hashes: RangeInclusive<u64>) -> impl Iterator<Item = usize> {
        self.recs.iter().enumerate().filter(move |(_, rec)| hashes.contains(&rec.hash)).map(|(at, _)| at)
    }

    /// Sets a row, in place where it fits.
    pub fn put(&mut self, hash: u64, key: &[u8], row: &[u8]) {
        if let Some(i) = self.find(hash, key) {
            if row.len() > self.recs[i].row_len as usize {
                self.recs[i].row_at = self.bytes.len() as u64;
                self.bytes.extend_from_slice(row);
            } else {
                let at = self.recs[i].row_at as usize;
                self.bytes[at..at + row.len()].copy_from_slice(row);
            }
            self.recs[i].row_len = row.len() as u32;
            return;
        }
        let (key_at, i) = (self.bytes.len() as u64, self.recs.len() as u32);
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(row);
        let next = self.index.insert(hash, i).unwrap_or(NONE);
        self.recs.push(Rec {
            hash,
            key_at,
            row_at: key_at + key.len() as u64,
            row_len: row.len() as u32,
            next,
            key_len: key.len() as u16,
        });
    }

    /// Takes over the rows of a newer map, which is empty then.
    pub fn absorb(&mut self, newer: &mut Self) {
        if self.is_empty() {
            std::mem::swap(self, newer);
            return;
        }
        for i in 0..newer.recs.len() {
            self.put(newer.recs[i].hash, newer.key(i), newer.row(i));
        }
        newer.clear();
    }

    fn clear(&mut self) {
        if self.recs.len() > KEEP_ROWS {
            *self = Self::default();
        } else {
            self.index.clear();
            self.recs.clear();
            self.bytes.clear();
        }
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |n, &b| (n << 8) | u64::from(b));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_the_same_hash_keep_their_own_rows() {
        let mut rows = Rows::default();
        rows.put(7, b"a", b"1");
        rows.put(7, b"b", b"22");
        rows.put(7, b"a", b"333");
        rows.put(7, b"b", b"");
        assert_eq!(
            (rows.get(7, b"a"), rows.get(7, b"b"), rows.get(7, b"c")),
            (Some(&b"333"[..]), Some(&b""[..]), None)
        );
        let mut newer = Rows::default();
        newer.put(7, b"b", b"new");
        newer.put(7, b"c", b"new");
        rows.absorb(&mut newer);
        assert_eq!((rows.get(7, b"b"), rows.get(7, b"c"), newer.len()), (Some(&b"new"[..]), Some(&b"new"[..]), 0));
    }
}
