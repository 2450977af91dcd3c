//! The positions that stability timestamps may name.
//!
//! No such position is inside of an atomic batch. In a stream with batches positions above a revision that may be hidden are held
//! back, for a limited time.

use super::{Task, removed::Frozen};
use crate::batches::{Batches, Part};
use highwater_bus::StreamMessage;
use highwater_schemas::lane::Offer;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

/// Of a stream with batches no position is offered above a revision that may be hidden, so that not even who asks for the newest
/// that there is sees a part of a batch; but after this time they are offered all the same, as not exact.
const HELD_BACK: Duration = Duration::from_secs(1);

/// What of the chain was offered, and may be.
#[derive(Debug, Default)]
pub(super) struct Offering {
    pub(super) batches: Batches,
    /// Time and hash of the last message at or below the highest whole position.
    whole: (i64, u64),
    /// The position offered last.
    offered: u64,
    /// Where the chain begins, until it is known whether that is inside of a batch.
    unknown: Option<u64>,
    /// Where the round in force began: below it nothing can be offered any more.
    round_at: u64,
    /// Since when positions are held back.
    held_back: Option<Instant>,
}

impl Offering {
    /// For a chain that begins after this seqno.
    pub(super) fn new(from: u64) -> Self {
        let unknown = Some(from).filter(|from| *from > 0);
        Self { offered: from, round_at: from, unknown, ..Self::default() }
    }

    /// The next message was read, after `before`. Answers where a hole right before it begins at the latest.
    pub(super) fn message(&mut self, message: &StreamMessage, before: (i64, u64), this: (i64, u64)) -> u64 {
        let was = self.batches.begins();
        let begins = self.batches.message(message.seq, message.time, part(message));
        if !self.batches.is_open() {
            self.whole = this;
        } else if self.batches.begins() != was {
            self.whole = before;
        }
        // The message where the chain begins is read again, or the one behind it shows what is before it.
        self.unknown = self.unknown.filter(|from| message.seq < *from);
        begins
    }

    /// Whether the chain begins inside of a batch is not known yet.
    pub(super) fn is_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    /// The store has no message above the place where the chain begins.
    pub(super) fn nothing_follows(&mut self) {
        self.unknown = None;
    }

    /// The messages above were removed, or the open batch has ended.
    pub(super) fn passed(&mut self, last: (i64, u64)) {
        if !self.batches.is_open() {
            self.whole = last;
        }
    }
}

/// What the headers of a message say of its batch.
pub(super) fn part(message: &StreamMessage) -> Option<Part> {
    let batch = message.batch.as_ref()?;
    Some(Part { batch: xxh3_64(&batch.id), sequence: batch.sequence, commit: batch.commit })
}

impl Task {
    /// Nothing up to here can be hidden. Never inside of a batch.
    pub(super) fn covered(&self) -> u64 {
        if self.listing {
            return 0;
        }
        let frozen = self.frozen.map_or(u64::MAX, |Frozen { at, .. }| at);
        frozen.min(self.cover.covered()).min(self.whole().max(self.assignment.from.seqno))
    }

    /// The highest position that no batch reaches across. A chain of a new branch may begin above it.
    fn whole(&self) -> u64 {
        self.offering.batches.whole(self.cover.position())
    }

    /// The position to offer now, if it is a new one.
    pub(super) fn offer(&mut self) -> Option<Offer> {
        let (whole, covered) = (self.whole(), self.covered());
        if !self.live() || self.offering.is_unknown() || whole < self.offering.offered.max(self.offering.round_at) {
            return None;
        }
        if covered < whole && self.offering.batches.seen() {
            let since = *self.offering.held_back.get_or_insert_with(Instant::now);
            if since.elapsed() < HELD_BACK {
                return None;
            }
        }
        self.offering.held_back = None;
        self.offering.offered = whole;
        let (server_time, hash) = self.offering.whole;
        Some(Offer { seqno: whole, server_time, hash })
    }

    /// The next round begins where the reader is.
    pub(super) fn round_begins(&mut self) {
        self.offering.round_at = self.cover.position();
    }
}
