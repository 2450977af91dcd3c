//! How much the state keeps.
//!
//! All of it must fit one message: a snapshot is one. So what grows with time is bounded, in each bucket by what its vbuckets
//! keep together, and what others wrote is cut where it enters. Three buckets of the most streams that a bucket may have stay
//! below the largest message that a server takes as it comes.

use super::{
    bucket::{RangeStart, Vbucket},
    context::{NodeEntry, StateContext},
};
use crate::{
    api::{MOST_WORDS, NodeKind},
    timestamp::Bookmark,
};
use std::collections::BTreeSet;

/// Nodes that have left and are remembered.
const MOST_GONE: usize = 1_024;
/// Bytes of a bookmark's subject, and of those that every bookmark may have.
const MOST_SUBJECT: usize = 256;
const SHORT_SUBJECT: usize = 64;
/// Stands for a subject that is not kept. No subject that is text holds it, so nobody asks a source for what is there by that name.
const NO_SUBJECT: char = char::REPLACEMENT_CHARACTER;

/// Persistence timestamps that a bucket of so many vbuckets keeps: 512 vbuckets' parts, 8 timestamps at least and 64 at most.
pub(super) fn most_history(vbuckets: usize) -> usize {
    share(512, vbuckets, 8, 64)
}

/// Bookmarks that each vbucket of such a bucket keeps: 1,024 together, 16 at least and 64 at most.
fn most_bookmarks(vbuckets: usize) -> usize {
    share(1_024, vbuckets, 16, 64)
}

/// Of these the newest that keep subjects of more than [`SHORT_SUBJECT`] bytes: 512 together, 8 at least and 64 at most.
fn most_subjects(vbuckets: usize) -> usize {
    share(512, vbuckets, 8, 64)
}

/// Starts of generations that each of them keeps: 2,048 together, 32 at least and 256 at most.
pub(super) fn most_starts(vbuckets: usize) -> usize {
    share(2_048, vbuckets, 32, 256)
}

/// Branches of each of them that say why they began: 128 together, 2 at least and 32 at most.
pub(super) fn most_reasons(vbuckets: usize) -> usize {
    share(128, vbuckets, 2, 32)
}

fn share(all: usize, vbuckets: usize, least: usize, most: usize) -> usize {
    (all / vbuckets.max(1)).clamp(least, most)
}

/// Until no more than `most` are left, which is 3 at least: keeps the newest half, of the older half every second one, and always
/// the oldest.
pub fn thin<T>(history: &mut Vec<T>, most: usize) {
    while history.len() > most.max(3) {
        let old = history.len() / 2;
        let mut at = 0;
        history.retain(|_| {
            at += 1;
            at > old || at % 2 == 1
        });
    }
}

/// As much of a reason as is kept: [`MOST_WORDS`] characters.
pub fn in_short(reason: &str) -> String {
    reason.chars().take(MOST_WORDS).collect()
}

impl Bookmark {
    /// As it is kept: a long subject is left out. The message that it marks is still told from every other one, by sequence, time
    /// and hash; only when it is gone, nobody can ask for the newest one of its subject, so nothing follows from that.
    #[must_use]
    pub fn in_short(mut self) -> Self {
        self.leave_out_above(MOST_SUBJECT);
        self
    }

    fn leave_out_above(&mut self, bytes: usize) {
        if self.subject.len() > bytes {
            self.subject = NO_SUBJECT.into();
        }
    }
}

impl Vbucket {
    /// Takes up messages as they were read, and keeps what one of so many vbuckets may keep.
    pub(super) fn bookmark<'a>(&mut self, new: impl Iterator<Item = &'a Bookmark>, vbuckets: usize) {
        let last = self.bookmarks.last().map_or(0, |b| b.seqno);
        self.bookmarks.extend(new.filter(|b| b.seqno > last).cloned().map(Bookmark::in_short));
        thin(&mut self.bookmarks, most_bookmarks(vbuckets));
        let older = self.bookmarks.iter_mut().rev().skip(most_subjects(vbuckets));
        older.for_each(|bookmark| bookmark.leave_out_above(SHORT_SUBJECT));
    }

    /// Takes up where a generation begins, and keeps `most` starts.
    pub(super) fn begin(&mut self, generation: u64, start: RangeStart, most: usize) {
        self.starts.insert(generation, start);
        while self.starts.len() > most.max(2) {
            match self.without_share() {
                Some(generation) => {
                    self.starts.remove(&generation);
                }
                None => self.merge_oldest(),
            }
        }
    }

    /// The oldest generation of which a later one, in the same term or a later one, began at or below its start. Nothing of it
    /// counts, and whatever its start makes void the later one does too.
    fn without_share(&self) -> Option<u64> {
        let mut all = self.starts.iter();
        std::iter::from_fn(|| {
            let (generation, start) = all.next()?;
            let void = all.clone().any(|(_, later)| later.term >= start.term && later.x.le(start.x));
            Some(void.then_some(*generation))
        })
        .flatten()
        .next()
    }

    /// One start for the two oldest generations. It makes void whatever one of them did, and more; their own batches count no
    /// more. Whoever followed the chain that long ago finds a gap, or is compared with the source.
    fn merge_oldest(&mut self) {
        let Some((_, oldest)) = self.starts.pop_first() else { return };
        if let Some(mut next) = self.starts.first_entry() {
            let next = next.get_mut();
            (next.x, next.term, next.merged) = (next.x.min(oldest.x), next.term.max(oldest.term), true);
        }
    }
}

impl StateContext {
    /// Beyond [`MOST_GONE`] nodes that have left forgets those that left first, index managers last: their copies are asked for
    /// when the log is lost. What an index, a vbucket or a session names stays.
    pub(super) fn forget_nodes(&mut self) {
        let gone = self.nodes.values().filter(|entry| entry.gone).count();
        let Some(many) = gone.checked_sub(MOST_GONE).filter(|many| *many > 0) else { return };
        let mut named: BTreeSet<(NodeKind, &str)> = BTreeSet::new();
        for bucket in self.buckets.values() {
            let hosts = bucket.indexes.values().flat_map(|index| &index.placed.hosts);
            let hosts = hosts.chain(bucket.sessions.values().map(|session| &session.node));
            named.extend(hosts.map(|host| (NodeKind::Indexer, host.as_str())));
            named.extend(bucket.vbuckets.iter().map(|v| (NodeKind::Projector, v.projector.as_str())));
        }
        let free = |(kind, node): &(NodeKind, String), entry: &NodeEntry| {
            entry.gone && !named.contains(&(*kind, node.as_str()))
        };
        let mut free: Vec<_> = self
            .nodes
            .iter()
            .filter(|(key, entry)| free(key, entry))
            .map(|(key, entry)| (key.0 == NodeKind::Coordinator, entry.left, key.clone()))
            .collect();
        free.sort_unstable();
        for (_, _, key) in free.into_iter().take(many) {
            self.nodes.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
