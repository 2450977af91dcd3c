//! Slices that the chain cannot carry on: they fall out, and are caught up.

use super::{Action, BucketCore, Slice};
use crate::store::SliceVb;
use highwater_schemas::{Position, StVb, StabilityTimestamp, state::SliceName};
use std::ops::Bound::{Excluded, Unbounded};

/// An ST out of reach for this long, with no batch that helps, is a gap. Milliseconds.
pub(super) const GAP_AFTER: u64 = 2_000;
/// The same where the topic was found empty, and only batches on their way could still help.
pub(super) const GAP_SOON: u64 = 50;

impl BucketCore {
    /// A slice that was away when a generation began may have applied an ST that nobody else had heard of: the chain goes on
    /// below that, and a later ST shows it.
    pub(super) fn look_beyond(&mut self, name: SliceName, out: &mut Vec<Action>) {
        let (Some(slice), Some(st)) = (self.slices.get_mut(&name), &self.heard) else { return };
        let beyond = |(s, vb): (&StVb, &SliceVb)| s.vbuuid == vb.vbuuid && !vb.position.le(s.position);
        let later = slice.in_step() && slice.applied > 0 && st.number > slice.applied;
        if later && st.vbs.iter().zip(&slice.vbs).any(beyond) {
            slice.fall_out();
            out.push(Action::Report);
        }
    }

    /// A slice with an ST out of reach, whose chain does not grow in a vbucket that lacks something of it, has a gap; however much
    /// the others grow.
    pub(super) fn look_for_gap(&mut self, name: SliceName, now: u64, out: &mut Vec<Action>) {
        let Some(slice) = self.slices.get(&name) else { return };
        let known = |st: &StabilityTimestamp| {
            st.vbs.iter().zip(&self.view.shares).all(|(s, shares)| s.generation <= shares.generation)
        };
        let later = self.pending.range((Excluded(slice.applied), Unbounded)).map(|(_, st)| st);
        let waiting = later.filter(|st| known(st)).find(|st| self.ahead(slice, st));
        let ends = waiting.map(|st| self.short_of(slice, st));
        let Some(slice) = self.slices.get_mut(&name) else { return };
        let Some(ends) = ends else {
            slice.stuck.clear();
            return;
        };
        slice.stuck.resize(ends.len(), None);
        for (stuck, end) in slice.stuck.iter_mut().zip(ends) {
            *stuck = match *stuck {
                Some((_, before)) if Some(before) == end => *stuck,
                _ => end.map(|end| (now, end)),
            };
        }
        let patience = if slice.cut { GAP_SOON } else { GAP_AFTER };
        let gap = slice.stuck.iter().position(|stuck| stuck.is_some_and(|(since, _)| now >= since + patience));
        if let Some(vb) = gap {
            let (at, stuck, chain) = (slice.vbs[vb].position, slice.stuck[vb].map(|(_, end)| end), &self.chains[vb]);
            tracing::info!(slice = ?slice.name, vb, ?at, ?stuck, st = ?waiting.map(|st| (st.number, st.vbs[vb].generation, st.vbs[vb].position)), held = %chain, "the chain has a gap");
            slice.fall_out();
            out.push(Action::Report);
        }
    }

    /// Per vbucket where the chain of a slice ends before an ST; None where it reaches it.
    fn short_of(&self, slice: &Slice, st: &StabilityTimestamp) -> Vec<Option<Position>> {
        let end = |(vb, (state, at)): (usize, (&StVb, &SliceVb))| {
            let shares = &self.view.shares[vb];
            let (_, end) = self.chains[vb].advance(shares, slice.chain(), at.position, Some(state.position));
            (end != state.position).then_some(end)
        };
        st.vbs.iter().zip(&slice.vbs).enumerate().map(end).collect()
    }
}
