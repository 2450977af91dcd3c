//! Stability and persistence timestamps of each bucket.

use super::{Action, Core};
use crate::config::{Config, NUMBER_BLOCK};
use highwater_schemas::{
    StVb, StabilityTimestamp,
    api::{MOST_MEMBERS, NodeKind},
    state::{Change, Vbucket},
    timestamp::{Bookmark, Wants},
    wire::{HighWatermark, MOST_NAMED, Missed, Stability, Sync},
};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
};

/// Wants within this time share one ST, milliseconds.
const WANT_SPACING: u64 = 2;
/// How long wanted STs are named for those who missed the broadcast, and broadcast again when somebody asks, milliseconds.
const NAME_WANTED: u64 = 1_000;
/// One that was asked for is broadcast again this often at most, milliseconds: the others who missed it hear it too.
const AGAIN: u64 = 20;
/// Broadcasts of a bucket that answer questions in this time, milliseconds, at most; who gets no answer goes on without it.
const ANSWERS_IN: u64 = 100;
const MOST_ANSWERS: usize = 64;
/// Messages of a vbucket that are remembered per persistence interval.
const SAMPLES: usize = 8;
/// A log that lost its tail may have reserved numbers that it does not know any more, but not so many.
const MOST_UNHEARD: u64 = 1 << 40;
/// An idle bucket repeats its last ST this often, milliseconds.
const IDLE_REPEAT: u64 = 500;

/// One bucket's stability.
#[derive(Default)]
pub(super) struct BucketStability {
    last: Option<StabilityTimestamp>,
    /// Newest SYNC per vbucket under the generation in force.
    sync: Vec<Option<StVb>>,
    source_last: Vec<u64>,
    /// Per vbucket messages as they were read since the last mark, at most [`SAMPLES`].
    bookmarks: Vec<Vec<Bookmark>>,
    next: u64,
    dirty: bool,
    wanted: bool,
    issued_at: u64,
    published_at: u64,
    marked_at: u64,
    /// Number of the last ST marked to be made durable.
    marked: u64,
    /// The wanted ones of the last second, at most [`MOST_NAMED`], oldest first.
    named: VecDeque<Named>,
    /// When questions were answered last, and how many since [`ANSWERS_IN`].
    answers: (u64, usize),
    /// Of the catalogs whose wants count.
    wants: Wants,
    /// Marked and not yet confirmed.
    unconfirmed: Option<StabilityTimestamp>,
    durable: BTreeMap<String, u64>,
}

/// A wanted ST.
struct Named {
    st: StabilityTimestamp,
    issued_at: u64,
    /// When it was last broadcast because somebody asked.
    told_again: Option<u64>,
}

impl BucketStability {
    /// The numbers of the wanted ones of the last second.
    fn names(&mut self, now: u64) -> Vec<u64> {
        while self.named.front().is_some_and(|named| now >= named.issued_at + NAME_WANTED) {
            self.named.pop_front();
        }
        self.named.iter().map(|named| named.st.number).collect()
    }
    pub(super) fn last(&self) -> Option<&StabilityTimestamp> {
        self.last.as_ref()
    }
    pub(super) fn source_last(&self, vb: usize) -> u64 {
        self.source_last.get(vb).copied().unwrap_or(0)
    }
    /// When the next ST may be issued; None when nothing waits for it.
    pub(super) fn next_issue(&self, config: &Config) -> Option<u64> {
        self.dirty.then(|| self.issued_at + self.spacing(config))
    }
    fn spacing(&self, config: &Config) -> u64 {
        if self.wanted { WANT_SPACING } else { config.stability_interval.as_millis() as u64 }
    }
    /// Messages of the sources that were read since the last mark, by vbucket.
    pub(super) fn bookmarks(&self) -> Vec<Vec<Bookmark>> {
        self.bookmarks.clone()
    }
    /// A vbucket has a new owner or branch: what the old one said is void.
    pub(super) fn forget_sync(&mut self, vb: u16) {
        if let Some(slot) = self.sync.get_mut(usize::from(vb)) {
            *slot = None;
        }
        if let Some(bookmarks) = self.bookmarks.get_mut(usize::from(vb)) {
            bookmarks.clear();
        }
    }
}

/// Takes up a bookmark: the newest always, of those before it every second one when there are too many.
fn sample(samples: &mut Vec<Bookmark>, new: Option<&Bookmark>) {
    let Some(new) = new.filter(|new| samples.last().is_none_or(|last| new.seqno > last.seqno)) else { return };
    if samples.len() >= SAMPLES {
        let mut at = 0;
        samples.retain(|_| {
            at += 1;
            at % 2 == 0
        });
    }
    samples.push(new.clone().in_short());
}

/// A position beyond where a later generation began is void.
fn counts(state: &StVb, vbucket: &Vbucket) -> bool {
    vbucket.starts.range((Excluded(state.generation), Unbounded)).all(|(_, start)| state.position.le(start.x))
}

impl Core {
    /// Takes up what the log and the nodes know of the past, until an ST of this term is issued: those who were not there when
    /// it began may come back before that.
    pub(super) fn recover_stability(&mut self) {
        for (name, bucket) in &self.context.buckets {
            let known = self.stability.get_mut(name);
            if known.as_ref().is_some_and(|e| e.last.as_ref().is_some_and(|last| last.term == self.context.term)) {
                continue;
            }
            // What is too far above the reserved numbers was never issued.
            let issued = |st: &&StabilityTimestamp| st.number.saturating_sub(bucket.numbers_below) < MOST_UNHEARD;
            let applied = self.members.newest_applied(name).filter(issued);
            let durable = bucket.history.last().filter(issued);
            // Void ones have used up their numbers too. After a copy that missed a reservation, some more may be unheard of.
            let used =
                [applied, durable].into_iter().flatten().map(|st| st.number.saturating_add(1)).max().unwrap_or(0);
            let next =
                if used > bucket.numbers_below { used.saturating_add(NUMBER_BLOCK) } else { bucket.numbers_below };
            let last = [applied, durable]
                .into_iter()
                .flatten()
                .filter(|st| st.vbs.iter().zip(&bucket.vbuckets).all(|(s, v)| s.vbuuid == v.vbuuid() && counts(s, v)))
                .max_by_key(|st| st.number)
                .cloned();
            if let Some(known) = known {
                known.next = known.next.max(next);
                let newer = |last: &StabilityTimestamp| known.last.as_ref().is_none_or(|l| l.number < last.number);
                if last.as_ref().is_some_and(newer) {
                    known.last = last;
                }
                continue;
            }
            let entry = BucketStability {
                last,
                sync: vec![None; bucket.vbuckets.len()],
                source_last: vec![0; bucket.vbuckets.len()],
                bookmarks: vec![Vec::new(); bucket.vbuckets.len()],
                next,
                marked: durable.map_or(0, |d| d.number),
                ..BucketStability::default()
            };
            self.stability.insert(name.clone(), entry);
        }
    }

    pub(super) fn sync(&mut self, now: u64, sync: &Sync, out: &mut Vec<Action>) {
        let (Some(bucket), Some(entry)) =
            (self.context.buckets.get(&sync.bucket), self.stability.get_mut(&sync.bucket))
        else {
            return;
        };
        for part in &sync.vbs {
            let vb = usize::from(part.vb);
            let Some(vbucket) = bucket.vbuckets.get(vb) else { continue };
            if part.state.vbuuid != vbucket.vbuuid() || part.state.generation != vbucket.generation {
                continue;
            }
            let slot = &mut entry.sync[vb];
            if slot.as_ref().is_some_and(|old| !old.position.le(part.state.position)) {
                continue;
            }
            entry.source_last[vb] = part.source_last;
            sample(&mut entry.bookmarks[vb], part.bookmark.as_ref());
            if slot.as_ref() == Some(&part.state) {
                continue;
            }
            entry.wanted |= slot.as_ref().map_or(!part.state.asked.is_empty(), |old| old.asked != part.state.asked);
            part.state.asked.iter().for_each(|asked| entry.wants.note(*asked));
            entry.dirty = true;
            *slot = Some(part.state.clone());
        }
        self.issue(now, &sync.bucket, out);
    }

    /// The newest one of a bucket is told again soon.
    pub(super) fn repeat_stability(&mut self, bucket: &str) {
        if let Some(entry) = self.stability.get_mut(bucket) {
            entry.published_at = 0;
        }
    }

    pub(super) fn issue_all(&mut self, now: u64, out: &mut Vec<Action>) {
        let names: Vec<String> = self.stability.keys().cloned().collect();
        for name in names {
            self.issue(now, &name, out);
            let Some(entry) = self.stability.get_mut(&name) else { continue };
            // A slice that has just joined the chain may not have heard any.
            let joining = self.context.buckets.get(&name).is_some_and(|b| !b.sessions.is_empty());
            let repeat = if joining { self.config.stability_interval.as_millis() as u64 } else { IDLE_REPEAT };
            if let Some(last) = &entry.last
                && last.term == self.context.term
                && now >= entry.published_at + repeat
            {
                entry.published_at = now;
                let st = last.clone();
                out.push(Action::Publish(Stability { bucket: name, st, wanted: entry.names(now) }));
            }
        }
    }

    fn issue(&mut self, now: u64, name: &str, out: &mut Vec<Action>) {
        let Some(entry) = self.stability.get_mut(name) else { return };
        let Some(bucket) = self.context.buckets.get(name) else { return };
        let current =
            |last: &StabilityTimestamp| last.vbs.iter().zip(&bucket.vbuckets).all(|(s, v)| s.vbuuid == v.vbuuid());
        if entry.last.as_ref().is_some_and(|last| !current(last)) {
            // The last ST is of an abandoned branch: the new branch starts without one.
            entry.last = None;
            entry.unconfirmed = None;
        }
        // A round in the chain is made durable at once: who has it need not be compared again. Those of named documents come often,
        // and whoever goes back meets them again in the chain.
        let listed = bucket.naming.is_none();
        let reconciled = |st: &StVb, sync: &Option<StVb>| sync.as_ref().is_some_and(|s| s.reconciled > st.reconciled);
        let round =
            listed && entry.last.as_ref().is_some_and(|l| l.vbs.iter().zip(&entry.sync).any(|(l, s)| reconciled(l, s)));
        let persist_due = round
            || now >= entry.marked_at + self.config.persistence_interval.as_millis() as u64
                && entry.last.as_ref().is_some_and(|l| l.number != entry.marked);
        if !(entry.dirty || persist_due) || now < entry.issued_at + entry.spacing(&self.config) {
            return;
        }
        let Some(mut vbs) = entry.sync.iter().cloned().collect::<Option<Vec<StVb>>>() else { return };
        if entry.wants.is_full() {
            // Each vbucket remembers catalogs of its own.
            for vb in &mut vbs {
                vb.asked.retain(|asked| entry.wants.knows(asked.catalog));
            }
        }
        let behind = |l: &StVb, s: &StVb| !l.position.le(s.position);
        let below = |v: &Vbucket, s: &StVb| v.start_of(s.generation).is_none_or(|x| !x.le(s.position));
        if entry.last.as_ref().is_some_and(|last| last.vbs.iter().zip(&vbs).any(|(l, s)| behind(l, s)))
            || bucket.vbuckets.iter().zip(&vbs).any(|(v, s)| below(v, s))
        {
            // A new generation that has not yet reached X: its chain does not count up to there.
            return;
        }
        // A number is never used twice, not even the last one there is.
        let Some(next) = entry.next.checked_add(1) else { return };
        if entry.next >= bucket.numbers_below {
            let below = entry.next.saturating_add(NUMBER_BLOCK);
            out.push(Action::Append(Change::NumbersReserved { bucket: name.into(), below }));
        }
        let st = StabilityTimestamp {
            number: entry.next,
            term: self.context.term,
            wanted: entry.wanted || persist_due,
            persist: persist_due,
            vbs,
        };
        entry.next = next;
        entry.dirty = false;
        entry.wanted = false;
        entry.issued_at = now;
        entry.published_at = now;
        if persist_due {
            entry.marked_at = now;
            entry.marked = st.number;
            let bookmarks: Vec<Vec<Bookmark>> = entry.bookmarks.iter_mut().map(std::mem::take).collect();
            if bookmarks.iter().any(|b| !b.is_empty()) {
                out.push(Action::Append(Change::Bookmarked { bucket: name.into(), bookmarks }));
            }
            entry.unconfirmed = Some(st.clone());
        }
        let wanted = entry.names(now);
        out.push(Action::Publish(Stability { bucket: name.into(), st: st.clone(), wanted }));
        if st.wanted {
            if entry.named.len() >= MOST_NAMED {
                entry.named.pop_front();
            }
            entry.named.push_back(Named { st: st.clone(), issued_at: now, told_again: None });
        }
        entry.last = Some(st);
    }

    /// Wanted timestamps that a node missed are broadcast again, as far as they are known.
    pub(super) fn missed(&mut self, now: u64, missed: &Missed, out: &mut Vec<Action>) {
        let Some(entry) = self.stability.get_mut(&missed.bucket).filter(|_| missed.term == self.context.term) else {
            return;
        };
        if now >= entry.answers.0 + ANSWERS_IN {
            entry.answers = (now, 0);
        }
        for number in missed.numbers.iter().take(MOST_NAMED) {
            let Ok(at) = entry.named.binary_search_by_key(number, |named| named.st.number) else { continue };
            let due = |named: &&mut Named| named.told_again.is_none_or(|told| now >= told + AGAIN);
            let Some(named) = entry.named.get_mut(at).filter(due) else { continue };
            if entry.answers.1 >= MOST_ANSWERS {
                return;
            }
            entry.answers.1 += 1;
            named.told_again = Some(now);
            let (bucket, st) = (missed.bucket.clone(), named.st.clone());
            out.push(Action::Publish(Stability { bucket, st, wanted: Vec::new() }));
        }
    }

    /// A persistence timestamp that every live indexer of the bucket has made durable goes into the history.
    pub(super) fn high_watermark(&mut self, hwt: &HighWatermark, out: &mut Vec<Action>) {
        let (Some(bucket), Some(entry)) = (self.context.buckets.get(&hwt.bucket), self.stability.get_mut(&hwt.bucket))
        else {
            return;
        };
        let nodes = &self.context.nodes;
        let alive = |node: &str| nodes.get(&(NodeKind::Indexer, node.to_owned())).is_some_and(|e| !e.gone);
        if entry.durable.len() >= MOST_MEMBERS && !entry.durable.contains_key(&hwt.node) {
            entry.durable.retain(|node, _| alive(node));
            if entry.durable.len() >= MOST_MEMBERS {
                return;
            }
        }
        entry.durable.insert(hwt.node.clone(), hwt.durable);
        let Some(marked) = &entry.unconfirmed else { return };
        let live: Vec<&str> = bucket.hosts().into_iter().filter(|node| alive(node)).collect();
        if !live.is_empty() && live.iter().all(|node| entry.durable.get(*node).is_some_and(|n| *n >= marked.number)) {
            out.push(Action::Append(Change::Persisted { bucket: hwt.bucket.clone(), st: marked.without_wants() }));
            entry.unconfirmed = None;
        }
    }
}
