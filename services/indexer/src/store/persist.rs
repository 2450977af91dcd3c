//! Making layers durable: one transaction, keys in order, one full sync.

use super::{
    Entry, SliceIdentity, SliceMark, StoreError, StoreLimits,
    base::{Base, Bytemap, Databases, ReadTxn, SliceEnv},
    bulk,
    diff::{Sink, decode_row_key},
    error,
    layer::{Changes, Item, Kind, Layer, compose, sorted},
    meta::Meta,
    rows::Rows,
    value,
};
use heed::{PutFlags, RwTxn};
use highwater_schemas::collation::encode_entry_suffix;
use std::{
    fs,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Key of the only record in the meta database.
pub(super) const META_KEY: &[u8] = b"meta";
/// Written to see whether a failed commit met a full disk: as much as LMDB writes at once.
const PROBE_BYTES: usize = 64 * 4096;
const PROBE_FILE: &str = "probe.tmp";

/// What a running persist writes; shared with the store, which looks documents up in it meanwhile.
#[derive(Default)]
pub(super) struct Frozen {
    pub layers: Vec<Arc<Layer>>,
    pub rows: Rows,
    pub bulk: Rows,
    /// Set when a commit begins, taken back when it certainly did not happen.
    pub uncertain: AtomicBool,
}

/// A persist that is ready to run, on any thread that may block.
#[must_use = "nothing is durable until the job has run and its outcome was taken back"]
pub struct PersistJob {
    pub(super) env: SliceEnv,
    pub(super) dbs: Databases,
    pub(super) identity: Arc<SliceIdentity>,
    pub(super) limits: StoreLimits,
    pub(super) mark: SliceMark,
    pub(super) frozen: Arc<Frozen>,
    /// Set when the store no longer persists.
    pub(super) refused: Option<String>,
}

/// What became of a persist: to be handed to `finish_persist`.
#[must_use = "the store waits for the outcome"]
pub struct PersistOutcome {
    pub(super) frozen: Arc<Frozen>,
    pub(super) result: Result<Committed, StoreError>,
}

impl PersistOutcome {
    /// True if the mark is durable.
    pub fn is_durable(&self) -> bool {
        self.result.is_ok()
    }
}

pub(super) struct Committed {
    pub base: Base,
    pub lookup: ReadTxn,
    pub mark: SliceMark,
}

impl PersistJob {
    /// Writes, commits and syncs.
    pub fn run(self) -> PersistOutcome {
        let result = match &self.refused {
            Some(reason) => Err(StoreError::Poisoned(reason.clone())),
            None => self.write(),
        };
        PersistOutcome { frozen: self.frozen, result }
    }

    fn write(&self) -> Result<Committed, StoreError> {
        let mut txn = self.env.write_txn()?;
        let bulk = self.collect_bulk(&txn)?;
        let mut sources = vec![&bulk.entries];
        sources.extend(self.frozen.layers.iter().map(|l| l.entries.changes()));
        apply(self.dbs.entries, &mut txn, &sources)?;
        let mut sources = vec![&bulk.unindexed];
        sources.extend(self.frozen.layers.iter().map(|l| l.unindexed.changes()));
        apply(self.dbs.unindexed, &mut txn, &sources)?;
        self.apply_rows(&mut txn, &bulk.accepted)?;
        let meta = Meta {
            identity: (*self.identity).clone(),
            items: self.dbs.entries.len(&txn)?,
            unindexed: self.dbs.unindexed.len(&txn)?,
            mark: self.mark.clone(),
        };
        self.dbs.meta.put(&mut txn, META_KEY, &meta.encode())?;
        self.commit(txn)?;
        let (base, lookup) = Base::open(&self.env, self.dbs, &self.limits)
            .map_err(|e| StoreError::Poisoned(format!("committed, but the commit cannot be read: {e}")))?;
        Ok(Committed { base, lookup, mark: self.mark.clone() })
    }

    fn commit(&self, txn: RwTxn<'_>) -> Result<(), StoreError> {
        self.frozen.uncertain.store(true, Ordering::SeqCst);
        let Err(error) = txn.commit() else { return Ok(()) };
        let error = match StoreError::from(error) {
            // LMDB reports a short write like a failed sync.
            StoreError::Io(_) if disk_is_full(self.env.path()) => StoreError::DiskFull,
            StoreError::Io(e) => StoreError::Poisoned(format!("commit failed: {e}")),
            other => other,
        };
        if !matches!(error, StoreError::Poisoned(_)) {
            self.frozen.uncertain.store(false, Ordering::SeqCst);
        }
        Err(error)
    }

    /// The bulk documents that are newer than what is stored, and what they change.
    fn collect_bulk(&self, txn: &RwTxn<'_>) -> Result<Bulk, StoreError> {
        let rows = &self.frozen.bulk;
        let mut bulk = Bulk::default();
        let stored = !self.dbs.rows.is_empty(txn)?;
        let mut suffix = Vec::new();
        for item in sorted_rows(rows) {
            let key = rows.key(item.rec as usize);
            let (gate, row) = bulk::split(rows.row(item.rec as usize));
            let old = if stored { self.dbs.rows.get(txn, key)?.map(value::decode).transpose()? } else { None };
            if old.is_some_and(|old| old.seqno >= gate) {
                continue;
            }
            let new = if row.is_empty() { None } else { Some(value::decode(row)?) };
            let (vb, docid) = decode_row_key(key)?;
            suffix.clear();
            encode_entry_suffix(docid, vb, &mut suffix);
            let mut sink = Sink { entries: &mut bulk.entries, unindexed: &mut bulk.unindexed };
            sink.replace(key, &suffix, old.as_ref(), new.as_ref());
            bulk.accepted.push(item.rec);
        }
        Ok(bulk)
    }

    /// Writes the back index: bulk documents, and over them those that were replaced later.
    fn apply_rows(&self, txn: &mut RwTxn<'_>, accepted: &[u32]) -> Result<(), StoreError> {
        let (bulk, rows) = (&self.frozen.bulk, &self.frozen.rows);
        let flags = append_if_empty(self.dbs.rows, txn)?;
        let mut older = accepted.iter().map(|&i| i as usize).peekable();
        for item in sorted_rows(rows) {
            let key = rows.key(item.rec as usize);
            while let Some(i) = older.next_if(|&i| bulk.key(i) < key) {
                self.put_row(txn, flags, bulk.key(i), bulk::split(bulk.row(i)).1)?;
            }
            older.next_if(|&i| bulk.key(i) == key);
            self.put_row(txn, flags, key, rows.row(item.rec as usize))?;
        }
        older.try_for_each(|i| self.put_row(txn, flags, bulk.key(i), bulk::split(bulk.row(i)).1))
    }

    fn put_row(&self, txn: &mut RwTxn<'_>, flags: PutFlags, key: &[u8], row: &[u8]) -> Result<(), StoreError> {
        if row.is_empty() {
            self.dbs.rows.delete(txn, key)?;
        } else {
            self.dbs.rows.put_with_flags(txn, flags, key, row)?;
        }
        Ok(())
    }
}

/// The records of a map, keys ascending.
fn sorted_rows(rows: &Rows) -> Vec<Item> {
    sorted((0..rows.len() as u32).map(|i| (0, i)), |_, i| rows.key(i as usize))
}

#[derive(Default)]
struct Bulk {
    entries: Changes,
    unindexed: Changes,
    /// Record numbers, keys ascending.
    accepted: Vec<u32>,
}

fn apply(db: Bytemap, txn: &mut RwTxn<'_>, sources: &[&Changes]) -> Result<(), StoreError> {
    let flags = append_if_empty(db, txn)?;
    compose(sources, |change| {
        if change.kind == Kind::Delete {
            db.delete(txn, change.key)?;
        } else {
            db.put_with_flags(txn, flags, change.key, change.value)?;
        }
        Ok(())
    })
}

/// Keys come in order, so into an empty database they are appended, which fills pages to the brim.
fn append_if_empty(db: Bytemap, txn: &RwTxn<'_>) -> Result<PutFlags, StoreError> {
    Ok(if db.is_empty(txn)? { PutFlags::APPEND } else { PutFlags::empty() })
}

fn disk_is_full(dir: &Path) -> bool {
    let path = dir.join(PROBE_FILE);
    let probe = || {
        let mut file = fs::File::create(&path)?;
        file.write_all(&vec![0; PROBE_BYTES])?;
        file.sync_all()
    };
    let full = probe().is_err_and(|e| error::full(&e));
    // A probe that stays behind is overwritten by the next one.
    let _ = fs::remove_file(&path);
    full
}

/// The row of a document as the store keeps it in memory: nothing if the document has none here.
pub(super) fn encode_row(
    seqno: u64,
    entries: &[Entry<'_>],
    reason: Option<highwater_schemas::wire::Unindexable>,
    out: &mut Vec<u8>,
) -> Result<(), StoreError> {
    if entries.is_empty() && reason.is_none() { Ok(()) } else { value::encode(seqno, reason, entries, out) }
}
