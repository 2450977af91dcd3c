//! The back index value: what a document has in this index now.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..8 | seqno, little-endian |
//! | 8 | why the document is not indexed, or 0 |
//! | 9..11 | number of entries, little-endian |
//! | then per entry | key length u16, include length u32, key without docid, included fields |
//! | the last 4 | crc32 of all before, little-endian: looked at when a slice is verified |
//!
//! Keys ascend strictly, so two documents have the same entries exactly if the bytes between seqno and checksum are equal.

use super::{Entry, StoreError};
use highwater_schemas::wire::Unindexable;

const HEADER: usize = 11;
const ENTRY_HEADER: usize = 6;
const CHECKSUM: usize = 4;

/// A validated back index value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row<'a> {
    pub seqno: u64,
    pub reason: Option<Unindexable>,
    /// Everything between seqno and checksum.
    pub content: &'a [u8],
    count: u16,
}

impl<'a> Row<'a> {
    /// The entries, keys ascending.
    pub fn entries(&self) -> Entries<'a> {
        Entries { left: self.count, rest: &self.content[HEADER - 8..] }
    }
}

/// Appends the value of a document; of entries with equal keys the last one counts.
pub(super) fn encode(
    seqno: u64,
    reason: Option<Unindexable>,
    entries: &[Entry<'_>],
    out: &mut Vec<u8>,
) -> Result<(), StoreError> {
    let at = out.len();
    out.extend_from_slice(&seqno.to_le_bytes());
    out.push(reason.map_or(0, |r| r as u8));
    out.extend_from_slice(&[0, 0]);
    let mut count = 0usize;
    if entries.windows(2).all(|w| w[0].key < w[1].key) {
        for entry in entries {
            encode_entry(entry, out)?;
        }
        count = entries.len();
    } else {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&i| entries[i].key);
        for (n, &i) in order.iter().enumerate() {
            if order.get(n + 1).is_none_or(|&next| entries[next].key != entries[i].key) {
                encode_entry(&entries[i], out)?;
                count += 1;
            }
        }
    }
    let limit = usize::from(u16::MAX);
    let count = u16::try_from(count).map_err(|_| StoreError::TooLong { what: "entry list", len: count, limit })?;
    out[at + 9..at + HEADER].copy_from_slice(&count.to_le_bytes());
    let checksum = crc32fast::hash(&out[at..]);
    out.extend_from_slice(&checksum.to_le_bytes());
    Ok(())
}

fn encode_entry(entry: &Entry<'_>, out: &mut Vec<u8>) -> Result<(), StoreError> {
    let limit = u32::MAX as usize;
    let include = u32::try_from(entry.include.len()).map_err(|_| StoreError::TooLong {
        what: "included fields",
        len: entry.include.len(),
        limit,
    })?;
    // The entry key was checked against the key limit, which is far below this.
    out.extend_from_slice(&(entry.key.len() as u16).to_le_bytes());
    out.extend_from_slice(&include.to_le_bytes());
    out.extend_from_slice(entry.key);
    out.extend_from_slice(entry.include);
    Ok(())
}

/// Checks the checksum of a value.
pub(super) fn check(bytes: &[u8]) -> Result<(), StoreError> {
    match bytes.split_last_chunk::<CHECKSUM>() {
        Some((row, checksum)) if crc32fast::hash(row).to_le_bytes() == *checksum => Ok(()),
        _ => Err(StoreError::damaged("back index value fails its checksum")),
    }
}

/// Reads a value, refusing whatever [`encode`] does not write, but for its checksum.
pub(super) fn decode(bytes: &[u8]) -> Result<Row<'_>, StoreError> {
    let damaged = |what: &str| StoreError::damaged(format!("back index value: {what}"));
    let (bytes, _) = bytes.split_last_chunk::<CHECKSUM>().ok_or_else(|| damaged("too short"))?;
    let (header, rest) = bytes.split_at_checked(HEADER).ok_or_else(|| damaged("too short"))?;
    let (seqno, header) = header.split_at(8);
    let reason = match header[0] {
        0 => None,
        code => Some(Unindexable::from_code(code).ok_or_else(|| damaged("unknown reason"))?),
    };
    let count = u16::from_le_bytes([header[1], header[2]]);
    let mut entries = Entries { left: count, rest };
    let mut last: Option<&[u8]> = None;
    while entries.left > 0 {
        let entry = entries.next().ok_or_else(|| damaged("entry out of range"))?;
        if last.is_some_and(|l| l >= entry.key) {
            return Err(damaged("keys do not ascend"));
        }
        last = Some(entry.key);
    }
    if !entries.rest.is_empty() {
        return Err(damaged("bytes after the last entry"));
    }
    Ok(Row { seqno: u64_of(seqno), reason, content: &bytes[8..], count })
}

/// Eight little-endian bytes; shorter input counts as padded with zeros.
pub(super) fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |n, &b| (n << 8) | u64::from(b))
}

/// Reads entries one after the other; stops early only at damage.
pub(super) struct Entries<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.left == 0 {
            return None;
        }
        let (header, rest) = self.rest.split_at_checked(ENTRY_HEADER)?;
        let key_len = usize::from(u16::from_le_bytes([header[0], header[1]]));
        let include_len = u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize;
        let (key, rest) = rest.split_at_checked(key_len)?;
        let (include, rest) = rest.split_at_checked(include_len)?;
        self.left -= 1;
        self.rest = rest;
        Some(Entry { key, include })
    }
}

/// Bytes of an unindexed-document value: seqno, little-endian, and reason.
pub(super) const UNINDEXED: usize = 9;

pub(super) fn encode_unindexed(seqno: u64, reason: Unindexable) -> [u8; UNINDEXED] {
    let mut out = [0; UNINDEXED];
    out[..8].copy_from_slice(&seqno.to_le_bytes());
    out[8] = reason as u8;
    out
}

pub(super) fn decode_unindexed(bytes: &[u8]) -> Result<(u64, Unindexable), StoreError> {
    let reason = (bytes.len() == UNINDEXED).then(|| Unindexable::from_code(bytes[8])).flatten();
    let reason = reason.ok_or_else(|| StoreError::damaged("record of an unindexed document"))?;
    Ok((u64_of(&bytes[..8]), reason))
}
