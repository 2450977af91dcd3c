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

/// Catalogs whose wants are remembered at once.
pub const MOST_CATALOGS: usize = 64;

/// The newest want of each catalog, of the catalogs that wanted something last. Their numbers are random and tell nothing of
/// their age: the one that wanted nothing for longest makes room. Who is forgotten is remembered again with its next want.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Wants {
    /// Who wanted something last is last.
    newest: Vec<Asked>,
}

impl Wants {
    /// Takes up a want, unless a later one of its catalog is known.
    pub fn note(&mut self, want: Asked) {
        let known = self.newest.iter().position(|asked| asked.catalog == want.catalog);
        if let Some(at) = known {
            if self.newest[at].seq >= want.seq {
                return;
            }
            self.newest.remove(at);
        } else if self.newest.len() >= MOST_CATALOGS {
            self.newest.remove(0);
        }
        self.newest.push(want);
    }
    /// Who wanted something last is last.
    pub fn list(&self) -> &[Asked] {
        &self.newest
    }
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }
    /// No further catalog is remembered without another being forgotten.
    pub fn is_full(&self) -> bool {
        self.newest.len() >= MOST_CATALOGS
    }
    pub fn knows(&self, catalog: u64) -> bool {
        self.newest.iter().any(|asked| asked.catalog == catalog)
    }
}

impl IntoIterator for Wants {
    type Item = Asked;
    type IntoIter = std::vec::IntoIter<Asked>;

    fn into_iter(self) -> Self::IntoIter {
        self.newest.into_iter()
    }
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
    /// Nothing in what is kept: a want is of the moment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
    /// The same without the wants that it answers, which nobody waits for later.
    #[must_use]
    pub fn without_wants(&self) -> Self {
        let vbs = self.vbs.iter().map(|vb| StVb { asked: Vec::new(), ..vb.clone() });
        Self { vbs: vbs.collect(), ..*self }
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
    fn the_catalogs_that_wanted_something_last_are_remembered() {
        let want = |catalog, seq| Asked { catalog, seq };
        let mut wants = Wants::default();
        // The numbers fall: they say nothing.
        for catalog in (0..MOST_CATALOGS as u64).rev() {
            wants.note(want(catalog, 7));
        }
        let oldest = MOST_CATALOGS as u64 - 1;
        assert!(wants.is_full() && wants.list()[0] == want(oldest, 7));
        wants.note(want(oldest, 8));
        wants.note(want(oldest - 1, 7));
        wants.note(want(u64::MAX, 1));
        assert_eq!(wants.list().len(), MOST_CATALOGS);
        assert!(wants.knows(oldest) && !wants.knows(oldest - 1), "a want that is not newer makes nobody younger");
        wants.note(want(oldest, 3));
        let list = wants.list();
        assert_eq!(list[list.len() - 2..], [want(oldest, 8), want(u64::MAX, 1)]);
    }

    #[test]
    fn positions_compare_by_component() {
        let (a, b) = (Position::new(5, 1), Position::new(4, 2));
        assert!(!a.le(b) && !b.le(a));
        assert_eq!(a.max(b), Position::new(5, 2));
        assert_eq!(a.min(b), Position::new(4, 1));
    }
}
