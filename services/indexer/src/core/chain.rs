//! One vbucket's mutation queue: the intervals received and not yet applied, and how a slice follows them.
//!
//! Batches of generation *g* count exactly for positions above X of *g* and up to the lowest X of a later one, also when they
//! arrive late. A batch advances a slice when its topology is not older than the slice and its interval begins at or below the
//! slice's position and ends above it.

use crate::payload::Payload;
use highwater_schemas::{Position, StVb, wire::BatchView};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

/// A received batch.
pub type Batch = BatchView<Payload>;

/// The branch in force and the generations of its chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    pub vbuuid: u64,
    /// The generation in force.
    pub generation: u64,
    /// Where generations of the branch in force begin.
    pub starts: BTreeMap<u64, Start>,
    /// Branches that are known, newest first.
    pub branches: Vec<Branch>,
}

/// Where a generation begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// X: the highest position of any ST that was known then.
    pub x: Position,
    /// The term in which it began; 0: not known.
    pub term: u64,
    /// It stands for generations before it too: what they made void stays so, and no batch of theirs counts.
    pub merged: bool,
}

/// A branch of the source's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    pub vbuuid: u64,
    pub start: u64,
    /// What the one before it held above that is certainly gone.
    pub broken: bool,
}

impl Shares {
    /// Up to which seqno a branch has the same messages as the one in force; None: none, or nobody knows.
    pub fn common(&self, vbuuid: u64) -> Option<u64> {
        let at = self.branches.iter().position(|b| b.vbuuid == vbuuid).or((vbuuid == self.vbuuid).then_some(0))?;
        let later = &self.branches[..at];
        let start = later.iter().map(|b| b.start).min().unwrap_or(u64::MAX);
        (start > 0 || !later.iter().any(|b| b.start == 0 && b.broken)).then_some(start)
    }

    /// What a branch held above that is certainly gone.
    pub fn is_broken_since(&self, vbuuid: u64) -> bool {
        self.branches.iter().take_while(|b| b.vbuuid != vbuuid).any(|b| b.broken)
    }

    /// Whether a timestamp's position counts: one beyond where a later generation began is void, and may never be reached.
    pub fn counts(&self, state: &StVb) -> bool {
        self.starts.range((Excluded(state.generation), Unbounded)).all(|(_, start)| state.position.le(start.x))
    }

    /// Whether what was applied in a term up to a position counts still: a generation that began in a later term begins at or
    /// above it. One of the same term began at or above every ST before it.
    pub fn holds(&self, position: Position, term: u64) -> bool {
        self.starts.values().filter(|start| start.term > term).all(|start| position.le(start.x))
    }

    /// The part of a batch's interval that counts: a coordinator that has not heard of the last ST of another begins lower than
    /// the generation before, and what is beyond that is void whoever published it.
    fn interval(&self, batch: &Batch) -> Option<(Position, Position)> {
        let start = self.starts.get(&batch.generation).filter(|start| !start.merged)?;
        let lo = batch.from.max(start.x);
        let hi =
            self.starts.range((Excluded(batch.generation), Unbounded)).fold(batch.to, |hi, (_, next)| hi.min(next.x));
        (lo.le(hi) && whole(batch, hi)).then_some((lo, hi))
    }
}

/// A removal counts whole or not at all.
fn whole(batch: &Batch, hi: Position) -> bool {
    batch.removal.is_none() || hi.round == batch.to.round
}

/// Where a slice joins a chain, and what the rounds before that have dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    pub at: Position,
    pub floor: u64,
    pub reconciled: u64,
}

/// A batch's share in a slice's advance: its documents in `after < seqno ≤ upto`.
#[derive(Debug, Clone)]
pub struct Step {
    pub batch: Arc<Batch>,
    pub after: u64,
    pub upto: u64,
}

#[derive(Debug, Clone)]
struct Queued {
    topic: u64,
    batch: Arc<Batch>,
}

/// The queue of one vbucket.
#[derive(Debug, Default)]
pub struct Chain {
    /// In the order of `from`.
    queue: VecDeque<Queued>,
    bytes: usize,
}

/// What is queued, for people.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |b: &Batch| {
            let (from, to) = (b.from, b.to);
            format!("{}: {}.{} to {}.{}", b.generation, from.seqno, from.round, to.seqno, to.round)
        };
        let newest = self.queue.iter().rev().take(4).rev().map(|q| show(&q.batch));
        let all = self.queue.iter().take(4).map(|q| show(&q.batch)).chain(newest).collect::<Vec<_>>();
        write!(f, "{} batches, the first and last {}", self.queue.len(), all.join(", "))
    }
}

impl Chain {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn push(&mut self, topic: u64, batch: Arc<Batch>) {
        self.bytes += batch.size();
        let key = |b: &Batch| (b.from.seqno, b.from.round, b.to.seqno);
        let at = self.queue.partition_point(|q| key(&q.batch) <= key(&batch));
        self.queue.insert(at, Queued { topic, batch });
    }

    pub fn clear(&mut self) {
        self.queue.clear();
        self.bytes = 0;
    }

    /// Follows the chain of an index's slice that appeared in `topology` from `position`, at most to `limit`: the steps and where
    /// they end.
    pub fn advance(
        &self,
        shares: &Shares,
        (index, topology): (u32, u64),
        position: Position,
        limit: Option<Position>,
    ) -> (Vec<Step>, Position) {
        let (mut steps, mut at) = (Vec::new(), position);
        loop {
            let before = at;
            for queued in &self.queue {
                if limit == Some(at) {
                    break;
                }
                let batch = &queued.batch;
                if batch.topology < topology || batch.vbuuid != shares.vbuuid || !batch.is_for(index) {
                    continue;
                }
                let Some((lo, mut hi)) = shares.interval(batch) else { continue };
                if let Some(limit) = limit {
                    hi = hi.min(limit);
                }
                if !lo.le(at) || hi.le(at) || !lo.le(hi) || !whole(batch, hi) {
                    continue;
                }
                steps.push(Step { batch: Arc::clone(batch), after: at.seqno, upto: hi.seqno });
                at = at.max(hi);
            }
            if at == before {
                return (steps, at);
            }
        }
    }

    /// Where a slice that comes from a session may join: the lowest start from which the chain runs unbroken to the newest
    /// position that is held.
    pub fn join_at(&self, shares: &Shares, (index, topology): (u32, u64)) -> Option<Join> {
        let joins = self.queue.iter().map(|q| &q.batch);
        let joins = joins.filter(|b| b.topology >= topology && b.vbuuid == shares.vbuuid && b.is_for(index));
        let joins = joins.filter_map(|b| {
            let (at, _) = shares.interval(b)?;
            Some(Join { at, floor: b.floor, reconciled: b.reconciled })
        });
        let mut best: Option<(Join, Position)> = None;
        for join in joins {
            let start = join.at;
            // Starts rise: one that the best chain has passed ends where that one ends.
            if best.is_some_and(|(lo, end)| lo.at.le(start) && start.le(end)) {
                continue;
            }
            let (_, end) = self.advance(shares, (index, topology), start, None);
            if best.is_none_or(|(_, newest)| newest != end && newest.le(end)) {
                best = Some((join, end));
            }
        }
        best.map(|(join, _)| join)
    }

    /// Drops what `needed` does not name; beyond `quota` bytes also what is only `held`, the oldest first.
    pub fn release(
        &mut self,
        shares: &Shares,
        quota: usize,
        needed: impl Fn(&Batch, Position) -> bool,
        held: impl Fn(&Batch) -> bool,
    ) {
        let mut bytes = self.bytes;
        self.queue.retain(|queued| {
            let batch = &queued.batch;
            let keep = batch.vbuuid == shares.vbuuid
                && match shares.interval(batch) {
                    Some((_, hi)) => needed(batch, hi) || (held(batch) && bytes <= quota),
                    None => false,
                };
            if !keep {
                bytes -= batch.size();
            }
            keep
        });
        self.bytes = bytes;
    }

    /// The newest topic sequence such that every batch up to it lies wholly at or below `position`.
    pub fn topic_below(&self, position: Position) -> Option<u64> {
        self.queue.iter().filter(|q| !q.batch.to.le(position)).map(|q| q.topic - 1).min()
    }
}
