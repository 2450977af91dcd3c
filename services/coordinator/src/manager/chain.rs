//! The hashes of the records in a copy: what tells one log from another.

use highwater_schemas::state::{Record, unpack};
use std::collections::VecDeque;

/// Hashes that are kept; a log that lost more than so many records at once cannot be told from another one.
pub const MOST: usize = 65_536;

/// Hashes of consecutive versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    first: u64,
    hashes: VecDeque<u128>,
}

impl Chain {
    /// Takes the hash of the next version; another version begins anew.
    pub fn push(&mut self, version: u64, hash: &str) {
        self.push_hash(version, u128::from_str_radix(hash, 16).unwrap_or_default());
    }

    /// As [`Self::push`].
    pub fn push_hash(&mut self, version: u64, hash: u128) {
        if self.hashes.is_empty() || version != self.first + self.hashes.len() as u64 {
            self.first = version;
            self.hashes.clear();
        }
        self.hashes.push_back(hash);
        while self.hashes.len() > MOST {
            self.hashes.pop_front();
            self.first += 1;
        }
    }

    /// Whether the record of this version has this hash; None: that is not known.
    pub fn agrees(&self, version: u64, hash: &str) -> Option<bool> {
        let at = version.checked_sub(self.first)?;
        let known = self.hashes.get(usize::try_from(at).ok()?)?;
        Some(u128::from_str_radix(hash, 16).is_ok_and(|hash| hash == *known))
    }

    /// Versions and hashes, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u128)> + '_ {
        (self.first..).zip(self.hashes.iter().copied())
    }
}

/// Version, incarnation and hash of a record as it travelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub incarnation: u64,
    pub version: u64,
    pub hash: String,
    /// Hash of the record before.
    pub prev: String,
}

/// Reads no more of a record than tells it from others; None: it is garbage.
pub fn link(payload: &[u8]) -> Option<Link> {
    #[derive(serde::Deserialize)]
    struct Head {
        incarnation: u64,
        version: u64,
        prev: String,
    }
    let json = unpack(payload).ok()?;
    let head: Head = serde_json::from_slice(&json).ok()?;
    Some(Link { incarnation: head.incarnation, version: head.version, hash: Record::hash(&json), prev: head.prev })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_neither_right_nor_wrong() {
        let mut chain = Chain::default();
        assert_eq!(chain.agrees(1, "1"), None);
        for (version, hash) in [(5, "a"), (6, "b"), (7, "c")] {
            chain.push(version, hash);
        }
        assert_eq!([4, 5, 6, 7, 8].map(|v| chain.agrees(v, "b")), [None, Some(false), Some(true), Some(false), None]);
        chain.push(20, "d");
        assert_eq!((chain.agrees(7, "c"), chain.agrees(20, "d")), (None, Some(true)), "it begins anew after a hole");
        for version in 21..21 + MOST as u64 {
            chain.push(version, "e");
        }
        assert_eq!((chain.agrees(20, "d"), chain.iter().count()), (None, MOST));
    }
}
