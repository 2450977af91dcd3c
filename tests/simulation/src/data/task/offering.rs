//! Which positions timestamps may name; as `services/projector/src/vbucket/offering.rs`.

use super::Task;
use crate::data::{env::Env, pump::Read};
use highwater_projector::batches::Batches;
use highwater_schemas::{Position, lane::Offer};

/// As in the real one, shorter: time is scarcer here.
const HELD_BACK: u64 = 300;

#[derive(Debug, Default)]
pub(super) struct Offering {
    pub(super) batches: Batches,
    whole: (i64, u64),
    offered: u64,
    unknown: Option<u64>,
    round_at: u64,
    held_back: Option<u64>,
}

impl Offering {
    pub(super) fn new(from: u64) -> Self {
        let unknown = Some(from).filter(|from| *from > 0);
        Self { offered: from, round_at: from, unknown, ..Self::default() }
    }

    pub(super) fn message(&mut self, read: &Read, before: (i64, u64)) -> u64 {
        let was = self.batches.begins();
        let begins = self.batches.message(read.seq, read.message.time, read.message.part);
        if !self.batches.is_open() {
            self.whole = (read.message.time, read.message.uid);
        } else if self.batches.begins() != was {
            self.whole = before;
        }
        self.unknown = self.unknown.filter(|from| read.seq < *from);
        begins
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.unknown.is_some()
    }

    pub(super) fn nothing_follows(&mut self) {
        self.unknown = None;
    }

    pub(super) fn passed(&mut self, last: (i64, u64)) {
        if !self.batches.is_open() {
            self.whole = last;
        }
    }
}

impl Task {
    pub(super) fn covered(&self) -> u64 {
        if self.listing {
            return 0;
        }
        self.frozen
            .map_or(u64::MAX, |frozen| frozen.at)
            .min(self.cover.covered())
            .min(self.whole().max(self.assignment.lane.from.seqno))
    }

    fn whole(&self) -> u64 {
        self.offering.batches.whole(self.cover.position())
    }

    pub(super) fn offer(&mut self, env: &mut Env) -> Option<Offer> {
        let (whole, covered) = (self.whole(), self.covered());
        if !self.live() || self.offering.is_unknown() || whole < self.offering.offered.max(self.offering.round_at) {
            return None;
        }
        if whole < self.cover.position() {
            env.count("offers before the beginning of an open batch");
        }
        if covered < whole && self.offering.batches.seen() {
            let since = *self.offering.held_back.get_or_insert(env.now);
            if env.now < since + HELD_BACK {
                return None;
            }
            env.count("offered though something is hidden");
        }
        self.offering.held_back = None;
        self.offering.offered = whole;
        let lane = &self.assignment.lane;
        env.place((lane.vb, lane.vbuuid, lane.generation), Position::new(whole, self.round), self.line);
        let (server_time, hash) = self.offering.whole;
        Some(Offer { seqno: whole, server_time, hash })
    }

    pub(super) fn round_begins(&mut self) {
        self.offering.round_at = self.cover.position();
    }
}
