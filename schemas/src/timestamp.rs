//! Positions, timestamps and stability timestamps (design sections 1 and 6).

use rkyv::{Archive, Deserialize, Serialize};
use serde::{Deserialize as SerdeDeserialize, Serialize as SerdeSerialize};

/// A place in a vbucket's chain: the source's sequence number and the count of unannounced removals.
/// Positions compare by component, so two positions may be unordered.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    SerdeSerialize,
    SerdeDeserialize,
    schemars::JsonSchema,
    Debug,
    Default,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
)]
pub struct Position {
    pub seqno: u64,
    pub round: u64,
}

impl Position {
    pub const ZERO: Position = Position { seqno: 0, round: 0 };

    pub fn new(seqno: u64, round: u64) -> Self {
        Self { seqno, round }
    }
    /// `self ≤ other` in both components.
    pub fn le(self, other: Self) -> bool {
        self.seqno <= other.seqno && self.round <= other.round
    }
    /// Component-wise maximum.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { seqno: self.seqno.max(other.seqno), round: self.round.max(other.round) }
    }
    /// Component-wise minimum.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { seqno: self.seqno.min(other.seqno), round: self.round.min(other.round) }
    }
}

/// A catalog's want that a router has answered by comparing the stream's state after it arrived.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    SerdeSerialize,
    SerdeDeserialize,
    schemars::JsonSchema,
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
)]
pub struct Asked {
    /// The asking catalog's instance.
    pub catalog: u64,
    /// Its newest want that was answered; rises within an instance.
    pub seq: u64,
}

/// What the rounds of a chain have dropped.
#[derive(SerdeSerialize, SerdeDeserialize, schemars::JsonSchema, Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Every document below this seqno.
    pub floor: u64,
    /// What this reconcile, and those before it, found to be gone.
    pub reconciled: u64,
}

/// A message of a source as it was read: what tells later whether the source's history is still the same.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    SerdeSerialize,
    SerdeDeserialize,
    schemars::JsonSchema,
    Debug,
    Default,
    Clone,
    PartialEq,
    Eq,
)]
pub struct Bookmark {
    pub seqno: u64,
    pub subject: String,
    /// Server time of the message, nanoseconds since the epoch.
    pub time: i64,
    /// xxh3 of its subject and payload.
    pub hash: u64,
    /// Tells the server that it was read from, and its run, from others; 0: not known.
    #[serde(default)]
    pub source: u64,
}

/// One vbucket's part of a SYNC or a stability timestamp.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    SerdeSerialize,
    SerdeDeserialize,
    schemars::JsonSchema,
    Debug,
    Default,
    Clone,
    PartialEq,
    Eq,
)]
pub struct StVb {
    pub vbuuid: u64,
    pub generation: u64,
    pub position: Position,
    /// Nothing up to here can still be hidden in an overwritten revision; never above `position.seqno`.
    pub covered: u64,
    /// Server time of the message at `position`, nanoseconds since the epoch; 0 if there was none.
    pub server_time: i64,
    /// xxh3 of that message's subject and payload; 0 if there was none.
    pub hash: u64,
    /// The source stream's creation time, nanoseconds since the epoch.
    pub created: i64,
    pub asked: Vec<Asked>,
    /// The seqno below which the rounds so far have dropped every document; 0 where none did.
    #[serde(default)]
    pub floor: u64,
    /// The newest reconcile that a round was; 0 where none was.
    #[serde(default)]
    pub reconciled: u64,
}

/// Chosen by the coordinator per bucket; every indexer applies exactly the mutations at or below it.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    SerdeSerialize,
    SerdeDeserialize,
    schemars::JsonSchema,
    Debug,
    Default,
    Clone,
    PartialEq,
    Eq,
)]
pub struct StabilityTimestamp {
    /// A number names one timestamp for ever.
    pub number: u64,
    pub term: u64,
    /// No indexer may skip it.
    pub wanted: bool,
    /// To be made durable; implies wanted.
    pub persist: bool,
    /// One per vbucket, in the bucket's order.
    pub vbs: Vec<StVb>,
}

impl StabilityTimestamp {
    /// True when nothing at or below it can still be hidden in an overwritten revision.
    pub fn exact(&self) -> bool {
        self.vbs.iter().all(|v| v.covered == v.position.seqno)
    }
    /// Every component of `self` is at or below `other`'s on the same branch.
    pub fn le(&self, other: &Self) -> bool {
        self.vbs.len() == other.vbs.len()
            && self.vbs.iter().zip(&other.vbs).all(|(a, b)| a.vbuuid == b.vbuuid && a.position.le(b.position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_compare_by_component() {
        let (a, b) = (Position::new(5, 1), Position::new(4, 2));
        assert!(!a.le(b) && !b.le(a));
        assert_eq!(a.max(b), Position::new(5, 2));
        assert_eq!(a.min(b), Position::new(4, 1));
    }
}
