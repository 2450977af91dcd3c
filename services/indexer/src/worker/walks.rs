//! Walks over all documents of a vbucket, a page at a time, so that the other slices of the bucket go on meanwhile.
//!
//! The core keeps what a walk must not meet away from its slice: see `core/walks.rs`.

use super::{Worker, removed::STAGE_BYTES};
use crate::{
    core::Action,
    store::{Picked, Place, SliceStore, StoreError},
};
use highwater_bus::fault;
use highwater_schemas::state::SliceName;

/// What a walk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Removes what the complete list of a session did not name.
    Sweep,
    /// Stages what the complete list of a reconcile did not name.
    EndStage,
    /// Removes what is below this seqno.
    Floor(u64),
}

/// A walk that has not ended.
pub(super) struct Walk {
    slice: SliceName,
    opening: u64,
    vb: u16,
    /// By which the core knows it.
    number: u64,
    purpose: Purpose,
    place: Place,
    /// Documents removed so far.
    gone: usize,
}

impl Worker {
    /// Begins a walk; a small one ends at once.
    pub(super) fn walk(&mut self, slice: SliceName, vb: u16, number: u64, purpose: Purpose) -> Vec<Action> {
        let Some(open) = self.open.get(&slice) else { return self.core.walked(slice, number) };
        let opening = open.opening;
        self.go_on(Walk { slice, opening, vb, number, purpose, place: Place::Beginning, gone: 0 })
    }

    /// A page of the walk that waits for the longest.
    pub(super) fn walk_on(&mut self) {
        if let Some(walk) = self.walks.pop_front() {
            let actions = self.go_on(walk);
            self.carry_out(actions);
        }
    }

    fn go_on(&mut self, mut walk: Walk) -> Vec<Action> {
        fault("walk", &self.outside.bucket);
        let same = self.open.get(&walk.slice).is_some_and(|open| open.opening == walk.opening);
        if !same || !self.core.is_walking(walk.slice, walk.number) {
            return Vec::new();
        }
        match self.page(&walk) {
            Ok(Picked { documents, next }) => {
                walk.gone += documents.len();
                if let Some(place) = next {
                    walk.place = place;
                    self.walks.push_back(walk);
                    return Vec::new();
                }
                self.end(&walk);
                self.core.walked(walk.slice, walk.number)
            }
            Err(error) => self.fail(walk.slice, &error),
        }
    }

    fn page(&mut self, walk: &Walk) -> Result<Picked, StoreError> {
        let (vb, place) = (walk.vb, &walk.place);
        let Some(open) = self.open.get_mut(&walk.slice) else { return Ok(Picked::default()) };
        let page = match walk.purpose {
            Purpose::Floor(floor) => open.store.pick(vb, place, &mut |_, seqno| seqno < floor)?,
            Purpose::Sweep => {
                let named = open.listed.as_ref().and_then(|listed| listed.vbs.get(&vb));
                let unnamed = |docid: &str, seqno| named.is_none_or(|named| !named.contains(docid, seqno));
                open.store.pick(vb, place, &mut |docid, seqno| unnamed(docid, seqno))?
            }
            Purpose::EndStage => {
                let Some(staged) = open.stage.as_mut().and_then(|stage| stage.vb(vb)) else {
                    return Ok(Picked::default());
                };
                // What is too much is given up at the end, and not looked for any further.
                let looked = &mut |docid: &str, seqno: u64| {
                    if staged.size() <= STAGE_BYTES {
                        staged.look(docid, seqno);
                    }
                    false
                };
                let page = open.store.pick(vb, place, looked)?;
                return Ok(if staged.size() > STAGE_BYTES { Picked::default() } else { page });
            }
        };
        for (docid, seqno) in &page.documents {
            open.store.remove(vb, docid, *seqno)?;
        }
        if !page.documents.is_empty() {
            open.store.seal()?;
            self.merge_layers(walk.slice);
        }
        Ok(page)
    }

    fn end(&mut self, walk: &Walk) {
        let (slice, vb, gone) = (walk.slice, walk.vb, walk.gone);
        let Some(open) = self.open.get_mut(&slice) else { return };
        let bucket = &self.outside.bucket;
        match walk.purpose {
            Purpose::Floor(_) => {}
            Purpose::Sweep => {
                let named = open.listed.as_mut().and_then(|listed| listed.vbs.remove(&vb)).unwrap_or_default();
                tracing::info!(bucket, ?slice, vb, present = named.len(), gone, "compared with the source");
            }
            Purpose::EndStage => {
                let Some(stage) = &mut open.stage else { return };
                if let Some(staged) = stage.vb(vb) {
                    let (present, differing, gone) = staged.counts();
                    tracing::info!(
                        bucket,
                        ?slice,
                        vb,
                        present,
                        differing,
                        gone,
                        "compared with the source for a reconcile"
                    );
                }
                if !stage.fits() {
                    tracing::info!(bucket, ?slice, "too much differs to be staged");
                    self.core.unprepared(slice);
                }
            }
        }
    }
}
