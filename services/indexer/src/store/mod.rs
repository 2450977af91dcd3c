//! The slice store: one LMDB environment per slice, and immutable stability layers in memory on top of it.
//!
//! # Purpose
//! Keeps what a slice has to know (design section 7): the forward index that scans read, the back index that finds a
//! document's old entries, the documents that the index could not take, and how far all of that goes. It knows nothing of
//! topics, batches or timestamps beyond the mark that the caller stores with the data.
//!
//! # Constraints
//! - One writer. Readers never block it and are never blocked by it; a snapshot stays as it is for as long as it is held.
//! - Data and mark are written in one transaction, so a commit always stands for exactly what its mark says.
//! - Within a document a seqno never falls: a seqno at or below the stored one changes nothing. A document that is removed
//!   leaves no trace, so anything may follow a removal.
//! - Keys have at most [`MAX_KEY`] bytes.
//! - A slice is opened once: heed refuses a second time within the process, and the node's lock on its data directory keeps
//!   other processes away. It closes when the store and all its snapshots and jobs are dropped.
//!
//! # Design
//! - [`SliceStore::replace`] looks the document's present row up, in memory and then in LMDB, and collects the difference.
//! - [`SliceStore::seal`] sorts what was collected into a layer. Where there are more than `merge_layers`, the newest are
//!   merged into a new one; older snapshots keep their own list.
//! - Only the forward index and the unindexed documents are layered, as nobody scans the back index: its rows that are not
//!   durable yet lie in hash maps (open layer, sealed, being persisted).
//! - [`SliceStore::begin_persist`] freezes the sealed layers. The job writes them while the store goes on; until its outcome
//!   is taken back, the frozen layers stay where they are.
//! - A scan checks one of the commit's read transactions out and merges its cursor with the layers.
//!
//! # On disk
//! The directory holds `data.mdb` and `lock.mdb`. Format version 1 has these databases:
//!
//! | database | key | value |
//! |---|---|---|
//! | `fi` | secondary key, docid, vbucket (the entry key) | included fields: a JSON object, or empty |
//! | `bi` | vbucket u16 big-endian, docid | seqno, reason, entries without docid: `value.rs` |
//! | `ui` | as in `bi` | seqno u64 little-endian, reason u8; one for every `bi` row with a reason |
//! | `meta` | `meta` | version, checksum, identity, counts, mark: `meta.rs` |
//!
//! # After a crash
//! | when | what is left |
//! |---|---|
//! | before a commit | the commit before it, whole; layers are gone, and the mark says from where to apply again |
//! | while LMDB syncs data | the same: the meta page that would point to the new pages is written last |
//! | while LMDB writes its meta page | either commit, whole: LMDB has two meta pages and picks the newer valid one |
//! | after a commit, before `finish_persist` | the new commit |
//! | while a slice is created | an empty environment, which is filled on the next opening |
//!
//! A commit that runs into a full disk leaves the layers for the next attempt. After any other failure of a commit the store
//! is *poisoned*: it stays readable, but answers every further persist with [`StoreError::Poisoned`] until it is reopened.
//!
//! # Example
//! ```
//! use highwater_indexer::store::{Entry, LmdbStore, SliceIdentity, SliceMark, SliceStore, StoreLimits};
//! use highwater_schemas::wire::ByteRange;
//! use std::ops::ControlFlow;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let tmp = tempfile::tempdir()?;
//! # let dir = tmp.path();
//! let identity = SliceIdentity { bucket: "users".into(), index_id: "by_age".into(), ..SliceIdentity::default() };
//! let mut store = LmdbStore::open(dir, &identity, StoreLimits::default())?;
//! store.replace(0, "u1", 7, &[Entry { key: b"\x06forty", include: b"" }], None)?;
//! let snapshot = store.seal()?;
//! assert_eq!(snapshot.items(), 1);
//!
//! let job = store.begin_persist(SliceMark { st: 3, ..SliceMark::default() }).ok_or("already running")?;
//! let outcome = std::thread::spawn(|| job.run()).join().map_err(|_| "persister died")?;
//! store.finish_persist(outcome)?;
//! assert_eq!(store.durable().st, 3);
//!
//! let all = [ByteRange { low: Vec::new(), high: None }];
//! snapshot.scan(&all, false, None, &mut |key, _include| {
//!     assert!(key.starts_with(b"\x06forty"));
//!     ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```

mod base;
mod bulk;
mod diff;
mod error;
mod layer;
mod lmdb;
mod meta;
mod open;
mod persist;
mod rows;
mod scan;
#[cfg(test)]
mod tests;
mod value;
mod verify;

pub use error::StoreError;
pub use lmdb::LmdbStore;
pub use meta::{FORMAT_VERSION, SliceIdentity, SliceMark, SliceVb};
pub use persist::{PersistJob, PersistOutcome};
pub use scan::{Snapshot, Visit};

use highwater_schemas::{collation::MAX_ENTRY_KEY, wire::Unindexable};
use std::time::Duration;

/// The longest key of a database, bytes: what LMDB with `longer-keys` takes on pages of 4 KiB.
pub const MAX_KEY: usize = MAX_ENTRY_KEY;

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
    /// Layers that a scan meets beside those that a running persist writes; two at least.
    pub merge_layers: usize,
    /// Readers opened with each commit: so many scans run at once even on an older commit.
    pub readers: usize,
    /// Readers of one commit at most.
    pub most_readers: usize,
    /// How long a scan waits for a reader.
    pub reader_wait: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { map_size: 64 << 30, merge_layers: 8, readers: 8, most_readers: 64, reader_wait: Duration::from_secs(5) }
    }
}

/// How a slice is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Entries, and documents that the index could not take, in the newest snapshot.
    pub items: u64,
    pub unindexed: u64,
    /// Pages of the data file that hold data of the newest commit.
    pub live_bytes: u64,
    /// Size of the data file.
    pub file_bytes: u64,
    /// As [`SliceStore::memory`].
    pub memory: u64,
    pub layers: usize,
    /// Why the slice no longer persists.
    pub poisoned: Option<String>,
}

/// The storage of one slice.
pub trait SliceStore: Send {
    /// The mark of the newest durable commit.
    fn durable(&self) -> &SliceMark;

    /// Replaces the entries of (vb, docid) by this set, in the open layer. A seqno at or below the stored one changes nothing.
    ///
    /// No entries and no reason: the document has nothing in this index. Of entries with equal keys the last one counts.
    fn replace(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError>;

    /// Seals the open layer and answers the snapshot of everything replaced so far; cheap when nothing changed.
    fn seal(&mut self) -> Result<Snapshot, StoreError>;

    /// Like [`Self::replace`], but collected without looking anything up, and in no snapshot until a persist has written it.
    ///
    /// For building: [`StoreError::Misuse`] while replaced documents are not durable. Documents may be replaced while bulk
    /// documents are not durable, but snapshots do not count entries exactly until they are.
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

    /// Freezes everything sealed and all bulk documents so far, to be written with this mark in one transaction.
    ///
    /// None while a persist is running. The job may run on any thread while replace, seal and bulk go on. A job or outcome
    /// that gets lost counts as failed.
    fn begin_persist(&mut self, mark: SliceMark) -> Option<PersistJob>;

    /// Takes the outcome: on success the snapshots from now on stand on the new commit, on failure the layers stay.
    fn finish_persist(&mut self, outcome: PersistOutcome) -> Result<(), StoreError>;

    fn stats(&self) -> StoreStats;
}
