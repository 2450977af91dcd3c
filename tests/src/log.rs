//! Every acknowledged write of a source, and what became of it.
//!
//! A source that is taken back begins another [`Log`]: it has what is still there of the histories before it, and what was
//! written since. Its *epoch* counts them. A stream that lost nothing then has the same *history* as before, whose number is
//! the same too.
//!
//! What vanishes without a message is noted beside the writes ([`Vanished`]): when it goes from an index, nobody can say.

use crate::source::Write;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

/// A document's name: the number of its stream, and its docid.
pub type Name = (usize, String);
/// The documents that are there, with their payload.
pub type Documents = BTreeMap<Name, Bytes>;
/// Seqno and payload; no payload: deleted.
pub type Stored = (u64, Option<Bytes>);

/// Every acknowledged write.
#[derive(Debug, Default, Clone)]
pub struct Log {
    /// By seqno, ascending.
    pub documents: BTreeMap<Name, Vec<Stored>>,
    /// Per stream: every write up to here is in the log, and those beyond that are too.
    complete: Vec<(u64, BTreeSet<u64>)>,
    /// By document: writes that were not acknowledged, and may have been stored above this seqno all the same.
    pub(crate) doubts: BTreeMap<Name, Vec<Stored>>,
    /// Per stream: seqnos of writes that are not known, for they were not acknowledged and are overwritten.
    pub(crate) unknown: Vec<BTreeSet<u64>>,
    /// By document, in the order in which it went.
    pub(crate) vanished: BTreeMap<Name, Vec<Vanished>>,
    /// How often the source was taken back before.
    pub(crate) epoch: usize,
    /// From when on the source is surely what this log says; none: from the beginning.
    pub(crate) since: Option<Instant>,
    /// Per stream the number of its history.
    pub(crate) history: Vec<usize>,
    /// Per stream its last seqno when this log began.
    pub(crate) began_at: Vec<u64>,
}

/// Revisions of a document went without a message.
#[derive(Debug, Clone)]
pub(crate) struct Vanished {
    /// Not before.
    pub(crate) from: Instant,
    /// None above this seqno went, and every one up to `surely`, but for what is left.
    pub(crate) perhaps: u64,
    pub(crate) surely: u64,
    pub(crate) left: Left,
    /// Every stability timestamp from this number on follows.
    pub(crate) followed: Option<u64>,
}

/// What is the newest revision now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// None.
    Nothing,
    Revision(u64),
    /// Some older one, or none.
    Older,
}

/// What went without a message, while documents are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// Every message below this seqno of a stream.
    Below(usize, u64),
    /// Every message of a document up to the first seqno, and perhaps some up to the second one.
    Document(Name, u64, u64),
    /// One message of a document.
    Message(Name, u64),
}

impl Log {
    /// An empty one.
    pub fn for_streams(count: usize) -> Self {
        Self {
            complete: vec![Default::default(); count],
            unknown: vec![BTreeSet::new(); count],
            history: vec![0; count],
            began_at: vec![0; count],
            ..Self::default()
        }
    }

    /// An acknowledged write.
    pub fn add(&mut self, write: Write, seqno: u64) {
        let Write { vb, id, op } = write;
        self.insert((vb, id), (seqno, op.payload()));
        self.cover(vb, seqno);
    }

    fn insert(&mut self, name: Name, stored: Stored) {
        let history = self.documents.entry(name).or_default();
        let at = history.partition_point(|(other, _)| *other < stored.0);
        history.insert(at, stored);
    }

    fn cover(&mut self, vb: usize, seqno: u64) {
        let (complete, beyond) = &mut self.complete[vb];
        if seqno > *complete {
            beyond.insert(seqno);
        }
        while beyond.remove(&(*complete + 1)) {
            *complete += 1;
        }
    }

    /// Every write of a stream up to here is known.
    pub(crate) fn cover_all(&mut self, vb: usize, last: u64) {
        let (complete, beyond) = &mut self.complete[vb];
        *complete = last;
        *beyond = beyond.split_off(&(last + 1));
    }

    /// A write that is not acknowledged; it was sent when `above` was.
    pub(crate) fn doubt(&mut self, write: &Write, above: u64) {
        let doubts = self.doubts.entry((write.vb, write.id.clone())).or_default();
        doubts.push((above, write.op.clone().payload()));
    }

    /// Nobody knows any more what was written there.
    pub(crate) fn lose(&mut self, vb: usize, seqno: u64) {
        self.unknown[vb].insert(seqno);
        self.cover(vb, seqno);
    }

    /// Per stream the highest seqno that was acknowledged.
    pub fn acknowledged(&self) -> Vec<u64> {
        self.complete.iter().map(|(complete, beyond)| beyond.last().copied().unwrap_or(*complete)).collect()
    }

    /// The seqnos of a stream that are not here, up to `last`.
    pub(crate) fn missing(&self, vb: usize, last: u64) -> Vec<u64> {
        let (complete, beyond) = &self.complete[vb];
        (complete + 1..=last).filter(|seqno| !beyond.contains(seqno)).collect()
    }

    /// Per stream the seqno up to which every write is here.
    pub fn complete(&self) -> Vec<u64> {
        self.complete.iter().map(|(complete, _)| *complete).collect()
    }

    /// The documents after every write up to these seqnos, one per stream, had none vanished.
    pub fn at(&self, seqnos: &[u64]) -> Documents {
        let newest = |(name, history): (&Name, &Vec<Stored>)| {
            let behind = history.partition_point(|(seqno, _)| *seqno <= seqnos[name.0]);
            let (_, payload) = history.get(behind.checked_sub(1)?)?;
            Some((name.clone(), payload.clone()?))
        };
        self.documents.iter().filter_map(newest).collect()
    }

    /// The documents now.
    pub fn now(&self) -> Documents {
        let present = |name: &Name| Some((name.clone(), self.present(name)?.1.clone()?));
        self.documents.keys().filter_map(present).collect()
    }

    /// The newest revision of a document that has not vanished, as far as that is known.
    fn present(&self, name: &Name) -> Option<&Stored> {
        let history = self.documents.get(name)?;
        let mut newest = history.last()?;
        for vanished in self.vanished.get(name).into_iter().flatten() {
            if newest.0 <= vanished.surely {
                match vanished.left {
                    Left::Nothing => return None,
                    Left::Revision(seqno) => newest = history.iter().find(|(other, _)| *other == seqno)?,
                    Left::Older => {}
                }
            }
        }
        Some(newest)
    }

    /// What went without a message, not before `from`.
    pub fn gone(&mut self, from: Instant, gone: &Gone) {
        let vanished = |perhaps, surely, left| Vanished { from, perhaps, surely, left, followed: None };
        match gone {
            Gone::Below(vb, seqno) => {
                let below = vanished(seqno.saturating_sub(1), seqno.saturating_sub(1), Left::Nothing);
                let names = self.documents.iter().filter(|(name, history)| name.0 == *vb && history[0].0 < *seqno);
                for (name, _) in names {
                    self.vanished.entry(name.clone()).or_default().push(below.clone());
                }
            }
            Gone::Document(name, surely, perhaps) => {
                self.vanished.entry(name.clone()).or_default().push(vanished(*perhaps, *surely, Left::Nothing));
            }
            Gone::Message(name, seqno) => {
                self.vanished.entry(name.clone()).or_default().push(vanished(*seqno, *seqno, Left::Older));
            }
        }
    }

    /// Of a stream there are these newest revisions, and no others: what should be there and is not has vanished, not before
    /// `from`.
    pub(crate) fn compare(&mut self, vb: usize, newest: &BTreeMap<Name, u64>, from: Instant) {
        let gone = |(name, history): (&Name, &Vec<Stored>)| {
            let present = self.present(name).filter(|(_, payload)| payload.is_some()).map_or(0, |(seqno, _)| *seqno);
            let found = newest.get(name).copied().unwrap_or(0);
            let left = if found == 0 { Left::Nothing } else { Left::Revision(found) };
            let last = history.last()?.0;
            let same = present == found || present == 0 && history.iter().any(|r| r.0 == found && r.1.is_none());
            (!same).then(|| (name.clone(), Vanished { from, perhaps: last, surely: last, left, followed: None }))
        };
        let gone: Vec<_> = self.documents.iter().filter(|(name, _)| name.0 == vb).filter_map(gone).collect();
        for (name, vanished) in gone {
            self.vanished.entry(name).or_default().push(vanished);
        }
    }

    /// Indexes have followed all that vanished so far, from the stability timestamp of this number on.
    pub fn followed(&mut self, number: u64) {
        for vanished in self.vanished.values_mut().flatten() {
            vanished.followed.get_or_insert(number);
        }
    }

    /// The log of a source that was taken back, and that has `stored` now: with all that is still there of what was before.
    pub(crate) fn after(pasts: &[Arc<Self>], mut stored: Self) -> Self {
        for vb in 0..stored.complete.len() {
            let last = stored.complete[vb].0;
            stored.began_at[vb] = last;
            let of = |past: &Arc<Self>| (past.survives(&stored, vb), Arc::clone(past));
            // Of those that tell most the newest.
            let Some((common, past)) = pasts.iter().map(of).max_by_key(|(common, past)| (*common, past.epoch)) else {
                continue;
            };
            let same = past.acknowledged()[vb] <= common;
            let new = pasts.iter().map(|past| past.history[vb] + 1).max().unwrap_or(0);
            stored.history[vb] = if same { past.history[vb] } else { new };
            stored.take(&past, vb, common);
        }
        stored.epoch = pasts.iter().map(|past| past.epoch + 1).max().unwrap_or(0);
        stored
    }

    /// Takes what another log knows of a stream up to here.
    fn take(&mut self, past: &Self, vb: usize, common: u64) {
        for (name, history) in past.documents.iter().filter(|(name, _)| name.0 == vb) {
            let kept = &history[..history.partition_point(|(seqno, _)| *seqno <= common)];
            let own = self.documents.entry(name.clone()).or_default();
            own.retain(|(seqno, _)| *seqno > common);
            own.splice(0..0, kept.iter().cloned());
        }
        self.documents.retain(|_, history| !history.is_empty());
        self.unknown[vb] = past.unknown[vb].range(..=common).copied().collect();
        let doubts = past.doubts.iter().filter(|(name, _)| name.0 == vb);
        self.doubts.extend(doubts.map(|(name, all)| (name.clone(), all.clone())));
    }

    /// Up to which seqno of a stream this is the history of what is stored now.
    fn survives(&self, stored: &Self, vb: usize) -> u64 {
        let end = stored.complete[vb].0.min(self.complete[vb].0);
        let none = Vec::new();
        let names = self.documents.keys().chain(stored.documents.keys()).filter(|name| name.0 == vb);
        let differs = |name: &Name| {
            let mine = self.documents.get(name).unwrap_or(&none);
            let theirs = stored.documents.get(name).unwrap_or(&none);
            if let Some((other, _)) = theirs.iter().find(|revision| !mine.contains(revision)) {
                return Some(*other);
            }
            // The one that follows what is stored would be stored as well.
            let newest = theirs.last().map_or(0, |(seqno, _)| *seqno);
            mine.iter().map(|(seqno, _)| *seqno).find(|seqno| *seqno > newest)
        };
        names.filter_map(differs).map(|seqno| seqno - 1).fold(end, u64::min)
    }

    /// Up to which seqno of a stream two logs have the same writes.
    pub(crate) fn common(&self, other: &Self, vb: usize) -> u64 {
        let end = self.complete[vb].0.min(other.complete[vb].0);
        let none = Vec::new();
        let names = self.documents.keys().chain(other.documents.keys()).filter(|name| name.0 == vb);
        let differs = |name: &Name| {
            let mine = self.documents.get(name).unwrap_or(&none);
            let theirs = other.documents.get(name).unwrap_or(&none);
            let at = mine.iter().zip(theirs).take_while(|(mine, theirs)| mine == theirs).count();
            mine.get(at).into_iter().chain(theirs.get(at)).map(|(seqno, _)| *seqno).min()
        };
        names.filter_map(differs).map(|seqno| seqno - 1).fold(end, u64::min)
    }
}
