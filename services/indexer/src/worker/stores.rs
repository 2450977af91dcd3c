//! The stores of a bucket's slices: opening, filling, reopening, closing.

use super::{
    Look, SliceInfo, VerifyAnswer, Worker,
    compare::Listed,
    removed::{self, Oldest, Stage},
    stem,
};
use crate::{
    core::{Action, Batch, Step},
    documents::{replace, replace_beside},
    held::HeldSlice,
    jobs::Job,
    store::{LmdbStore, SliceMark, SliceStore, StoreError},
};
use highwater_bus::{
    fault,
    supervise::{self, Unfinished},
};
use highwater_schemas::{ErrorCode, StVb, StabilityTimestamp, state::SliceName};
use std::{collections::BTreeMap, sync::Arc, time::Instant};
use tokio::sync::{mpsc, oneshot};

/// What a slice in step collects in its open layer during a gap's session before it is sealed, bytes.
pub(super) const UNSEALED: usize = 8 * 1024 * 1024;

pub(super) struct Open {
    pub(super) store: LmdbStore,
    pub(super) opening: u64,
    pub(super) held: Arc<HeldSlice>,
    /// How far the slice was when it was opened, or became durable since: its own mark or that of an unchanged slice.
    pub(super) mark: SliceMark,
    /// The ST that the newest snapshot shows.
    pub(super) shown: Option<Arc<StabilityTimestamp>>,
    /// Begins the names of its directories.
    pub(super) stem: String,
    pub(super) unsealed: usize,
    /// Bytes of batches that sessions have brought since something was made durable, and when they last did.
    pub(super) collected: usize,
    pub(super) brought: Instant,
    /// Nothing becomes durable out of turn before, after a failure.
    pub(super) rests_until: Option<Instant>,
    /// Layers are not merged before, after a merge that panicked.
    pub(super) merges_after: Option<Instant>,
    /// What the list of a session has named so far.
    pub(super) listed: Option<Listed>,
    /// What it has staged for a reconcile.
    pub(super) stage: Option<Stage>,
    /// By vbucket its oldest documents.
    pub(super) oldest: BTreeMap<u16, Oldest>,
}

impl Open {
    /// Bytes that lists have brought, and that making it durable does not give back.
    pub(super) fn pinned(&self) -> usize {
        let listed = self.listed.as_ref().map_or(0, Listed::memory);
        let stage = self.stage.as_ref().map_or(0, Stage::memory);
        listed + stage + self.oldest_memory()
    }

    /// Bytes of the oldest documents that it remembers.
    pub(super) fn oldest_memory(&self) -> usize {
        self.oldest.values().map(Oldest::memory).sum()
    }

    pub(super) fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}

impl Worker {
    /// Whether a slice of this mark was closed for longer than delete markers are there to be read, as far as that is known.
    pub(super) fn is_late(&self, mark: &SliceMark) -> bool {
        self.clock.is_some_and(|clock| clock.markers_may_be_gone(mark.at))
    }

    /// The name of a slice among all of the node.
    pub(super) fn full_name(&self, stem: &str) -> String {
        format!("{}/{stem}", self.outside.bucket)
    }

    pub(super) fn open_slice(&mut self, slice: SliceName, reset: bool) -> Vec<Action> {
        let Some(info) = self.infos.get(&slice).cloned() else { return Vec::new() };
        self.reopening.remove(&slice);
        self.growing.remove(&slice);
        self.stems.insert(slice, stem(&info));
        if let Some(old) = self.open.remove(&slice) {
            if reset {
                old.held.close(
                    ErrorCode::InRollback,
                    "the index is being built again: its source's history changed, or its files are damaged".into(),
                );
            } else {
                old.held.pause();
            }
        }
        let held = self.outside.held.open(self.outside.bucket(), slice, &info.directions);
        let mut opened = self.open_store(&info, reset);
        if let Err(error @ (StoreError::Damaged(_) | StoreError::OtherSlice { .. })) = &opened {
            tracing::warn!(bucket = self.outside.bucket, ?slice, %error, "building the slice again");
            opened = self.open_store(&info, true);
        }
        match opened {
            Ok(mut store) => {
                let mark = self.newest_mark(&stem(&info), store.durable());
                let mut shown = None;
                // What is of an earlier branch, or void, is not shown, and kept only as far as it must be.
                let own = store.durable().clone();
                let mark = if self.core.counts(&mark) { mark } else { own };
                if !mark.building
                    && !mark.compare
                    && self.core.counts(&mark)
                    && let Ok(snapshot) = store.seal()
                {
                    let st = Arc::new(st_of(&mark));
                    self.outside.gate.opened(&st);
                    self.newest = self.newest.take().filter(|n| n.number > st.number).or_else(|| Some(Arc::clone(&st)));
                    held.offer(Arc::clone(&st), snapshot);
                    shown = Some(st);
                }
                let (bulk, stem) = (store.in_bulk(), stem(&info));
                self.openings += 1;
                let opening = self.openings;
                self.check_pages(slice, opening, &store);
                let kept: Vec<SliceMark> = store.kept().iter().map(|k| k.mark.clone()).collect();
                let mut actions = self.core.opened(slice, &mark, &kept, bulk);
                if self.is_late(&mark) {
                    actions.extend(self.core.late(slice));
                }
                self.open.insert(
                    slice,
                    Open {
                        store,
                        opening,
                        held,
                        mark,
                        shown,
                        stem,
                        unsealed: 0,
                        collected: 0,
                        brought: Instant::now(),
                        rests_until: None,
                        merges_after: None,
                        listed: None,
                        stage: None,
                        oldest: BTreeMap::new(),
                    },
                );
                actions
            }
            // Somebody still reads what was open before: on the next tick.
            Err(StoreError::AlreadyOpen(_)) => {
                self.reopening.insert(slice);
                Vec::new()
            }
            Err(error) => self.fail(slice, &error),
        }
    }

    fn open_store(&self, info: &SliceInfo, reset: bool) -> Result<LmdbStore, StoreError> {
        let stem = stem(info);
        if reset {
            self.outside.marks.forget(&[&self.full_name(&stem)])?;
        }
        let dir = self.outside.files.open(&self.outside.bucket, &stem, reset)?;
        LmdbStore::open(&dir, &info.identity, self.outside.limits.clone())
    }

    /// The slice's own mark, or a newer one of the node's.
    fn newest_mark(&self, stem: &str, own: &SliceMark) -> SliceMark {
        match self.outside.marks.newest(&self.full_name(stem), own.st) {
            Ok(Some(mark)) if !own.building => mark,
            Ok(_) => own.clone(),
            Err(error) => {
                tracing::warn!(bucket = self.outside.bucket, stem, %error, "a newer mark cannot be read");
                own.clone()
            }
        }
    }

    pub(super) fn remove(&mut self, slice: SliceName) {
        self.reopening.remove(&slice);
        self.growing.remove(&slice);
        if let Some(open) = self.open.remove(&slice) {
            open.held.close(ErrorCode::IndexNotFound, "the index was dropped".into());
        }
        self.outside.held.remove(self.outside.bucket(), slice);
        let Some(stem) = self.stems.remove(&slice) else { return };
        if let Err(error) = self.outside.marks.forget(&[&self.full_name(&stem)]) {
            tracing::warn!(bucket = self.outside.bucket, stem, %error, "cannot forget the slice's mark");
        }
        if let Err(error) = self.outside.files.remove(&self.outside.bucket, &stem) {
            tracing::warn!(bucket = self.outside.bucket, stem, %error, "cannot remove the slice's files");
        }
    }

    pub(super) fn fail(&mut self, slice: SliceName, error: &StoreError) -> Vec<Action> {
        tracing::error!(bucket = self.outside.bucket, ?slice, %error, "slice failed");
        // Its store is of no more use, and what it holds in memory neither.
        if let Some(open) = self.open.remove(&slice) {
            open.held.close(ErrorCode::StorageFailed, error.to_string());
        }
        self.core.failed(slice, error.to_string())
    }

    /// False: too much is to be removed at once; what was done of it must be compared.
    pub(super) fn apply(
        &mut self,
        slice: SliceName,
        steps: &[(u16, Step)],
        st: &Arc<StabilityTimestamp>,
        readable: bool,
    ) -> Result<bool, StoreError> {
        let (Some(open), Some(info)) = (self.open.get_mut(&slice), self.infos.get(&slice)) else { return Ok(true) };
        let mut unprepared = false;
        let room = self.outside.ledger.room_for_oldest();
        for (vb, step) in steps {
            let range = step.after..=step.upto;
            if let Some(removal) = &step.batch.removal {
                if !removed::carry_out(open, (info, slice), *vb, (removal, step), room)? {
                    tracing::info!(
                        bucket = self.outside.bucket,
                        ?slice,
                        "too much vanished: it is compared in a session"
                    );
                    return Ok(false);
                }
            } else if let Some(stage) = open.stage.as_mut()
                && let Some(staged) = stage.vb(*vb)
            {
                replace_beside(&mut open.store, info, slice, &step.batch, range, staged)?;
                unprepared |= !stage.fits();
            } else {
                replace(&mut open.store, info, slice, &step.batch, range, false)?;
            }
        }
        let snapshot = open.store.seal()?;
        if readable {
            open.shown = Some(Arc::clone(st));
            // A slice that waits to be reopened takes no new readers.
            if !self.growing.contains(&slice) {
                open.held.offer(Arc::clone(st), snapshot);
            }
        }
        if self.newest.as_ref().is_none_or(|n| n.number < st.number) {
            self.newest = Some(Arc::clone(st));
        }
        if unprepared {
            self.core.unprepared(slice);
        }
        self.merge_layers(slice);
        Ok(true)
    }

    pub(super) fn collect(
        &mut self,
        slice: SliceName,
        batch: &Batch,
        after: u64,
        bulk: bool,
    ) -> Result<(), StoreError> {
        let (Some(open), Some(info)) = (self.open.get_mut(&slice), self.infos.get(&slice)) else { return Ok(()) };
        replace(&mut open.store, info, slice, batch, after..=batch.to.seqno, bulk)?;
        open.unsealed += batch.size();
        open.collected += batch.size();
        open.brought = Instant::now();
        if !bulk && open.unsealed > UNSEALED {
            open.unsealed = 0;
            open.store.seal()?;
            self.merge_layers(slice);
        }
        Ok(())
    }

    /// Has many layers merged on another thread.
    pub(super) fn merge_layers(&mut self, slice: SliceName) {
        let (Some(open), Some(to)) = (self.open.get_mut(&slice), self.outside.events.upgrade()) else { return };
        if open.merges_after.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let Some(job) = open.store.begin_merge() else { return };
        let opening = open.opening;
        let what = format!("merging layers of bucket {}", self.outside.bucket);
        let work = Box::new(move || super::Event::Merged { slice, opening, outcome: Some(job.run()) });
        let failed = Box::new(move |_| super::Event::Merged { slice, opening, outcome: None });
        if let Err(refused) = self.outside.jobs.merge.try_send(Job { what, work, failed, to }) {
            // Too many wait: merged here, since the store waits for the outcome.
            if let super::Event::Merged { outcome, .. } = (refused.into_inner().work)() {
                open.store.finish_merge(outcome);
            }
        }
    }

    /// Reopens what waits for it, as soon as nobody reads it any more.
    pub(super) fn grow_and_reopen(&mut self) {
        for slice in self.reopening.clone() {
            let actions = self.open_slice(slice, false);
            self.carry_out(actions);
        }
        for slice in self.growing.clone() {
            let Some(open) = self.open.get_mut(&slice) else { continue };
            let grown = open.store.grow().and_then(|()| open.store.seal());
            match grown {
                Ok(snapshot) => {
                    tracing::info!(bucket = self.outside.bucket, ?slice, "the slice's map has grown");
                    self.growing.remove(&slice);
                    if let Some(st) = &open.shown {
                        open.held.offer(Arc::clone(st), snapshot);
                    }
                }
                Err(StoreError::Busy) => {}
                Err(error) => {
                    self.growing.remove(&slice);
                    let actions = self.fail(slice, &error);
                    self.carry_out(actions);
                }
            }
        }
    }

    /// Checks the pages of a large slice beside its use.
    fn check_pages(&self, slice: SliceName, opening: u64, store: &LmdbStore) {
        let (true, Some(to)) = (store.is_large(), self.outside.events.upgrade()) else { return };
        let Ok(verifier) = store.verifier() else { return };
        let work = Box::new(move || super::Event::Checked { slice, opening, outcome: verifier.pages() });
        // Where too many wait, the next opening checks again.
        let _ = self.outside.jobs.check.try_send(self.check(slice, opening, work, to));
    }

    /// A slice, or its pages, have been checked.
    pub(super) fn checked(&mut self, slice: SliceName, opening: u64, outcome: Result<(), StoreError>) -> Vec<Action> {
        if self.open.get(&slice).is_none_or(|o| o.opening != opening) {
            return Vec::new();
        }
        match outcome {
            Ok(()) => Vec::new(),
            Err(error @ StoreError::Damaged(_)) => {
                tracing::warn!(bucket = self.outside.bucket, ?slice, %error, "building the slice again");
                self.core.closed(slice);
                vec![Action::Open { slice, reset: true }]
            }
            Err(error) => {
                tracing::warn!(bucket = self.outside.bucket, ?slice, %error, "the slice could not be checked");
                Vec::new()
            }
        }
    }

    /// Checks a slice on another thread, as long as the answer is waited for; the commit that it reads stays as it is meanwhile.
    pub(super) fn verify(&self, slice: SliceName, answer: oneshot::Sender<VerifyAnswer>) {
        let Some(open) = self.open.get(&slice) else {
            let _ = answer.send(Err(StoreError::Misuse("the slice is not open")));
            return;
        };
        if open.store.in_bulk() {
            let _ = answer.send(Ok(None));
            return;
        }
        let to = self.outside.events.upgrade();
        let (verifier, to) = match (open.store.verifier(), to) {
            (Ok(verifier), Some(to)) => (verifier, to),
            (Err(error), _) => {
                let _ = answer.send(Err(error));
                return;
            }
            (Ok(_), None) => return,
        };
        let Ok(room) = self.outside.jobs.check.try_reserve() else {
            let _ = answer.send(Err(StoreError::Busy));
            return;
        };
        let opening = open.opening;
        let (incidents, what) = (self.outside.incidents.clone(), format!("checking bucket {}", self.outside.bucket));
        let work = Box::new(move || {
            let look = || {
                fault("verify", "");
                verifier.run_while(&|| !answer.is_closed())
            };
            let looked = supervise::caught_now(&incidents, &what, look).done();
            let found = looked.unwrap_or_else(|unfinished| Err(StoreError::Unfinished(unfinished.to_string())));
            let outcome = match &found {
                Err(StoreError::Damaged(what)) => Err(StoreError::Damaged(what.clone())),
                _ => Ok(()),
            };
            // Who asked may be gone.
            let _ = answer.send(found.map(Some));
            super::Event::Checked { slice, opening, outcome }
        });
        room.send(self.check(slice, opening, work, to));
    }

    fn check(
        &self,
        slice: SliceName,
        opening: u64,
        work: Box<dyn FnOnce() -> super::Event + Send>,
        to: mpsc::Sender<super::Event>,
    ) -> Job {
        let failed = Box::new(move |unfinished: Unfinished| {
            let outcome = Err(StoreError::Unfinished(unfinished.to_string()));
            super::Event::Checked { slice, opening, outcome }
        });
        Job { what: format!("checking bucket {}", self.outside.bucket), work, failed, to }
    }

    /// What a slice is and how far it goes, with a way to read its documents.
    pub(super) fn look(&self, slice: SliceName) -> Result<Look, StoreError> {
        let open = self.open.get(&slice).ok_or(StoreError::Misuse("the slice is not open"))?;
        let store = &open.store;
        let newer = self.outside.marks.newest(&self.full_name(&open.stem), store.durable().st);
        Ok(Look {
            identity: store.identity().clone(),
            mark: store.durable().clone(),
            // A mark that cannot be read counts for nothing, here as at an opening.
            newer: newer.ok().flatten().filter(|_| !store.durable().building),
            kept: store.kept().to_vec(),
            stats: store.stats(),
            back: store.back_index()?,
        })
    }
}

/// The ST that a slice shows right after opening.
fn st_of(mark: &SliceMark) -> StabilityTimestamp {
    StabilityTimestamp {
        number: mark.st,
        term: mark.term,
        wanted: true,
        persist: true,
        vbs: mark
            .vbs
            .iter()
            .map(|vb| StVb {
                vbuuid: vb.vbuuid,
                position: vb.position,
                covered: vb.covered,
                server_time: vb.server_time,
                hash: vb.hash,
                reconciled: vb.reconciled,
                ..StVb::default()
            })
            .collect(),
    }
}
