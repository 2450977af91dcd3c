//! What fuzzing calls, and the tests that replay saved inputs: each target takes any bytes and panics where a promise is broken.
//!
//! # Layout
//! - [`key_encoding`]: the key encoding of `schemas`, with `values`, which makes JSON values of bytes, and `readers`, what clients
//!   read and what numbers they wrote
//! - [`batch_decoder`]: the decoders of the data path's messages
//! - [`scan_request`]: scan requests, of nodes and of clients
//! - [`frames`]: what arrives on a NATS connection
//!
//! Saved inputs lie in `tests/corpus`, a directory for each target; `examples/seeds.rs` writes those that are not found but made.

mod frames;
mod keys;
mod readers;
mod scans;
mod values;
mod wire;

pub use frames::frames;
pub use keys::key_encoding;
pub use scans::scan_request;
pub use wire::batch_decoder;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target with its name.
pub const TARGETS: [(&str, Target); 4] = [
    ("key_encoding", key_encoding),
    ("batch_decoder", batch_decoder),
    ("scan_request", scan_request),
    ("frames", frames),
];
