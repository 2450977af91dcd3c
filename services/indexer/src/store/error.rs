//! What can go wrong in a slice store, kept apart by who can do something about it.

use std::{io, path::PathBuf};

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Written by another release; nothing was touched.
    #[error("slice has format version {found}, this release reads version {supported}")]
    UnknownVersion { found: u32, supported: u32 },
    /// The directory holds another slice.
    #[error("directory belongs to another slice: {what} is {found}, expected {expected}")]
    OtherSlice { what: &'static str, found: String, expected: String },
    /// The files do not hold together; the slice has to be rebuilt.
    #[error("damaged slice: {0}")]
    Damaged(String),
    /// There is no slice in the directory.
    #[error("no slice in {0}")]
    NoSlice(PathBuf),
    /// No snapshot of this stability timestamp is kept.
    #[error("no snapshot of stability timestamp {0} is kept")]
    NoSuchSnapshot(u64),
    /// This process has the slice open, or a snapshot of it is still held.
    #[error("slice is already open in this process: {0}")]
    AlreadyOpen(PathBuf),
    /// The caller passed something that cannot be stored.
    #[error("{what} has {len} bytes, at most {limit} fit")]
    TooLong { what: &'static str, len: usize, limit: usize },
    /// A call that the present state of the store does not allow.
    #[error("wrong use of the store: {0}")]
    Misuse(&'static str),
    /// No reader became free in time; try again.
    #[error("all readers of the snapshot are busy")]
    Busy,
    /// Reading took longer than its deadline.
    #[error("reading took longer than its deadline")]
    Late,
    /// Whoever asked for a check no longer waits for it.
    #[error("the check was given up before its end")]
    GivenUp,
    /// The reserved address space is used up; reopen with a larger `map_size`.
    #[error("slice has outgrown its reserved map")]
    MapFull,
    /// The disk is full; nothing was written, and the next persist may succeed.
    #[error("disk is full")]
    DiskFull,
    /// A sync failed earlier: only reopening the slice shows what is durable.
    #[error("slice no longer persists until reopened: {0}")]
    Poisoned(String),
    /// A job did not run to its end.
    #[error("a job of the slice failed: {0}")]
    Unfinished(String),
    #[error("storage failed: {0}")]
    Io(io::Error),
    /// LMDB answered what no correct use of it should meet.
    #[error("unexpected answer of LMDB: {0}")]
    Lmdb(String),
}

impl StoreError {
    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        if full(&error) { Self::DiskFull } else { Self::Io(error) }
    }
}

impl From<heed::Error> for StoreError {
    fn from(error: heed::Error) -> Self {
        use heed::MdbError as M;
        match error {
            heed::Error::Io(e) => e.into(),
            heed::Error::Mdb(M::MapFull) => Self::MapFull,
            heed::Error::Mdb(M::ReadersFull) => Self::Busy,
            heed::Error::Mdb(M::Panic) => Self::Poisoned("LMDB failed to write its meta page".into()),
            heed::Error::Mdb(e @ (M::Corrupted | M::PageNotFound | M::Invalid | M::VersionMismatch)) => {
                Self::Damaged(e.to_string())
            }
            other => Self::Lmdb(other.to_string()),
        }
    }
}

/// True for what freeing space cures.
pub(super) fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
