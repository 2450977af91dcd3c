//! Documents collected without looking at what is stored.
//!
//! A record is a *gate* (u64, little-endian) and the row. The gate is the highest seqno of the operations that made the row:
//! the row takes effect exactly if the stored document is below the gate, just as if the operations had been applied one by one.

use super::{
    StoreError,
    rows::Rows,
    value::{self, u64_of},
};

const GATE: usize = 8;

/// Gate and row of a record.
pub(super) fn split(record: &[u8]) -> (u64, &[u8]) {
    let (gate, row) = record.split_at(GATE.min(record.len()));
    (u64_of(gate), row)
}

/// Begins a record that one operation makes; the row is to follow.
pub(super) fn begin(seqno: u64, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&seqno.to_le_bytes());
}

/// Puts a newer record over what is collected for the document.
pub(super) fn put(rows: &mut Rows, hash: u64, key: &[u8], record: &mut [u8]) -> Result<(), StoreError> {
    if let Some(older) = rows.get(hash, key) {
        let ((older_gate, older_row), (gate, _)) = (split(older), split(record));
        if !older_row.is_empty() && gate <= value::decode(older_row)?.seqno {
            return Ok(());
        }
        record[..GATE].copy_from_slice(&gate.max(older_gate).to_le_bytes());
    }
    rows.put(hash, key, record);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::Entry, *};

    #[test]
    fn a_late_old_revision_follows_a_delete_only_where_the_delete_counts() {
        let mut rows = Rows::default();
        let mut op = |seqno, key: Option<&[u8]>| {
            let mut record = Vec::new();
            begin(seqno, &mut record);
            if let Some(key) = key {
                value::encode(seqno, None, &[Entry { key, include: b"" }], &mut record).expect("fits");
            }
            put(&mut rows, 1, b"doc", &mut record).expect("own records");
            let (gate, row) = split(rows.get(1, b"doc").expect("just put"));
            (gate, (!row.is_empty()).then(|| value::decode(row).expect("own row").seqno))
        };
        assert_eq!(op(10, Some(b"k")), (10, Some(10)));
        assert_eq!(op(9, Some(b"l")), (10, Some(10)));
        assert_eq!(op(11, None), (11, None));
        assert_eq!(op(8, Some(b"m")), (11, Some(8)));
    }
}
