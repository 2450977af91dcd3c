//! Stability layers: immutable, sorted changes on top of a commit.
//!
//! Every change says what it does to the number of entries of the state beneath its layer ([`Kind`]), so counting adds up
//! changes without looking beneath, and a key that came and went within a layer leaves nothing behind.

use super::sort::sorted;
use std::{ops::Range, sync::Arc};

/// What a change does to the state beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The key was not there.
    Insert,
    /// The key was there; its value is new.
    Update,
    /// The key was there and goes.
    Delete,
}

impl Kind {
    pub fn delta(self) -> i64 {
        match self {
            Self::Insert => 1,
            Self::Update => 0,
            Self::Delete => -1,
        }
    }
    /// Both changes as one; None if they undo each other.
    fn then(self, newer: Self) -> Option<Self> {
        match (self, newer) {
            (Self::Insert, Self::Delete) => None,
            (Self::Insert, _) => Some(Self::Insert),
            (_, Self::Delete) => Some(Self::Delete),
            (Self::Update | Self::Delete, _) => Some(Self::Update),
        }
    }
}

/// A change of one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub key: &'a [u8],
    /// Empty for a delete.
    pub value: &'a [u8],
    pub kind: Kind,
}

/// Changes in the order in which they were made, over one buffer.
#[derive(Default)]
pub(super) struct Changes {
    bytes: Vec<u8>,
    recs: Vec<Rec>,
}

#[derive(Clone, Copy)]
struct Rec {
    at: u64,
    value_len: u32,
    key_len: u16,
    kind: Kind,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.recs.is_empty()
    }
    pub fn len(&self) -> usize {
        self.recs.len()
    }
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + self.recs.capacity() * size_of::<Rec>()
    }
    /// Adds a change of the key that the two parts make up.
    pub fn push(&mut self, key: [&[u8]; 2], value: &[u8], kind: Kind) {
        let at = self.bytes.len() as u64;
        self.bytes.extend_from_slice(key[0]);
        self.bytes.extend_from_slice(key[1]);
        self.bytes.extend_from_slice(value);
        let key_len = (key[0].len() + key[1].len()) as u16;
        self.recs.push(Rec { at, value_len: value.len() as u32, key_len, kind });
    }
    /// Adds a record that is new.
    pub fn append(&mut self, key: &[u8], value: &[u8]) {
        self.push([key, &[]], value, Kind::Insert);
    }
    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
    pub fn get(&self, i: usize) -> Change<'_> {
        let rec = &self.recs[i];
        let bytes = &self.bytes[rec.at as usize..];
        let (key, rest) = bytes.split_at(usize::from(rec.key_len));
        Change { key, value: &rest[..rec.value_len as usize], kind: rec.kind }
    }
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Change<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }
    fn key(&self, i: usize) -> &[u8] {
        let rec = &self.recs[i];
        &self.bytes[rec.at as usize..][..usize::from(rec.key_len)]
    }
    pub fn clear(&mut self) {
        self.recs.clear();
        self.bytes.clear();
    }
}

/// Changes with ascending, distinct keys.
#[derive(Default)]
pub(super) struct Run {
    changes: Changes,
    /// What the run does to the number of entries.
    pub delta: i64,
}

impl Run {
    /// The changes of all sources as one run; a later source is newer.
    pub fn of(sources: &[&Changes]) -> Self {
        let mut run = Self::default();
        run.changes.bytes.reserve_exact(sources.iter().map(|s| s.bytes.len()).sum());
        run.changes.recs.reserve_exact(sources.iter().map(|s| s.len()).sum());
        let done = compose::<()>(sources, |change| {
            run.delta += change.kind.delta();
            run.changes.push([change.key, &[]], change.value, change.kind);
            Ok(())
        });
        debug_assert!(done.is_ok(), "collecting in memory does not fail");
        run
    }
    pub fn changes(&self) -> &Changes {
        &self.changes
    }
    pub fn len(&self) -> usize {
        self.changes.len()
    }
    pub fn get(&self, i: usize) -> Change<'_> {
        self.changes.get(i)
    }
    /// The number of changes whose key is below, or also at, `key`.
    pub fn rank(&self, key: &[u8], inclusive: bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let order = self.changes.key(middle).cmp(key);
            if order.is_lt() || (inclusive && order.is_eq()) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
    /// What the changes in this part of the run do to the number of entries.
    pub fn delta_in(&self, part: Range<usize>) -> i64 {
        self.changes.recs[part].iter().map(|r| r.kind.delta()).sum()
    }
}

/// Visits the net change of every key, keys ascending; a later source is newer.
pub(super) fn compose<'a, E>(
    sources: &[&'a Changes],
    mut visit: impl FnMut(Change<'a>) -> Result<(), E>,
) -> Result<(), E> {
    let pairs = sources.iter().enumerate().flat_map(|(s, c)| (0..c.len()).map(move |i| (s as u32, i as u32)));
    let order = sorted(pairs, |s, i| sources[s as usize].key(i as usize));
    let mut pending: Option<Change<'a>> = None;
    let mut kind: Option<Kind> = None;
    for item in order {
        let change = sources[item.source as usize].get(item.rec as usize);
        if let Some(last) = pending {
            if last.key == change.key {
                kind = kind.map_or(Some(change.kind), |k| k.then(change.kind));
                pending = Some(change);
                continue;
            }
            if let Some(kind) = kind {
                visit(Change { kind, ..last })?;
            }
        }
        (pending, kind) = (Some(change), Some(change.kind));
    }
    match (pending, kind) {
        (Some(last), Some(kind)) => visit(Change { kind, ..last }),
        _ => Ok(()),
    }
}

/// The changes that one or several stability timestamps made.
#[derive(Default)]
pub(super) struct Layer {
    /// Forward index: entry key to included fields.
    pub entries: Run,
    /// Unindexed documents: (vbucket, docid) to (seqno, reason).
    pub unindexed: Run,
}

impl Layer {
    pub fn memory(&self) -> usize {
        self.entries.changes.memory() + self.unindexed.changes.memory()
    }
    fn size(&self) -> usize {
        self.entries.len() + self.unindexed.len()
    }
    fn merged(layers: &[Arc<Layer>]) -> Self {
        let entries: Vec<&Changes> = layers.iter().map(|l| &l.entries.changes).collect();
        let unindexed: Vec<&Changes> = layers.iter().map(|l| &l.unindexed.changes).collect();
        Self { entries: Run::of(&entries), unindexed: Run::of(&unindexed) }
    }
}

/// Changes up to which layers are merged where they are sealed: a matter of a millisecond.
const AT_ONCE: usize = 4_096;
/// So many times the limit of layers, and they are merged at once, however large.
const PATIENCE: usize = 4;

/// Merges the newest layers beyond `start`, oldest first, until at most `limit` (two or more) are left.
///
/// What would take long is left to a [`MergeJob`], unless far too many layers have come together.
pub(super) fn merge_layers(layers: &mut Vec<Arc<Layer>>, start: usize, limit: usize) {
    while let Some(from) = to_merge(layers, start, limit) {
        let size: usize = layers[from..].iter().map(|l| l.size()).sum();
        if size > AT_ONCE && layers.len() - start <= PATIENCE * limit.max(2) {
            return;
        }
        let merged = Arc::new(Layer::merged(&layers[from..]));
        layers.truncate(from);
        if merged.size() > 0 {
            layers.push(merged);
        }
    }
}

/// From where on to merge, when there are too many.
fn to_merge(layers: &[Arc<Layer>], start: usize, limit: usize) -> Option<usize> {
    if layers.len() - start <= limit.max(2) {
        return None;
    }
    let sizes: Vec<usize> = layers[start..].iter().map(|l| l.size()).collect();
    Some(start + merge_from(&sizes))
}

/// Layers to be merged on another thread.
#[must_use = "scans meet many layers until the job has run and its outcome was taken back"]
pub struct MergeJob(Vec<Arc<Layer>>);

/// What a [`MergeJob`] made.
#[must_use = "the store waits for the outcome"]
pub struct MergeOutcome {
    of: Vec<Arc<Layer>>,
    merged: Layer,
}

impl MergeJob {
    /// The newest layers beyond `start`, when there are more than `limit`.
    pub(super) fn of(layers: &[Arc<Layer>], start: usize, limit: usize) -> Option<Self> {
        to_merge(layers, start, limit).map(|from| Self(layers[from..].to_vec()))
    }

    /// Merges.
    pub fn run(self) -> MergeOutcome {
        MergeOutcome { merged: Layer::merged(&self.0), of: self.0 }
    }
}

impl MergeOutcome {
    /// Puts the merged layer in the place of those that it was made of; false where these are not all there beyond `start`.
    pub(super) fn put(self, layers: &mut Vec<Arc<Layer>>, start: usize) -> bool {
        let Some(first) = self.of.first() else { return false };
        let Some(at) = layers.iter().position(|l| Arc::ptr_eq(l, first)).filter(|at| *at >= start) else {
            return false;
        };
        let there = layers.get(at..at + self.of.len()).unwrap_or_default();
        if there.len() != self.of.len() || !there.iter().zip(&self.of).all(|(a, b)| Arc::ptr_eq(a, b)) {
            return false;
        }
        let merged = (self.merged.size() > 0).then(|| Arc::new(self.merged));
        layers.splice(at..at + self.of.len(), merged);
        true
    }
}

/// From which layer on to merge: the oldest one that is no larger than all newer ones together.
///
/// A change is then copied only into layers at least twice as large, so a logarithmic number of times; taking the oldest such
/// layer leaves the most room, so merges are as rare as the limit allows (binomial compaction, judged by size).
fn merge_from(sizes: &[usize]) -> usize {
    let mut newer: usize = sizes.iter().sum();
    for (i, &size) in sizes.iter().enumerate() {
        newer -= size;
        if size <= newer {
            return i;
        }
    }
    sizes.len() - 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(list: &[(&str, &str, Kind)]) -> Changes {
        let mut out = Changes::default();
        for (key, value, kind) in list {
            out.push([key.as_bytes(), &[]], value.as_bytes(), *kind);
        }
        out
    }

    #[test]
    fn net_changes_count_against_the_state_beneath() {
        use Kind::{Delete, Insert, Update};
        let older = changes(&[("a", "1", Insert), ("b", "1", Insert), ("c", "", Delete), ("d", "1", Update)]);
        let newer = changes(&[("d", "", Delete), ("c", "2", Insert), ("b", "2", Update), ("a", "", Delete)]);
        let run = Run::of(&[&older, &newer]);
        let got: Vec<_> = (0..run.len()).map(|i| run.get(i)).map(|c| (c.key, c.value, c.kind)).collect();
        let want: [(&[u8], &[u8], Kind); 3] = [(b"b", b"2", Insert), (b"c", b"2", Update), (b"d", b"", Delete)];
        assert_eq!(got, want);
        assert_eq!((run.delta, run.delta_in(1..3)), (0, -1));
        assert_eq!((run.rank(b"c", false), run.rank(b"c", true), run.rank(b"x", true)), (1, 2, 3));
    }

    #[test]
    fn many_small_layers_are_copied_rarely() {
        const TOTAL: usize = 3_000;
        let (mut sizes, mut copied) = (Vec::new(), 0);
        for size in std::iter::repeat_n(1usize, TOTAL) {
            sizes.push(size);
            if sizes.len() > 8 {
                let from = merge_from(&sizes);
                let merged: usize = sizes[from..].iter().sum();
                copied += merged;
                sizes.truncate(from);
                sizes.push(merged);
            }
        }
        assert!(copied < TOTAL * 8, "each change copied {} times", copied / TOTAL);
    }
}
