//! The slice store: one LMDB environment per slice, and immutable stability layers in memory on top of it.
//!
//! # Purpose
//! Keeps what a slice has to know (design section 7): the forward index that scans read, the back index that finds a
//! document's old entries, the documents that the index could not take, how far all of that goes, and how to go back. It knows
//! nothing of topics, batches or timestamps beyond the mark that the caller stores with the data.
//!
//! # Constraints
//! - One writer. Readers never block it and are never blocked by it; a snapshot stays as it is for as long as it is held.
//! - Data and mark are written in one transaction, so a commit always stands for exactly what its mark says.
//! - Within a document a seqno never falls, but by rolling back: a seqno at or below the stored one changes nothing. A document
//!   that is removed leaves no trace, so anything may follow a removal.
//! - Keys have at most [`MAX_KEY`] bytes.
//! - A slice is opened once: heed refuses a second time within the process, and the node's lock on its data directory keeps
//!   other processes away. It closes when the store and all its snapshots and jobs are dropped.
//!
//! # Design
//! - [`SliceStore::replace`] looks the document's present row up, in memory and then in LMDB, and collects the difference.
//! - [`SliceStore::seal`] sorts what was collected into a layer. Where there are more than `merge_layers`, the newest are
//!   merged into a new one, at once if they are small, else by a [`MergeJob`]; older snapshots keep their own list.
//! - Only the forward index and the unindexed documents are layered, as nobody scans the back index: its rows that are not
//!   durable yet lie in hash maps (open layer, sealed, being persisted).
//! - [`SliceStore::begin_persist`] freezes the sealed layers. The job writes them while the store goes on; until its outcome
//!   is taken back, the frozen layers stay where they are.
//! - What a persist and a rollback write is sorted first, and written with one cursor for each database (`ascending.rs`).
//! - A persist for a persistence timestamp makes a *kept snapshot*: an undo slot holds the prior row of every document that
//!   changed since the snapshot before it (`undo.rs`). [`SliceStore::roll_back`] walks the slots back in one transaction.
//!   While there is no kept snapshot, nothing is recorded: a build has nothing to go back to.
//! - An empty slice is filled in bulk (`build.rs`): [`SliceStore::bulk`] only collects, an interim persist spools a sorted,
//!   checksummed run, and a persist for [`Purpose::Built`] merges all of it, appended in order, into a fresh environment that
//!   then takes the place of the empty one.
//! - A scan checks one of the commit's read transactions out and merges its cursor with the layers.
//! - LMDB trusts its file, so its page structure is checked before it is mapped (`pages.rs`).
//!
//! # On disk
//! The directory holds `data.mdb` and `lock.mdb`, and during a build `runs/` (`run.rs`) and `fresh/`, an environment in the
//! making. Format version 3 has these databases:
//!
//! | database | key | value |
//! |---|---|---|
//! | `fi` | secondary key, docid, vbucket (the entry key) | included fields: a JSON object, or empty |
//! | `bi` | vbucket u16 big-endian, docid | seqno, reason, entries without docid, checksum: `value.rs` |
//! | `ui` | as in `bi` | seqno u64 little-endian, reason u8; one for every `bi` row with a reason |
//! | `meta` | `meta` | version, checksum, identity, counts, undo slot in use, mark: `meta.rs` |
//! | `snap` | ST number u64 big-endian | version, checksum, time, counts, undo slot, mark: a kept snapshot |
//! | `undo00`… | as in `bi` | the row before the first change since the snapshot before, or empty |
//!
//! A directory of another version is refused, and left as it is.
//!
//! # After a crash
//! | when | what is left |
//! |---|---|
//! | before a commit | the commit before it, whole; layers are gone, and the mark says from where to apply again |
//! | while LMDB syncs data | the same: the meta page that would point to the new pages is written last |
//! | while LMDB writes its meta page | either commit, whole: LMDB has two meta pages and picks the newer valid one |
//! | after a commit, before `finish_persist` | the new commit |
//! | during a rollback | all of it or nothing: it is one commit |
//! | while a run is spooled | the runs before it; a run without its final name is removed |
//! | while a fresh environment is filled | the runs; it is made again from them |
//! | after the fresh file was renamed | the built slice; runs that still lie there are removed |
//! | while a slice is created | an empty environment, which is filled on the next opening |
//!
//! A commit that runs into a full disk leaves the layers for the next attempt. After any other failure of a commit the store
//! is *poisoned*: it stays readable, but answers every further persist with [`StoreError::Poisoned`] until it is reopened. A
//! full map also leaves the layers: [`SliceStore::grow`] reopens the environment with a larger one once nobody reads it.
//!
//! # Example
//! ```
//! use highwater_indexer::store::{Entry, LmdbStore, Purpose, SliceIdentity, SliceMark, SliceStore, StoreLimits};
//! use highwater_schemas::wire::ByteRange;
//! use std::ops::ControlFlow;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tmp = tempfile::tempdir()?;
//! # let dir = tmp.path();
//! let identity = SliceIdentity { bucket: "users".into(), index_id: "by_age".into(), ..SliceIdentity::default() };
//! let mut store = LmdbStore::open(dir, &identity, StoreLimits::default())?;
//! let all = [ByteRange { low: Vec::new(), high: None }];
//! for (st, key) in [(3, b"\x06forty"), (4, b"\x06fifty")] {
//!     store.replace(0, "u1", st, &[Entry { key, include: b"" }], None)?;
//!     let snapshot = store.seal()?;
//!     snapshot.scan(&all, false, None, &mut |found, _include| {
//!         assert!(found.starts_with(key));
//!         ControlFlow::Continue(())
//!     })?;
//!
//!     let mark = SliceMark { st, ..SliceMark::default() };
//!     let job = store.begin_persist(mark, Purpose::Snapshot { at: st }).ok_or("already running")?;
//!     let outcome = std::thread::spawn(|| job.run()).join().map_err(|_| "persister died")?;
//!     store.finish_persist(outcome)?;
//!     assert_eq!(store.durable().st, st);
//! }
//! store.roll_back(3, (0, 0))?;
//! assert_eq!((store.durable().st, store.seal()?.items()), (3, 1));
//! # Ok(())
//! # }
//! ```

mod ascending;
mod base;
mod build;
mod collect;
mod diff;
mod error;
mod layer;
mod lmdb;
mod look;
mod merge;
mod meta;
mod open;
mod pages;
mod parts;
mod persist;
mod replace;
mod rows;
mod run;
mod scan;
mod sort;
#[cfg(test)]
mod tests;
mod undo;
mod value;
mod verify;

pub use error::StoreError;
pub use layer::{MergeJob, MergeOutcome};
pub use lmdb::LmdbStore;
pub use look::{BackIndex, Document, Picked, Place, RunInfo, check_run, run_info, runs};
pub use meta::{FORMAT_VERSION, KeptSnapshot, SliceIdentity, SliceMark, SliceVb};
pub use persist::{PersistJob, PersistOutcome, Purpose};
pub use scan::{Snapshot, Visit};
pub use verify::{Verified, Verifier};

pub(crate) use meta::{decode_mark, encode_mark};
pub(crate) use open::DATA;
pub(crate) use undo::SLOTS;

use highwater_schemas::{collation::MAX_ENTRY_KEY, wire::Unindexable};
use std::{path::Path, time::Duration};

/// The longest key of a database, bytes: what LMDB with `longer-keys` takes on pages of 4 KiB.
pub const MAX_KEY: usize = MAX_ENTRY_KEY;

/// Checks all pages of an LMDB file that is not open, if there is one in the directory.
pub fn check_file(dir: &Path) -> Result<(), StoreError> {
    let file = dir.join(open::DATA);
    if file.exists() { pages::check(&file, pages::Depth::Leaves) } else { Ok(()) }
}

/// An entry of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The encoded secondary key, without docid and vbucket.
    pub key: &'a [u8],
    /// The included fields as a JSON object, or empty.
    pub include: &'a [u8],
}

/// Limits of a slice.
#[derive(Clone, Debug)]
pub struct StoreLimits {
    /// Address space reserved for the data file, bytes, a multiple of the page size; the file grows as needed.
    pub map_size: usize,
    /// How much more address space [`SliceStore::grow`] reserves, bytes, a multiple of the page size.
    pub map_growth: usize,
    /// Layers that a scan meets beside those that a running persist writes; two at least.
    pub merge_layers: usize,
    /// Readers opened with each commit: so many scans run at once even on an older commit.
    pub readers: usize,
    /// Readers of one commit at most.
    pub most_readers: usize,
    /// How long a scan waits for a reader.
    pub reader_wait: Duration,
    /// Snapshots are kept for this long, counted back from the newest,
    pub kept_for: Duration,
    /// and so many at least,
    pub kept_least: usize,
    /// unless their undo records take more than this, bytes of keys and rows; the oldest go first.
    pub undo_quota: u64,
    /// Entries that the last step of a build holds in memory, bytes; beyond it they are sorted in runs on disk.
    pub build_memory: usize,
    /// All pages of a data file up to this size are checked before it is used; those of a larger one beside its use. Bytes.
    pub check_at_open: u64,
    /// A build of so few bytes is one transaction in the slice's own environment.
    pub small_build: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            map_size: 64 << 30,
            map_growth: 64 << 30,
            merge_layers: 8,
            readers: 8,
            most_readers: 64,
            reader_wait: Duration::from_secs(5),
            kept_for: Duration::from_secs(180),
            kept_least: 5,
            undo_quota: 1 << 30,
            build_memory: 32 << 20,
            check_at_open: 64 << 20,
            small_build: 4 << 20,
        }
    }
}

/// How a slice is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Entries, and documents that the index could not take, in the newest snapshot.
    pub items: u64,
    pub unindexed: u64,
    /// Pages of the data file that hold data of the newest commit, without undo records.
    pub live_bytes: u64,
    /// Pages that hold undo records.
    pub undo_bytes: u64,
    /// Size of the data file.
    pub file_bytes: u64,
    /// As [`SliceStore::memory`].
    pub memory: u64,
    pub layers: usize,
    /// Snapshots to which the slice can be rolled back.
    pub kept: usize,
    /// Records that the last step of a build has merged, of so many.
    pub built: (u64, u64),
    /// Why the slice no longer persists.
    pub poisoned: Option<String>,
}

/// The storage of one slice.
pub trait SliceStore: Send {
    /// The mark of the newest durable commit, or run of a build.
    fn durable(&self) -> &SliceMark;

    /// Replaces the entries of (vb, docid) by this set, in the open layer. A seqno at or below the stored one changes nothing.
    ///
    /// No entries and no reason: the document has nothing in this index. Of entries with equal keys the last one counts.
    /// [`StoreError::Misuse`] while bulk documents are not durable.
    fn replace(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError>;

    /// As [`Self::replace`] for a document as it is present in the source: it counts also when its seqno is below the stored
    /// one. An equal seqno says that nothing changed, up to `proven`; above it may name another message.
    fn compare(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError>;

    /// Removes a document, if it is there with this seqno.
    fn remove(&mut self, vb: u16, docid: &str, seqno: u64) -> Result<(), StoreError>;

    /// The seqno that a document is there with.
    fn seqno(&self, vb: u16, docid: &str) -> Result<Option<u64>, StoreError>;

    /// Shows the documents of a vbucket from `place` on, as they are now, with their seqnos, and picks those that are wanted: so
    /// many that they take some MiB, and what is not durable in the first page. Documents may change between pages; one that is
    /// changed all the time may be missed.
    fn pick(&self, vb: u16, place: &Place, wanted: &mut dyn FnMut(&str, u64) -> bool) -> Result<Picked, StoreError>;

    /// Seals the open layer and answers the snapshot of everything replaced so far; cheap when nothing changed.
    fn seal(&mut self) -> Result<Snapshot, StoreError>;

    /// Work to be done on another thread while scans meet more layers than they should; None while such work goes on.
    fn begin_merge(&mut self) -> Option<MergeJob>;

    /// Takes the outcome; snapshots from now on have fewer layers. None: the work did not run to its end, and may be begun again.
    fn finish_merge(&mut self, outcome: Option<MergeOutcome>);

    /// The job of a persist did not run to its end: what it was to write waits for the next one.
    fn lose_persist(&mut self);

    /// True while the slice is empty and can be filled with [`Self::bulk`].
    fn in_bulk(&self) -> bool;

    /// Collects a document of a slice that is filled from nothing: the highest seqno of each document counts, and nothing is
    /// to be seen before a persist for [`Purpose::Built`] or [`Purpose::Snapshot`] is taken back.
    ///
    /// [`StoreError::Misuse`] unless [`Self::in_bulk`].
    fn bulk(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError>;

    /// Bytes held in memory, with an estimate of the dirty pages of a running persist.
    fn memory(&self) -> usize;

    /// True when a persist would write nothing but its mark.
    fn is_clean(&self) -> bool;

    /// Freezes everything sealed and all bulk documents so far, to be made durable with this mark.
    ///
    /// None while a persist is running. The job may run on any thread while replace, seal and bulk go on. A job or outcome
    /// that gets lost counts as failed.
    fn begin_persist(&mut self, mark: SliceMark, purpose: Purpose) -> Option<PersistJob>;

    /// Takes the outcome: on success the snapshots from now on stand on the new commit, on failure everything stays.
    fn finish_persist(&mut self, outcome: PersistOutcome) -> Result<(), StoreError>;

    /// The snapshots to which the slice can be rolled back, oldest first.
    fn kept(&self) -> &[KeptSnapshot];

    /// Makes the slice what it was at the kept snapshot of this ST, durably; what was not durable is dropped.
    ///
    /// The topic position, sequence and creation time, is the caller's to say. Snapshots held stay as they are.
    /// [`StoreError::Misuse`] during a persist, [`StoreError::NoSuchSnapshot`] if it is not kept.
    fn roll_back(&mut self, st: u64, topic: (u64, i64)) -> Result<(), StoreError>;

    /// Reopens the environment with a larger map after [`StoreError::MapFull`]; layers stay.
    ///
    /// [`StoreError::Busy`] while anybody holds a snapshot or a persist is running: try again.
    fn grow(&mut self) -> Result<(), StoreError>;

    fn stats(&self) -> StoreStats;
}
