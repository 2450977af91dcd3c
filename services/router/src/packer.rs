//! Packs chunks of one lane into batches, one per subscriber, over the same intervals.

use highwater_schemas::{
    Position,
    lane::Routes,
    timestamp::{Bookmark, Dropped},
    wire::{DocOp, KeyVersions, Removal, Unindexable, partition_of},
};
use std::sync::Arc;

/// A batch is closed at this size, bytes, or at a quarter of what the server takes in one message.
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
    /// For a server that takes messages of `max_payload` bytes.
    pub fn new(max_payload: usize) -> Self {
        Self { batch: BATCH_BYTES.min(max_payload / 4), message: max_payload.saturating_sub(HEADROOM) }
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
    pub removal: Option<Removal>,
    /// What the rounds before it have dropped, and it too.
    pub dropped_before: Dropped,
    pub dropped: Dropped,
    /// Per subscriber what is routed to it.
    pub nodes: Vec<(String, KeyVersions)>,
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
        self.removal = step.removal;
        self.anchor |= step.anchor;
        closed
    }

    /// The step that puts a removal behind everything so far, as a round of its own.
    pub fn removal(&self, round: u64, removal: Removal) -> Step {
        let (at, covered, server_time, hash) = self.last.unwrap_or((self.from, self.from.seqno, 0, 0));
        Step {
            routes: self.routes(),
            versions: KeyVersions::default(),
            to: Position::new(at.seqno, round),
            covered,
            server_time,
            hash,
            bookmark: None,
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
        let versions = self.open.iter_mut().map(|open| shrunk(std::mem::take(open), fits));
        let nodes = self.routes.nodes.keys().cloned().zip(versions).collect();
        let bookmark = self.bookmark.take();
        let topology = self.routes.topology;
        let removal = self.removal.take();
        let dropped_before = self.dropped;
        match removal {
            Some(Removal::Below(floor)) => self.dropped.floor = self.dropped.floor.max(floor),
            Some(Removal::Listed { session, .. }) => self.dropped.reconciled = session,
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
            removal,
            dropped_before,
            dropped: self.dropped,
            nodes,
        };
        self.from = to;
        self.size = 0;
        self.anchor = false;
        Some(packed)
    }
}

/// A document whose entries together do not fit one message with the rest cannot be indexed: the chain must not stop for it.
fn shrunk(versions: KeyVersions, fits: usize) -> KeyVersions {
    if versions.size() <= fits {
        return versions;
    }
    let share = fits / 4;
    let mut out = KeyVersions::default();
    for doc in versions.view().docs() {
        if doc.size() > share {
            out.push_doc(doc.seqno, doc.docid, DocOp::Unindexable(Unindexable::TooLarge));
        } else {
            out.push_view(&doc, |_| true);
        }
    }
    out
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
        assert_eq!(first.nodes[0].1.len(), 5);
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
        let [(_, a), (_, b)] = packed.nodes.as_slice() else { panic!("two subscribers") };
        assert!(a.view().docs().all(|d| partition_of(d.docid, 2) == 0 && d.keys().all(|k| k.index == 1)));
        assert_eq!(b.len(), 40, "all documents concern index 2");
        let ones: usize = b.view().docs().map(|d| d.keys().filter(|k| k.index == 1).count()).sum();
        assert_eq!(a.len() + ones, 40);
    }

    #[test]
    fn a_document_too_large_for_a_message_is_given_up_and_the_rest_goes_on() {
        let r = routes(1, &[("a", &[(1, 0, 1)])]);
        let mut p = Packer::new(Position::ZERO, Dropped::default(), Limits::new(64 * 1024));
        let mut all = versions(1..=3);
        all.push_doc(4, "huge", DocOp::Put);
        all.push_key(1, |_| Ok(()), |b| b.resize(b.len() + 70_000, b' '));
        p.add(step(&r, all, 4));
        assert!(p.full());
        let packed = p.flush().unwrap();
        let ops: Vec<DocOp> = packed.nodes[0].1.view().docs().map(|d| d.op).collect();
        assert_eq!(ops, [DocOp::Put, DocOp::Put, DocOp::Put, DocOp::Unindexable(Unindexable::TooLarge)]);
        assert!(packed.nodes[0].1.size() < 64 * 1024);
    }

    #[test]
    fn a_removal_is_a_round_of_its_own_where_the_chain_is() {
        let r = routes(1, &[("a", &[(1, 0, 1)])]);
        let mut p = Packer::new(Position::ZERO, Dropped::default(), Limits::new(1 << 20));
        p.add(step(&r, versions(1..=2), 2));
        let before = p.add(p.removal(1, Removal::Below(2))).unwrap();
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
        assert!(packed.nodes.is_empty());
        assert_eq!(packed.to.seqno, 2);
    }
}
