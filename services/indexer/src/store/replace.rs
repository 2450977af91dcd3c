//! Replacing the entries of one document in the open layer.

use super::{
    Entry, LmdbStore, StoreError,
    diff::{Sink, check_entries, encode_row_key},
    parts::{Buffers, Open, present},
    rows::hash_key,
    value,
};
use highwater_schemas::{collation::encode_entry_suffix, wire::Unindexable};

impl LmdbStore {
    /// Replaces the entries of a document, unless it is there with a seqno that is not to be replaced.
    pub(super) fn replace_if(
        &mut self,
        (vb, docid): (u16, &str),
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
        replaces: impl FnOnce(&value::Row<'_>, Option<&value::Row<'_>>) -> bool,
    ) -> Result<(), StoreError> {
        check_entries(docid, entries)?;
        if let Some(building) = &self.building {
            if !building.collected.is_empty() || !building.runs.is_empty() || self.frozen.is_some() {
                return Err(StoreError::Misuse("replacing while a build is not durable"));
            }
            self.building = None;
        }
        let Some(live) = &self.live else { return Err(self.closed()) };
        let Buffers { key, suffix, row } = &mut self.buffers;
        encode_row_key(vb, docid, key);
        row.clear();
        if !entries.is_empty() || reason.is_some() {
            value::encode(seqno, reason, entries, row)?;
        }
        let hash = hash_key(key);
        let Open { entries, unindexed, rows } = &mut self.open;
        let older = [Some(&*rows), Some(&self.rows), self.frozen.as_deref().map(|f| &f.rows)];
        let old = present(older.into_iter().flatten(), live, key, hash)?;
        let new = if row.is_empty() { None } else { Some(value::decode(row)?) };
        if old.as_ref().is_some_and(|old| !replaces(old, new.as_ref())) || (old.is_none() && new.is_none()) {
            return Ok(());
        }
        suffix.clear();
        encode_entry_suffix(docid, vb, suffix);
        Sink { entries, unindexed }.replace(key, suffix, old.as_ref(), new.as_ref());
        rows.put(hash, key, row);
        Ok(())
    }
}
