//! Documents that vanished from a source without a message: what a reconcile staged, and what lies below the source's first seqno.

use super::{Worker, stores::Open};
use crate::{
    core::Batch,
    documents::{self, Staged},
    store::{SliceStore, StoreError},
};
use highwater_schemas::{state::SliceName, wire::Removal};
use std::{
    collections::{BTreeMap, BinaryHeap, VecDeque},
    mem,
};

/// What one slice stages at most, bytes; beyond it a session compares it.
const STAGE_BYTES: usize = 32 * 1024 * 1024;
/// Documents that a round removes at most from a slice that is read; beyond it a session compares it.
const MOST_REMOVED: usize = 1 << 18;
/// The oldest documents of a slice that are remembered, so that not each floor that rises a little looks at all of them.
const OLDEST: usize = 1 << 16;

/// What a slice has staged for a reconcile.
pub(super) struct Stage {
    reconcile: u64,
    /// By vbucket; None: more than it may.
    vbs: Option<BTreeMap<u16, Staged>>,
}

/// The oldest documents of a vbucket.
#[derive(Debug, Default)]
pub(super) struct Oldest {
    /// Every document with a seqno up to here is among them, as far as it was not overwritten since.
    upto: u64,
    /// By seqno, rising.
    docs: VecDeque<(u64, String)>,
}

impl Stage {
    pub(super) fn new(reconcile: u64, vbs: u16) -> Self {
        Self { reconcile, vbs: Some((0..vbs).map(|vb| (vb, Staged::default())).collect()) }
    }

    /// What is staged of a vbucket, until it is applied.
    pub(super) fn vb(&mut self, vb: u16) -> Option<&mut Staged> {
        self.vbs.as_mut()?.get_mut(&vb)
    }

    /// False: it is too much.
    pub(super) fn fits(&mut self) -> bool {
        let size: usize = self.vbs.iter().flat_map(BTreeMap::values).map(Staged::size).sum();
        if size > STAGE_BYTES {
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
        let (Some(open), Some(info)) = (self.open.get_mut(&slice), self.infos.get(&slice)) else { return Ok(()) };
        let Some(stage) = &mut open.stage else { return Ok(()) };
        if let Some(staged) = stage.vb(batch.vb) {
            documents::stage(&open.store, info, slice, batch, after..=batch.to.seqno, staged)?;
        }
        stage.fits();
        Ok(())
    }

    /// The list of a vbucket is complete: what it did not name is to go.
    pub(super) fn end_stage(&mut self, slice: SliceName, vb: u16, upto: u64) -> Result<(), StoreError> {
        let Some(open) = self.open.get_mut(&slice) else { return Ok(()) };
        let Some(stage) = &mut open.stage else { return Ok(()) };
        if let Some(staged) = stage.vb(vb) {
            staged.upto = upto;
            open.store.visit(vb, &mut |docid, seqno| staged.look(docid, seqno) < STAGE_BYTES)?;
            let (present, differing, gone) = staged.counts();
            tracing::info!(
                bucket = self.outside.bucket,
                ?slice,
                vb,
                present,
                differing,
                gone,
                "compared with the source for a reconcile"
            );
        }
        if !stage.fits() {
            tracing::info!(bucket = self.outside.bucket, ?slice, "too much differs to be staged");
            self.core.unprepared(slice);
        }
        Ok(())
    }

    /// Drops the documents below a seqno of a slice that nobody reads.
    pub(super) fn floor(&mut self, slice: SliceName, vb: u16, floor: u64) -> Result<(), StoreError> {
        let Some(open) = self.open.get_mut(&slice) else { return Ok(()) };
        let mut gone = Vec::new();
        open.store.visit(vb, &mut |docid, seqno| {
            if seqno < floor {
                gone.push((docid.to_owned(), seqno));
            }
            true
        })?;
        for (docid, seqno) in &gone {
            open.store.remove(vb, docid, *seqno)?;
        }
        Ok(())
    }
}

/// Carries out a removal of the chain; false: it takes away too much at once.
///
/// `floor`: the rounds before it have dropped what is below.
pub(super) fn carry_out(open: &mut Open, vb: u16, removal: &Removal, floor: u64) -> Result<bool, StoreError> {
    match *removal {
        Removal::Below(floor) => {
            let Some(gone) = below(open, vb, floor)? else { return Ok(false) };
            for (docid, seqno) in &gone {
                open.store.remove(vb, docid, *seqno)?;
            }
        }
        Removal::Listed { session, .. } => {
            let Some(stage) = open.stage.as_mut().filter(|stage| stage.reconcile == session) else { return Ok(true) };
            let Some(staged) = stage.vbs.as_mut().and_then(|vbs| vbs.remove(&vb)) else { return Ok(true) };
            if stage.vbs.as_ref().is_none_or(BTreeMap::is_empty) {
                open.stage = None;
            }
            if staged.apply(&mut open.store, vb, floor)? {
                // An older revision may be what is present now.
                open.oldest.remove(&vb);
            }
        }
    }
    Ok(true)
}

/// The documents of a vbucket below a seqno; None: too many.
fn below(open: &mut Open, vb: u16, floor: u64) -> Result<Option<Vec<(String, u64)>>, StoreError> {
    let mut gone = Vec::new();
    let oldest = open.oldest.entry(vb).or_default();
    if floor > oldest.upto.saturating_add(1) {
        let mut heap: BinaryHeap<(u64, String)> = BinaryHeap::new();
        open.store.visit(vb, &mut |docid, seqno| {
            if seqno < floor {
                gone.push((docid.to_owned(), seqno));
            } else if heap.len() < OLDEST {
                heap.push((seqno, docid.to_owned()));
            } else if let Some(mut newest) = heap.peek_mut()
                && seqno < newest.0
            {
                *newest = (seqno, docid.to_owned());
            }
            gone.len() <= MOST_REMOVED
        })?;
        let upto = heap.peek().map_or(floor, |newest| newest.0);
        *oldest = Oldest { upto, docs: heap.into_sorted_vec().into() };
    } else {
        while oldest.docs.front().is_some_and(|(seqno, _)| *seqno < floor) {
            if let Some((seqno, docid)) = oldest.docs.pop_front()
                && open.store.seqno(vb, &docid)? == Some(seqno)
            {
                gone.push((docid, seqno));
            }
        }
    }
    if gone.len() > MOST_REMOVED {
        open.oldest.remove(&vb);
        return Ok(None);
    }
    Ok(Some(mem::take(&mut gone)))
}
