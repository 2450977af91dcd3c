//! Making things durable: layers in one transaction with undo, keys in order, one full sync; or the steps of a build.

use super::{
    SliceIdentity, SliceMark, StoreError, StoreLimits,
    ascending::{Reader, Writer},
    base::{Base, Bytemap, Databases, ReadTxn, SliceEnv},
    build::{self, Build, Collected, SharedProgress},
    error,
    layer::{Changes, Layer},
    meta::Meta,
    open::DATA,
    pages,
    rows::Rows,
    sort::{Item, sorted},
    undo::{History, Slots, remember},
};
use heed::{PutFlags, RwTxn};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Key of the only record in the meta database.
pub(super) const META_KEY: &[u8] = b"meta";
/// Written to see whether a failed commit met a full disk: as many pages as LMDB writes at once.
const PROBE_PAGES: usize = 64;
/// Of a file that cannot tell any more.
const USUAL_PAGE: usize = 4_096;
const PROBE_FILE: &str = "probe.tmp";
/// Rows that are written together, after what undoes them, and bytes of that.
const ROWS_AT_ONCE: usize = 4_096;
const PRIORS_AT_ONCE: usize = 8 * 1024 * 1024;

/// What a persist is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A persistence timestamp: kept, so that the slice can be rolled back to it. Made at this time, milliseconds since the
    /// epoch.
    Snapshot { at: u64 },
    /// Memory is short, or a session goes on: its changes count towards the next snapshot.
    Interim,
    /// Everything that a build collected is to be looked up and read from now on.
    Built,
}

/// What a running persist writes; shared with the store, which looks documents up in it meanwhile.
#[derive(Default)]
pub(super) struct Frozen {
    pub layers: Vec<Arc<Layer>>,
    pub rows: Rows,
    pub collected: Collected,
    /// Set when its job is no longer only waiting for its turn.
    pub running: AtomicBool,
    /// Set when a commit begins, taken back when it certainly did not happen.
    pub uncertain: AtomicBool,
}

/// A persist that is ready to run, on any thread that may block.
#[must_use = "nothing is durable until the job has run and its outcome was taken back"]
pub struct PersistJob {
    pub(super) dir: PathBuf,
    pub(super) identity: Arc<SliceIdentity>,
    pub(super) limits: StoreLimits,
    pub(super) mark: SliceMark,
    pub(super) purpose: Purpose,
    pub(super) frozen: Arc<Frozen>,
    pub(super) work: Work,
}

pub(super) enum Work {
    /// The store no longer persists.
    Refused(StoreError),
    Commit(Target),
    /// What was collected, as a run with this number, which replaces these.
    Spool {
        number: u32,
        older: Vec<PathBuf>,
    },
    /// All runs and what was collected.
    Build {
        target: Target,
        runs: Vec<PathBuf>,
        progress: SharedProgress,
    },
}

/// Where a commit goes.
pub(super) struct Target {
    pub env: SliceEnv,
    pub dbs: Databases,
    pub slots: Slots,
    pub history: History,
}

/// What became of a persist: to be handed to `finish_persist`.
#[must_use = "the store waits for the outcome"]
pub struct PersistOutcome {
    pub(super) frozen: Arc<Frozen>,
    pub(super) mark: SliceMark,
    pub(super) result: Result<Done, StoreError>,
}

impl PersistOutcome {
    /// True if the mark is durable; after a build, as soon as the outcome was taken back.
    pub fn is_durable(&self) -> bool {
        self.result.is_ok()
    }
}

pub(super) enum Done {
    Committed(Box<Committed>),
    Spooled {
        run: PathBuf,
        replaced: Vec<PathBuf>,
    },
    /// The fresh environment waits to be put in place.
    Built,
}

pub(super) struct Committed {
    pub base: Base,
    pub lookup: ReadTxn,
    pub history: History,
}

impl PersistJob {
    /// True when it reads back what was written to fill an empty slice, which takes long but shares nothing with other slices.
    pub fn is_build(&self) -> bool {
        match &self.work {
            Work::Build { .. } => true,
            Work::Spool { older, .. } => !older.is_empty(),
            Work::Refused(_) | Work::Commit(_) => false,
        }
    }

    /// Writes, commits and syncs.
    pub fn run(self) -> PersistOutcome {
        let Self { dir, identity, limits, mark, purpose, frozen, work } = self;
        frozen.running.store(true, Ordering::Relaxed);
        let context = Context { identity: &identity, limits: &limits, mark: &mark, purpose, frozen: &frozen };
        let result = match work {
            Work::Refused(error) => Err(error),
            Work::Commit(target) => context.commit_layers(target),
            Work::Spool { number, older } => {
                let meta = Meta { identity: (*identity).clone(), mark: mark.clone(), ..Meta::default() };
                let spooled = build::spool(&dir, number, &older, &frozen.collected, meta);
                spooled.map(|run| Done::Spooled { run, replaced: older })
            }
            Work::Build { target, runs, progress } => {
                let (collected, progress) = (&frozen.collected, &*progress);
                let (identity, limits, mark, runs) = (&*identity, &limits, &mark, &runs[..]);
                let build = Build { dir: &dir, identity, limits, mark, purpose, runs, collected, progress };
                if build.is_small() { context.fill(&build, target) } else { build.fresh().map(|()| Done::Built) }
            }
        };
        PersistOutcome { frozen, mark, result }
    }
}

struct Context<'a> {
    identity: &'a SliceIdentity,
    limits: &'a StoreLimits,
    mark: &'a SliceMark,
    purpose: Purpose,
    frozen: &'a Frozen,
}

impl Context<'_> {
    fn commit_layers(&self, target: Target) -> Result<Done, StoreError> {
        let Target { env, dbs, slots, mut history } = target;
        let mut txn = env.write_txn()?;
        let sources: Vec<_> = self.frozen.layers.iter().map(|l| l.entries.changes()).collect();
        apply(dbs.entries, &mut txn, &sources)?;
        let sources: Vec<_> = self.frozen.layers.iter().map(|l| l.unindexed.changes()).collect();
        apply(dbs.unindexed, &mut txn, &sources)?;
        self.apply_rows(dbs, &slots, &mut txn, &mut history)?;
        if let Purpose::Snapshot { at } = self.purpose {
            history.keep((dbs, &slots), &mut txn, (self.mark.clone(), at), self.limits)?;
        }
        let meta = Meta {
            identity: self.identity.clone(),
            items: dbs.entries.len(&txn)?,
            unindexed: dbs.unindexed.len(&txn)?,
            undo: history.open,
            mark: self.mark.clone(),
        };
        dbs.meta.put(&mut txn, META_KEY, &meta.encode())?;
        self.certainly(&env, || txn.commit().map_err(StoreError::from))?;
        self.committed(&env, dbs, history)
    }

    /// A build that is small enough for the slice's own environment.
    fn fill(&self, build: &Build<'_>, target: Target) -> Result<Done, StoreError> {
        let Target { env, dbs, slots, .. } = target;
        self.certainly(&env, || build.direct(&env, dbs, &slots))?;
        let read = || -> Result<History, StoreError> {
            build::remove_left_over(env.path())?;
            History::read(dbs, &env.read_txn()?, super::meta::UndoSlot::default())
        };
        let history =
            read().map_err(|e| StoreError::Poisoned(format!("committed, but the commit cannot be read: {e}")))?;
        self.committed(&env, dbs, history)
    }

    fn committed(&self, env: &SliceEnv, dbs: Databases, history: History) -> Result<Done, StoreError> {
        let (base, lookup) = Base::open(env, dbs, self.limits)
            .map_err(|e| StoreError::Poisoned(format!("committed, but the commit cannot be read: {e}")))?;
        Ok(Done::Committed(Box::new(Committed { base, lookup, history })))
    }

    /// Commits, and says of a failure whether the commit may have happened all the same.
    fn certainly(&self, env: &SliceEnv, commit: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.frozen.uncertain.store(true, Ordering::SeqCst);
        let Err(error) = commit() else { return Ok(()) };
        let error = match error {
            // LMDB reports a short write like a failed sync.
            StoreError::Io(_) if disk_is_full(env.path()) => StoreError::DiskFull,
            StoreError::Io(e) => StoreError::Poisoned(format!("commit failed: {e}")),
            other => other,
        };
        if !matches!(error, StoreError::Poisoned(_)) {
            self.frozen.uncertain.store(false, Ordering::SeqCst);
        }
        Err(error)
    }

    /// Writes the back index, and what it takes to undo that.
    fn apply_rows(
        &self,
        dbs: Databases,
        slots: &Slots,
        txn: &mut RwTxn<'_>,
        history: &mut History,
    ) -> Result<(), StoreError> {
        let rows = &self.frozen.rows;
        if rows.is_empty() {
            return Ok(());
        }
        let slot = history.begin(dbs, slots, txn)?;
        let flags = append_if_empty(dbs.rows, txn)?;
        let mut priors = Changes::default();
        let mut items = &sorted_rows(rows)[..];
        while !items.is_empty() {
            priors.clear();
            let mut present = Reader::new(dbs.rows, txn, rows.len())?;
            for item in items.iter().take(ROWS_AT_ONCE) {
                let key = rows.key(item.rec as usize);
                priors.append(key, present.get(key)?.unwrap_or_default());
                if priors.bytes() > PRIORS_AT_ONCE {
                    break;
                }
            }
            drop(present);
            if let Some(slot) = slot {
                remember(slot, &mut history.open, txn, &priors)?;
            }
            let (now, later) = items.split_at(priors.len());
            let mut writer = Writer::new(dbs.rows, txn)?;
            for (item, prior) in now.iter().zip(priors.iter()) {
                match rows.row(item.rec as usize) {
                    // It came and went since the last commit.
                    [] if prior.value.is_empty() => {}
                    [] => writer.delete(prior.key)?,
                    row => writer.put(flags, prior.key, row)?,
                }
            }
            items = later;
        }
        Ok(())
    }
}

/// The records of a map, keys ascending.
fn sorted_rows(rows: &Rows) -> Vec<Item> {
    sorted((0..rows.len() as u32).map(|i| (0, i)), |_, i| rows.key(i as usize))
}

fn apply(db: Bytemap, txn: &mut RwTxn<'_>, sources: &[&Changes]) -> Result<(), StoreError> {
    let flags = append_if_empty(db, txn)?;
    Writer::new(db, txn)?.apply(flags, sources)
}

/// Keys come in order, so into an empty database they are appended, which fills pages to the brim.
fn append_if_empty(db: Bytemap, txn: &RwTxn<'_>) -> Result<PutFlags, StoreError> {
    Ok(if db.is_empty(txn)? { PutFlags::APPEND } else { PutFlags::empty() })
}

pub(super) fn disk_is_full(dir: &Path) -> bool {
    let path = dir.join(PROBE_FILE);
    let page = fs::File::open(dir.join(DATA)).ok().and_then(|file| pages::page_size(&file).ok());
    let probe = || {
        let mut file = fs::File::create(&path)?;
        file.write_all(&vec![0; PROBE_PAGES * page.unwrap_or(USUAL_PAGE)])?;
        file.sync_all()
    };
    let full = probe().is_err_and(|e| error::full(&e));
    // A probe that stays behind is overwritten by the next one.
    let _ = fs::remove_file(&path);
    full
}
