//! How much was read of each vbucket, and what for: so that what a restart costs can be told.

use highwater_schemas::{
    api::{MOST_ID_SHOWN, MOST_UNKNOWN_SHOWN, Reads, UnknownOperation, VbReads},
    state::SessionKind,
};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// How much a task has read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) messages: AtomicU64,
    /// Below where it begins.
    pub(crate) before: AtomicU64,
    /// Messages that the server held when it sent the last of these.
    pub(crate) pending: AtomicU64,
    /// Messages that are no documents of the bucket.
    pub(crate) passed_over: AtomicU64,
    /// Messages whose `KV-Operation` is not known, and the newest of them.
    pub(crate) unknown_operations: AtomicU64,
    newest_unknown: Mutex<Vec<UnknownOperation>>,
    /// Leaders that contradicted what was read, and were asked again.
    pub(crate) contradicted: AtomicU64,
    /// Documents that vanished without a message, and were named in the chain.
    pub(crate) named: AtomicU64,
}

impl Reading {
    /// A message whose `KV-Operation` is not known.
    pub(crate) fn unknown_operation(&self, seqno: u64, docid: &str) {
        self.unknown_operations.fetch_add(1, Ordering::Relaxed);
        let id = docid.chars().take(MOST_ID_SHOWN).collect();
        let mut newest = self.newest_unknown.lock().unwrap_or_else(PoisonError::into_inner);
        newest.push(UnknownOperation { id, seqno });
        keep_newest(&mut newest);
    }

    /// The newest of these messages, oldest first.
    pub(crate) fn newest_unknown(&self) -> Vec<UnknownOperation> {
        self.newest_unknown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn keep_newest(unknown: &mut Vec<UnknownOperation>) {
    unknown.drain(..unknown.len().saturating_sub(MOST_UNKNOWN_SHOWN));
}

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
pub(crate) struct Totals(BTreeMap<(String, u16), Total>);

/// Of a vbucket.
#[derive(Debug, Clone, Default)]
struct Total {
    reads: Reads,
    /// Messages below the live chain that are no documents: the most that one session has met.
    passed_before: u64,
    /// Of the live chain the newest messages whose `KV-Operation` is not known.
    unknown: Vec<UnknownOperation>,
}

impl Totals {
    pub(crate) fn add(&mut self, (bucket, vb): (&str, u16), purpose: Purpose, reading: &Reading) {
        let Total { reads, passed_before, unknown } = self.0.entry((bucket.to_owned(), vb)).or_default();
        let of = match purpose {
            Purpose::Live => &mut reads.live,
            Purpose::Catchup => &mut reads.catchup,
            Purpose::Comparison => &mut reads.compared,
        };
        *of += reading.messages.load(Ordering::Relaxed);
        let passed_over = reading.passed_over.load(Ordering::Relaxed);
        if purpose == Purpose::Live {
            reads.passed_over += passed_over;
            reads.unknown_operations += reading.unknown_operations.load(Ordering::Relaxed);
            // Another generation reads some of them again.
            let again = reading.newest_unknown();
            unknown.retain(|one| !again.contains(one));
            unknown.extend(again);
            keep_newest(unknown);
        } else {
            *passed_before = (*passed_before).max(passed_over);
        }
        reads.compared += reading.before.load(Ordering::Relaxed);
        reads.contradicted += reading.contradicted.load(Ordering::Relaxed);
        reads.named += reading.named.load(Ordering::Relaxed);
    }

    pub(crate) fn of(&self, bucket: &str, vb: u16) -> VbReads {
        let Total { mut reads, passed_before, unknown } =
            self.0.get(&(bucket.to_owned(), vb)).cloned().unwrap_or_default();
        reads.passed_over += passed_before;
        VbReads { bucket: bucket.to_owned(), vb, reads, unknown_operations: unknown }
    }

    /// Forgets those of buckets that are not there any more.
    pub(crate) fn retain(&mut self, there: impl Fn(&str) -> bool) {
        self.0.retain(|(bucket, _), _| there(bucket));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_over_is_counted_once() {
        let mut totals = Totals::default();
        let reading = |passed_over| Reading { passed_over: AtomicU64::new(passed_over), ..Reading::default() };
        for (purpose, passed_over) in [
            (Purpose::Live, 2),
            (Purpose::Catchup, 100),
            (Purpose::Comparison, 100),
            (Purpose::Live, 3),
            (Purpose::Catchup, 7),
        ] {
            totals.add(("orders", 0), purpose, &reading(passed_over));
        }
        assert_eq!(totals.of("orders", 0).reads.passed_over, 105);
        assert_eq!(totals.of("orders", 1).reads.passed_over, 0);
    }

    #[test]
    fn of_unknown_operations_the_newest_of_the_live_chain_are_listed() {
        let (mut totals, long) = (Totals::default(), "ä".repeat(100));
        for generation in 0..2 {
            let reading = Reading::default();
            (1..=6).for_each(|n| reading.unknown_operation(10 * generation + n, &long));
            totals.add(("orders", 3), Purpose::Live, &reading);
            totals.add(("orders", 3), Purpose::Catchup, &reading);
        }
        // The one after them begins with messages that were counted before.
        let again = Reading::default();
        (13..=16).for_each(|n| again.unknown_operation(n, &long));
        totals.add(("orders", 3), Purpose::Live, &again);
        let told = totals.of("orders", 3);
        let seqnos: Vec<u64> = told.unknown_operations.iter().map(|unknown| unknown.seqno).collect();
        assert_eq!((seqnos, told.reads.unknown_operations), (vec![5, 6, 11, 12, 13, 14, 15, 16], 16));
        assert!(told.unknown_operations.iter().all(|unknown| unknown.id.chars().count() == MOST_ID_SHOWN));
    }
}
