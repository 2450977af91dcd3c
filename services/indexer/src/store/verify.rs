//! The check that the databases of a slice agree.

use super::{
    StoreError,
    base::{Databases, ReadTxn},
    diff::decode_row_key,
    value,
};
use highwater_schemas::collation::encode_entry_suffix;

/// Derives forward index and unindexed documents from the back index and compares; answers the number of documents.
///
/// Entry keys of different documents differ, so equal counts and every derived entry being there mean equality.
pub(super) fn verify(dbs: Databases, txn: &ReadTxn) -> Result<u64, StoreError> {
    let (mut documents, mut entries, mut unindexed) = (0, 0, 0);
    let mut key = Vec::new();
    for row in dbs.rows.iter(txn)? {
        let (row_key, bytes) = row?;
        let (vb, docid) = decode_row_key(row_key)?;
        let damaged = |what: &str| StoreError::damaged(format!("document {docid:?} of vbucket {vb}: {what}"));
        let row = value::decode(bytes)?;
        documents += 1;
        for entry in row.entries() {
            key.clear();
            key.extend_from_slice(entry.key);
            encode_entry_suffix(docid, vb, &mut key);
            if dbs.entries.get(txn, &key)? != Some(entry.include) {
                return Err(damaged("entry is missing or has other fields"));
            }
            entries += 1;
        }
        if let Some(reason) = row.reason {
            let listed = dbs.unindexed.get(txn, row_key)?.map(value::decode_unindexed).transpose()?;
            if listed != Some((row.seqno, reason)) {
                return Err(damaged("not listed as unindexed"));
            }
            unindexed += 1;
        }
        if row.reason.is_none() && row.entries().next().is_none() {
            return Err(damaged("has nothing to remember"));
        }
    }
    if entries != dbs.entries.len(txn)? || unindexed != dbs.unindexed.len(txn)? {
        return Err(StoreError::damaged("entries that belong to no document"));
    }
    Ok(documents)
}
