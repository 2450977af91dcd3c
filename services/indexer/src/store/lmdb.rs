//! The store over LMDB: opening, looking up, collecting, handing to a persist and taking back.

use super::{
    Entry, SliceIdentity, SliceMark, SliceStore, StoreError, StoreLimits, StoreStats,
    base::{Base, Databases, ReadTxn, SliceEnv},
    bulk,
    diff::{Sink, check_entries, encode_row_key},
    layer::{Changes, Layer, Run, merge_layers},
    open,
    persist::{Frozen, PersistJob, PersistOutcome, encode_row},
    rows::{Rows, hash_key},
    scan::Snapshot,
    value::{self, Row},
    verify,
};
use highwater_schemas::{collation::encode_entry_suffix, wire::Unindexable};
use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
};

/// A slice in an LMDB environment of its own.
pub struct LmdbStore {
    env: SliceEnv,
    dbs: Databases,
    identity: Arc<SliceIdentity>,
    limits: StoreLimits,
    base: Arc<Base>,
    /// Reads `base`; for looking documents up.
    lookup: ReadTxn,
    durable: SliceMark,
    /// On top of `base`, oldest first.
    layers: Vec<Arc<Layer>>,
    /// How many of the layers the running persist writes.
    frozen_layers: usize,
    snapshot: Snapshot,
    open: Open,
    pending: Pending,
    poison: Option<String>,
    buffers: Buffers,
}

/// The layer that is being collected.
#[derive(Default)]
struct Open {
    entries: Changes,
    unindexed: Changes,
    rows: Rows,
}

/// Documents that `base` does not have, newest first.
#[derive(Default)]
struct Pending {
    /// Of sealed layers.
    rows: Rows,
    bulk: Rows,
    frozen: Option<Arc<Frozen>>,
}

/// Kept from call to call to allocate nothing per document.
#[derive(Default)]
struct Buffers {
    key: Vec<u8>,
    suffix: Vec<u8>,
    row: Vec<u8>,
}

impl LmdbStore {
    /// Opens the slice in `dir`, or creates it.
    ///
    /// Refuses an unknown format version, another slice's directory, damage, and a slice that this process has open.
    pub fn open(dir: &Path, identity: &SliceIdentity, limits: StoreLimits) -> Result<Self, StoreError> {
        let (env, dbs, meta) = open::open(dir, identity, &limits)?;
        let (base, lookup) = Base::open(&env, dbs, &limits)?;
        if (base.items, base.unindexed) != (meta.items, meta.unindexed) {
            return Err(StoreError::damaged("meta record counts other entries than there are"));
        }
        let base = Arc::new(base);
        Ok(Self {
            env,
            dbs,
            identity: Arc::new(meta.identity),
            limits,
            snapshot: Snapshot::new(base.clone(), Vec::new()),
            base,
            lookup,
            durable: meta.mark,
            layers: Vec::new(),
            frozen_layers: 0,
            open: Open::default(),
            pending: Pending::default(),
            poison: None,
            buffers: Buffers::default(),
        })
    }

    /// Reads the whole durable state and checks that forward index, back index and list of unindexed documents agree.
    /// Answers the number of documents in the back index.
    pub fn verify(&self) -> Result<u64, StoreError> {
        verify::verify(self.dbs, &self.lookup)
    }

    /// Puts back what a persist did not write.
    fn thaw(&mut self) -> Result<(), StoreError> {
        self.frozen_layers = 0;
        let Some(frozen) = self.pending.frozen.take() else { return Ok(()) };
        let frozen = Arc::into_inner(frozen).ok_or(StoreError::Misuse("a persist that failed is still running"))?;
        let mut newer = std::mem::replace(&mut self.pending.rows, frozen.rows);
        self.pending.rows.absorb(&mut newer);
        let newer = std::mem::replace(&mut self.pending.bulk, frozen.bulk);
        for i in 0..newer.len() {
            let key = newer.key(i);
            bulk::put(&mut self.pending.bulk, hash_key(key), key, &mut newer.row(i).to_vec())?;
        }
        Ok(())
    }
}

impl Open {
    fn memory(&self) -> usize {
        self.entries.memory() + self.unindexed.memory() + self.rows.memory()
    }
}

impl Pending {
    /// The document's present row; `None` if it has none.
    fn present<'a>(
        &'a self,
        open: &'a Rows,
        dbs: Databases,
        lookup: &'a ReadTxn,
        key: &[u8],
        hash: u64,
    ) -> Result<Option<Row<'a>>, StoreError> {
        let decode = |row: &'a [u8]| if row.is_empty() { Ok(None) } else { value::decode(row).map(Some) };
        let frozen = self.frozen.as_deref();
        for rows in [Some(open), Some(&self.rows), frozen.map(|f| &f.rows)].into_iter().flatten() {
            if let Some(row) = rows.get(hash, key) {
                return decode(row);
            }
        }
        let mut row = dbs.rows.get(lookup, key)?.map(value::decode).transpose()?;
        for bulk in [frozen.map(|f| &f.bulk), Some(&self.bulk)].into_iter().flatten() {
            if let Some((gate, newer)) = bulk.get(hash, key).map(bulk::split)
                && row.is_none_or(|r| r.seqno < gate)
            {
                row = decode(newer)?;
            }
        }
        Ok(row)
    }
}

impl SliceStore for LmdbStore {
    fn durable(&self) -> &SliceMark {
        &self.durable
    }

    fn replace(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError> {
        check_entries(docid, entries)?;
        let Buffers { key, suffix, row } = &mut self.buffers;
        encode_row_key(vb, docid, key);
        row.clear();
        encode_row(seqno, entries, reason, row)?;
        let hash = hash_key(key);
        let old = self.pending.present(&self.open.rows, self.dbs, &self.lookup, key, hash)?;
        if old.is_some_and(|old| seqno <= old.seqno) {
            return Ok(());
        }
        let new = if row.is_empty() { None } else { Some(value::decode(row)?) };
        if old.is_none() && new.is_none() {
            return Ok(());
        }
        suffix.clear();
        encode_entry_suffix(docid, vb, suffix);
        let mut sink = Sink { entries: &mut self.open.entries, unindexed: &mut self.open.unindexed };
        sink.replace(key, suffix, old.as_ref(), new.as_ref());
        self.open.rows.put(hash, key, row);
        Ok(())
    }

    fn seal(&mut self) -> Result<Snapshot, StoreError> {
        self.pending.rows.absorb(&mut self.open.rows);
        if !self.open.entries.is_empty() || !self.open.unindexed.is_empty() {
            let layer = Layer { entries: Run::of(&[&self.open.entries]), unindexed: Run::of(&[&self.open.unindexed]) };
            self.open.entries.clear();
            self.open.unindexed.clear();
            self.layers.push(Arc::new(layer));
            merge_layers(&mut self.layers, self.frozen_layers, self.limits.merge_layers);
            self.snapshot = Snapshot::new(self.base.clone(), self.layers.clone());
        }
        Ok(self.snapshot.clone())
    }

    fn bulk(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError> {
        let replaced = self.pending.frozen.as_ref().is_some_and(|f| !f.rows.is_empty());
        if replaced || !self.open.rows.is_empty() || !self.pending.rows.is_empty() {
            return Err(StoreError::Misuse("bulk while replaced documents are not durable"));
        }
        check_entries(docid, entries)?;
        let Buffers { key, row, .. } = &mut self.buffers;
        encode_row_key(vb, docid, key);
        bulk::begin(seqno, row);
        encode_row(seqno, entries, reason, row)?;
        bulk::put(&mut self.pending.bulk, hash_key(key), key, row)
    }

    fn memory(&self) -> usize {
        let layers: usize = self.layers.iter().map(|l| l.memory()).sum();
        let written: usize = self.layers[..self.frozen_layers].iter().map(|l| l.memory()).sum();
        let frozen = self.pending.frozen.as_ref().map_or(0, |f| f.rows.memory() + f.bulk.memory());
        // What is being written is held twice: as layers and as LMDB's dirty pages.
        let dirty = frozen + written;
        layers + frozen + dirty + self.open.memory() + self.pending.rows.memory() + self.pending.bulk.memory()
    }

    fn begin_persist(&mut self, mark: SliceMark) -> Option<PersistJob> {
        if let Some(frozen) = &self.pending.frozen {
            if Arc::strong_count(frozen) > 1 {
                return None;
            }
            // Job or outcome was dropped.
            if frozen.uncertain.load(Ordering::SeqCst) {
                self.poison = Some("a persist was lost after it began to commit".into());
            } else if let Err(e) = self.thaw() {
                self.poison = Some(e.to_string());
            }
        }
        let mut frozen = Arc::new(Frozen::default());
        if self.poison.is_none() {
            frozen = Arc::new(Frozen {
                layers: self.layers.clone(),
                rows: std::mem::take(&mut self.pending.rows),
                bulk: std::mem::take(&mut self.pending.bulk),
                ..Frozen::default()
            });
            self.frozen_layers = self.layers.len();
            self.pending.frozen = Some(frozen.clone());
        }
        Some(PersistJob {
            env: self.env.clone(),
            dbs: self.dbs,
            identity: self.identity.clone(),
            limits: self.limits.clone(),
            mark,
            frozen,
            refused: self.poison.clone(),
        })
    }

    fn finish_persist(&mut self, outcome: PersistOutcome) -> Result<(), StoreError> {
        let PersistOutcome { frozen, result } = outcome;
        if let Some(reason) = &self.poison {
            return Err(StoreError::Poisoned(reason.clone()));
        }
        if self.pending.frozen.as_ref().is_none_or(|own| !Arc::ptr_eq(own, &frozen)) {
            return Err(StoreError::Misuse("outcome of a persist that is not running"));
        }
        drop(frozen);
        match result {
            Ok(committed) => {
                self.pending.frozen = None;
                self.layers.drain(..self.frozen_layers);
                self.frozen_layers = 0;
                self.base = Arc::new(committed.base);
                self.lookup = committed.lookup;
                self.durable = committed.mark;
                self.snapshot = Snapshot::new(self.base.clone(), self.layers.clone());
                Ok(())
            }
            Err(error) => {
                self.thaw()?;
                if let StoreError::Poisoned(reason) = &error {
                    self.poison = Some(reason.clone());
                }
                Err(error)
            }
        }
    }

    fn stats(&self) -> StoreStats {
        let dbs = [self.dbs.entries, self.dbs.rows, self.dbs.unindexed, self.dbs.meta];
        let live = dbs.iter().filter_map(|db| db.stat(&self.lookup).ok());
        let pages = |s: heed::DatabaseStat| s.branch_pages + s.leaf_pages + s.overflow_pages;
        StoreStats {
            items: self.snapshot.items(),
            unindexed: self.snapshot.unindexed(),
            live_bytes: live.map(|s| u64::from(s.page_size) * pages(s) as u64).sum(),
            file_bytes: self.env.real_disk_size().unwrap_or_default(),
            memory: self.memory() as u64,
            layers: self.layers.len(),
            poisoned: self.poison.clone(),
        }
    }
}
