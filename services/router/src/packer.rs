//! Packs chunks of one lane into batches, one per subscriber, over the same intervals.

use highwater_schemas::{
    Position,
    lane::{Offer, Routes},
    timestamp::{Bookmark, Dropped},
    wire::{KeyVersions, Removal, partition_of},
};
use std::{collections::BTreeSet, sync::Arc};

/// A batch is closed at this size, bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// Room for the header of a batch and of its message, bytes.
const HEADROOM: usize = 8 * 1024;

/// Sizes that keep every batch below what the server takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    batch: usize,
    message: usize,
}

impl Limits {
    /// For a server that takes messages of `max_payload` bytes, at least [`LEAST_PAYLOAD`](highwater_schemas::lane::LEAST_PAYLOAD).
    pub fn new(max_payload: usize) -> Self {
        Self { batch: BATCH_BYTES, message: max_payload.saturating_sub(HEADROOM) }
    }
}

/// An interval of the chain, ready for its subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub topology: u64,
    pub from: Position,
    pub to: Position,
    pub covered: u64,
    pub server_time: i64,
    pub hash: u64,
    /// The last message in it.
    pub bookmark: Option<Bookmark>,
    /// The newest position that timestamps may name once it is published.
    pub offer: Option<Offer>,
    pub removal: Option<Removal>,
    /// What the rounds before it have dropped, and it too.
    pub dropped_before: Dropped,
    pub dropped: Dropped,
    /// The messages that carry it: one for each subscriber, or several.
    pub messages: Vec<Message>,
}

/// What one message carries of an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub subscriber: String,
    /// The indexes that it is for; empty: all that the subscriber hosts.
    pub only: Vec<u32>,
    pub versions: KeyVersions,
}

/// What a chunk adds to the chain.
#[derive(Debug)]
pub struct Step {
    pub routes: Arc<Routes>,
    pub versions: KeyVersions,
    pub to: Position,
    pub covered: u64,
    pub server_time: i64,
    pub hash: u64,
    pub bookmark: Option<Bookmark>,
    pub offer: Option<Offer>,
    /// A batch of its own.
    pub removal: Option<Removal>,
    pub anchor: bool,
}

/// The open end of a chain.
#[derive(Debug)]
pub struct Packer {
    from: Position,
    routes: Arc<Routes>,
    open: Vec<KeyVersions>,
    size: usize,
    last: Option<(Position, u64, i64, u64)>,
    bookmark: Option<Bookmark>,
    offer: Option<Offer>,
    removal: Option<Removal>,
    dropped: Dropped,
    anchor: bool,
    limits: Limits,
}

impl Packer {
    pub fn new(from: Position, dropped: Dropped, limits: Limits) -> Self {
        Self {
            limits,
            from,
            routes: Arc::default(),
            open: Vec::new(),
            size: 0,
            last: None,
            bookmark: None,
            offer: None,
            removal: None,
            dropped,
            anchor: false,
        }
    }

    /// Adds a step; answers the batch that it closed, if the topology changed or the step is a removal. One with a removal is to
    /// be flushed at once.
    pub fn add(&mut self, step: Step) -> Option<Packed> {
        let goes_on = step.routes.topology == self.routes.topology && step.removal.is_none();
        let closed = if goes_on { None } else { self.flush() };
        if step.routes.topology != self.routes.topology || self.open.len() != self.routes.nodes.len() {
            self.routes = step.routes;
            self.open = vec![KeyVersions::default(); self.routes.nodes.len()];
        }
        if let [(_, hosted)] = self.routes.nodes.iter().collect::<Vec<_>>().as_slice()
            && !hosted.is_empty()
            && hosted.iter().all(|(_, _, partitions)| *partitions == 1)
        {
            // One node hosts everything: nothing to pick apart.
            if self.open[0].is_empty() {
                self.open[0] = step.versions;
            } else {
                self.open[0].append(&step.versions);
            }
        } else {
            for (open, hosted) in self.open.iter_mut().zip(self.routes.nodes.values()) {
                route(&step.versions, hosted, open);
            }
        }
        self.size = self.open.iter().map(KeyVersions::size).max().unwrap_or(0);
        self.last = Some((step.to, step.covered, step.server_time, step.hash));
        self.bookmark = step.bookmark.or(self.bookmark.take());
        self.offer = step.offer.or(self.offer);
        self.removal = step.removal;
        self.anchor |= step.anchor;
        closed
    }

    /// The step that puts a removal behind everything so far, as a round of its own, with the documents that it names.
    pub fn removal(&self, round: u64, removal: Removal, versions: KeyVersions, offer: Option<Offer>) -> Step {
        let (at, covered, server_time, hash) = self.last.unwrap_or((self.from, self.from.seqno, 0, 0));
        Step {
            routes: self.routes(),
            versions,
            to: Position::new(at.seqno, round),
            covered,
            server_time,
            hash,
            bookmark: None,
            offer,
            removal: Some(removal),
            anchor: true,
        }
    }

    pub fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes)
    }

    /// True when the open batch has reached its size.
    pub fn full(&self) -> bool {
        self.size >= self.limits.batch
    }

    /// True when there is something to send.
    pub fn pending(&self) -> bool {
        self.anchor || self.removal.is_some() || self.last.is_some_and(|(to, ..)| to != self.from)
    }

    /// Closes the open batch.
    pub fn flush(&mut self) -> Option<Packed> {
        if !self.pending() {
            return None;
        }
        let (to, covered, server_time, hash) = self.last?;
        let fits = self.limits.message;
        let open = self.open.iter_mut().map(std::mem::take).zip(&self.routes.nodes);
        let messages = open.flat_map(|(open, (node, hosted))| parts(node, hosted, open, fits)).collect();
        let (bookmark, offer) = (self.bookmark.take(), self.offer.take());
        let topology = self.routes.topology;
        let removal = self.removal.take();
        let dropped_before = self.dropped;
        match removal {
            Some(Removal::Below(floor)) => self.dropped.floor = self.dropped.floor.max(floor),
            Some(Removal::Listed { session, .. } | Removal::Named { session }) => self.dropped.reconciled = session,
            None => {}
        }
        let packed = Packed {
            topology,
            from: self.from,
            to,
            covered,
            server_time,
            hash,
            bookmark,
            offer,
            removal,
            dropped_before,
            dropped: self.dropped,
            messages,
        };
        self.from = to;
        self.size = 0;
        self.anchor = false;
        Some(packed)
    }
}

/// The messages for one subscriber: one, or as many as it takes, each with the documents' entries of some indexes. Each index
/// is in one of them, also one that has no entry.
fn parts(subscriber: &str, hosted: &[(u32, u32, u32)], versions: KeyVersions, fits: usize) -> Vec<Message> {
    let message = |only, versions| Message { subscriber: subscriber.to_owned(), only, versions };
    if versions.size() <= fits {
        return vec![message(Vec::new(), versions)];
    }
    // What every message repeats: the documents.
    let documents: usize = versions.view().docs().map(|doc| doc.size_of(|_| false)).sum();
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut size = usize::MAX;
    for index in hosted.iter().map(|(index, ..)| *index).collect::<BTreeSet<u32>>() {
        let entries: usize = versions.view().docs().map(|doc| doc.size_of(|i| i == index)).sum::<usize>() - documents;
        if let Some(group) = groups.last_mut().filter(|_| size.saturating_add(entries) <= fits) {
            group.push(index);
            size += entries;
        } else {
            groups.push(vec![index]);
            size = documents + entries;
        }
    }
    let part = |only: Vec<u32>| {
        let mut part = KeyVersions::default();
        versions.view().docs().for_each(|doc| part.push_view(&doc, |index| only.contains(&index)));
        message(only, part)
    };
    groups.into_iter().map(part).collect()
}

/// Copies what a node hosts: documents of a partition that it has of any index, with the entries of its own slices.
fn route(versions: &KeyVersions, hosted: &[(u32, u32, u32)], out: &mut KeyVersions) {
    for doc in versions.view().docs() {
        let mine = |(_, partition, partitions): &(u32, u32, u32)| partition_of(doc.docid, *partitions) == *partition;
        if hosted.iter().any(mine) {
            out.push_view(&doc, |index| hosted.iter().any(|h| h.0 == index && mine(h)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{
        lane::LEAST_PAYLOAD,
        wire::{DocOp, MAX_ENTRY},
    };

    type Hosted<'a> = &'a [(u32, u32, u32)];

    fn routes(topology: u64, nodes: &[(&str, Hosted<'_>)]) -> Arc<Routes> {
        Arc::new(Routes { topology, nodes: nodes.iter().map(|(n, h)| ((*n).to_owned(), h.to_vec())).collect() })
    }

    fn versions(range: std::ops::RangeInclusive<u64>) -> KeyVersions {
        let mut out = KeyVersions::default();
        for seq in range {
            out.push_doc(seq, &format!("doc{seq}"), DocOp::Put);
            for index in [1, 2] {
                out.push_key(
                    index,
                    |b| {
                        b.extend_from_slice(&seq.to_be_bytes());
                        Ok(())
                    },
                    |_| (),
                );
            }
        }
        out
    }

    fn step(routes: &Arc<Routes>, versions: KeyVersions, to: u64) -> Step {
        Step {
            routes: Arc::clone(routes),
            versions,
            to: Position::new(to, 0),
            covered: to,
            server_time: 0,
            hash: 0,
            bookmark: None,
            offer: None,
            removal: None,
            anchor: false,
        }
    }

    #[test]
    fn intervals_follow_each_other_without_a_gap() {
        let r = routes(1, &[("a", &[(1, 0, 1), (2, 0, 1)])]);
        let mut p = Packer::new(Position::ZERO, Dropped::default(), Limits::new(1 << 20));
        p.add(step(&r, versions(1..=3), 3));
        p.add(step(&r, versions(5..=6), 6));
        let first = p.flush().unwrap();
        p.add(step(&r, versions(7..=7), 7));
        let second = p.flush().unwrap();
        assert_eq!(
            (first.from, first.to, second.from, second.to),
            (Position::ZERO, Position::new(6, 0), first.to, Position::new(7, 0))
        );
        assert_eq!(first.messages[0].versions.len(), 5);
        assert!(p.flush().is_none(), "nothing new");
    }

    #[test]
    fn a_new_topology_closes_the_batch_and_starts_its_own() {
        let (one, two) = (routes(1, &[("a", &[(1, 0, 1)])]), routes(2, &[("a", &[(1, 0, 1), (2, 0, 1)])]));
        let mut p = Packer::new(Position::ZERO, Dropped::default(), Limits::new(1 << 20));
        p.add(step(&one, versions(1..=2), 2));
        let closed = p.add(Step { anchor: true, ..step(&two, KeyVersions::default(), 2) }).unwrap();
        assert_eq!((closed.topology, closed.to.seqno), (1, 2));
        let anchor = p.flush().unwrap();
        assert_eq!((anchor.topology, anchor.from, anchor.to), (2, closed.to, closed.to));
    }

    #[test]
    fn every_subscriber_sees_every_interval_and_only_its_partitions() {
        let r = routes(1, &[("a", &[(1, 0, 2)]), ("b", &[(1, 1, 2), (2, 0, 1)])]);
        let mut p = Packer::new(Position::ZERO, Dropped::default(), Limits::new(1 << 20));
        p.add(step(&r, versions(1..=40), 40));
        let packed = p.flush().unwrap();
        let [a, b] = packed.messages.as_slice() else { panic!("two subscribers") };
        let (a, b) = (&a.versions, &b.versions);
        assert!(a.view().docs().all(|d| partition_of(d.docid, 2) == 0 && d.keys().all(|k| k.index == 1)));
        assert_eq!(b.len(), 40, "all documents concern index 2");
        let ones: usize = b.view().docs().map(|d| d.keys().filter(|k| k.index == 1).count()).sum();
        assert_eq!(a.len() + ones, 40);
    }

    /// As large as they may be, behind as much as a batch and a chunk hold before it is sent: 51 indexes of one node.
    #[test]
    fn an_interval_of_the_largest_entries_for_many_indexes_fits_the_least_messages() {
        const INDEXES: std::ops::Range<u32> = 1..52;
        let hosted: Vec<_> = INDEXES.map(|index| (index, 0, 1)).collect();
        let r = routes(1, &[("a", &hosted)]);
        let mut p = Packer::new(Position::ZERO, Dropped::default(), Limits::new(LEAST_PAYLOAD));
        let large = |versions: &mut KeyVersions, seqno: u64, index: u32, bytes: usize| {
            versions.push_doc(seqno, &format!("doc{seqno}"), DocOp::Put);
            versions.push_key(index, |_| Ok(()), |b| b.resize(b.len() + bytes, b' '));
        };
        let mut before = KeyVersions::default();
        large(&mut before, 1, 51, BATCH_BYTES - 100);
        p.add(step(&r, before, 1));
        assert!(!p.full());
        let mut all = KeyVersions::default();
        large(&mut all, 2, 51, 128 * 1024);
        all.push_doc(3, "everywhere", DocOp::Put);
        for index in INDEXES.filter(|index| *index != 7) {
            all.push_key(index, |_| Ok(()), |b| b.resize(b.len() + MAX_ENTRY, b' '));
        }
        p.add(step(&r, all, 3));
        assert!(p.full());
        let packed = p.flush().unwrap();
        let mut brought = BTreeSet::new();
        for message in &packed.messages {
            assert!(message.versions.size() <= LEAST_PAYLOAD - HEADROOM, "{}", message.versions.size());
            let entries: Vec<_> = message.versions.view().docs().map(|doc| (doc.seqno, doc.keys().count())).collect();
            let here = message.only.iter().filter(|index| **index != 7).count();
            let last = usize::from(message.only.contains(&51));
            assert_eq!(entries, [(1, last), (2, last), (3, here)]);
            assert!(message.only.iter().all(|index| brought.insert(*index)), "each index is in one of them");
        }
        assert!(brought.into_iter().eq(INDEXES), "also the one without entries");
    }

    #[test]
    fn a_removal_is_a_round_of_its_own_where_the_chain_is() {
        let r = routes(1, &[("a", &[(1, 0, 1)])]);
        let mut p = Packer::new(Position::ZERO, Dropped::default(), Limits::new(1 << 20));
        p.add(step(&r, versions(1..=2), 2));
        let before = p.add(p.removal(1, Removal::Below(2), KeyVersions::default(), None)).unwrap();
        assert_eq!((before.to, before.removal), (Position::new(2, 0), None));
        let round = p.flush().unwrap();
        assert_eq!((round.from, round.to), (Position::new(2, 0), Position::new(2, 1)));
        assert_eq!((round.dropped_before.floor, round.dropped.floor), (0, 2));
        p.add(Step { to: Position::new(3, 1), ..step(&r, versions(3..=3), 3) });
        let after = p.flush().unwrap();
        assert_eq!((after.from, after.dropped_before.floor, after.removal), (Position::new(2, 1), 2, None));
    }

    #[test]
    fn without_subscribers_the_chain_still_advances() {
        let r = routes(1, &[]);
        let mut p = Packer::new(Position::ZERO, Dropped::default(), Limits::new(1 << 20));
        p.add(step(&r, versions(1..=2), 2));
        let packed = p.flush().unwrap();
        assert!(packed.messages.is_empty());
        assert_eq!(packed.to.seqno, 2);
    }
}
