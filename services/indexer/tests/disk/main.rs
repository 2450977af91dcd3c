//! The store on disks that fail.
//!
//! # Layout
//! - `support`: what is written round by round, the model of it, and tests that run themselves in a child process
//! - `failing`: writes and syncs that fail, by a library (`failing_io.c`) that is loaded before the child's own
//!
//! LMDB is C and maps its file: what it does to a process that meets a failure is part of what is asked, so everything that may
//! end a process runs in a child.

mod failing;
mod support;
