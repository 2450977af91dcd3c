//! Keys, and what replacing a document's entries changes.

use super::{
    Entry, MAX_KEY, StoreError,
    layer::{Changes, Kind},
    value::{Row, encode_unindexed},
};
use highwater_schemas::collation::entry_suffix_len;
use std::cmp::Ordering;

/// Longest docid that a back index key holds.
const MAX_DOCID: usize = MAX_KEY - 2;

/// Writes the back index key: vbucket, then docid.
///
/// A docid that does not fit can have no entries; it is listed under its beginning, checksum and length.
pub(super) fn encode_row_key(vb: u16, docid: &str, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&vb.to_be_bytes());
    if docid.len() <= MAX_DOCID {
        out.extend_from_slice(docid.as_bytes());
        return;
    }
    let tail = format!("~{:08x}~{}", crc32fast::hash(docid.as_bytes()), docid.len());
    let mut end = MAX_DOCID - tail.len();
    while !docid.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&docid.as_bytes()[..end]);
    out.extend_from_slice(tail.as_bytes());
}

/// Vbucket and docid of a back index key.
pub(super) fn decode_row_key(key: &[u8]) -> Result<(u16, &str), StoreError> {
    let damaged = || StoreError::damaged("back index key");
    let (vb, docid) = key.split_first_chunk::<2>().ok_or_else(damaged)?;
    Ok((u16::from_be_bytes(*vb), std::str::from_utf8(docid).map_err(|_| damaged())?))
}

/// Refuses entries whose keys do not fit the store.
pub(super) fn check_entries(docid: &str, entries: &[Entry<'_>]) -> Result<(), StoreError> {
    let Some(longest) = entries.iter().map(|e| e.key.len()).max() else { return Ok(()) };
    let len = longest + entry_suffix_len(docid);
    if len > MAX_KEY {
        return Err(StoreError::TooLong { what: "entry key", len, limit: MAX_KEY });
    }
    Ok(())
}

/// Where the changes of a document go.
pub(super) struct Sink<'a> {
    pub entries: &'a mut Changes,
    pub unindexed: &'a mut Changes,
}

impl Sink<'_> {
    /// Adds what turns `old` into `new`; entries that stay as they are change nothing.
    pub fn replace(&mut self, row_key: &[u8], suffix: &[u8], old: Option<&Row<'_>>, new: Option<&Row<'_>>) {
        if old.map(|r| r.content) != new.map(|r| r.content) {
            self.entries(suffix, old, new);
        }
        let (was, is) = (old.and_then(|r| r.reason), new.and_then(|r| r.reason.map(|reason| (r.seqno, reason))));
        match (was, is) {
            (None, None) => {}
            (Some(_), None) => self.unindexed.push([row_key, &[]], &[], Kind::Delete),
            (was, Some((seqno, reason))) => {
                let kind = if was.is_some() { Kind::Update } else { Kind::Insert };
                self.unindexed.push([row_key, &[]], &encode_unindexed(seqno, reason), kind);
            }
        }
    }

    fn entries(&mut self, suffix: &[u8], old: Option<&Row<'_>>, new: Option<&Row<'_>>) {
        let (mut olds, mut news) = (old.map(Row::entries), new.map(Row::entries));
        let (mut a, mut b) = (olds.as_mut().and_then(Iterator::next), news.as_mut().and_then(Iterator::next));
        loop {
            let order = match (&a, &b) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.key.cmp(b.key),
            };
            match (order, &a, &b) {
                (Ordering::Less, Some(a), _) => self.entries.push([a.key, suffix], &[], Kind::Delete),
                (Ordering::Greater, _, Some(b)) => self.entries.push([b.key, suffix], b.include, Kind::Insert),
                (Ordering::Equal, Some(a), Some(b)) if a.include != b.include => {
                    self.entries.push([b.key, suffix], b.include, Kind::Update);
                }
                _ => {}
            }
            if order.is_le() {
                a = olds.as_mut().and_then(Iterator::next);
            }
            if order.is_ge() {
                b = news.as_mut().and_then(Iterator::next);
            }
        }
    }
}
