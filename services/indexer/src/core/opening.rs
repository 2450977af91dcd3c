//! Slices whose stores were opened, closed, or failed.

use super::{Action, BucketCore, Mode, Slice};
use crate::store::SliceMark;
use highwater_schemas::state::SliceName;

impl BucketCore {
    /// Whether what a slice holds is of the branches in force, and nothing of it is void: beyond the start of a generation that
    /// began after its mark was made, in a term that had not heard of the mark's ST.
    pub fn counts(&self, mark: &SliceMark) -> bool {
        let mut vbs = mark.vbs.iter().zip(&self.view.shares);
        mark.vbs.len() == self.view.shares.len()
            && vbs.all(|(vb, shares)| vb.vbuuid == shares.vbuuid && shares.holds(vb.position, mark.term))
    }

    /// A slice's store is open, or has gone back: what it holds, what it can go back to, oldest first, and whether it is empty
    /// and takes documents without looking them up (`bulk`).
    ///
    /// One of an earlier branch goes back as far as it must, or begins again; what is left is compared with the source.
    pub fn opened(&mut self, name: SliceName, mark: &SliceMark, kept: &[SliceMark], bulk: bool) -> Vec<Action> {
        let Some(topology) = self.view.slices.get(&name) else { return Vec::new() };
        let vbuuids: Vec<u64> = self.view.shares.iter().map(|s| s.vbuuid).collect();
        let mut slice = Slice::opened(name, *topology, mark, bulk, &vbuuids);
        if !slice.on_branch(&self.view.shares) {
            let common: Option<Vec<u64>> =
                slice.vbs.iter().zip(&self.view.shares).map(|(vb, shares)| shares.common(vb.vbuuid)).collect();
            let (Some(common), false) = (common, bulk || slice.vbs.len() != self.view.shares.len()) else {
                return vec![Action::Open { slice: name, reset: true }];
            };
            let within = |mark: &SliceMark| {
                let vbs = mark.vbs.iter().zip(&self.view.shares);
                vbs.into_iter().all(|(vb, shares)| shares.common(vb.vbuuid).is_some_and(|c| vb.content <= c))
            };
            let vbs = slice.vbs.iter().zip(&common).zip(&self.view.shares);
            // What is not certainly gone stays until it was compared.
            let beyond =
                vbs.into_iter().any(|((vb, common), shares)| vb.content > *common && shares.is_broken_since(vb.vbuuid));
            if beyond && let Some(good) = kept.iter().rev().find(|mark| within(mark)) {
                return vec![Action::RollBack { slice: name, st: good.st }];
            }
            slice.adopt(&vbuuids, &common);
        } else if slice.in_step() && !self.counts(mark) {
            // The chain goes on below: the generations after its mark began without what it applied last.
            slice.fall_out();
        }
        self.slices.insert(name, slice);
        let mut out = vec![Action::Report];
        self.attach_sessions(&mut out);
        out
    }

    /// A slice was closed for longer than delete markers are there to be read, which is known when it is opened, or a moment later.
    pub(crate) fn late(&mut self, name: SliceName) -> Vec<Action> {
        let Some(slice) = self.slices.get_mut(&name) else { return Vec::new() };
        slice.late = true;
        // One that is compared already misses nothing.
        let compared = slice.compare && slice.following.is_some();
        if slice.in_step() || compared || matches!(slice.mode, Mode::Failed(_)) {
            return Vec::new();
        }
        if slice.bulk {
            return vec![Action::Open { slice: name, reset: true }];
        }
        // A session that it is in brings what it missed, without the markers that are gone.
        slice.fall_out_to_compare();
        vec![Action::Report]
    }

    /// A slice was closed for too long, and has followed nothing since.
    pub(crate) fn is_late(&self, name: SliceName) -> bool {
        self.slices.get(&name).is_some_and(|slice| slice.late)
    }

    /// A slice's store is closed, and about to be opened again.
    pub fn closed(&mut self, name: SliceName) {
        self.slices.remove(&name);
    }

    /// A slice cannot go on.
    pub fn failed(&mut self, name: SliceName, why: String) -> Vec<Action> {
        let Some(topology) = self.view.slices.get(&name) else { return Vec::new() };
        let slice = self
            .slices
            .entry(name)
            .or_insert_with(|| Slice::opened(name, *topology, &SliceMark::default(), false, &[]));
        slice.mode = Mode::Failed(why);
        slice.readable = false;
        // Nothing that was under way for it counts any more.
        slice.following = None;
        slice.persisting = false;
        slice.ending = false;
        vec![Action::Report]
    }
}
