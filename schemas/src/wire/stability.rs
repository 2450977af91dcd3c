//! SYNC, HWT, stability timestamps, wants, and questions for timestamps that were missed.

use super::{Kind, Message, packed::PackedTimestamp};
use crate::timestamp::{Bookmark, Position, StVb, StabilityTimestamp};
use rkyv::{Archive, Deserialize, Serialize};

/// One vbucket's part of a SYNC.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct SyncVb {
    pub vb: u16,
    pub state: StVb,
    /// The source's last sequence when it was last asked, to measure lag; 0 when unknown.
    pub source_last: u64,
    /// The last message that was read at or below the position; none: there was none since the chain began.
    pub bookmark: Option<Bookmark>,
}

/// Router → coordinator: everything up to here is durably published to every subscriber.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    pub bucket: String,
    pub vbs: Vec<SyncVb>,
}
impl Message for Sync {
    const KIND: Kind = Kind::Sync;
}

/// Catalog → routers and coordinator: stability at or above the source's present state, now.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Want {
    pub bucket: String,
    pub catalog: u64,
    pub seq: u64,
}
impl Message for Want {
    const KIND: Kind = Kind::Want;
}

/// Wanted timestamps that a broadcast names, and a question asks for, at most.
pub const MOST_NAMED: usize = 64;

/// Coordinator → indexers and catalogs. With 64 vbuckets, the wants of [`crate::timestamp::MOST_CATALOGS`] catalogs and
/// [`MOST_NAMED`] names it stays below 16 KiB.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Stability {
    pub bucket: String,
    #[rkyv(with = PackedTimestamp)]
    pub st: StabilityTimestamp,
    /// The numbers of the wanted ones of the last second, oldest first: who missed one asks for it.
    pub wanted: Vec<u64>,
}
impl Message for Stability {
    const KIND: Kind = Kind::Stability;
}

/// Indexer → coordinator: these wanted timestamps were named and did not come. They are broadcast again, those that are known
/// still; who waits in vain goes on without them.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    pub bucket: String,
    /// The term in which they were issued.
    pub term: u64,
    /// At most [`MOST_NAMED`] count.
    pub numbers: Vec<u64>,
}
impl Message for Missed {
    const KIND: Kind = Kind::Missed;
}

/// Indexer → coordinator and catalogs.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct HighWatermark {
    pub bucket: String,
    pub node: String,
    pub incarnation: u64,
    /// Newest position per vbucket received without a gap by every slice that is in step.
    pub hwt: Vec<Position>,
    /// Oldest and newest ST that scans may use; 0 and 0 when there is none.
    pub held: (u64, u64),
    /// Newest ST that is durable; 0 when there is none.
    pub durable: u64,
    /// Bytes in the mutation queue.
    pub queued: u64,
}
impl Message for HighWatermark {
    const KIND: Kind = Kind::HighWatermark;
}
