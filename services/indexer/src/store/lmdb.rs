//! The store over LMDB: opening, looking up, collecting, handing to a persist and taking back.

use super::{
    Entry, KeptSnapshot, Picked, Place, Purpose, SliceIdentity, SliceMark, SliceStore, StoreError, StoreLimits,
    StoreStats,
    base::{Base, Bytemap},
    build::{self, FRESH, Progress, RUNS, encode_record},
    diff::{check_entries, encode_row_key},
    layer::{Layer, MergeJob, MergeOutcome, Run, merge_layers},
    open::Use,
    parts::{Buffers, Building, Live, Open},
    persist::{Committed, Done, Frozen, PersistJob, PersistOutcome, Target, Work},
    rows::Rows,
    run::{self, RunReader},
    scan::Snapshot,
    undo::{self, History},
    value,
};
use highwater_schemas::wire::Unindexable;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak, atomic::Ordering},
};

/// A slice in an LMDB environment of its own.
pub struct LmdbStore {
    dir: PathBuf,
    identity: Arc<SliceIdentity>,
    limits: StoreLimits,
    /// None only after an opening in mid-life failed.
    pub(super) live: Option<Live>,
    durable: SliceMark,
    history: History,
    /// On top of the commit, oldest first.
    layers: Vec<Arc<Layer>>,
    /// How many of the layers the running persist writes.
    frozen_layers: usize,
    merging: bool,
    pub(super) open: Open,
    /// Of sealed layers.
    pub(super) rows: Rows,
    pub(super) frozen: Option<Arc<Frozen>>,
    /// While the slice is filled from nothing.
    pub(super) building: Option<Building>,
    poison: Option<String>,
    /// Every commit that somebody may still read.
    bases: Vec<Weak<Base>>,
    map_size: usize,
    pub(super) buffers: Buffers,
}

impl LmdbStore {
    /// Opens the slice in `dir`, or creates it.
    ///
    /// Refuses an unknown format version, another slice's directory, damage, and a slice that this process has open.
    pub fn open(dir: &Path, identity: &SliceIdentity, limits: StoreLimits) -> Result<Self, StoreError> {
        Self::open_for(dir, Some(identity), limits, Use::Durable)
    }

    /// Opens the slice in `dir`, whichever it is, to look at it: nothing is written, and nothing can be.
    pub fn inspect(dir: &Path, limits: StoreLimits) -> Result<Self, StoreError> {
        Self::open_for(dir, None, limits, Use::ReadOnly)
    }

    fn open_for(
        dir: &Path,
        identity: Option<&SliceIdentity>,
        limits: StoreLimits,
        usage: Use,
    ) -> Result<Self, StoreError> {
        let (live, meta, history) = Live::open(dir, identity, &limits, usage)?;
        let empty = meta.mark == SliceMark::default() && (meta.items, meta.unindexed) == (0, 0);
        let mut durable = meta.mark;
        let mut building = None;
        if usage == Use::Durable && !empty {
            // A build that was interrupted after its last step.
            build::remove_left_over(dir)?;
        } else if usage == Use::Durable {
            build::remove_dir(&dir.join(FRESH))?;
            let runs = run::list(&dir.join(RUNS))?;
            if let Some((_, newest)) = runs.last() {
                let (_, found) = RunReader::open(newest)?;
                meta.identity.expect(&found.identity)?;
                durable = found.mark;
            }
            let next_run = runs.last().map_or(0, |(number, _)| number + 1);
            let runs = runs.into_iter().map(|(_, path)| path).collect();
            building = Some(Building { runs, next_run, ..Building::default() });
        }
        Ok(Self {
            dir: dir.to_owned(),
            identity: Arc::new(meta.identity),
            map_size: limits.map_size,
            limits,
            bases: vec![Arc::downgrade(&live.base)],
            live: Some(live),
            durable,
            history,
            layers: Vec::new(),
            frozen_layers: 0,
            merging: false,
            open: Open::default(),
            rows: Rows::default(),
            frozen: None,
            building,
            poison: None,
            buffers: Buffers::default(),
        })
    }

    pub(super) fn live(&self) -> Result<&Live, StoreError> {
        self.live.as_ref().ok_or_else(|| self.closed())
    }

    /// The kept snapshots.
    pub(super) fn history(&self) -> &History {
        &self.history
    }

    pub(super) fn closed(&self) -> StoreError {
        StoreError::Poisoned(self.poison.clone().unwrap_or_else(|| "the environment is closed".into()))
    }

    /// True if the pages of the file were too many to check before it was opened: [`super::Verifier::pages`] should run soon.
    pub fn is_large(&self) -> bool {
        self.live.as_ref().and_then(|l| l.env.real_disk_size().ok()) > Some(self.limits.check_at_open)
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// What the slice is.
    pub fn identity(&self) -> &SliceIdentity {
        &self.identity
    }

    /// Puts back what a persist did not write.
    fn thaw(&mut self) -> Result<(), StoreError> {
        self.frozen_layers = 0;
        let Some(frozen) = self.frozen.take() else { return Ok(()) };
        let frozen = Arc::into_inner(frozen).ok_or(StoreError::Misuse("a persist that failed is still running"))?;
        let mut newer = std::mem::replace(&mut self.rows, frozen.rows);
        self.rows.absorb(&mut newer);
        if let Some(building) = &mut self.building {
            let newer = std::mem::replace(&mut building.collected, frozen.collected);
            building.collected.memory.extend(newer.memory);
            building.ending = false;
        }
        Ok(())
    }

    fn commit_target(&self) -> Result<Target, StoreError> {
        let live = self.live()?;
        let (env, slots) = (live.env.clone(), Arc::clone(&live.slots));
        Ok(Target { env, dbs: live.dbs, slots, history: self.history.clone() })
    }

    /// Opens the slice's environment anew.
    fn reopen(&mut self) -> Result<SliceMark, StoreError> {
        let limits = StoreLimits { map_size: self.map_size, ..self.limits.clone() };
        let (live, meta, history) = Live::open(&self.dir, Some(&self.identity), &limits, Use::Durable)?;
        self.bases.push(Arc::downgrade(&live.base));
        self.live = Some(live);
        self.history = history;
        Ok(meta.mark)
    }

    /// Puts what a build made in the place of the empty environment.
    fn install(&mut self, mark: &SliceMark) -> Result<(), StoreError> {
        let installed = (|| {
            if let Some(live) = self.live.take() {
                live.close();
            }
            build::swap_in(&self.dir)?;
            self.reopen()
        })();
        match installed {
            Ok(durable) if durable == *mark => {
                self.durable = durable;
                self.building = None;
                Ok(())
            }
            Ok(_) => Err(StoreError::damaged("a build made something else than it was to make")),
            Err(error) => {
                self.poison = Some(format!("what was built cannot be put in place: {error}"));
                Err(self.closed())
            }
        }
    }

    fn refresh(&mut self) {
        if let Some(live) = &mut self.live {
            live.snapshot = Snapshot::new(live.base.clone(), self.layers.clone());
        }
    }
}

impl SliceStore for LmdbStore {
    fn durable(&self) -> &SliceMark {
        &self.durable
    }

    fn replace(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError> {
        self.replace_if((vb, docid), seqno, entries, reason, |old, _| seqno > old.seqno)
    }

    fn compare(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError> {
        let differs = |old: &value::Row<'_>, new: Option<&value::Row<'_>>| {
            old.seqno != seqno || new.is_none_or(|new| new.content != old.content)
        };
        self.replace_if((vb, docid), seqno, entries, reason, differs)
    }

    fn remove(&mut self, vb: u16, docid: &str, seqno: u64) -> Result<(), StoreError> {
        self.replace_if((vb, docid), seqno, &[], None, |old, _| old.seqno == seqno)
    }

    fn seqno(&self, vb: u16, docid: &str) -> Result<Option<u64>, StoreError> {
        self.seqno_of(vb, docid)
    }

    fn pick(&self, vb: u16, place: &Place, wanted: &mut dyn FnMut(&str, u64) -> bool) -> Result<Picked, StoreError> {
        self.pick_rows(vb, place, wanted)
    }

    fn seal(&mut self) -> Result<Snapshot, StoreError> {
        self.rows.absorb(&mut self.open.rows);
        if !self.open.entries.is_empty() || !self.open.unindexed.is_empty() {
            let layer = Layer { entries: Run::of(&[&self.open.entries]), unindexed: Run::of(&[&self.open.unindexed]) };
            self.open.entries.clear();
            self.open.unindexed.clear();
            self.layers.push(Arc::new(layer));
            merge_layers(&mut self.layers, self.frozen_layers, self.limits.merge_layers);
            self.refresh();
        }
        Ok(self.live()?.snapshot.clone())
    }

    fn begin_merge(&mut self) -> Option<MergeJob> {
        if self.merging {
            return None;
        }
        let job = MergeJob::of(&self.layers, self.frozen_layers, self.limits.merge_layers)?;
        self.merging = true;
        Some(job)
    }

    fn finish_merge(&mut self, outcome: Option<MergeOutcome>) {
        self.merging = false;
        if outcome.is_some_and(|outcome| outcome.put(&mut self.layers, self.frozen_layers)) {
            self.refresh();
        }
    }

    fn in_bulk(&self) -> bool {
        self.building.is_some()
    }

    fn bulk(
        &mut self,
        vb: u16,
        docid: &str,
        seqno: u64,
        entries: &[Entry<'_>],
        reason: Option<Unindexable>,
    ) -> Result<(), StoreError> {
        let Some(building) = self.building.as_mut().filter(|b| !b.ending) else {
            return Err(StoreError::Misuse("bulk into a slice that is not empty"));
        };
        check_entries(docid, entries)?;
        let Buffers { key, row, .. } = &mut self.buffers;
        encode_row_key(vb, docid, key);
        encode_record(seqno, entries, reason, row)?;
        building.collected.newest().push([key, &[]], row);
        Ok(())
    }

    fn memory(&self) -> usize {
        let layers: usize = self.layers.iter().map(|l| l.memory()).sum();
        let frozen = self.frozen.as_ref().map_or(0, |f| f.rows.memory() + f.collected.bytes());
        // What a running commit writes is held twice: as layers and rows, and as LMDB's dirty pages.
        let dirty = self.frozen.as_ref().filter(|f| f.running.load(Ordering::Relaxed)).map_or(0, |f| {
            f.rows.memory() + self.layers[..self.frozen_layers].iter().map(|l| l.memory()).sum::<usize>()
        });
        let collecting = self.building.as_ref().map_or(0, |b| b.collected.bytes());
        layers + frozen + dirty + collecting + self.open.memory() + self.rows.memory()
    }

    fn is_clean(&self) -> bool {
        let idle = self.frozen.is_none() && self.poison.is_none() && self.building.is_none();
        idle && self.layers.is_empty() && self.rows.is_empty() && self.open.is_empty()
    }

    fn begin_persist(&mut self, mark: SliceMark, purpose: Purpose) -> Option<PersistJob> {
        if self.frozen.as_ref().is_some_and(|frozen| Arc::strong_count(frozen) > 1) {
            return None;
        }
        self.lose_persist();
        let mut frozen = Arc::new(Frozen::default());
        let target = match &self.poison {
            Some(reason) => Err(StoreError::Poisoned(reason.clone())),
            None => self.commit_target(),
        };
        let work = match (target, &mut self.building) {
            (Err(error), _) => Work::Refused(error),
            (Ok(_), Some(building)) if purpose == Purpose::Interim => {
                frozen = Arc::new(Frozen { collected: std::mem::take(&mut building.collected), ..Frozen::default() });
                Work::Spool { number: building.next_run, older: build::to_merge(&building.runs) }
            }
            (Ok(target), Some(building)) => {
                frozen = Arc::new(Frozen { collected: std::mem::take(&mut building.collected), ..Frozen::default() });
                let (runs, progress) = (building.runs.clone(), Arc::clone(&building.progress));
                building.ending = true;
                Work::Build { target, runs, progress }
            }
            (Ok(target), None) => {
                let rows = std::mem::take(&mut self.rows);
                frozen = Arc::new(Frozen { layers: self.layers.clone(), rows, ..Frozen::default() });
                self.frozen_layers = self.layers.len();
                Work::Commit(target)
            }
        };
        if !matches!(work, Work::Refused(_)) {
            self.frozen = Some(frozen.clone());
        }
        let (dir, identity) = (self.dir.clone(), self.identity.clone());
        let limits = StoreLimits { map_size: self.map_size, ..self.limits.clone() };
        Some(PersistJob { dir, identity, limits, mark, purpose, frozen, work })
    }

    fn lose_persist(&mut self) {
        let Some(frozen) = self.frozen.as_ref().filter(|frozen| Arc::strong_count(frozen) == 1) else { return };
        if frozen.uncertain.load(Ordering::SeqCst) {
            self.poison = Some("a persist was lost after it began to commit".into());
        } else if let Err(e) = self.thaw() {
            self.poison = Some(e.to_string());
        }
    }

    fn finish_persist(&mut self, outcome: PersistOutcome) -> Result<(), StoreError> {
        let PersistOutcome { frozen, mark, result } = outcome;
        if let Some(reason) = &self.poison {
            return Err(StoreError::Poisoned(reason.clone()));
        }
        if self.frozen.as_ref().is_none_or(|own| !Arc::ptr_eq(own, &frozen)) {
            return Err(StoreError::Misuse("outcome of a persist that is not running"));
        }
        drop(frozen);
        match result {
            Ok(Done::Committed(committed)) => {
                let Committed { base, lookup, history } = *committed;
                self.frozen = None;
                self.building = None;
                self.layers.drain(..self.frozen_layers);
                self.frozen_layers = 0;
                self.history = history;
                self.durable = mark;
                let base = Arc::new(base);
                self.bases.retain(|b| b.strong_count() > 0);
                self.bases.push(Arc::downgrade(&base));
                if let Some(live) = &mut self.live {
                    (live.base, live.lookup) = (base, lookup);
                }
                self.refresh();
                Ok(())
            }
            Ok(Done::Spooled { run, replaced }) => {
                self.frozen = None;
                self.durable = mark;
                if let Some(building) = &mut self.building {
                    building.runs.retain(|older| !replaced.contains(older));
                    building.runs.push(run);
                    building.next_run += 1;
                }
                Ok(())
            }
            Ok(Done::Built) => {
                self.frozen = None;
                self.install(&mark)
            }
            Err(error) => {
                self.thaw()?;
                if let StoreError::Poisoned(reason) = &error {
                    self.poison = Some(reason.clone());
                }
                Err(error)
            }
        }
    }

    fn kept(&self) -> &[KeptSnapshot] {
        &self.history.kept
    }

    fn roll_back(&mut self, st: u64, topic: (u64, i64)) -> Result<(), StoreError> {
        if let Some(reason) = &self.poison {
            return Err(StoreError::Poisoned(reason.clone()));
        }
        if self.frozen.is_some() {
            return Err(StoreError::Misuse("rolling back during a persist"));
        }
        let live = self.live.as_mut().ok_or(StoreError::Misuse("rolling back a closed slice"))?;
        let (dbs, slots) = (live.dbs, Arc::clone(&live.slots));
        let rolled = undo::roll_back(&live.env, (dbs, &slots), &mut self.history, st, topic);
        let (base, lookup, meta) = match rolled.and_then(|meta| {
            let (base, lookup) = Base::open(&live.env, dbs, &self.limits)?;
            Ok((base, lookup, meta))
        }) {
            Ok(done) => done,
            Err(error @ (StoreError::NoSuchSnapshot(_) | StoreError::DiskFull | StoreError::MapFull)) => {
                return Err(error);
            }
            Err(error) => {
                self.poison = Some(format!("rolling back failed: {error}"));
                return Err(error);
            }
        };
        (live.base, live.lookup) = (Arc::new(base), lookup);
        self.bases.push(Arc::downgrade(&live.base));
        self.layers.clear();
        (self.open, self.rows) = (Open::default(), Rows::default());
        self.durable = meta.mark;
        self.refresh();
        Ok(())
    }

    fn grow(&mut self) -> Result<(), StoreError> {
        if self.frozen.is_some() {
            return Err(StoreError::Busy);
        }
        let Some(live) = &self.live else { return Err(self.closed()) };
        // Held by the store and by its snapshot; anything else is a reader.
        let own = Arc::as_ptr(&live.base);
        let read = |base: &Weak<Base>| base.strong_count() > if base.as_ptr() == own { 2 } else { 0 };
        if self.bases.iter().any(read) || live.snapshot.is_shared() {
            return Err(StoreError::Busy);
        }
        if let Some(live) = self.live.take() {
            live.close();
        }
        self.bases.clear();
        self.map_size = self.map_size.saturating_add(self.limits.map_growth);
        match self.reopen() {
            Ok(_) => {
                self.refresh();
                Ok(())
            }
            Err(error) => {
                self.poison = Some(format!("cannot be opened with a larger map: {error}"));
                Err(error)
            }
        }
    }

    fn stats(&self) -> StoreStats {
        let mut stats = StoreStats {
            memory: self.memory() as u64,
            layers: self.layers.len(),
            kept: self.history.kept.len(),
            poisoned: self.poison.clone(),
            ..StoreStats::default()
        };
        if let Some(building) = &self.building {
            let Progress { done, total } = &*building.progress;
            stats.built = (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
        }
        let Some(live) = &self.live else { return stats };
        let named = [live.dbs.entries, live.dbs.rows, live.dbs.unindexed, live.dbs.meta, live.dbs.snapshots];
        let bytes = |dbs: &[Bytemap]| -> u64 {
            let stats = dbs.iter().filter_map(|db| db.stat(&live.lookup).ok());
            let pages = |s: heed::DatabaseStat| s.branch_pages + s.leaf_pages + s.overflow_pages;
            stats.map(|s| u64::from(s.page_size) * pages(s) as u64).sum()
        };
        stats.items = live.snapshot.items();
        stats.unindexed = live.snapshot.unindexed();
        stats.live_bytes = bytes(&named);
        stats.undo_bytes = bytes(&live.slots);
        stats.file_bytes = live.env.real_disk_size().unwrap_or_default();
        stats
    }
}
