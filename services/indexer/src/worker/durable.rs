//! Making slices durable: at persistence timestamps, when memory is short, and when a build has read enough.

use super::{Event, Worker, clock::ServerClock, stores::Open};
use crate::{
    core::{Action, Why},
    jobs::Job,
    ledger::Entered,
    marks::Unchanged,
    store::{PersistOutcome, Purpose, SliceMark, SliceStore, StoreError},
};
use highwater_bus::supervise::Unfinished;
use highwater_schemas::state::SliceName;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A session that brings nothing for so long may wait for room in the topic.
const SESSION_RESTS: Duration = Duration::from_millis(500);
/// After what was to be made durable out of turn, and failed.
const RETRY: Duration = Duration::from_secs(1);

impl Worker {
    pub(super) fn persist(&mut self, slice: SliceName, mark: SliceMark, topic: u64, why: Why) -> Vec<Action> {
        let name = self.open.get(&slice).map(|open| self.full_name(&open.stem));
        // A late slice keeps its old date, so that it still counts as late if it is opened again before it has caught up.
        let clock = self.clock.filter(|_| !self.core.is_late(slice));
        let (Some(open), Some(name)) = (self.open.get_mut(&slice), name) else {
            return self.core.persisted(slice, &mark, topic, false);
        };
        if self.growing.contains(&slice) {
            return self.core.persisted(slice, &mark, topic, false);
        }
        let mark = SliceMark { at: clock.map_or(open.mark.at, ServerClock::now), ..mark };
        let store = &mut open.store;
        // The mark covers everything that was collected.
        if let Err(error) = store.seal() {
            let mut actions = self.core.persisted(slice, &mark, topic, false);
            actions.extend(self.fail(slice, &error));
            return actions;
        }
        let unchanged = store.is_clean() && !store.durable().building && !store.kept().is_empty();
        if unchanged && !mark.building && why != Why::Built {
            let store_st = store.durable().st;
            self.unchanged.push((slice, Unchanged { slice: name, store_st, mark }));
            return Vec::new();
        }
        let purpose = match why {
            Why::Timestamp => Purpose::Snapshot { at: now() },
            Why::Interim => Purpose::Interim,
            Why::Built => Purpose::Built,
        };
        let sender = self.outside.events.upgrade();
        let (Some(job), Some(to)) = (store.begin_persist(mark.clone(), purpose), sender) else {
            return self.core.persisted(slice, &mark, topic, false);
        };
        let (opening, kept) = (open.opening, mark.clone());
        let lane = if job.is_build() { &self.outside.jobs.build } else { &self.outside.jobs.persist };
        let work = Box::new(move || {
            let outcome = Ok(Box::new(job.run()));
            Event::Persisted { slice, opening, mark, topic, outcome }
        });
        let meant = kept.clone();
        let failed = Box::new(move |unfinished: Unfinished| {
            let outcome = Err(StoreError::Unfinished(unfinished.to_string()));
            Event::Persisted { slice, opening, mark: meant, topic, outcome }
        });
        let what = format!("making bucket {} durable", self.outside.bucket);
        match lane.try_send(Job { what, work, failed, to }) {
            Ok(()) => {
                open.collected = 0;
                Vec::new()
            }
            Err(_) => self.core.persisted(slice, &kept, topic, false),
        }
    }

    pub(super) fn persisted(
        &mut self,
        slice: SliceName,
        opening: u64,
        mark: &SliceMark,
        topic: u64,
        outcome: Result<Box<PersistOutcome>, StoreError>,
    ) -> Vec<Action> {
        let Some(open) = self.open.get_mut(&slice).filter(|o| o.opening == opening) else { return Vec::new() };
        let finished = match outcome {
            Ok(outcome) => open.store.finish_persist(*outcome),
            Err(error) => {
                open.store.lose_persist();
                Err(error)
            }
        };
        let bulk = open.store.in_bulk();
        self.core.set_bulk(slice, bulk);
        match finished {
            Ok(()) => {
                open.mark = mark.clone();
                self.core.persisted(slice, mark, topic, true)
            }
            Err(error) => {
                tracing::error!(bucket = self.outside.bucket, ?slice, %error, "cannot make the slice durable");
                if !matches!(error, StoreError::MapFull) {
                    let what = format!("writing index data of bucket {}", self.outside.bucket);
                    self.outside.incidents.state(&what, &error);
                }
                // So that a session that waits for room in its topic is looked after again.
                open.collected += 1;
                open.rests_until = Some(Instant::now() + RETRY);
                match error {
                    StoreError::Poisoned(_) => {
                        // Only a new opening shows what is durable.
                        self.core.closed(slice);
                        vec![Action::Open { slice, reset: false }]
                    }
                    StoreError::MapFull => {
                        open.held.pause();
                        self.growing.insert(slice);
                        self.core.persisted(slice, mark, topic, false)
                    }
                    // What was spooled or built cannot be read back: from the beginning.
                    StoreError::Damaged(_) => {
                        self.core.closed(slice);
                        vec![Action::Open { slice, reset: true }]
                    }
                    _ => self.core.persisted(slice, mark, topic, false),
                }
            }
        }
    }

    /// Has the marks of unchanged slices written, all in one transaction.
    pub(super) fn write_marks(&mut self) {
        if self.unchanged.is_empty() {
            return;
        }
        let unchanged = std::mem::take(&mut self.unchanged);
        let opening = |slice| self.open.get(slice).map_or(0, |o| o.opening);
        let slices: Vec<_> = unchanged.iter().map(|(slice, one)| (*slice, opening(slice), one.mark.clone())).collect();
        let Some(to) = self.outside.events.upgrade() else { return };
        let (marks, written, meant) = (self.outside.marks.clone(), slices.clone(), slices.clone());
        let work = Box::new(move || {
            let unchanged: Vec<_> = unchanged.into_iter().map(|(_, one)| one).collect();
            Event::Marked { slices: written, outcome: marks.write(&unchanged) }
        });
        let failed = Box::new(move |unfinished: Unfinished| {
            let outcome = Err(StoreError::Unfinished(unfinished.to_string()));
            Event::Marked { slices: meant, outcome }
        });
        let what = format!("writing marks of bucket {}", self.outside.bucket);
        if self.outside.jobs.persist.try_send(Job { what, work, failed, to }).is_err() {
            let actions = self.marked(&slices, &Err(StoreError::Busy));
            self.carry_out(actions);
        }
    }

    pub(super) fn marked(
        &mut self,
        slices: &[(SliceName, u64, SliceMark)],
        outcome: &Result<(), StoreError>,
    ) -> Vec<Action> {
        if let Err(error) = outcome {
            tracing::error!(bucket = self.outside.bucket, %error, "cannot write the marks of unchanged slices");
            self.outside.incidents.state(&format!("writing index data of bucket {}", self.outside.bucket), error);
        }
        let mut actions = Vec::new();
        for (slice, opening, mark) in slices {
            let Some(open) = self.open.get_mut(slice).filter(|o| o.opening == *opening) else { continue };
            if outcome.is_ok() {
                open.mark = mark.clone();
            }
            actions.extend(self.core.persisted(*slice, mark, 0, outcome.is_ok()));
        }
        actions
    }

    /// Enters what all slices hold, and gives up stages while lists have brought too much: then these slices are compared in
    /// sessions instead.
    fn enter_memory(&mut self) {
        loop {
            let now = Entered {
                bytes: self.open.values().map(|o| o.store.memory()).sum(),
                pinned: self.open.values().map(Open::pinned).sum(),
                slices: self.open.len(),
            };
            self.outside.ledger.enter(&mut self.entered, now);
            if !self.outside.ledger.stages_too_much() || !self.give_up_a_stage() {
                return;
            }
        }
    }

    /// When the node's memory is short, slices that hold their share of it become durable out of turn.
    pub(super) fn check_memory(&mut self) {
        self.enter_memory();
        let Some(share) = self.outside.ledger.much() else { return };
        let too_much = self.outside.ledger.too_much().is_some();
        let now = Instant::now();
        // What is clean holds no more than room for what comes.
        let due = |o: &Open| !o.rests(now) && !o.store.is_clean() && o.store.memory() >= share;
        let large: Vec<(SliceName, bool)> =
            self.open.iter().filter(|(_, o)| due(o)).map(|(name, o)| (*name, o.store.in_bulk())).collect();
        for (slice, bulk) in large {
            let mut actions = self.core.persist_now(slice);
            // What is collected in bulk is written quickly, and the more at once the better.
            if too_much || !bulk {
                actions.extend(self.core.persist_session(slice));
            }
            self.carry_out(actions);
        }
    }

    /// The catchup topic is given room only below what is durable: so sessions become durable when they have brought much, and
    /// when nothing more comes, since the topic may be full.
    pub(super) fn check_sessions(&mut self) {
        let now = Instant::now();
        let share = self.outside.share.bytes();
        let much = |o: &Open| o.collected > share || (o.collected > 0 && now > o.brought + SESSION_RESTS);
        let due = |o: &Open| !o.rests(now) && much(o);
        let due: Vec<SliceName> = self.open.iter().filter(|(_, o)| due(o)).map(|(name, _)| *name).collect();
        for slice in due {
            let actions = self.core.persist_session(slice);
            self.carry_out(actions);
        }
    }
}

/// Milliseconds since the epoch; a clock that stands wrong makes snapshots live shorter or longer, and nothing worse.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
