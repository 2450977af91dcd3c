//! How much was read of each vbucket, and what for: so that what a restart costs can be told.

use crate::vbucket::Reading;
use highwater_schemas::{
    api::{Reads, VbReads},
    state::SessionKind,
};
use std::{collections::BTreeMap, sync::atomic::Ordering};

/// What a task reads for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Live,
    Catchup,
    Comparison,
}

impl Purpose {
    /// None: the live chain.
    pub(crate) fn of(session: Option<SessionKind>) -> Self {
        match session {
            None => Self::Live,
            Some(SessionKind::Comparison | SessionKind::Reconcile) => Self::Comparison,
            Some(_) => Self::Catchup,
        }
    }
}

/// By bucket and vbucket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals(BTreeMap<(String, u16), Reads>);

impl Totals {
    pub(crate) fn add(&mut self, (bucket, vb): (&str, u16), purpose: Purpose, reading: &Reading) {
        let reads = self.0.entry((bucket.to_owned(), vb)).or_default();
        let of = match purpose {
            Purpose::Live => &mut reads.live,
            Purpose::Catchup => &mut reads.catchup,
            Purpose::Comparison => &mut reads.compared,
        };
        *of += reading.messages.load(Ordering::Relaxed);
        if purpose == Purpose::Live {
            reads.passed_over += reading.passed_over.load(Ordering::Relaxed);
            reads.unknown_operations += reading.unknown_operations.load(Ordering::Relaxed);
        }
        reads.compared += reading.before.load(Ordering::Relaxed);
        reads.contradicted += reading.contradicted.load(Ordering::Relaxed);
    }

    pub(crate) fn of(&self, bucket: &str, vb: u16) -> VbReads {
        let reads = self.0.get(&(bucket.to_owned(), vb)).copied().unwrap_or_default();
        VbReads { bucket: bucket.to_owned(), vb, reads }
    }

    /// Forgets those of buckets that are not there any more.
    pub(crate) fn retain(&mut self, there: impl Fn(&str) -> bool) {
        self.0.retain(|(bucket, _), _| there(bucket));
    }
}
