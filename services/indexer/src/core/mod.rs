//! One bucket on this node: its mutation queue, its slices and the stability timestamps they apply. Pure: no I/O, no clock.

mod action;
mod chain;
mod gaps;
mod missed;
mod opening;
mod session;
mod slice;
mod staging;
#[cfg(test)]
mod tests;
mod walks;

pub use action::{Action, Steps, Why};
pub use chain::{Batch, Branch, Join, Shares, Start, Step};
pub use slice::{Mode, Slice};
pub use walks::{Walk, Walks};

use crate::store::SliceMark;
use chain::Chain;
use highwater_schemas::{Position, StabilityTimestamp, state::SliceName, wire::Removal};
use missed::Missing;
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

/// Live batches that only slices in sessions still need, bytes; what is older is dropped: their session reads further instead.
pub const HOLD_QUOTA: usize = 32 * 1024 * 1024;
/// Batches ahead of what the node knows or of the chain are held up to this, bytes; then the oldest go and leave a gap.
const AHEAD_QUOTA: usize = 16 * 1024 * 1024;
/// Stability timestamps that may wait; beyond it those that nobody wants go, then the oldest.
const MOST_PENDING: usize = 4_096;

/// What the log says about the bucket, for this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketView {
    /// The term of the log.
    pub term: u64,
    /// The numbers of stability timestamps that the log has reserved: no timestamp has this one or a higher one.
    pub numbers_below: u64,
    pub topology: u64,
    pub shares: Vec<Shares>,
    /// The slices hosted here, with the topology version in which each appeared.
    pub slices: BTreeMap<SliceName, u64>,
    /// Open sessions of this node in this incarnation.
    pub sessions: BTreeMap<u64, OpenSession>,
}

/// A session that is open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenSession {
    pub slices: Vec<SliceName>,
    /// Per vbucket where it starts.
    pub from: Vec<u64>,
    /// Per vbucket the newest reconcile that had been applied when it was opened.
    pub reconciled: Vec<u64>,
    /// It begins with every present document.
    pub lists: bool,
    /// It is of this reconcile: only for slices in step.
    pub stages: Option<u64>,
}

/// The state machine of one bucket.
#[derive(Default)]
pub struct BucketCore {
    view: BucketView,
    chains: Vec<Chain>,
    ahead: VecDeque<(u64, Arc<Batch>)>,
    ahead_bytes: usize,
    slices: BTreeMap<SliceName, Slice>,
    pending: BTreeMap<u64, Arc<StabilityTimestamp>>,
    /// Wanted STs that were named and did not come.
    missed: Missing,
    /// The newest ST heard.
    heard: Option<Arc<StabilityTimestamp>>,
    /// Last sequence taken from the mutation topic, and the topic's creation time.
    topic: (u64, i64),
    purged: BTreeMap<u64, u64>,
    /// Walks begun so far.
    walks: u64,
    /// Batches that counted for nothing: of another branch, or outside their generation's share.
    pub void: u64,
}

impl BucketCore {
    pub fn new() -> Self {
        Self::default()
    }

    /// The term that is followed: no ST of a lower one is applied any more.
    pub fn term(&self) -> u64 {
        self.view.term
    }

    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.slices.values()
    }

    /// Bytes of live batches in memory.
    pub fn queued(&self) -> usize {
        self.chains.iter().map(Chain::bytes).sum::<usize>() + self.ahead_bytes
    }

    /// Where the mutation topic is to be read from: after this sequence of the topic created then; None: from its end on.
    pub fn resume_topic(marks: &[SliceMark]) -> Option<(u64, i64)> {
        marks.iter().filter(|m| !m.vbs.is_empty() && !m.building).map(|m| (m.topic, m.topic_created)).min()
    }

    /// The topic is open: what is published from now on arrives.
    pub fn listens(&self) -> bool {
        self.topic.1 != 0
    }

    /// The topic was opened, created then, to be read after `after`; `cut`: nothing of that is left.
    pub fn topic_opened(&mut self, after: u64, created: i64, cut: bool) {
        self.topic = (after, created);
        self.slices.values_mut().for_each(|slice| slice.cut = cut);
    }

    /// The log has moved on.
    pub fn state(&mut self, view: BucketView) -> Vec<Action> {
        let mut out = Vec::new();
        self.chains.resize_with(view.shares.len(), Chain::default);
        for (vb, shares) in view.shares.iter().enumerate() {
            if self.view.shares.get(vb).is_some_and(|old| old.vbuuid != shares.vbuuid) {
                // The queue belongs to the abandoned branch.
                self.chains[vb].clear();
                self.pending.clear();
                self.heard = None;
            }
        }
        let known = |vb: usize| self.view.shares.get(vb).map_or(0, |s| s.generation);
        let new_starts: Vec<Vec<Position>> = view
            .shares
            .iter()
            .enumerate()
            .map(|(vb, shares)| {
                shares.starts.range((Excluded(known(vb)), Unbounded)).map(|(_, start)| start.x).collect()
            })
            .collect();
        if view.term > self.view.term {
            // What a coordinator of an earlier term said and nobody has applied yet counts no more.
            self.pending.clear();
            self.missed = Missing::default();
            self.heard = None;
            out.push(Action::Report);
        }
        self.view = view;
        for name in self.slices.keys().filter(|n| !self.view.slices.contains_key(n)) {
            out.push(Action::Remove { slice: *name });
        }
        self.slices.retain(|name, _| self.view.slices.contains_key(name));
        for name in self.view.slices.keys() {
            match self.slices.get(name) {
                None => out.push(Action::Open { slice: *name, reset: false }),
                // It could not be opened, perhaps for a passing reason.
                Some(slice) if slice.vbs.is_empty() => out.push(Action::Open { slice: *name, reset: false }),
                Some(slice) if !slice.on_branch(&self.view.shares) => out.push(Action::Rewind { slice: *name }),
                Some(_) => {}
            }
        }
        // Until it is open again, such a slice is none.
        self.slices.retain(|_, slice| slice.vbs.is_empty() || slice.on_branch(&self.view.shares));
        for slice in self.slices.values_mut() {
            let beyond =
                slice.vbs.iter().zip(&new_starts).any(|(vb, starts)| starts.iter().any(|x| !vb.position.le(*x)));
            if slice.in_step() && beyond {
                // It merged beyond the last ST of the old generation: what it took there is void.
                slice.fall_out();
                out.push(Action::Report);
            }
        }
        self.attach_sessions(&mut out);
        for (topic, batch) in std::mem::take(&mut self.ahead) {
            self.ahead_bytes -= batch.size();
            self.admit(topic, batch);
        }
        out
    }

    /// A batch of the mutation topic.
    pub fn live(&mut self, topic: u64, batch: Arc<Batch>) -> Vec<Action> {
        self.topic.0 = topic;
        self.admit(topic, batch);
        let mut out = Vec::new();
        self.merge_sessions(&mut out);
        out
    }

    fn admit(&mut self, topic: u64, batch: Arc<Batch>) {
        let Some(shares) = self.view.shares.get(usize::from(batch.vb)) else {
            self.hold_ahead(topic, batch);
            return;
        };
        if batch.generation > shares.generation || batch.topology > self.view.topology {
            self.hold_ahead(topic, batch);
        } else if batch.vbuuid == shares.vbuuid
            && shares.starts.contains_key(&batch.generation)
            && !self.slices.is_empty()
        {
            self.chains[usize::from(batch.vb)].push(topic, batch);
        } else {
            self.void += 1;
        }
    }

    fn hold_ahead(&mut self, topic: u64, batch: Arc<Batch>) {
        self.ahead_bytes += batch.size();
        self.ahead.push_back((topic, batch));
        while self.ahead_bytes > AHEAD_QUOTA {
            if let Some((_, old)) = self.ahead.pop_front() {
                self.ahead_bytes -= old.size();
                self.void += 1;
            }
        }
    }

    /// Stability timestamps, as broadcast.
    pub fn stability(&mut self, sts: impl IntoIterator<Item = StabilityTimestamp>) {
        for st in sts {
            // One of a term, or with a number, that the log does not know is repeated when the log has arrived.
            let known = st.term == self.view.term && st.number < self.view.numbers_below;
            if !known || st.vbs.len() != self.view.shares.len() {
                continue;
            }
            let st = Arc::new(st);
            if self.heard.as_ref().is_none_or(|h| h.number < st.number) {
                self.heard = Some(Arc::clone(&st));
            }
            if self.slices.values().any(|s| s.holds() || s.applied < st.number) {
                self.pending.entry(st.number).or_insert(st);
            }
        }
        while self.pending.len() > MOST_PENDING {
            let victim = self.pending.iter().find(|(_, st)| !st.wanted).or(self.pending.iter().next()).map(|(n, _)| *n);
            victim.and_then(|n| self.pending.remove(&n));
        }
    }

    /// Applies what can be applied, and looks for gaps.
    pub fn advance(&mut self, now: u64) -> Vec<Action> {
        let mut out = Vec::new();
        self.ask_for_missed(now, &mut out);
        let follows = |s: &&Slice| s.in_step() && !s.walks.has(Walk::Floor);
        let names: Vec<SliceName> = self.slices.values().filter(follows).map(|s| s.name).collect();
        for name in names {
            self.look_beyond(name, &mut out);
            while self.apply_next(name, &mut out) {}
            self.look_for_gap(name, now, &mut out);
        }
        self.retry_flushes(now, &mut out);
        if self.view.sessions.values().any(|session| session.stages.is_some()) {
            self.take_up_reconciles(&mut out);
        }
        self.release();
        out
    }

    /// Only tries again what failed: nothing new is applied.
    pub fn retry(&mut self, now: u64) -> Vec<Action> {
        let mut out = Vec::new();
        self.retry_flushes(now, &mut out);
        out
    }

    /// Whether a slice's store is empty, as it is after a persist.
    pub fn set_bulk(&mut self, name: SliceName, bulk: bool) {
        if let Some(slice) = self.slices.get_mut(&name) {
            slice.bulk = bulk;
        }
    }

    /// A slice may come to an ST. If not, that is of another branch, or void, or the slice is beyond it: it can never show it.
    fn ahead(&self, slice: &Slice, st: &StabilityTimestamp) -> bool {
        let mut all = st.vbs.iter().zip(&slice.vbs).zip(&self.view.shares);
        all.all(|((s, vb), shares)| s.vbuuid == vb.vbuuid && vb.position.le(s.position) && shares.counts(s))
    }

    /// Applies the next ST of a slice: the first wanted one, or the newest before it that is within reach.
    fn apply_next(&mut self, name: SliceName, out: &mut Vec<Action>) -> bool {
        let Some(slice) = self.slices.get(&name) else { return false };
        let mut best: Option<(Arc<StabilityTimestamp>, Steps)> = None;
        let awaited = self.missed.awaited_after(slice.applied).filter(|_| slice.readable);
        for st in self.pending.range((Excluded(slice.applied), Unbounded)).map(|(_, st)| st) {
            if awaited.is_some_and(|number| st.number > number) {
                break;
            }
            if !self.ahead(slice, st) {
                continue;
            }
            let Some(steps) = self.reach(slice, st) else { break };
            best = Some((Arc::clone(st), steps));
            if st.wanted {
                break;
            }
        }
        let Some((st, steps)) = best else { return false };
        let Some(slice) = self.slices.get_mut(&name) else { return false };
        if Self::lacks_stage(slice, &steps) {
            slice.fall_out_to_compare();
            out.push(Action::Report);
            return false;
        }
        for (vb, state) in slice.vbs.iter_mut().zip(&st.vbs) {
            vb.position = state.position;
            vb.covered = state.covered;
            vb.reconciled = vb.reconciled.max(state.reconciled);
            vb.content = vb.content.max(state.position.seqno);
            vb.server_time = state.server_time;
            vb.hash = state.hash;
        }
        slice.applied = st.number;
        slice.term = st.term;
        slice.stuck.clear();
        // The chain was unbroken.
        (slice.late, slice.cut) = (false, false);
        if !slice.readable && st.vbs.iter().zip(&slice.readable_from).all(|(s, from)| s.covered >= *from) {
            slice.readable = true;
            slice.building = false;
            out.push(Action::Report);
        }
        let readable = slice.readable;
        out.push(Action::Apply { slice: name, steps, st: Arc::clone(&st), readable });
        if st.persist && readable && slice.persisting {
            slice.owed = true;
        } else if st.persist && readable {
            slice.persisting = true;
            let mark = self.mark(name);
            out.extend(mark.map(|mark| Action::Persist { slice: name, mark, topic: 0, why: Why::Timestamp }));
        }
        true
    }

    /// The steps that bring a slice to an ST; None when it is out of reach.
    fn reach(&self, slice: &Slice, st: &StabilityTimestamp) -> Option<Steps> {
        let mut all = Vec::new();
        for (vb, ((state, at), shares)) in st.vbs.iter().zip(&slice.vbs).zip(&self.view.shares).enumerate() {
            if state.generation > shares.generation {
                return None;
            }
            let (steps, end) = self.chains[vb].advance(shares, slice.chain(), at.position, Some(state.position));
            if end != state.position {
                return None;
            }
            // Documents may have gone since they came into the chain, before a session read the source itself.
            let read = slice.read.get(vb).copied().unwrap_or(0);
            // What was staged for a reconcile that it has, and not applied in its time, is out of date.
            let due = |s: &Step| match s.batch.removal {
                Some(Removal::Listed { session, .. } | Removal::Named { session }) => session > at.reconciled,
                _ => true,
            };
            let steps = steps.into_iter().filter(due).map(|s| Step { after: s.after.max(read), ..s });
            all.extend(steps.map(|s| (vb as u16, s)));
        }
        Some(all)
    }

    /// Where the chain of a slice ends in each vbucket.
    fn ends(&self, slice: &Slice) -> Vec<Position> {
        slice
            .vbs
            .iter()
            .enumerate()
            .map(|(vb, at)| self.chains[vb].advance(&self.view.shares[vb], slice.chain(), at.position, None).1)
            .collect()
    }

    /// The newest position received without a gap by every slice in step; None when no slice is.
    pub fn high_watermark(&self) -> Option<Vec<Position>> {
        let mut lowest: Option<Vec<Position>> = None;
        for slice in self.slices.values().filter(|s| s.in_step()) {
            let ends = self.ends(slice);
            lowest = Some(match lowest {
                None => ends,
                Some(low) => low.into_iter().zip(ends).map(|(a, b)| a.min(b)).collect(),
            });
        }
        lowest
    }

    fn release(&mut self) {
        let topologies: Vec<u64> = self.slices.values().filter(|s| s.holds()).map(|s| s.topology).collect();
        let quota = HOLD_QUOTA / self.chains.len().max(1);
        for (vb, chain) in self.chains.iter_mut().enumerate() {
            let positions: Vec<(u64, Position)> =
                self.slices.values().filter(|s| s.in_step()).map(|s| (s.topology, s.vbs[vb].position)).collect();
            chain.release(
                &self.view.shares[vb],
                quota,
                |batch, hi| positions.iter().any(|(topology, at)| batch.topology >= *topology && !hi.le(*at)),
                |batch| topologies.iter().any(|t| batch.topology >= *t),
            );
        }
        let done = self
            .slices
            .values()
            .filter(|s| !matches!(s.mode, Mode::Failed(_)))
            .map(|s| if s.holds() { 0 } else { s.applied })
            .min();
        if let Some(done) = done {
            self.pending = self.pending.split_off(&done.saturating_add(1));
        }
    }

    /// The mark a slice would be stored with now.
    fn mark(&self, name: SliceName) -> Option<SliceMark> {
        let slice = self.slices.get(&name)?;
        let below = slice.vbs.iter().zip(&self.chains).filter_map(|(vb, chain)| chain.topic_below(vb.position)).min();
        let ahead = self.ahead.iter().map(|(topic, _)| topic - 1).min();
        let topic = [below, ahead].into_iter().flatten().min().unwrap_or(self.topic.0);
        Some(slice.mark(topic, self.topic.1))
    }

    /// Memory is short: make what is applied durable now.
    pub fn persist_now(&mut self, name: SliceName) -> Vec<Action> {
        let Some(slice) = self.slices.get_mut(&name).filter(|s| s.in_step() && !s.persisting) else {
            return Vec::new();
        };
        slice.persisting = true;
        let why = Why::Interim;
        self.mark(name).map(|mark| Action::Persist { slice: name, mark, topic: 0, why }).into_iter().collect()
    }

    /// The node is about to end: make everything durable.
    pub fn persist_all(&mut self) -> Vec<Action> {
        let names: Vec<SliceName> = self.slices.keys().copied().collect();
        names
            .into_iter()
            .flat_map(|name| {
                let mut actions = self.persist_now(name);
                actions.extend(self.persist_session(name));
                actions
            })
            .collect()
    }

    /// A persistence timestamp that came while the slice was becoming durable: at rest no other follows it.
    fn pay(&mut self, name: SliceName, out: &mut Vec<Action>) {
        let Some(slice) = self.slices.get_mut(&name).filter(|s| s.in_step() && s.readable && !s.persisting) else {
            return;
        };
        if std::mem::take(&mut slice.owed) && slice.durable < slice.applied {
            slice.persisting = true;
            let (topic, why) = (0, Why::Timestamp);
            out.extend(self.mark(name).map(|mark| Action::Persist { slice: name, mark, topic, why }));
        }
    }

    /// Outcome of a [`Action::Persist`].
    pub fn persisted(&mut self, name: SliceName, mark: &SliceMark, topic: u64, good: bool) -> Vec<Action> {
        let mut out = Vec::new();
        let Some(slice) = self.slices.get_mut(&name) else { return out };
        slice.persisting = false;
        let ended = std::mem::take(&mut slice.ending);
        if good && !mark.building {
            slice.durable = mark.st;
        }
        let session = slice.following.as_ref().map(|f| f.id);
        if good && let Some(session) = session {
            self.collected_durably(name, session, topic, &mut out);
        }
        self.finish_flush(name, good, ended, &mut out);
        if good {
            self.pay(name, &mut out);
        }
        self.attach_sessions(&mut out);
        self.merge_sessions(&mut out);
        out
    }
}
