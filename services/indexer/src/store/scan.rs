//! Reading a snapshot: the merge of a commit's cursor with the layers on top of it.

use super::{
    StoreError,
    base::{Base, Bytemap, ReadTxn},
    diff::decode_row_key,
    layer::{Change, Kind, Layer, Run},
    value::decode_unindexed,
};
use heed::types::DecodeIgnore;
use highwater_schemas::wire::{ByteRange, Unindexable};
use std::{
    cell::Cell,
    ops::{Bound, ControlFlow},
    sync::Arc,
    time::Instant,
};

/// The deadline is looked at every so many steps of a cursor.
const LOOK: u32 = 1_024;
/// Changes of a layer that are counted between two looks: a matter of a millisecond.
const CHANGES: usize = 1 << 20;

/// Gets entry key and included fields, and says whether to go on.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// The state of a slice at a stability timestamp.
///
/// Cheap to clone, readable from any thread for as long as it is held; it never blocks the writer and is never blocked by it.
/// While it is held, the slice cannot be reopened, and the pages of its commit are not used again.
#[derive(Clone)]
pub struct Snapshot {
    state: Arc<State>,
    /// Reading ends then with [`StoreError::Late`].
    deadline: Option<Instant>,
}

struct State {
    base: Arc<Base>,
    layers: Vec<Arc<Layer>>,
    items: u64,
    unindexed: u64,
}

impl Snapshot {
    pub(super) fn new(base: Arc<Base>, layers: Vec<Arc<Layer>>) -> Self {
        let entries: i64 = layers.iter().map(|l| l.entries.delta).sum();
        let unindexed: i64 = layers.iter().map(|l| l.unindexed.delta).sum();
        let (items, unindexed) =
            (base.items.saturating_add_signed(entries), base.unindexed.saturating_add_signed(unindexed));
        Self { state: Arc::new(State { base, layers, items, unindexed }), deadline: None }
    }

    /// The same snapshot, to be read until then: scans, counts and lists that take longer end with [`StoreError::Late`].
    #[must_use]
    pub fn until(self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..self }
    }

    /// True if a clone of it is held somewhere.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.state) > 1
    }

    /// Visits the entries of the disjoint, ascending ranges in order, or from the last one backwards.
    ///
    /// Begins behind `after` (before it when `reverse`).
    /// [`StoreError::Busy`] if no reader becomes free in time, [`StoreError::Late`] after the snapshot's deadline.
    pub fn scan(
        &self,
        ranges: &[ByteRange],
        reverse: bool,
        after: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let patience = Patience::new(self.deadline)?;
        let reader = self.state.base.reader(self.deadline)?;
        let runs = self.runs(|l| &l.entries);
        let source = Source { db: self.state.base.dbs.entries, txn: &reader, runs: &runs, patience: &patience };
        for i in 0..ranges.len() {
            let range = &ranges[if reverse { ranges.len() - 1 - i } else { i }];
            if source.visit(&Bounds::of(range, reverse, after), reverse, visit)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The number of entries in the disjoint ranges.
    pub fn count(&self, ranges: &[ByteRange]) -> Result<u64, StoreError> {
        let patience = Patience::new(self.deadline)?;
        if ranges.iter().any(|r| r.low.is_empty() && r.high.is_none()) {
            return Ok(self.items());
        }
        let reader = self.state.base.reader(self.deadline)?;
        let runs = self.runs(|l| &l.entries);
        let source = Source { db: self.state.base.dbs.entries, txn: &reader, runs: &runs, patience: &patience };
        ranges.iter().try_fold(0, |sum, range| Ok(sum + source.count(&Bounds::of(range, false, None))?))
    }

    /// The number of entries.
    pub fn items(&self) -> u64 {
        self.state.items
    }

    /// The number of documents that the index could not take.
    pub fn unindexed(&self) -> u64 {
        self.state.unindexed
    }

    /// The first of those documents: vbucket, docid, seqno and reason, ordered by vbucket and docid.
    pub fn unindexed_docs(&self, limit: usize) -> Result<Vec<(u16, String, u64, Unindexable)>, StoreError> {
        let (mut out, mut damage) = (Vec::new(), None);
        if limit == 0 {
            return Ok(out);
        }
        let patience = Patience::new(self.deadline)?;
        let reader = self.state.base.reader(self.deadline)?;
        let runs = self.runs(|l| &l.unindexed);
        let source = Source { db: self.state.base.dbs.unindexed, txn: &reader, runs: &runs, patience: &patience };
        let _ = source.visit(&Bounds::ALL, false, &mut |key, value| {
            match decode_row_key(key).and_then(|doc| Ok((doc, decode_unindexed(value)?))) {
                Ok(((vb, docid), (seqno, reason))) => out.push((vb, docid.to_owned(), seqno, reason)),
                Err(e) => damage = Some(e),
            }
            if damage.is_some() || out.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        damage.map_or(Ok(out), Err)
    }

    fn runs(&self, of: impl Fn(&Layer) -> &Run) -> Vec<&Run> {
        self.state.layers.iter().map(|l| of(l)).filter(|r| r.len() > 0).collect()
    }
}

/// Looks at the deadline now and then; what was visited counts as well as what was passed over.
struct Patience {
    deadline: Option<Instant>,
    steps: Cell<u32>,
}

impl Patience {
    /// Refuses a deadline that has passed.
    fn new(deadline: Option<Instant>) -> Result<Self, StoreError> {
        let patience = Self { deadline, steps: Cell::new(0) };
        patience.check()?;
        Ok(patience)
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) { Err(StoreError::Late) } else { Ok(()) }
    }

    fn step(&self) -> Result<(), StoreError> {
        let steps = self.steps.get() + 1;
        self.steps.set(steps % LOOK);
        if steps == LOOK { self.check() } else { Ok(()) }
    }
}

/// What a scan of one range may meet.
struct Bounds<'a> {
    /// The lowest key, and whether it is included.
    low: (&'a [u8], bool),
    /// Exclusive.
    high: Option<&'a [u8]>,
}

impl<'a> Bounds<'a> {
    const ALL: Bounds<'static> = Bounds { low: (&[], true), high: None };

    fn of(range: &'a ByteRange, reverse: bool, after: Option<&'a [u8]>) -> Self {
        let mut bounds = Self { low: (&range.low, true), high: range.high.as_deref() };
        match after {
            Some(after) if reverse && bounds.high.is_none_or(|high| after < high) => bounds.high = Some(after),
            Some(after) if !reverse && after >= bounds.low.0 => bounds.low = (after, false),
            _ => {}
        }
        bounds
    }
    fn is_empty(&self) -> bool {
        self.high.is_some_and(|high| high <= self.low.0)
    }
    fn above_low(&self, key: &[u8]) -> bool {
        key > self.low.0 || (self.low.1 && key == self.low.0)
    }
    fn below_high(&self, key: &[u8]) -> bool {
        self.high.is_none_or(|high| key < high)
    }
    fn low_bound(&self) -> Bound<&'a [u8]> {
        match self.low {
            // LMDB refuses to look for an empty key.
            ([], _) => Bound::Unbounded,
            (low, true) => Bound::Included(low),
            (low, false) => Bound::Excluded(low),
        }
    }
    fn high_bound(&self) -> Bound<&'a [u8]> {
        self.high.map_or(Bound::Unbounded, Bound::Excluded)
    }
    /// The part of a run within the bounds.
    fn part(&self, run: &Run) -> (usize, usize) {
        let low = run.rank(self.low.0, !self.low.1);
        (low, self.high.map_or(run.len(), |high| run.rank(high, false)).max(low))
    }
}

/// A database and the runs on top of it, oldest first.
struct Source<'a> {
    db: Bytemap,
    txn: &'a ReadTxn,
    runs: &'a [&'a Run],
    patience: &'a Patience,
}

impl<'a> Source<'a> {
    fn visit(&self, bounds: &Bounds<'_>, reverse: bool, visit: &mut Visit<'_>) -> Result<ControlFlow<()>, StoreError> {
        self.patience.step()?;
        if bounds.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        // One side is left open and checked here: heed compares bounds byte by byte.
        if reverse {
            let base = self.db.rev_range(self.txn, &(Bound::<&[u8]>::Unbounded, bounds.high_bound()))?;
            let base = base.take_while(|row| row.as_ref().map_or(true, |(key, _)| bounds.above_low(key)));
            self.merge::<true>(base, bounds, visit)
        } else {
            let base = self.db.range(self.txn, &(bounds.low_bound(), Bound::<&[u8]>::Unbounded))?;
            let base = base.take_while(|row| row.as_ref().map_or(true, |(key, _)| bounds.below_high(key)));
            self.merge::<false>(base, bounds, visit)
        }
    }

    fn merge<const REVERSE: bool>(
        &self,
        mut base: impl Iterator<Item = heed::Result<(&'a [u8], &'a [u8])>>,
        bounds: &Bounds<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut heads: Vec<Head<'a, REVERSE>> = self.runs.iter().map(|run| Head::new(run, bounds)).collect();
        let mut row = base.next().transpose()?;
        loop {
            let change = newest(&heads);
            while let Some((key, value)) = row {
                if change.is_some_and(|c| !before::<REVERSE>(key, c.key)) {
                    break;
                }
                self.patience.step()?;
                if visit(key, value).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                row = base.next().transpose()?;
            }
            let Some(change) = change else { return Ok(ControlFlow::Continue(())) };
            self.patience.step()?;
            for head in &mut heads {
                if head.change.is_some_and(|c| c.key == change.key) {
                    head.advance();
                }
            }
            if row.is_some_and(|(key, _)| key == change.key) {
                row = base.next().transpose()?;
            }
            if change.kind != Kind::Delete && visit(change.key, change.value).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }

    fn count(&self, bounds: &Bounds<'_>) -> Result<u64, StoreError> {
        self.patience.step()?;
        if bounds.is_empty() {
            return Ok(0);
        }
        let mut count = 0u64;
        let keys = self.db.remap_data_type::<DecodeIgnore>();
        for row in keys.range(self.txn, &(bounds.low_bound(), Bound::<&[u8]>::Unbounded))? {
            if !bounds.below_high(row?.0) {
                break;
            }
            self.patience.step()?;
            count += 1;
        }
        let mut delta = 0;
        for run in self.runs {
            let (mut low, high) = bounds.part(run);
            while low < high {
                let end = high.min(low + CHANGES);
                delta += run.delta_in(low..end);
                low = end;
                self.patience.check()?;
            }
        }
        Ok(count.saturating_add_signed(delta))
    }
}

/// The next change of a run within the bounds of a scan.
struct Head<'a, const REVERSE: bool> {
    run: &'a Run,
    low: usize,
    high: usize,
    change: Option<Change<'a>>,
}

impl<'a, const REVERSE: bool> Head<'a, REVERSE> {
    fn new(run: &'a Run, bounds: &Bounds<'_>) -> Self {
        let (low, high) = bounds.part(run);
        let mut head = Self { run, low, high, change: None };
        head.advance();
        head
    }
    fn advance(&mut self) {
        self.change = (self.low < self.high).then(|| {
            if REVERSE {
                self.high -= 1;
                self.run.get(self.high)
            } else {
                self.low += 1;
                self.run.get(self.low - 1)
            }
        });
    }
}

/// The next change of all runs; of several for one key, that of the newest run.
fn newest<'a, const REVERSE: bool>(heads: &[Head<'a, REVERSE>]) -> Option<Change<'a>> {
    let changes = heads.iter().filter_map(|h| h.change);
    changes.reduce(|next, change| if before::<REVERSE>(next.key, change.key) { next } else { change })
}

fn before<const REVERSE: bool>(a: &[u8], b: &[u8]) -> bool {
    if REVERSE { a > b } else { a < b }
}
