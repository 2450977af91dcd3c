//! Looking into the slices of a node that does not run.
//!
//! # Invariants
//! - Nothing is changed, and nothing is read while a node has the directory: its lock is held here meanwhile.
//! - A data file's pages are all checked before LMDB follows them: damage ends in an error of its slice, and the others are
//!   still looked at.

use crate::{
    dumps,
    marks::Marks,
    store::{self, LmdbStore, RunInfo, SliceMark, SliceStore, StoreError, StoreLimits},
};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{SliceCheck, SliceDump},
};
use std::{
    fs::{self, File, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

const SLICES: &str = "slices";
/// What `highwater indexer` and `dev` call this service's part of their data directory.
const SERVICE: &str = "indexer";
/// Taken by whoever uses a data directory.
const LOCK: &str = "lock";
/// From a slice's directory up to the node's: bucket, `slices`.
const DEPTH: usize = 3;

/// Why a directory cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum StoppedError {
    #[error("{0} holds no slices: name an indexer's data directory, or a slice's own")]
    NoSlices(PathBuf),
    #[error("data directory {0} is in use: a node runs on it; ask that one, or stop it")]
    InUse(PathBuf),
    #[error("{0}: {1}")]
    Disk(PathBuf, io::Error),
}

/// The slices of a directory, locked against nodes as long as this is held.
pub struct StoppedNode {
    /// Of each slice its directory, and the name of its bucket's.
    slices: Vec<PathBuf>,
    /// The node's directory, if there is one around.
    node: Option<PathBuf>,
    _locks: Vec<File>,
}

/// Documents wanted of a dump.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    pub most: u64,
    /// From this docid of vbucket `vb` on.
    pub from: String,
    pub vb: u16,
}

impl StoppedNode {
    /// Opens the data directory of an indexer or of `dev`, or the directory of a slice.
    pub fn open(dir: &Path) -> Result<Self, StoppedError> {
        let dir = dir.canonicalize().map_err(|e| StoppedError::Disk(dir.to_owned(), e))?;
        if dir.join(store::DATA).exists() && !dir.join(SLICES).exists() {
            let node = dir.ancestors().nth(DEPTH).filter(|node| node.join(SLICES).is_dir()).map(Path::to_owned);
            let locks = lock_around(node.as_deref().unwrap_or(&dir))?;
            return Ok(Self { slices: vec![dir], node, _locks: locks });
        }
        let node = [dir.join(SERVICE), dir.clone()].into_iter().find(|node| node.join(SLICES).is_dir());
        let Some(node) = node else {
            // An indexer that never hosted anything has no slices, but a lock.
            let node = dir.join(SERVICE);
            if !node.join(LOCK).exists() {
                return Err(StoppedError::NoSlices(dir));
            }
            let locks = lock_around(&node)?;
            return Ok(Self { slices: Vec::new(), node: Some(node), _locks: locks });
        };
        let locks = lock_around(&node)?;
        let mut slices = Vec::new();
        for bucket in directories(&node.join(SLICES))? {
            slices.extend(directories(&bucket)?);
        }
        Ok(Self { slices, node: Some(node), _locks: locks })
    }

    /// The slices' directories, in order.
    pub fn slices(&self) -> &[PathBuf] {
        &self.slices
    }

    /// Checks the marks of unchanged slices; what is wrong with them.
    pub fn verify_marks(&self) -> Option<String> {
        let node = self.node.as_deref()?;
        let checked = guarded(|| Marks::inspect(node)?.map_or(Ok(0), |marks| marks.verify()));
        checked.err().map(|e| format!("the marks of unchanged slices: {e}"))
    }

    /// Reads a slice, or the build that lies there, from end to end.
    pub fn verify(&self, dir: &Path) -> SliceCheck {
        let (bucket, name) = named(dir);
        let (index, partition) = split(&name);
        let at = dir.display().to_string();
        let mut check = SliceCheck { at, bucket, index, partition, ..SliceCheck::default() };
        if let Err(error) = guarded(|| verify(dir, &mut check)) {
            check.error = Some(dumps::coded(&error));
        }
        check
    }

    /// What a slice says of itself, and documents of it.
    pub fn dump(&self, dir: &Path, rows: &Rows) -> SliceDump {
        match guarded(|| self.look(dir, rows)) {
            Ok(dump) => dump,
            Err(error) => {
                let (bucket, name) = named(dir);
                let (index, partition) = split(&name);
                let at = dir.display().to_string();
                let error = Some(dumps::coded(&error));
                SliceDump { at, bucket, index_id: index.clone(), index, partition, error, ..SliceDump::default() }
            }
        }
    }

    fn look(&self, dir: &Path, rows: &Rows) -> Result<SliceDump, StoreError> {
        store::check_file(dir)?;
        let slice = LmdbStore::inspect(dir, StoreLimits::default())?;
        let (mut runs, mut damage) = (Vec::new(), None);
        for path in store::runs(dir)? {
            match store::run_info(&path) {
                Ok(run) => runs.push(run),
                Err(error) => damage = Some(dumps::coded(&error)),
            }
        }
        let own = newest(&slice, &runs);
        let newer = self.newer_mark(dir, &own);
        let mut dump = dumps::slice(slice.identity(), (&own, newer.as_ref()), slice.kept(), &slice.stats());
        dump.at = dir.display().to_string();
        state(&slice, &own).clone_into(&mut dump.state);
        dump.runs = runs.iter().map(dumps::run).collect();
        dump.error = damage;
        let read = dumps::read_rows(&mut dump, &slice.back_index()?, (rows.vb, &rows.from), rows.most, usize::MAX);
        if let Err(error) = read {
            dump.error = Some(error);
        }
        Ok(dump)
    }

    /// A newer mark in the node's records; one that cannot be read counts for nothing.
    fn newer_mark(&self, dir: &Path, own: &SliceMark) -> Option<SliceMark> {
        let node = self.node.as_deref().filter(|_| !own.building)?;
        let (bucket, name) = named(dir);
        let stem = name.rsplit_once('.').map_or(&*name, |(stem, _)| stem);
        Marks::inspect(node).ok()??.newest(&format!("{bucket}/{stem}"), own.st).ok()?
    }
}

/// Reads everything; `check` gets the counts as far as it comes.
fn verify(dir: &Path, check: &mut SliceCheck) -> Result<(), StoreError> {
    store::check_file(dir)?;
    let paths = store::runs(dir)?;
    let slice = match LmdbStore::inspect(dir, StoreLimits::default()) {
        // It was about to be made: that is done again at the next start.
        Err(StoreError::NoSlice(_)) if paths.is_empty() => {
            "empty".clone_into(&mut check.state);
            return Ok(());
        }
        slice => slice?,
    };
    let identity = slice.identity();
    (check.bucket, check.index, check.partition) =
        (identity.bucket.clone(), identity.index_id.clone(), identity.partition);
    state(&slice, slice.durable()).clone_into(&mut check.state);
    dumps::enter(check, &slice.verify()?);
    let filled = !is_empty(&slice);
    for path in &paths {
        let run = store::check_run(path)?;
        if run.identity != *identity {
            return Err(StoreError::Damaged(format!("run {} belongs to another slice", path.display())));
        }
        check.runs += 1;
        // Those of a build that is over are only left to be removed.
        if !filled {
            check.documents += run.records;
            "building".clone_into(&mut check.state);
        }
    }
    Ok(())
}

fn is_empty(slice: &LmdbStore) -> bool {
    let stats = slice.stats();
    *slice.durable() == SliceMark::default() && (stats.items, stats.unindexed) == (0, 0)
}

/// The slice's own mark, or that of the newest run of its build.
fn newest(slice: &LmdbStore, runs: &[RunInfo]) -> SliceMark {
    match runs.last() {
        Some(run) if is_empty(slice) => run.mark.clone(),
        _ => slice.durable().clone(),
    }
}

fn state(slice: &LmdbStore, mark: &SliceMark) -> &'static str {
    if mark.building {
        "building"
    } else if is_empty(slice) {
        "empty"
    } else {
        "active"
    }
}

/// The bucket and the name of a slice's directory.
fn named(dir: &Path) -> (String, String) {
    let name = |dir: Option<&Path>| dir.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    (name(dir.parent()), name(Some(dir)))
}

/// Index id and partition of a name as in `<index id>.<partition>.<life>`.
fn split(name: &str) -> (String, u32) {
    let mut parts = name.splitn(3, '.');
    let id = parts.next().unwrap_or_default().to_owned();
    (id, parts.next().and_then(|p| p.parse().ok()).unwrap_or_default())
}

/// A panic here is a mistake of ours, and damage that we did not foresee: it must not keep the other slices from being read.
fn guarded<T>(look: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|_| {
        Err(StoreError::Damaged("reading it panicked, which is a mistake of Highwater's too".into()))
    })
}

/// Locks what a node on this directory would hold: its own lock, and that of `dev` one directory above.
fn lock_around(node: &Path) -> Result<Vec<File>, StoppedError> {
    let above = node.parent().filter(|_| node.file_name().is_some_and(|name| name == SERVICE));
    let mut locks = Vec::new();
    for dir in [Some(node), above].into_iter().flatten() {
        let path = dir.join(LOCK);
        // No lock, no node that ever ran here: a copy. Reading is enough to lock.
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(StoppedError::Disk(path, e)),
        };
        match file.try_lock() {
            Ok(()) => locks.push(file),
            Err(TryLockError::WouldBlock) => return Err(StoppedError::InUse(dir.to_owned())),
            Err(TryLockError::Error(e)) => return Err(StoppedError::Disk(path, e)),
        }
    }
    Ok(locks)
}

fn directories(dir: &Path) -> Result<Vec<PathBuf>, StoppedError> {
    let failed = |e| StoppedError::Disk(dir.to_owned(), e);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What a slice's error is when it concerns the whole directory.
impl From<StoppedError> for ApiError {
    fn from(error: StoppedError) -> Self {
        Self::new(ErrorCode::StorageFailed, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Entry, Purpose, SliceIdentity};

    fn fill(dir: &Path, index: &str, purpose: Purpose) {
        let identity = SliceIdentity { bucket: "b".into(), index_id: index.into(), ..SliceIdentity::default() };
        let limits = StoreLimits { map_size: 64 << 20, small_build: 0, ..StoreLimits::default() };
        fs::create_dir_all(dir).expect("creates");
        let mut store = LmdbStore::open(dir, &identity, limits).expect("opens");
        for n in 0..300u64 {
            let include = format!(r#"{{"name":"n{n}"}}"#);
            let entries = [Entry { key: b"\x03", include: include.as_bytes() }];
            store.bulk(0, &format!("d{n:03}"), n + 1, &entries, None).expect("collects");
        }
        let mark = SliceMark { st: 3, building: purpose == Purpose::Interim, ..SliceMark::default() };
        let job = store.begin_persist(mark, purpose).expect("no persist runs");
        store.finish_persist(job.run()).expect("persists");
    }

    #[test]
    fn every_slice_is_read_whatever_the_others_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let node = dir.path().join("indexer");
        let at = |name: &str| node.join("slices/b").join(name);
        fill(&at("built.0.1"), "built", Purpose::Snapshot { at: 1 });
        fill(&at("half.2.1"), "half", Purpose::Interim);
        fs::create_dir_all(at("empty.0.1")).expect("creates");
        fs::write(node.join("lock"), b"").expect("writes");
        let verify = || {
            let stopped = StoppedNode::open(dir.path()).expect("opens");
            assert_eq!(stopped.verify_marks(), None);
            stopped.slices().iter().map(|s| stopped.verify(s)).collect::<Vec<_>>()
        };
        let found = verify();
        let states: Vec<_> = found.iter().map(|c| (&*c.index, &*c.state, c.documents, c.entries, c.runs)).collect();
        assert_eq!(
            states,
            [("built", "active", 300, 300, 0), ("empty", "empty", 0, 0, 0), ("half", "building", 300, 0, 1)]
        );
        assert!(found.iter().all(|c| c.error.is_none()), "{found:?}");

        let stopped = StoppedNode::open(&at("built.0.1")).expect("opens");
        let rows = Rows { most: 2, from: "d17".into(), vb: 0 };
        let dump = stopped.dump(&stopped.slices()[0], &rows);
        let ids: Vec<_> = dump.rows.iter().map(|r| &*r.id).collect();
        assert_eq!((ids, dump.more, dump.kept.len(), dump.mark.st), (vec!["d170", "d171"], true, 1, 3));
        assert_eq!(dump.rows[0].entries[0].key, Some(vec![serde_json::Value::Null]));
        drop(stopped);

        // The included fields of a row: only a checksum or the comparison with the forward index shows that.
        let file = at("built.0.1").join("data.mdb");
        let mut bytes = fs::read(&file).expect("reads");
        let place = bytes.windows(4).position(|w| w == b"n250").expect("is there");
        bytes[place] ^= 1;
        fs::write(&file, &bytes).expect("writes");
        let found = verify();
        let wrong: Vec<_> = found.iter().filter_map(|c| Some((&*c.index, c.error.as_ref()?.code))).collect();
        assert_eq!(wrong, [("built", ErrorCode::StorageFailed)]);
        fs::write(&file, b"not a data file").expect("writes");
        let run = at("half.2.1").join("runs/00000000.run");
        let whole = fs::read(&run).expect("reads");
        fs::write(&run, &whole[..whole.len() - 1]).expect("writes");
        let found = verify();
        assert_eq!(found.iter().filter(|c| c.error.is_some()).count(), 2, "{found:?}");
    }

    #[test]
    fn no_damage_ends_the_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let slice = dir.path().join("indexer/slices/b/i.0.1");
        fill(&slice, "i", Purpose::Snapshot { at: 1 });
        let file = slice.join("data.mdb");
        let whole = fs::read(&file).expect("reads");
        let stopped = StoppedNode::open(&slice).expect("opens");
        let rows = Rows { most: 1_000, ..Rows::default() };
        let (mut seed, mut found) = (7u64, 0);
        let mut below = |most: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % most
        };
        for _ in 0..600 {
            let mut bytes = whole.clone();
            // Half of it in the heads of pages, where most harm is done.
            let at = below(bytes.len() - 64);
            let at = if below(2) == 0 { at / 4_096 * 4_096 + below(32) } else { at };
            let len = 1 + below(8);
            for byte in &mut bytes[at..at + len] {
                *byte ^= 1 + below(255) as u8;
            }
            if below(20) == 0 {
                bytes.truncate(at);
            }
            fs::write(&file, &bytes).expect("writes");
            found += usize::from(stopped.verify(&stopped.slices()[0]).error.is_some());
            stopped.dump(&stopped.slices()[0], &rows);
        }
        // The rest lies in pages that are not in use.
        assert!(found > 100, "{found} of 600 found");
        fs::write(&file, &whole).expect("writes");
        assert_eq!(stopped.verify(&stopped.slices()[0]).error, None);
    }

    #[test]
    fn a_directory_in_use_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let slice = dir.path().join("indexer/slices/b/i.0.1");
        fill(&slice, "i", Purpose::Built);
        for lock in ["indexer/lock", "lock"] {
            let held = File::create(dir.path().join(lock)).expect("creates");
            held.lock().expect("locks");
            for path in [dir.path(), &dir.path().join("indexer"), &slice] {
                assert!(matches!(StoppedNode::open(path), Err(StoppedError::InUse(_))), "{lock}");
            }
        }
        assert!(StoppedNode::open(dir.path()).is_ok());
        assert!(matches!(StoppedNode::open(&dir.path().join("indexer/slices")), Err(StoppedError::NoSlices(_))));
    }
}
