//! Parts of one node's report, in order.

use super::{ReportPart, Told};
use std::collections::BTreeMap;

/// Parts that came before one that is missing, at most; then a new edition is needed.
const MOST_AHEAD: usize = 64;

/// How far the report of one incarnation of a node was received.
#[derive(Debug, Default)]
pub struct Receiver {
    edition: u64,
    /// The part that comes next.
    next: u64,
    ahead: BTreeMap<u64, ReportPart>,
}

/// What came of a part.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// What was set aside of an earlier edition is void.
    pub begins: bool,
    /// To be applied, in this order.
    pub parts: Vec<ReportPart>,
}

impl Receiver {
    /// Takes a part. Of an earlier edition, or received already, it counts for nothing.
    pub fn take(&mut self, part: ReportPart) -> Accepted {
        let mut accepted = Accepted::default();
        if part.edition < self.edition || (part.edition == self.edition && part.part < self.next) {
            return accepted;
        }
        if part.edition > self.edition {
            *self = Self { edition: part.edition, next: 0, ahead: BTreeMap::new() };
            accepted.begins = true;
        }
        if self.ahead.len() < MOST_AHEAD || part.part == self.next {
            self.ahead.insert(part.part, part);
        }
        while let Some(part) = self.ahead.remove(&self.next) {
            self.next += 1;
            accepted.parts.push(part);
        }
        accepted
    }

    /// Whether all that was sent has come. Parts of a later edition come before the heartbeat that tells of them.
    pub fn has(&self, told: Told) -> bool {
        (told.edition, told.parts) <= (self.edition, self.next)
    }
}
