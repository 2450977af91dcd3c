//! The bucket `hw_cluster` as the server has it: the lease, and the names that were registered.

use highwater_cluster_manager::core::Seen;
use highwater_schemas::api::{Lease, LeaseWritten};
use std::collections::BTreeSet;

#[derive(Debug)]
struct Held {
    revision: u64,
    lease: Lease,
    /// The server removes it then.
    ends: u64,
}

/// The bucket.
#[derive(Debug, Default)]
pub struct Bucket {
    exists: bool,
    last: u64,
    held: Option<Held>,
    names: BTreeSet<String>,
}

impl Bucket {
    fn expire(&mut self, now: u64) {
        if self.held.as_ref().is_some_and(|h| now >= h.ends) {
            self.held = None;
        }
    }

    pub fn look(&mut self, now: u64) -> Seen {
        self.expire(now);
        match &self.held {
            _ if !self.exists => Seen::NoBucket,
            None => Seen::Missing,
            Some(held) => Seen::Held { revision: held.revision, lease: Some(held.lease.clone()) },
        }
    }

    /// `late`: how long after its end the server removes it.
    pub fn write(&mut self, now: u64, lease: Lease, expected: u64, late: u64) -> LeaseWritten {
        self.expire(now);
        if !self.exists {
            return LeaseWritten::NoBucket;
        }
        if self.held.as_ref().map_or(0, |h| h.revision) != expected {
            return LeaseWritten::Conflict;
        }
        self.last += 1;
        let ends = now + lease.lease_ms.div_ceil(1_000) * 1_000 + late;
        self.held = Some(Held { revision: self.last, lease, ends });
        LeaseWritten::Done { revision: self.last }
    }

    pub fn release(&mut self, revision: u64) {
        if self.held.as_ref().is_some_and(|h| h.revision == revision) {
            self.held = None;
        }
    }

    /// True when it was made.
    pub fn ensure(&mut self) -> bool {
        !std::mem::replace(&mut self.exists, true)
    }

    pub fn register(&mut self, node: &str) -> bool {
        if self.exists {
            self.last += 1;
            self.names.insert(node.to_owned());
        }
        self.exists
    }

    pub fn registered(&self) -> Option<Vec<String>> {
        self.exists.then(|| self.names.iter().cloned().collect())
    }

    pub fn delete(&mut self) {
        *self = Self::default();
    }
}
