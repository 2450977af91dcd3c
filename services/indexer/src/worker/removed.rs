//! Documents that vanished from a source without a message: what a reconcile staged, and what lies below the source's first seqno.

use super::{SliceInfo, Worker, stores::Open, walks::Purpose};
use crate::{
    core::{Action, Batch, Step},
    documents::{self, Staged},
    store::{Place, SliceStore, StoreError},
};
use highwater_bus::fault;
use highwater_schemas::{state::SliceName, wire::Removal};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// What one slice stages at most, bytes; beyond it a session compares it.
pub(super) const STAGE_BYTES: usize = 32 * 1024 * 1024;
/// Documents that a round removes at most from a slice that is read; beyond it a session compares it.
const MOST_REMOVED: usize = 1 << 18;
/// The oldest documents of a slice that are remembered at most, so that not each floor that rises a little looks at all of them:
/// all vbuckets share them.
const OLDEST: usize = 1 << 16;
/// Of each vbucket at least.
const OLDEST_LEAST: usize = 1 << 6;
/// What one of them takes beside its document id, bytes.
const OVERHEAD: usize = 48;

/// What a slice has staged for a reconcile.
pub(super) struct Stage {
    reconcile: u64,
    /// By vbucket; None: more than it may.
    vbs: Option<BTreeMap<u16, Staged>>,
}

/// Collects the oldest documents of a vbucket, those that fit.
struct Collected {
    /// Bytes that they may take, and how many there may be, and are at least.
    room: usize,
    most: usize,
    bytes: usize,
    docs: BinaryHeap<(u64, String)>,
    /// The lowest seqno that was left out for lack of room: documents at or above it are ignored.
    end: u64,
}

impl Collected {
    fn new(room: usize, most: usize) -> Self {
        Self { room, most: most.max(OLDEST_LEAST), bytes: 0, docs: BinaryHeap::new(), end: u64::MAX }
    }

    fn offer(&mut self, seqno: u64, docid: &str) {
        if seqno >= self.end {
            return;
        }
        self.docs.push((seqno, docid.to_owned()));
        self.bytes += docid.len() + OVERHEAD;
        while self.docs.len() > self.most || self.docs.len() > OLDEST_LEAST && self.bytes > self.room {
            let Some((seqno, docid)) = self.docs.pop() else { return };
            self.bytes -= docid.len() + OVERHEAD;
            self.end = seqno;
        }
    }

    /// `floor`: all below is gone, and the next message of the stream may have this seqno.
    fn oldest(self, floor: u64) -> Oldest {
        let upto = self.docs.peek().map_or(floor.saturating_sub(1), |newest| newest.0);
        Oldest::new(upto, self.docs.into_sorted_vec())
    }
}

/// The oldest documents of a vbucket.
#[derive(Debug, Default)]
pub(super) struct Oldest {
    /// Every document with a seqno up to here is among them, as far as it was not overwritten since.
    upto: u64,
    /// By seqno, rising.
    docs: VecDeque<(u64, String)>,
    /// Bytes of document ids.
    bytes: usize,
}

impl Oldest {
    fn new(upto: u64, docs: Vec<(u64, String)>) -> Self {
        let bytes = docs.iter().map(|(_, docid)| docid.len()).sum();
        Self { upto, docs: docs.into(), bytes }
    }

    /// The next one below a seqno.
    fn below(&mut self, floor: u64) -> Option<(u64, String)> {
        let (_, docid) = self.docs.front().filter(|(seqno, _)| *seqno < floor)?;
        self.bytes -= docid.len();
        self.docs.pop_front()
    }

    /// Bytes held, about.
    pub(super) fn memory(&self) -> usize {
        self.bytes + self.docs.len() * OVERHEAD
    }
}

impl Stage {
    pub(super) fn new(reconcile: u64, vbs: u16) -> Self {
        Self { reconcile, vbs: Some((0..vbs).map(|vb| (vb, Staged::default())).collect()) }
    }

    /// What is staged of a vbucket, until it is applied.
    pub(super) fn vb(&mut self, vb: u16) -> Option<&mut Staged> {
        self.vbs.as_mut()?.get_mut(&vb)
    }

    /// Bytes held, about.
    pub(super) fn memory(&self) -> usize {
        self.vbs.iter().flat_map(BTreeMap::values).map(Staged::size).sum()
    }

    /// False: it is too much.
    pub(super) fn fits(&mut self) -> bool {
        if self.memory() > STAGE_BYTES {
            self.vbs = None;
        }
        self.vbs.is_some()
    }
}

impl Worker {
    pub(super) fn set_stage(&mut self, slice: SliceName, stage: Option<Stage>) {
        if let Some(open) = self.open.get_mut(&slice) {
            open.stage = stage;
        }
    }

    /// Takes a batch of a reconcile's list.
    pub(super) fn stage(&mut self, slice: SliceName, batch: &Batch, after: u64) -> Result<(), StoreError> {
        fault("stage", &self.outside.bucket);
        let (Some(open), Some(info)) = (self.open.get_mut(&slice), self.infos.get(&slice)) else { return Ok(()) };
        let Some(stage) = &mut open.stage else { return Ok(()) };
        if let Some(staged) = stage.vb(batch.vb) {
            documents::stage(&open.store, info, slice, batch, after..=batch.to.seqno, staged)?;
        }
        stage.fits();
        Ok(())
    }

    /// The list of a vbucket is complete: what it did not name is to go.
    pub(super) fn end_stage(&mut self, slice: SliceName, vb: u16, upto: u64, walk: u64) -> Vec<Action> {
        let stage = self.open.get_mut(&slice).and_then(|open| open.stage.as_mut());
        if let Some(staged) = stage.and_then(|stage| stage.vb(vb)) {
            staged.upto = upto;
        }
        self.walk(slice, vb, walk, Purpose::EndStage)
    }

    /// Gives up what the slice with the most has staged, or, where none has, the oldest documents that it remembers; false: no
    /// slice has anything of either.
    pub(super) fn give_up_a_stage(&mut self) -> bool {
        let staged = self.open.iter_mut().filter_map(|(name, open)| Some((*name, open.stage.as_mut()?)));
        let largest = staged.map(|(name, stage)| (stage.memory(), name, stage)).max_by_key(|(memory, ..)| *memory);
        let Some((memory, slice, stage)) = largest.filter(|(memory, ..)| *memory > 0) else {
            return self.forget_the_oldest();
        };
        stage.vbs = None;
        tracing::info!(bucket = self.outside.bucket, ?slice, memory, "memory is short: what is staged is given up");
        self.core.unprepared(slice);
        true
    }

    /// Forgets what the slice with the most remembers, if that is more than its share by now: there may be more slices.
    fn forget_the_oldest(&mut self) -> bool {
        let share = self.outside.ledger.room_for_oldest();
        let largest = self.open.values_mut().max_by_key(|open| open.oldest_memory());
        let Some(open) = largest.filter(|open| open.oldest_memory() > share) else { return false };
        open.oldest.clear();
        true
    }

    /// Drops the documents below a seqno of a slice that nobody reads.
    pub(super) fn floor(&mut self, slice: SliceName, vb: u16, floor: u64, walk: u64) -> Vec<Action> {
        self.walk(slice, vb, walk, Purpose::Floor(floor))
    }
}

/// Carries out a removal of the chain; false: the slice must be compared, as it takes away too much at once, or is not clear.
///
/// `room`: bytes that the slice's oldest documents may take.
pub(super) fn carry_out(
    open: &mut Open,
    (info, slice): (&SliceInfo, SliceName),
    vb: u16,
    (removal, step): (&Removal, &Step),
    room: usize,
) -> Result<bool, StoreError> {
    let batch = &step.batch;
    match *removal {
        Removal::Below(floor) => return below(open, vb, floor, room),
        Removal::Named { .. } => {
            let staged = open.stage.as_mut().and_then(|stage| stage.vb(vb));
            let outcome = documents::name(&mut open.store, info, slice, batch, step.after, staged)?;
            if outcome.came_back {
                open.oldest.remove(&vb);
            }
            return Ok(!outcome.unclear);
        }
        Removal::Listed { session, .. } => {
            let Some(stage) = open.stage.as_mut().filter(|stage| stage.reconcile == session) else { return Ok(true) };
            let Some(staged) = stage.vbs.as_mut().and_then(|vbs| vbs.remove(&vb)) else { return Ok(true) };
            if stage.vbs.as_ref().is_none_or(BTreeMap::is_empty) {
                open.stage = None;
            }
            // What is below the floor is dropped.
            if staged.apply(&mut open.store, vb, batch.floor)? {
                // An older revision may be what is present now.
                open.oldest.remove(&vb);
            }
        }
    }
    Ok(true)
}

/// Removes the documents of a vbucket below a seqno; false: they are too many.
///
/// Where the oldest are remembered this looks at those alone. Else it is one pass over the vbucket's back index, on the bucket's
/// thread: what it removes belongs to one timestamp, so no scan may see half of it.
fn below(open: &mut Open, vb: u16, floor: u64, room: usize) -> Result<bool, StoreError> {
    let vbs = open.mark.vbs.len().max(1);
    let oldest = open.oldest.entry(vb).or_default();
    let mut gone = 0;
    if floor <= oldest.upto.saturating_add(1) {
        while let Some((seqno, docid)) = oldest.below(floor) {
            if open.store.seqno(vb, &docid)? == Some(seqno) {
                open.store.remove(vb, &docid, seqno)?;
                gone += 1;
            }
        }
    } else {
        let mut collected = Collected::new(room / vbs, OLDEST / vbs);
        let mut place = Some(Place::Beginning);
        while let Some(at) = place.take().filter(|_| gone <= MOST_REMOVED) {
            let wanted = &mut |docid: &str, seqno: u64| {
                if seqno < floor {
                    return true;
                }
                collected.offer(seqno, docid);
                false
            };
            let page = open.store.pick(vb, &at, wanted)?;
            for (docid, seqno) in &page.documents {
                open.store.remove(vb, docid, *seqno)?;
            }
            gone += page.documents.len();
            place = page.next;
        }
        *oldest = collected.oldest(floor);
    }
    if gone > MOST_REMOVED {
        open.oldest.remove(&vb);
    }
    Ok(gone <= MOST_REMOVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_fit_are_remembered_and_none_is_left_out_among_them() {
        for (room, most, docid, fit) in [
            (usize::MAX, 1_000, "a", 500),
            (usize::MAX, 200, "a", 200),
            (100 * (OVERHEAD + 10), 1_000, "0123456789", 100),
            (0, 0, "a", OLDEST_LEAST),
        ] {
            let mut collected = Collected::new(room, most);
            // In an order of its own, as document ids are.
            (0..500_u64).for_each(|n| collected.offer(n * 7_919 % 500 + 1, docid));
            let oldest = collected.oldest(1);
            let seqnos: Vec<u64> = oldest.docs.iter().map(|(seqno, _)| *seqno).collect();
            assert_eq!(seqnos, (1..=fit as u64).collect::<Vec<_>>());
            assert_eq!((oldest.upto, oldest.memory()), (fit as u64, fit * (OVERHEAD + docid.len())));
        }
        assert_eq!(Collected::new(100, 100).oldest(7).upto, 6);
    }
}
