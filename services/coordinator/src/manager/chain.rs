//! The hashes of the records in a copy: what tells one log from another.

use highwater_schemas::state::{Change, Head, Record, unpack};
use std::collections::VecDeque;

/// Hashes that are kept; a log that lost more than so many records at once cannot be told from another one.
pub const MOST: usize = 65_536;

/// Hashes by version, rising. Where versions are left out, the log was published anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    hashes: VecDeque<(u64, u128)>,
}

impl Chain {
    /// Takes the hash of a later version; one that is not later begins anew.
    pub fn push(&mut self, version: u64, hash: &str) {
        self.push_hash(version, u128::from_str_radix(hash, 16).unwrap_or_default());
    }

    /// As [`Self::push`].
    pub fn push_hash(&mut self, version: u64, hash: u128) {
        if self.hashes.back().is_some_and(|(last, _)| version <= *last) {
            self.hashes.clear();
        }
        self.hashes.push_back((version, hash));
        if self.hashes.len() > MOST {
            self.hashes.pop_front();
        }
    }

    /// Whether the record of this version has this hash; None: that is not known. No record has a version that was left out.
    pub fn agrees(&self, version: u64, hash: &str) -> Option<bool> {
        let ((first, _), (last, _)) = (self.hashes.front()?, self.hashes.back()?);
        if !(*first..=*last).contains(&version) {
            return None;
        }
        let known = self.hashes.binary_search_by_key(&version, |(version, _)| *version).ok();
        let known = known.and_then(|at| self.hashes.get(at));
        Some(known.is_some_and(|(_, known)| u128::from_str_radix(hash, 16).is_ok_and(|hash| hash == *known)))
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }
}

/// What a record does, as far as it must be known before it is applied or without applying it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Snapshot,
    NumbersReserved,
    Else,
}

/// Where a record belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub incarnation: u64,
    pub term: u64,
    pub version: u64,
    pub hash: String,
    /// Hash of the record before.
    pub prev: String,
    pub what: What,
}

/// A record's JSON, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    pub link: Link,
    pub json: Vec<u8>,
}

impl Linked {
    /// Of a record as it travelled: reads no more of it than tells it from others. None: it is garbage.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let json = unpack(payload).ok()?;
        Some(Self { link: link_of(&json)?, json: json.into_owned() })
    }
}

impl From<&Record> for Linked {
    fn from(record: &Record) -> Self {
        let json = record.to_json();
        let link = Link {
            incarnation: record.incarnation,
            term: record.term,
            version: record.version,
            hash: Record::hash(&json),
            prev: record.prev.clone(),
            what: match &record.change {
                Change::Snapshot { .. } => What::Snapshot,
                Change::NumbersReserved { .. } => What::NumbersReserved,
                _ => What::Else,
            },
        };
        Self { link, json }
    }
}

/// Where a record belongs, as it travelled; None: it is garbage.
pub fn link(payload: &[u8]) -> Option<Link> {
    link_of(&unpack(payload).ok()?)
}

fn link_of(json: &[u8]) -> Option<Link> {
    let Head { incarnation, term, version, prev, change } = Head::read(json)?;
    let what = match change.what.as_str() {
        "snapshot" => What::Snapshot,
        "numbers_reserved" => What::NumbersReserved,
        _ => What::Else,
    };
    Some(Link { incarnation, term, version, hash: Record::hash(json), prev, what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::state::{StateContext, pack};

    #[test]
    fn what_is_not_known_is_neither_right_nor_wrong() {
        let mut chain = Chain::default();
        assert_eq!(chain.agrees(1, "1"), None);
        for (version, hash) in [(5, "a"), (6, "b"), (7, "c")] {
            chain.push(version, hash);
        }
        assert_eq!([4, 5, 6, 7, 8].map(|v| chain.agrees(v, "b")), [None, Some(false), Some(true), Some(false), None]);
        chain.push(20, "d");
        assert_eq!([7, 19, 20].map(|v| chain.agrees(v, "c")), [Some(true), Some(false), Some(false)], "published anew");
        chain.push(20, "d");
        assert_eq!((chain.agrees(7, "c"), chain.agrees(20, "d")), (None, Some(true)), "it begins anew");
        for version in 21..21 + MOST as u64 {
            chain.push(version, "e");
        }
        assert_eq!((chain.agrees(20, "d"), chain.len()), (None, MOST));
    }

    #[test]
    fn a_record_is_linked_alike_before_and_after_its_way() {
        let context = StateContext::default();
        for (change, what) in [
            (Change::TermStarted { coordinator: "c".into() }, What::Else),
            (Change::NumbersReserved { bucket: "b".into(), below: 7 }, What::NumbersReserved),
            (Change::Snapshot { context: Box::default(), reason: String::new() }, What::Snapshot),
        ] {
            let linked = Linked::from(&context.record(change, 3, 0));
            assert_eq!((linked.link.term, linked.link.version, linked.link.what), (3, 1, what));
            assert_eq!(link(&linked.json).as_ref(), Some(&linked.link));
            assert_eq!(Linked::read(&pack(linked.json.clone())), Some(linked));
        }
        assert_eq!(Linked::read(b"{}"), None);
    }
}
