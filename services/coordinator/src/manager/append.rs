//! One append until it is settled.

use super::{Action, chain::Linked};
use highwater_schemas::state::{Record, is_record, unpack};

/// Milliseconds until a failed read or a refused append is tried again: twice as long each time, so often.
const RETRY: u64 = 200;
const MOST_DOUBLED: u32 = 4;
/// Times that the log is found to be at another place, with nothing at ours, before it is taken to be another log.
const MOST_MOVED: u32 = 3;

/// What the server said of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log at this sequence.
    Acked(u64),
    /// The log's last sequence is not the expected one.
    Moved,
    /// It may be in the log or not.
    Unknown,
    /// The server did not take it, or said nothing that can be read; why.
    Refused(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Sent,
    /// The place where it must be is read.
    Place,
    /// Its place is empty: is the record before it still there?
    Before,
    /// All of it again at this time.
    Again(u64),
    /// The read again at this time.
    ReadAgain(u64, u64),
}

/// A record on its way into the log.
#[derive(Debug, Clone)]
pub struct Append {
    pub id: u64,
    /// Sequence of the message before it, which is a record, or what somebody else wrote behind one.
    pub expected: u64,
    /// Sequence of the record before it.
    before_at: u64,
    /// Hash of that record; empty: there is none, or it does not matter.
    before: String,
    pub record: Linked,
    pub payload: Vec<u8>,
    pub rollup: bool,
    stage: Stage,
    moved: u32,
    failures: u32,
}

/// What has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    NotYet,
    /// It is in the log at this sequence.
    Done(u64),
    /// Another record is at its place.
    Deposed,
    /// The record before it is not there any more.
    Lost,
}

impl Append {
    pub fn new(id: u64, expected: u64, before: String, record: Linked, payload: Vec<u8>, rollup: bool) -> Self {
        let (before_at, stage) = (expected, Stage::Sent);
        Self { id, expected, before_at, before, record, payload, rollup, stage, moved: 0, failures: 0 }
    }

    /// Messages of others between the record before it and it.
    pub fn passed_over(&self) -> usize {
        usize::try_from(self.expected - self.before_at).unwrap_or(usize::MAX)
    }

    pub fn send(&self) -> Action {
        Action::Append { id: self.id, expected: self.expected, payload: self.payload.clone(), rollup: self.rollup }
    }

    fn read(&self, seq: u64) -> Action {
        Action::ReadAt { id: self.id, seq }
    }

    pub fn appended(&mut self, outcome: &Outcome, out: &mut Vec<Action>) -> Settled {
        if self.stage != Stage::Sent {
            return Settled::NotYet;
        }
        match outcome {
            Outcome::Acked(seq) => Settled::Done(*seq),
            Outcome::Moved | Outcome::Unknown | Outcome::Refused(_) => {
                self.moved += u32::from(*outcome == Outcome::Moved);
                self.stage = Stage::Place;
                out.push(self.read(self.expected + 1));
                Settled::NotYet
            }
        }
    }

    pub fn found(&mut self, now: u64, record: Result<Option<Vec<u8>>, String>, out: &mut Vec<Action>) -> Settled {
        let again = now + (RETRY << self.failures.min(MOST_DOUBLED));
        match (&self.stage, record) {
            (Stage::Place, Ok(Some(record))) if record == self.payload => return Settled::Done(self.expected + 1),
            // Somebody else wrote there what is no record: ours goes behind it.
            (Stage::Place, Ok(Some(record))) if !is_record(&record) => {
                self.expected += 1;
                self.moved = 0;
                out.push(self.read(self.expected + 1));
            }
            (Stage::Place, Ok(Some(_))) => return Settled::Deposed,
            (Stage::Place, Ok(None)) if self.moved >= MOST_MOVED => return Settled::Lost,
            (Stage::Place, Ok(None)) if self.before.is_empty() => self.stage = Stage::Again(again),
            (Stage::Place, Ok(None)) => {
                self.stage = Stage::Before;
                out.push(self.read(self.before_at));
            }
            (Stage::Before, Ok(Some(record))) if self.follows(&record) => self.stage = Stage::Again(again),
            (Stage::Before, Ok(_)) => return Settled::Lost,
            (Stage::Place, Err(_)) => self.stage = Stage::ReadAgain(again, self.expected + 1),
            (Stage::Before, Err(_)) => self.stage = Stage::ReadAgain(again, self.before_at),
            _ => {}
        }
        self.failures += u32::from(matches!(self.stage, Stage::Again(_) | Stage::ReadAgain(..)));
        Settled::NotYet
    }

    /// Whether a record is the one before this one.
    fn follows(&self, record: &[u8]) -> bool {
        unpack(record).is_ok_and(|json| Record::hash(&json) == self.before)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64, out: &mut Vec<Action>) {
        match self.stage {
            Stage::Again(at) if now >= at => {
                self.stage = Stage::Sent;
                out.push(self.send());
            }
            Stage::ReadAgain(at, seq) if now >= at => {
                self.stage = if seq == self.before_at { Stage::Before } else { Stage::Place };
                out.push(self.read(seq));
            }
            _ => {}
        }
    }
}
