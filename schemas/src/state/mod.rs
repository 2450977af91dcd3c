//! The replicated log of changes and the StateContext it yields (design section 11).
//!
//! The coordinator appends [`Record`]s; every service applies them in order to its own [`StateContext`]. Records form a hash
//! chain, so that one log can be told from another. Applying is pure: the same records give the same context everywhere.

mod context;
mod record;
#[cfg(test)]
mod tests;

pub use context::{Bucket, Failover, Index, IndexState, NodeEntry, Session, StateContext, StateError, Vbucket};
pub use record::{Change, PlacedIndex, Record, SessionVb, SliceName, vbuuid_text};
