//! What an index manager keeps: the highest term, the records, their hashes. It survives crashes, and works as the service's
//! own copy does: each write is whole or not at all.

use highwater_coordinator::manager::chain::{Chain, Linked, What};
use highwater_schemas::state::{StateContext, StateError};
use std::collections::BTreeMap;

/// Records kept before the newest snapshot.
const HISTORY: u64 = 1_000;

/// A record's incarnation and hash.
pub type Mark = (u64, u128);

/// The disk of one index manager.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub term: u64,
    /// Of the newest record.
    newest_term: u64,
    base: u64,
    log: BTreeMap<u64, Vec<u8>>,
    /// By version.
    pub marks: BTreeMap<u64, Mark>,
}

impl Disk {
    pub fn version(&self) -> u64 {
        self.log.keys().next_back().copied().unwrap_or(0)
    }

    /// The highest term that a process which starts knows.
    pub fn durable_term(&self) -> u64 {
        self.term.max(self.newest_term)
    }

    pub fn keep_term(&mut self, term: u64) {
        self.term = term;
    }

    pub fn keep(&mut self, records: Vec<Linked>, anew: bool) {
        if anew {
            self.log.clear();
            self.marks.clear();
            self.base = 0;
        }
        for Linked { link, json } in records {
            let hash = u128::from_str_radix(&link.hash, 16).unwrap_or_default();
            self.newest_term = link.term;
            self.log.insert(link.version, json);
            self.marks.insert(link.version, (link.incarnation, hash));
            if link.what == What::Snapshot {
                self.base = link.version;
                let old = link.version.saturating_sub(HISTORY);
                self.log.retain(|version, _| *version >= old);
            }
        }
    }

    /// Reads all of it, as a process that starts does.
    pub fn open(&self) -> Result<(StateContext, Chain), StateError> {
        let mut context = StateContext::default();
        for json in self.log.range(self.base..).map(|(_, json)| json) {
            context.offer(json)?;
        }
        let mut chain = Chain::default();
        for (version, (_, hash)) in &self.marks {
            chain.push_hash(*version, *hash);
        }
        Ok((context, chain))
    }
}
