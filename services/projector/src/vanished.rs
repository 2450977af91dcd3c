//! Documents of which it is known, or likely, that they vanished from the source without a message: their subject was purged, or
//! their message has lived as long as it may (`Nats-TTL`).
//!
//! Each is looked up in the store. What was found there is put into the chain by a reconcile that names these documents alone, so it
//! costs what vanished, however large the bucket is.

use highwater_bus::Looked;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Documents that are looked up, or wait to be named, at most: beyond that all are compared.
const MOST: usize = 4_096;
/// Bytes of their names, and of what was found of them, at most.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Documents that are looked up together.
const TOGETHER: usize = 256;
/// What one takes beside its name, bytes.
const OVERHEAD: usize = 96;
/// A request to purge is heard when the server hears it: it is looked for at these times, and may have failed after the last one.
const PURGED_AFTER: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(4)];
/// The server removes what has lived long enough once in a second, about.
const EXPIRED_AFTER: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(10)];

/// Why a document may have vanished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its subject was to be purged.
    Purged,
    /// Its message with this seqno has lived long enough.
    Expired(u64),
}

#[derive(Debug)]
struct Suspect {
    cause: Cause,
    since: Instant,
    looks: usize,
    /// It is being looked up; the newest message of it that was read meanwhile, or 0.
    under_way: Option<u64>,
    /// There was another reason meanwhile.
    again: bool,
}

impl Suspect {
    fn due(&self) -> Option<Instant> {
        let after = match self.cause {
            Cause::Purged => PURGED_AFTER,
            Cause::Expired(_) => EXPIRED_AFTER,
        };
        after.get(self.looks).map(|after| self.since + *after)
    }
}

/// The newest message of a document, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Last {
    None,
    /// The one that was expected, or a newer one.
    There(u64),
    /// An older one than that which expired.
    Older(Box<Looked>),
}

/// What the source has of a document that vanished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The stream's last sequence before it was looked up.
    asked_at: u64,
    /// An older revision, if there is one.
    pub present: Option<Box<Looked>>,
}

/// The documents of one vbucket.
#[derive(Debug, Default)]
pub struct Vanished {
    suspects: BTreeMap<String, Suspect>,
    found: BTreeMap<String, Found>,
    bytes: usize,
    /// More than are remembered.
    overflowed: bool,
}

impl Vanished {
    /// A document may have vanished.
    pub fn suspect(&mut self, docid: &str, cause: Cause, now: Instant) {
        if let Some(known) = self.suspects.get_mut(docid) {
            // What is under way may have been answered before. A purge takes what would expire.
            let cause = if known.cause == Cause::Purged { Cause::Purged } else { cause };
            let again = known.under_way.is_some();
            *known = Suspect { cause, since: now, looks: 0, under_way: known.under_way, again };
            return;
        }
        if self.suspects.len() + self.found.len() >= MOST || self.bytes >= MOST_BYTES {
            self.overflowed = true;
            return;
        }
        self.bytes += docid.len() + OVERHEAD;
        self.suspects.insert(docid.to_owned(), Suspect { cause, since: now, looks: 0, under_way: None, again: false });
    }

    /// More vanished than is looked up: true once.
    pub fn overflowed(&mut self) -> bool {
        std::mem::take(&mut self.overflowed)
    }

    /// Nothing is to be looked up.
    pub fn is_settled(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Documents wait to be named.
    pub fn waits(&self) -> bool {
        !self.found.is_empty()
    }

    /// The next ones to look up.
    pub fn due(&mut self, now: Instant) -> Vec<(String, Cause)> {
        let due =
            self.suspects.iter_mut().filter(|(_, s)| s.under_way.is_none() && s.due().is_some_and(|at| at <= now));
        let mut docids = Vec::new();
        for (docid, suspect) in due.take(TOGETHER) {
            (suspect.under_way, suspect.again) = (Some(0), false);
            docids.push((docid.clone(), suspect.cause));
        }
        docids
    }

    /// It could not be looked up, or by a leader that lacks what was read.
    pub fn failed(&mut self, docid: &str, now: Instant) {
        if let Some(suspect) = self.suspects.get_mut(docid) {
            suspect.under_way = None;
            suspect.since = suspect.since.max(now);
        }
    }

    /// What the source has of one; `asked_at`: the stream's last sequence before. True: it vanished.
    pub fn looked(&mut self, docid: &str, asked_at: u64, last: Last) -> bool {
        let Some(suspect) = self.suspects.get_mut(docid) else { return false };
        let Some(read) = suspect.under_way.take() else { return false };
        if read > asked_at {
            // The chain says what it is. If that goes in its turn, there is another reason to look, perhaps already.
            if !suspect.again {
                self.forget(docid);
            }
            return false;
        }
        suspect.looks += 1;
        let present = match (last, suspect.cause) {
            (Last::None, _) => None,
            (Last::Older(older), Cause::Expired(_)) => Some(older),
            // It was written again: the chain brings that.
            (Last::There(seq), Cause::Expired(expected)) if seq > expected => {
                self.forget(docid);
                return false;
            }
            // A purge leaves the newest, or nothing.
            _ => {
                if suspect.due().is_none() {
                    self.forget(docid);
                }
                return false;
            }
        };
        self.forget(docid);
        self.drop_found(docid);
        let found = Found { asked_at, present };
        self.bytes += size(docid, &found);
        self.found.insert(docid.to_owned(), found);
        true
    }

    /// A message of a document was read: the chain says what it is, if that was written after it was looked up.
    pub fn read(&mut self, docid: &str, seqno: u64) {
        if !self.found.is_empty() && self.found.get(docid).is_some_and(|found| seqno > found.asked_at) {
            self.drop_found(docid);
        }
        if !self.suspects.is_empty()
            && let Some(read) = self.suspects.get_mut(docid).and_then(|suspect| suspect.under_way.as_mut())
        {
            *read = seqno.max(*read);
        }
    }

    /// Hands out documents to name behind `covered`, by the seqno of what is present, while `more` takes them.
    pub fn take(&mut self, covered: u64, mut more: impl FnMut(&str, Option<&Looked>) -> bool) {
        let ready = self.found.iter().filter(|(_, found)| found.asked_at <= covered);
        let mut order: Vec<(u64, String)> =
            ready.map(|(docid, found)| (found.present.as_ref().map_or(0, |p| p.seq), docid.clone())).collect();
        order.sort_unstable();
        for (_, docid) in order {
            if !self.found.get(&docid).is_some_and(|found| more(&docid, found.present.as_deref())) {
                return;
            }
            self.drop_found(&docid);
        }
    }

    fn forget(&mut self, docid: &str) {
        if self.suspects.remove(docid).is_some() {
            self.bytes -= docid.len() + OVERHEAD;
        }
    }

    fn drop_found(&mut self, docid: &str) {
        if let Some(found) = self.found.remove(docid) {
            self.bytes -= size(docid, &found);
        }
    }
}

/// Bytes that it takes, about.
fn size(docid: &str, found: &Found) -> usize {
    docid.len() + OVERHEAD + found.present.as_ref().map_or(0, |present| present.payload.len() + present.subject.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn older(seq: u64) -> Last {
        Last::Older(Box::new(Looked {
            seq,
            subject: "a".into(),
            time: 0,
            meaning: highwater_bus::Meaning::default(),
            oversized: false,
            payload: bytes::Bytes::from_static(b"{}"),
        }))
    }

    fn named(vanished: &mut Vanished, covered: u64) -> Vec<(String, u64)> {
        let mut named = Vec::new();
        vanished.take(covered, |docid, present| {
            named.push((docid.to_owned(), present.map_or(0, |present| present.seq)));
            true
        });
        named
    }

    /// Looks one document up whenever that is due; how often, and what was named.
    fn looked(cause: Cause, mut last: impl FnMut(usize) -> Last) -> (usize, Vec<(String, u64)>) {
        let (mut vanished, began, mut looks) = (Vanished::default(), Instant::now(), 0);
        vanished.suspect("a", cause, began);
        for tenths in 0..200 {
            for (docid, _) in vanished.due(began + SECOND / 10 * tenths) {
                looks += 1;
                vanished.looked(&docid, 50, last(looks));
            }
        }
        assert!(vanished.is_settled());
        let named = named(&mut vanished, 50);
        assert_eq!(vanished.bytes, 0);
        (looks, named)
    }

    #[test]
    fn what_is_gone_is_named_and_what_stays_is_not() {
        let gone = vec![("a".to_owned(), 0)];
        assert_eq!(looked(Cause::Purged, |_| Last::None), (1, gone.clone()));
        let after_a_while = |looks| if looks < 3 { Last::There(7) } else { Last::None };
        assert_eq!(looked(Cause::Purged, after_a_while), (3, gone.clone()));
        assert_eq!(looked(Cause::Purged, |_| Last::There(7)), (3, vec![]));
        assert_eq!(looked(Cause::Expired(7), after_a_while), (3, gone));
        assert_eq!(looked(Cause::Expired(7), |_| Last::There(7)), (3, vec![]), "the server keeps it");
        assert_eq!(looked(Cause::Expired(7), |_| Last::There(8)), (1, vec![]), "it was written again");
        assert_eq!(looked(Cause::Expired(7), |_| older(4)), (1, vec![("a".to_owned(), 4)]));
    }

    #[test]
    fn what_was_written_after_it_was_looked_up_is_not_named() {
        let mut vanished = Vanished::default();
        for docid in ["a", "b", "c"] {
            vanished.suspect(docid, Cause::Purged, Instant::now());
            vanished.due(Instant::now() + SECOND);
            vanished.looked(docid, 50, Last::None);
        }
        vanished.read("a", 51);
        vanished.read("b", 50);
        assert_eq!(named(&mut vanished, 49), [], "not all that was there then is covered");
        assert_eq!(named(&mut vanished, 50), [("b".to_owned(), 0), ("c".to_owned(), 0)]);
        assert!(!vanished.waits() && vanished.bytes == 0);
    }

    #[test]
    fn what_was_written_while_it_was_looked_up_is_not_named() {
        for (read, is_named) in [(50, true), (51, false)] {
            let (mut vanished, now) = (Vanished::default(), Instant::now());
            vanished.suspect("a", Cause::Purged, now);
            vanished.due(now + SECOND);
            vanished.read("a", read);
            assert_eq!(vanished.looked("a", 50, Last::None), is_named, "{read}");
            assert_eq!(vanished.waits(), is_named);
        }
    }

    #[test]
    fn a_reason_that_comes_while_it_is_looked_up_counts_for_the_next_look() {
        let (mut vanished, now) = (Vanished::default(), Instant::now());
        vanished.suspect("a", Cause::Purged, now);
        vanished.due(now + SECOND);
        vanished.read("a", 51);
        vanished.suspect("a", Cause::Purged, now);
        assert!(!vanished.looked("a", 50, Last::None) && !vanished.is_settled());
        assert_eq!(vanished.due(now + SECOND).len(), 1);
        assert!(vanished.looked("a", 51, Last::None) && vanished.is_settled());
    }

    #[test]
    fn of_more_than_fit_the_surplus_is_left_to_a_comparison() {
        let (mut vanished, now) = (Vanished::default(), Instant::now());
        (0..MOST).for_each(|n| vanished.suspect(&n.to_string(), Cause::Purged, now));
        vanished.suspect("7", Cause::Purged, now);
        assert!(!vanished.overflowed(), "it is known");
        vanished.suspect("one more", Cause::Purged, now);
        assert!(vanished.overflowed() && !vanished.overflowed());
        assert_eq!(vanished.suspects.len(), MOST);
        let (mut vanished, long) = (Vanished::default(), "x".repeat(4 * 1_024));
        (0..MOST).for_each(|n| vanished.suspect(&format!("{long}{n}"), Cause::Purged, now));
        assert!(vanished.overflowed() && vanished.bytes < MOST_BYTES + 5 * 1_024);
    }

    #[test]
    fn what_could_not_be_looked_up_is_looked_up_again() {
        let (mut vanished, now) = (Vanished::default(), Instant::now());
        vanished.suspect("a", Cause::Expired(3), now);
        assert_eq!(vanished.due(now), []);
        assert_eq!(vanished.due(now + SECOND), [("a".to_owned(), Cause::Expired(3))]);
        assert_eq!(vanished.due(now + SECOND), [], "it is under way");
        vanished.failed("a", now + SECOND);
        assert_eq!(vanished.due(now + SECOND), []);
        assert_eq!(vanished.due(now + SECOND * 2).len(), 1);
    }
}
