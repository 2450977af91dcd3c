//! When documents expire that their writers gave a time to live (`Nats-TTL`): the server removes them without a message where the
//! stream has no delete markers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// What one takes beside its name, bytes.
const OVERHEAD: usize = 128;

/// The documents of one vbucket, each by its newest message that was read.
#[derive(Debug)]
pub struct Expiries {
    /// In the order of the seconds of the server's clock in which they expire.
    order: BTreeSet<(i64, Arc<str>)>,
    /// The second, and the seqno of the message that expires then.
    of: HashMap<Arc<str>, (i64, u64)>,
    bytes: usize,
    room: usize,
    /// Of what expires from then on not all is known.
    forgotten_from: Option<i64>,
}

impl Expiries {
    /// Remembers so many bytes.
    pub fn new(room: usize) -> Self {
        Self { order: BTreeSet::new(), of: HashMap::new(), bytes: 0, room, forgotten_from: None }
    }

    /// A message of a document was read, which expires in this second or lives for ever. Of more than fit, those are forgotten that
    /// live longest.
    pub fn note(&mut self, docid: &str, seqno: u64, second: Option<i64>) {
        if let Some((_, known)) = self.of.get(docid) {
            if *known > seqno {
                return;
            }
            self.forget(docid);
        }
        let Some(second) = second else { return };
        if self.forgotten_from.is_some_and(|from| second >= from) {
            return;
        }
        let docid: Arc<str> = docid.into();
        self.bytes += docid.len() + OVERHEAD;
        self.of.insert(Arc::clone(&docid), (second, seqno));
        self.order.insert((second, docid));
        while self.bytes > self.room
            && let Some((second, docid)) = self.order.last().cloned()
        {
            self.forget(&docid);
            self.forgotten_from = Some(self.forgotten_from.map_or(second, |from| from.min(second)));
        }
    }

    fn forget(&mut self, docid: &str) {
        if let Some((docid, (second, _))) = self.of.remove_entry(docid) {
            self.bytes -= docid.len() + OVERHEAD;
            self.order.remove(&(second, docid));
        }
    }

    /// Documents whose messages have expired by then, at most so many.
    pub fn due(&mut self, second: i64, most: usize) -> Vec<(Arc<str>, u64)> {
        let mut due = Vec::new();
        while due.len() < most && self.is_due(second) {
            let Some((_, docid)) = self.order.pop_first() else { break };
            if let Some((docid, (_, seqno))) = self.of.remove_entry(&docid) {
                self.bytes -= docid.len() + OVERHEAD;
                due.push((docid, seqno));
            }
        }
        due
    }

    /// Whether one has expired by then.
    pub fn is_due(&self, second: i64) -> bool {
        self.order.first().is_some_and(|(first, _)| *first <= second)
    }

    /// Whether some have expired by then that were forgotten; true once. The present documents must be read again.
    pub fn is_incomplete(&mut self, second: i64) -> bool {
        self.forgotten_from.take_if(|from| *from <= second).is_some()
    }
}

impl Default for Expiries {
    fn default() -> Self {
        Self::new(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(expiries: &mut Expiries, second: i64, most: usize) -> Vec<(String, u64)> {
        expiries.due(second, most).into_iter().map(|(docid, seqno)| (docid.to_string(), seqno)).collect()
    }

    #[test]
    fn documents_come_when_their_newest_messages_expire() {
        let mut expiries = Expiries::new(10_000);
        for (docid, seqno, second) in [
            ("b", 2, Some(20)),
            ("a", 1, Some(10)),
            ("c", 3, Some(20)),
            ("a", 1, Some(10)),
            ("later", 4, Some(5)),
            ("later", 6, Some(50)),
            ("later", 5, Some(1)),
            ("never", 7, Some(5)),
            ("never", 8, None),
        ] {
            expiries.note(docid, seqno, second);
        }
        assert!(!expiries.is_due(9) && expiries.is_due(10));
        assert_eq!(due(&mut expiries, 9, 9), []);
        assert_eq!(due(&mut expiries, 20, 2), [("a".into(), 1), ("b".into(), 2)]);
        assert_eq!(due(&mut expiries, 20, 2), [("c".into(), 3)]);
        assert_eq!(due(&mut expiries, 50, 2), [("later".into(), 6)]);
        assert!(expiries.order.is_empty() && expiries.of.is_empty() && expiries.bytes == 0);
        assert!(!expiries.is_incomplete(i64::MAX));
    }

    #[test]
    fn of_more_than_fit_those_are_forgotten_that_live_longest() {
        let mut expiries = Expiries::new(10 * (OVERHEAD + 3));
        for second in (10..30).rev() {
            expiries.note(&format!("d{second}"), second as u64, Some(second));
        }
        expiries.note("new", 1, Some(20));
        assert_eq!(due(&mut expiries, i64::MAX, 99).len(), 10);
        assert!(!expiries.is_incomplete(19) && expiries.is_incomplete(20) && !expiries.is_incomplete(20));
        expiries.note("new", 1, Some(20));
        assert!(expiries.is_due(20));
    }
}
