//! The store on disks that fail, fill up, or give back something else than was written.
//!
//! # Layout
//! - `support`: what is written round by round, the model of it, and tests that run themselves in a child process
//! - `failing`: writes and syncs that fail, by a library (`failing_io.c`) that is loaded before the child's own
//! - `full`: a disk that is really full
//! - `damaged`: data files with damage in many places
//! - `killed`: a process that is killed in the middle of anything
//!
//! LMDB is C and maps its file: what it does to a process that meets a failure is part of what is asked, so everything that may
//! end a process runs in a child.

mod damaged;
mod failing;
mod full;
mod killed;
mod support;

/// What the store does not promise yet. Whatever breaks such a promise is counted and told; set to true, it fails its test.
mod promises {
    /// Opening finds every page that LMDB must not be led through.
    pub const DAMAGED_PAGES_ARE_REFUSED: bool = true;
    /// LMDB's reader table has its space on the disk from the beginning.
    pub const READER_TABLE_IS_ALLOCATED: bool = true;
}
