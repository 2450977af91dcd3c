//! SYNC, HWT, stability timestamps and wants.

use super::{Kind, Message};
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

/// Coordinator → indexers and catalogs.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Stability {
    pub bucket: String,
    pub st: StabilityTimestamp,
    /// The wanted ones of the last second, oldest first, for those who missed a broadcast.
    pub wanted: Vec<StabilityTimestamp>,
}
impl Message for Stability {
    const KIND: Kind = Kind::Stability;
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
