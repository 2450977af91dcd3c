//! The revisions of a document that an answer may show.

use super::Issued;
use crate::{
    log::{Left, Log, Name, Stored},
    oracle::Index,
    oracle::Row,
};
use serde_json::Value;
use std::{cell::Cell, collections::BTreeSet};

/// A revision of a document.
pub(super) struct Revision {
    /// Its seqno; of one that was not acknowledged, what it is above.
    pub(super) seqno: u64,
    pub(super) unindexed: bool,
    /// By index.
    pub(super) rows: Vec<Option<Row>>,
}

/// A document in one history of its stream.
pub(super) struct Document<'l> {
    /// By seqno; the first: it is not there.
    revisions: Vec<Revision>,
    /// Those that nobody acknowledged.
    doubts: Vec<Revision>,
    /// The seqnos at which nobody knows what was stored.
    unknown: &'l BTreeSet<u64>,
    vanished: Vec<Gone>,
}

/// What vanished without a message.
#[derive(Debug)]
struct Gone {
    /// No timestamp up to this number knows of it.
    not_before: u64,
    /// Every timestamp from this number on does.
    followed: Cell<Option<u64>>,
    perhaps: u64,
    surely: u64,
    left: Left,
}

impl<'l> Document<'l> {
    pub(super) fn new(name: &Name, log: &'l Log, indexes: &[Index], issued: &Issued) -> Self {
        let all = |known: Option<&Vec<Stored>>| -> Vec<Revision> {
            known.into_iter().flatten().map(|known| Revision::new(name, known, indexes)).collect()
        };
        let mut revisions = vec![Revision::new(name, &(0, None), indexes)];
        revisions.extend(all(log.documents.get(name)));
        let vanished = log.vanished.get(name).into_iter().flatten().map(|v| Gone {
            not_before: issued.before(v.from),
            followed: Cell::new(v.followed),
            perhaps: v.perhaps,
            surely: v.surely,
            left: v.left,
        });
        Self {
            revisions,
            doubts: all(log.doubts.get(name)),
            unknown: &log.unknown[name.0],
            vanished: vanished.collect(),
        }
    }

    /// Those that may be shown at the timestamp of this number, at a seqno, by who had to have all up to a floor.
    pub(super) fn may_be(&self, number: u64, floor: u64, seqno: u64) -> Vec<&Revision> {
        self.but_for(usize::MAX, number, floor, seqno)
    }

    /// What it was and what vanished of it, for people.
    pub(super) fn vanished(&self) -> String {
        let revisions: Vec<u64> = self.revisions.iter().map(|revision| revision.seqno).collect();
        format!("its revisions are {revisions:?}, vanished are {:?}", self.vanished)
    }

    /// What cannot be explained without a removal follows it, and so does all that comes later. Not so what was there before a
    /// revision that went before anybody read it: that is shown until the removal is followed.
    pub(super) fn learn(&self, number: u64, floor: u64, seqno: u64, agrees: impl Fn(&Revision) -> bool) {
        for (at, gone) in
            self.vanished.iter().enumerate().filter(|(_, gone)| gone.followed.get().is_none_or(|f| f > number))
        {
            let needed = self.revisions[self.newest_at(floor)].seqno;
            let unread = self.revisions.iter().any(|older| gone.hid(older, needed) && agrees(older));
            if !unread && !self.but_for(at, number, floor, seqno).into_iter().any(&agrees) {
                gone.followed.set(Some(number));
            }
        }
    }

    /// The place of the newest revision up to a seqno.
    fn newest_at(&self, seqno: u64) -> usize {
        self.revisions.partition_point(|revision| revision.seqno <= seqno) - 1
    }

    /// As [`Self::may_be`] had one removal not been.
    fn but_for(&self, removal: usize, number: u64, floor: u64, seqno: u64) -> Vec<&Revision> {
        let (oldest, newest) = (self.newest_at(floor), self.newest_at(seqno));
        let needed = self.revisions[oldest].seqno;
        let stored_at = |above: u64| self.unknown.range(above + 1..).next().is_some_and(|at| *at <= seqno);
        let perhaps = self.doubts.iter().filter(|doubt| stored_at(doubt.seqno.max(needed)));
        let mut may_be: Vec<&Revision> = self.revisions[oldest..=newest].iter().chain(perhaps).collect();
        // A removal is known when all that was written before it is.
        let known = |gone: &Gone| number > gone.not_before && gone.surely <= seqno;
        let others = self.vanished.iter().enumerate().filter(|(at, gone)| *at != removal && known(gone));
        for (_, gone) in others {
            let followed = gone.followed.get().is_some_and(|from| number >= from);
            if followed {
                may_be.retain(|revision| revision.seqno > gone.surely || gone.leaves(revision));
            }
            if needed <= gone.perhaps {
                let unread = |revision: &Revision| !followed && gone.hid(revision, needed);
                let older = self.revisions.iter().filter(|revision| gone.leaves(revision) || unread(revision));
                may_be.extend(older);
            }
        }
        may_be
    }
}

impl Gone {
    /// Whether a revision is shown, before this is followed, because the one that was `needed` went before anybody read it.
    fn hid(&self, revision: &Revision, needed: u64) -> bool {
        needed <= self.perhaps && (1..needed).contains(&revision.seqno)
    }

    fn leaves(&self, revision: &Revision) -> bool {
        match self.left {
            Left::Nothing => revision.seqno == 0,
            Left::Revision(seqno) => revision.seqno == seqno,
            Left::Older => revision.seqno < self.surely,
        }
    }
}

impl Revision {
    fn new(name: &Name, (seqno, payload): &Stored, indexes: &[Index]) -> Self {
        let document = payload.as_ref().map(|payload| serde_json::from_slice::<Value>(payload));
        let unindexed = matches!(document, Some(Err(_)));
        let document = document.and_then(Result::ok);
        let row = |index: &Index| index.row_of(name, document.as_ref()?);
        Self { seqno: *seqno, unindexed, rows: indexes.iter().map(row).collect() }
    }
}
