//! What the source held, and which of its histories an answer may be of.
//!
//! A source that was taken back has several logs, and each of its streams one history or several. An answer names its branch of each
//! stream:
//! - One that was there before the fault is of the history of then.
//! - `request_plus` is of no history that was taken back before the request began.
//! - One that was asked for after the fault is of the newest history.
//!
//! What an answer must have is a seqno of the history that it is of. What was acknowledged in an earlier one counts as far as it was
//! not lost; so does all that the source held when a new history had begun, for those who asked afterwards.

use super::proof::{Answer, Need};
use crate::{oracle::Index, source::Log};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
    time::Instant,
};

pub(super) struct Truth<'a> {
    /// In the order of their epochs; not empty.
    logs: Vec<Arc<Log>>,
    /// From when to when something was broken.
    fault: (Instant, Instant),
    pub(super) indexes: &'a [Index],
    /// By stream and two histories: up to which seqno they are the same.
    commons: RefCell<BTreeMap<(usize, usize, usize), u64>>,
}

impl<'a> Truth<'a> {
    pub(super) fn new(logs: Vec<Arc<Log>>, fault: (Instant, Instant), indexes: &'a [Index]) -> Self {
        Self { logs, fault, indexes, commons: RefCell::default() }
    }

    /// The histories of a stream that an answer may be of.
    pub(super) fn histories(&self, answer: &Answer, vb: usize) -> BTreeSet<usize> {
        self.epochs(answer).map(|at| self.logs[at].history[vb]).collect()
    }

    fn epochs(&self, answer: &Answer) -> RangeInclusive<usize> {
        let newest = self.logs.len() - 1;
        let (before, after) = (answer.ended < self.fault.0, answer.began >= self.fault.1);
        let oldest = match &answer.need {
            _ if after => newest,
            Need::Acknowledged { epoch, .. } => self.at(*epoch).max(self.known(answer.began)),
            _ => 0,
        };
        oldest..=if before { 0 } else { newest }
    }

    fn at(&self, epoch: usize) -> usize {
        epoch - self.logs[0].epoch
    }

    /// The newest log that held at this time.
    fn known(&self, time: Instant) -> usize {
        self.logs.iter().rposition(|log| log.since.is_none_or(|since| since <= time)).unwrap_or(0)
    }

    /// All that is known of a history.
    pub(super) fn log(&self, vb: usize, history: usize) -> &Log {
        let newest = self.logs.iter().rev().find(|log| log.history[vb] == history);
        newest.unwrap_or(&self.logs[0])
    }

    /// Up to which seqno of a stream two histories are the same.
    pub(super) fn common(&self, vb: usize, one: usize, other: usize) -> u64 {
        if one == other {
            return u64::MAX;
        }
        let key = (vb, one.min(other), one.max(other));
        *self.commons.borrow_mut().entry(key).or_insert_with(|| self.log(vb, one).common(self.log(vb, other), vb))
    }

    /// The seqno of a stream up to which an answer of this history must have everything.
    pub(super) fn floor(&self, answer: &Answer, vb: usize, history: usize) -> u64 {
        if answer.exact {
            return answer.seqnos[vb];
        }
        self.needed(answer, vb, history)
    }

    /// As [`Self::floor`], whether or not the answer says that it is exact.
    pub(super) fn needed(&self, answer: &Answer, vb: usize, history: usize) -> u64 {
        match &answer.need {
            Need::Nothing => 0,
            Need::Named(seqnos) | Need::Seen { seqnos, .. } => seqnos[vb],
            Need::Acknowledged { epoch, seqnos } => {
                let at = self.at(*epoch);
                let acknowledged = seqnos[vb].min(self.common(vb, self.logs[at].history[vb], history));
                // It may have been asked before the source was taken back, and answered when less was there.
                let later = if answer.ended < self.fault.0 { &[] } else { &self.logs[at + 1..] };
                let acknowledged = later.iter().map(|log| log.began_at[vb]).fold(acknowledged, u64::min);
                let held = self.logs[at..].iter().filter(|log| log.history[vb] == history);
                let held = held.filter(|log| log.since.is_some_and(|since| since <= answer.began));
                held.map(|log| log.began_at[vb]).fold(acknowledged, u64::max)
            }
        }
    }
}
