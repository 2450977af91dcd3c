//! Filling an empty slice: what was collected and the spooled runs, merged into both indexes in one pass each.
//!
//! Of a document's records the one with the highest seqno counts. A record's value is the row of the back index, or the seqno
//! alone for a document that has nothing here. Entries are collected while the back index is appended, in runs of their own
//! when they are many, and then appended too. All of it goes into a *fresh* environment beside the slice's, without a sync per
//! group; once it is whole and synced, its file takes the place of the slice's. What fits one small transaction goes straight
//! into the slice's environment.

use super::{
    Entry, SliceIdentity, SliceMark, StoreError, StoreLimits,
    base::{Bytemap, Databases, SliceEnv},
    collect::Collector,
    diff::decode_row_key,
    layer::Changes,
    merge::{Source, merge},
    meta::{Meta, UndoSlot},
    open::{self, DATA, Use},
    persist::{META_KEY, Purpose},
    run::{self, RunReader, RunWriter},
    undo::{History, Slots},
    value::{self, u64_of},
};
use heed::{PutFlags, RwTxn};
use highwater_schemas::{collation::encode_entry_suffix, wire::Unindexable};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Where the runs of a build lie, and the environment that it makes; both below the slice's directory.
pub(super) const RUNS: &str = "runs";
pub(super) const FRESH: &str = "fresh";
/// Documents of one commit into a fresh environment.
const GROUP: usize = 32_768;
/// What a fresh environment has been given is synced this often beside filling it.
const SYNC_EVERY: Duration = Duration::from_millis(20);
/// So many runs are merged into one before there are more: each of them is an open file and a block in memory.
pub(super) const MOST_RUNS: usize = 64;
/// Records of this many bytes are collected before they are appended together.
const APPEND: usize = 256 * 1024;
/// Bytes of a record that only says that the document has nothing.
const SEQNO: usize = 8;

/// Bytes of a document's record.
pub(super) fn encode_record(
    seqno: u64,
    entries: &[Entry<'_>],
    reason: Option<Unindexable>,
    out: &mut Vec<u8>,
) -> Result<(), StoreError> {
    out.clear();
    if entries.is_empty() && reason.is_none() {
        out.extend_from_slice(&seqno.to_le_bytes());
        return Ok(());
    }
    value::encode(seqno, reason, entries, out)
}

/// What a build in progress consists of.
#[derive(Default)]
pub(super) struct Collected {
    /// The newest last; more than one after a spool that failed.
    pub memory: Vec<Collector>,
}

/// Dropping it ends the thread that syncs while an environment is filled.
struct Over<'a> {
    filled: &'a AtomicBool,
    syncer: std::thread::Thread,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.filled.store(true, Ordering::Release);
        self.syncer.unpark();
    }
}

impl Collected {
    pub fn newest(&mut self) -> &mut Collector {
        if self.memory.is_empty() {
            self.memory.push(Collector::default());
        }
        let last = self.memory.len() - 1;
        &mut self.memory[last]
    }
    pub fn bytes(&self) -> usize {
        self.memory.iter().map(Collector::memory).sum()
    }
    pub fn len(&self) -> u64 {
        self.memory.iter().map(|c| c.len() as u64).sum()
    }
    pub fn is_empty(&self) -> bool {
        self.memory.iter().all(Collector::is_empty)
    }
}

/// How far the second phase of a build is, in records.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub done: AtomicU64,
    pub total: AtomicU64,
}

/// Visits the newest record of every document, keys ascending.
fn newest(
    sources: Vec<Source<'_>>,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let (mut key, mut value) = (Vec::new(), Vec::new());
    merge(sources, |next, record| {
        if record.len() < SEQNO {
            return Err(StoreError::damaged("record of a build is too short"));
        }
        if next == key && !value.is_empty() {
            if u64_of(record) < u64_of(&value) {
                return Ok(());
            }
        } else if !value.is_empty() {
            visit(&key, &value)?;
        }
        key.clear();
        key.extend_from_slice(next);
        value.clear();
        value.extend_from_slice(record);
        Ok(())
    })?;
    if value.is_empty() { Ok(()) } else { visit(&key, &value) }
}

/// Which runs the next one replaces: none as long as there are few, then the smaller half, so that each record is written again a
/// few times at most.
pub(super) fn to_merge(runs: &[PathBuf]) -> Vec<PathBuf> {
    if runs.len() < MOST_RUNS {
        return Vec::new();
    }
    let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.len());
    let mut smaller = runs.to_vec();
    smaller.sort_by_cached_key(bytes);
    smaller.truncate(runs.len() / 2);
    smaller
}

/// Writes what was collected as run `number`; with these older runs merged into it, which it replaces.
pub(super) fn spool(
    dir: &Path,
    number: u32,
    older: &[PathBuf],
    collected: &Collected,
    mut meta: Meta,
) -> Result<PathBuf, StoreError> {
    let mut sources = open_runs(older)?.0;
    sources.extend(collected.memory.iter().map(Source::memory));
    let mut run = RunWriter::create(&dir.join(RUNS), number)?;
    meta.items = 0;
    let written = newest(sources, |key, record| {
        meta.items += 1;
        run.push(key, record)
    });
    let path = match written.and_then(|()| run.finish(&meta)) {
        Ok(path) => path,
        Err(error) => {
            // Removes what has no name yet; the space may be what is missing.
            let _ = run::list(&dir.join(RUNS));
            return Err(error);
        }
    };
    for replaced in older {
        // One that stays, as after a crash here, has records that say the same twice.
        let _ = fs::remove_file(replaced);
    }
    Ok(path)
}

/// The runs as sources, and how many records they have.
fn open_runs<'a>(runs: &[PathBuf]) -> Result<(Vec<Source<'a>>, u64), StoreError> {
    let (mut sources, mut records) = (Vec::with_capacity(runs.len()), 0);
    for path in runs {
        let (run, meta) = RunReader::open(path)?;
        records += meta.items;
        sources.push(Source::Run(run));
    }
    Ok((sources, records))
}

/// The second phase of a build.
pub(super) struct Build<'a> {
    pub dir: &'a Path,
    pub identity: &'a SliceIdentity,
    pub limits: &'a StoreLimits,
    pub mark: &'a SliceMark,
    pub purpose: Purpose,
    pub runs: &'a [PathBuf],
    pub collected: &'a Collected,
    pub progress: &'a Progress,
}

impl Build<'_> {
    /// True when it is so small that one transaction in the slice's own environment does.
    pub fn is_small(&self) -> bool {
        self.runs.is_empty() && self.collected.bytes() <= self.limits.small_build
    }

    /// Fills the slice's own environment in one transaction.
    pub fn direct(&self, env: &SliceEnv, dbs: Databases, slots: &Slots) -> Result<(), StoreError> {
        self.fill(env, dbs, slots, None)
    }

    /// Fills a fresh environment beside the slice's, synced and closed.
    pub fn fresh(&self) -> Result<(), StoreError> {
        let made = self.make_fresh();
        if made.is_err() {
            // Half of it is of no use, and the space may be what is missing; what cannot be removed is when it is made again.
            let _ = remove_dir(&self.dir.join(FRESH));
        }
        made
    }

    fn make_fresh(&self) -> Result<(), StoreError> {
        let fresh = self.dir.join(FRESH);
        remove_dir(&fresh)?;
        let opened = open::open(&fresh, Some(self.identity), self.limits, Use::Fresh)?;
        let file = fs::File::open(fresh.join(DATA))?;
        let filled = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Syncing what is written meanwhile leaves less to wait for at the end.
            let syncer = scope.spawn(|| -> io::Result<()> {
                while !filled.load(Ordering::Acquire) {
                    std::thread::park_timeout(SYNC_EVERY);
                    file.sync_data()?;
                }
                Ok(())
            });
            // Also when filling panics: the scope waits for the thread.
            let over = Over { filled: &filled, syncer: syncer.thread().clone() };
            let outcome = self.fill(&opened.env, opened.dbs, &opened.slots, Some(GROUP));
            drop(over);
            let synced = syncer.join().map_err(|_| StoreError::Misuse("the syncing thread panicked"))?;
            outcome?;
            synced.map_err(StoreError::from)
        })?;
        opened.env.force_sync()?;
        let closing = opened.env.prepare_for_closing();
        closing.wait();
        fs::File::open(&fresh)?.sync_all()?;
        Ok(())
    }

    fn sources(&self) -> Result<Vec<Source<'_>>, StoreError> {
        let (mut sources, spooled) = open_runs(self.runs)?;
        self.progress.total.store((spooled + self.collected.len()) * 2, Ordering::Relaxed);
        self.progress.done.store(0, Ordering::Relaxed);
        sources.extend(self.collected.memory.iter().map(Source::memory));
        Ok(sources)
    }

    fn fill(&self, env: &SliceEnv, dbs: Databases, slots: &Slots, group: Option<usize>) -> Result<(), StoreError> {
        let mut entries = Entries { dir: self.dir.join(FRESH), most: self.limits.build_memory, ..Entries::default() };
        let mut writer = Writer { env, txn: Some(env.write_txn()?), group, pending: 0 };
        let (mut rows, mut unindexed) = (Changes::default(), Changes::default());
        let mut suffix = Vec::new();
        newest(self.sources()?, |key, record| {
            self.progress.done.fetch_add(1, Ordering::Relaxed);
            if record.len() == SEQNO {
                return Ok(());
            }
            let row = value::decode(record)?;
            let (vb, docid) = decode_row_key(key)?;
            suffix.clear();
            encode_entry_suffix(docid, vb, &mut suffix);
            for entry in row.entries() {
                entries.push([entry.key, &suffix], entry.include)?;
            }
            if let Some(reason) = row.reason {
                unindexed.append(key, &value::encode_unindexed(row.seqno, reason));
            }
            rows.append(key, record);
            if rows.bytes() >= APPEND {
                writer.append(dbs.rows, &mut rows)?;
                writer.append(dbs.unindexed, &mut unindexed)?;
            }
            Ok(())
        })?;
        writer.append(dbs.rows, &mut rows)?;
        writer.append(dbs.unindexed, &mut unindexed)?;
        let total = self.progress.total.load(Ordering::Relaxed);
        self.progress.done.store(total / 2, Ordering::Relaxed);
        entries.merge(|key, include| {
            self.progress.done.fetch_add(1, Ordering::Relaxed);
            rows.append(key, include);
            if rows.bytes() >= APPEND { writer.append(dbs.entries, &mut rows) } else { Ok(()) }
        })?;
        writer.append(dbs.entries, &mut rows)?;
        self.progress.done.store(total, Ordering::Relaxed);
        let mut txn = writer.finish()?;
        let mut history = History::default();
        if let Purpose::Snapshot { at } = self.purpose {
            history.keep((dbs, slots), &mut txn, (self.mark.clone(), at), self.limits)?;
        }
        let meta = Meta {
            identity: self.identity.clone(),
            items: dbs.entries.len(&txn)?,
            unindexed: dbs.unindexed.len(&txn)?,
            undo: UndoSlot::default(),
            mark: self.mark.clone(),
        };
        dbs.meta.put(&mut txn, META_KEY, &meta.encode())?;
        txn.commit()?;
        Ok(())
    }
}

/// Appends in groups of a commit each, or all in one.
struct Writer<'e> {
    env: &'e SliceEnv,
    txn: Option<RwTxn<'e>>,
    group: Option<usize>,
    pending: usize,
}

impl<'e> Writer<'e> {
    #[allow(unsafe_code)]
    fn append(&mut self, db: Bytemap, records: &mut Changes) -> Result<(), StoreError> {
        if self.group.is_some_and(|group| self.pending >= group) {
            if let Some(txn) = self.txn.take() {
                txn.commit()?;
            }
            self.pending = 0;
        }
        let mut txn = match self.txn.take() {
            Some(txn) => txn,
            None => self.env.write_txn()?,
        };
        let mut cursor = db.iter_mut(&mut txn)?;
        for i in 0..records.len() {
            let record = records.get(i);
            // SAFETY: key and value lie in the buffer of `records`, not in the database.
            unsafe {
                cursor.put_current_with_options::<heed::types::Bytes>(PutFlags::APPEND, record.key, record.value)?;
            }
        }
        drop(cursor);
        self.txn = Some(txn);
        self.pending += records.len();
        records.clear();
        Ok(())
    }

    fn finish(self) -> Result<RwTxn<'e>, StoreError> {
        match self.txn {
            Some(txn) => Ok(txn),
            None => Ok(self.env.write_txn()?),
        }
    }
}

/// The entries of a build: in memory, and beyond its limit in runs.
#[derive(Default)]
struct Entries {
    dir: PathBuf,
    most: usize,
    memory: Collector,
    runs: Vec<PathBuf>,
    /// Runs so far.
    written: u32,
}

impl Entries {
    fn push(&mut self, key: [&[u8]; 2], include: &[u8]) -> Result<(), StoreError> {
        self.memory.push(key, include);
        if self.memory.memory() < self.most {
            return Ok(());
        }
        let full = std::mem::take(&mut self.memory);
        let merged = to_merge(&self.runs);
        self.runs.retain(|run| !merged.contains(run));
        let mut sources = open_runs(&merged)?.0;
        sources.push(Source::memory(&full));
        let mut run = RunWriter::create(&self.dir, self.written)?;
        merge(sources, |key, include| run.push(key, include))?;
        self.runs.push(run.finish(&Meta::default())?);
        self.written += 1;
        merged.iter().try_for_each(fs::remove_file)?;
        Ok(())
    }

    /// Visits all of them, keys ascending, and removes the runs.
    fn merge(self, visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut sources = open_runs(&self.runs)?.0;
        sources.push(Source::memory(&self.memory));
        merge(sources, visit)?;
        Ok(self.runs.iter().try_for_each(fs::remove_file)?)
    }
}

/// Puts the fresh environment's file in the place of the slice's, which must be closed, and removes the runs.
pub(super) fn swap_in(dir: &Path) -> Result<(), StoreError> {
    fs::rename(dir.join(FRESH).join(DATA), dir.join(DATA))?;
    fs::File::open(dir)?.sync_all()?;
    remove_left_over(dir)
}

/// Removes what a build leaves behind once its outcome is in place.
pub(super) fn remove_left_over(dir: &Path) -> Result<(), StoreError> {
    remove_dir(&dir.join(FRESH))?;
    remove_dir(&dir.join(RUNS))
}

/// Removes a directory, if it is there.
pub(super) fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// What a build shares with the store that began it.
pub(super) type SharedProgress = Arc<Progress>;
