//! What nodes report to the coordinator, apart from their heartbeats: only what changed, in parts.
//!
//! # Protocol
//! - A report is a set of items. Its first **edition** tells all of them, and ends with the part that says so (`whole`); the
//!   parts after it tell what changed. Parts of an edition are numbered from 0 without a gap.
//! - A part is applied when those before it were. What an edition tells before it is whole is set aside: until then what was
//!   known before counts. So a missing part never looks like a slice that is not there.
//! - A heartbeat carries the edition and how many parts of it were sent ([`Told`]). Who has not got as much asks for a new
//!   edition. A node also begins one when the log shows a new term: what is told in a term was true before it, or in it.
//!
//! # Limits
//! A part has at most [`PART_BYTES`] of items, which are smaller than that; so it is below the least `max_payload` that
//! Highwater is run with. A report has at most [`MOST_ITEMS`] items.
//!
//! # Layout
//! - `item`: what is told; `sender`: what is yet to be told; `receiver`: parts in order

mod item;
mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub use item::{Item, Key, SliceItem};
pub use receiver::{Accepted, Receiver};
pub use sender::Reporter;

use crate::api::NodeKind;
use serde::{Deserialize, Serialize};

/// The items of a part, JSON; at least one, whatever its size.
pub const PART_BYTES: usize = 32 * 1024;
/// Items of a node; what is beyond them is not told.
pub const MOST_ITEMS: usize = 262_144;

/// How much of a report was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// Rises within an incarnation; 0: nothing was told yet.
    pub edition: u64,
    /// Parts of it.
    pub parts: u64,
}

/// `hw.cluster.report`: a part of what a node reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportPart {
    pub node: String,
    pub kind: NodeKind,
    pub incarnation: u64,
    /// The term that the node followed when the edition began.
    pub term: u64,
    pub edition: u64,
    /// Its number in the edition.
    pub part: u64,
    /// With this part everything was told once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// What is there, or has changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Item>,
    /// What is there no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<(String, Key)>,
}
