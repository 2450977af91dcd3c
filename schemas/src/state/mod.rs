//! The replicated log of changes and the StateContext it yields (design section 11).
//!
//! The coordinator appends [`Record`]s; every service applies them in order to its own [`StateContext`]. Records form a hash
//! chain, so that one log can be told from another. Applying is pure: the same records give the same context everywhere. A
//! record may be a snapshot of the whole context: whoever begins to read there needs nothing before it.
//!
//! # Layout
//! - `record`: one change; `packing`: how it travels
//! - `context`: what the changes add up to; `bucket`: its largest part; `rollback`: branches of a history
//! - `limits`: how much of it is kept
//! - `offered`: what becomes of a record; `image`: how the context is written
//! - `following`: what a follower keeps of it
//! - `topic`: who gets which key versions

mod bucket;
mod context;
mod following;
mod image;
mod limits;
mod offered;
mod packing;
mod record;
mod rollback;
#[cfg(test)]
mod tests;
mod topic;

pub use bucket::{
    Bucket, Failover, Index, IndexState, NAMED_BESIDE, RangeStart, Reconcile, Session, Vbucket, branch_of,
};
pub use context::{NodeEntry, StateContext};
pub use following::Following;
pub use limits::{in_short, thin};
pub use offered::{Concerns, Offered, StateError};
pub use packing::{pack, unpack};
pub use record::{Change, Head, PlacedIndex, Record, SessionKind, SessionVb, SliceName, is_record, vbuuid_text};
pub use rollback::{Rollback, RollbackPhase};
pub use topic::{MOST_SUBSCRIPTIONS, MOST_TOPICS, MUTATION, Predicate, Subscription, SubscriptionView, Topic, place};

/// The format of records that this version writes and reads.
pub const FORMAT: u32 = 2;
