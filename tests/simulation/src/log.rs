//! The stream `HW_STATE` as the server has it, and everything that it ever held.

use highwater_schemas::state::{Change, Record, StateContext, unpack};
use std::{collections::BTreeMap, rc::Rc};

/// A record as it travels.
pub type Payload = Rc<Vec<u8>>;

/// The stream.
#[derive(Debug, Default)]
pub struct Log {
    /// 0: there is none. Else which one it is.
    pub created: u64,
    lives: u64,
    pub last_seq: u64,
    pub records: BTreeMap<u64, Payload>,
    /// The opening records of terms that were ever accepted: term → who, and the record's hash. One that was lost may come
    /// again as it was.
    pub terms: BTreeMap<u64, (String, String)>,
    highest: u64,
    /// What a reader from the beginning has; None: the beginning is missing.
    pub read: Option<StateContext>,
    /// Times that something was taken from it.
    pub losses: u64,
    pub appended: u64,
    pub compacted: u64,
}

/// The record in what is stored.
pub fn record(payload: &Payload) -> Option<Record> {
    unpack(payload).ok().and_then(|json| serde_json::from_slice(&json).ok())
}

fn first(payload: &Payload) -> bool {
    record(payload).is_some_and(|r| r.version == 1)
}

impl Log {
    pub fn ensure(&mut self) {
        if self.created == 0 {
            self.lives += 1;
            self.created = self.lives;
            self.last_seq = 0;
            self.records.clear();
            self.read = Some(StateContext::default());
        }
    }

    /// An append reaches the server: its sequence, or the last sequence that is not the expected one.
    ///
    /// # Errors
    /// The record breaks what must hold of the log.
    pub fn append(&mut self, expected: u64, payload: &Payload, rollup: bool) -> Result<Result<u64, u64>, String> {
        if self.last_seq != expected {
            return Ok(Err(self.last_seq));
        }
        self.last_seq += 1;
        if rollup || (self.read.is_none() && self.records.is_empty() && first(payload)) {
            self.records.clear();
            self.read = Some(StateContext::default());
        }
        self.records.insert(self.last_seq, Rc::clone(payload));
        self.appended += 1;
        self.check(payload)?;
        Ok(Ok(self.last_seq))
    }

    fn check(&mut self, payload: &Payload) -> Result<(), String> {
        let json = unpack(payload).map_err(|e| format!("the log holds garbage: {e}"))?;
        let record: Record = serde_json::from_slice(&json).map_err(|e| format!("the log holds garbage: {e}"))?;
        let term = record.term;
        let opens = match &record.change {
            Change::TermStarted { coordinator } => Some(coordinator.clone()),
            Change::Snapshot { context, reason } if !reason.is_empty() => Some(context.coordinator.clone()),
            Change::Snapshot { .. } => {
                self.compacted += 1;
                None
            }
            _ => None,
        };
        if let Some(who) = opens {
            let opening = (who, Record::hash(&json));
            let known = self.terms.entry(term).or_insert_with(|| opening.clone());
            if *known != opening {
                return Err(format!("I1: term {term} was opened by {} and then by {}", known.0, opening.0));
            }
        } else if !self.terms.contains_key(&term) {
            return Err(format!("I1: a record of term {term}, which was never opened"));
        }
        if self.losses == 0 && term < self.highest {
            return Err(format!("I4: a record of term {term} after one of term {}", self.highest));
        }
        self.highest = self.highest.max(term);
        if let Some(read) = &mut self.read {
            let before = read.term;
            read.offer(&json).map_err(|e| format!("I7: the log holds a record that cannot be applied: {e}"))?;
            if read.term < before {
                return Err(format!("I4: the log's term fell from {before} to {}", read.term));
            }
        }
        Ok(())
    }

    /// Somebody writes what is no record; false: there is no log.
    pub fn write_foreign(&mut self) -> bool {
        if self.created > 0 {
            self.last_seq += 1;
            self.records.insert(self.last_seq, Rc::new(b"nobody knows".to_vec()));
        }
        self.created > 0
    }

    pub fn at(&self, seq: u64) -> Option<Payload> {
        self.records.get(&seq).cloned()
    }

    /// The server came back without the last so many records.
    pub fn lose_tail(&mut self, most: u64) {
        if self.created == 0 {
            return;
        }
        self.losses += 1;
        for _ in 0..most {
            // What a rollup has removed does not come back.
            if self.records.len() <= 1 {
                break;
            }
            if let Some((seq, _)) = self.records.pop_last() {
                self.last_seq = seq - 1;
            }
        }
        self.read_again();
    }

    pub fn delete(&mut self) {
        self.losses += 1;
        self.created = 0;
        self.last_seq = 0;
        self.records.clear();
        self.read = None;
    }

    /// Takes all records but the last so many; the last sequence stays.
    pub fn purge(&mut self, keep: usize) {
        self.losses += 1;
        while self.records.len() > keep {
            self.records.pop_first();
        }
        self.read_again();
    }

    fn read_again(&mut self) {
        let mut read = StateContext::default();
        let whole = self.records.values().all(|r| read.offer(r).is_ok());
        // What follows on nothing cannot be read either.
        let begins = self.records.values().any(|r| record(r).is_some()) || self.last_seq == 0;
        self.read = (whole && begins).then_some(read);
    }
}
