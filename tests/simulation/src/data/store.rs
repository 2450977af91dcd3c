//! A stand-in for the store of a slice: maps, in memory and on a disk that outlives the node.

use super::source::Value;
use highwater_indexer::{
    core::{Batch, Step, Why},
    store::SliceMark,
};
use highwater_schemas::{
    state::SliceName,
    wire::{Removal, partition_of},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

/// Kept snapshots at most.
const KEPT: usize = 4;

/// Vbucket and document → its message.
pub type Rows = BTreeMap<(u16, String), (u64, u64)>;
/// As it is collected: also that there is nothing.
type Collected = BTreeMap<(u16, String), (u64, Option<u64>)>;

/// What is durable.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    rows: Rows,
    /// Still filled from nothing.
    bulk: Option<Collected>,
    pub mark: SliceMark,
    /// Of a slice without changes: a newer mark, and the ST that the disk had then.
    newer: Option<(u64, SliceMark)>,
    kept: Vec<(SliceMark, Rows)>,
}

impl Disk {
    pub fn empty() -> Self {
        Self { bulk: Some(Collected::new()), ..Self::default() }
    }

    pub fn newest_mark(&self) -> SliceMark {
        match &self.newer {
            Some((st, mark)) if *st == self.mark.st && !self.mark.building => mark.clone(),
            _ => self.mark.clone(),
        }
    }

    pub fn kept(&self) -> Vec<SliceMark> {
        self.kept.iter().map(|(mark, _)| mark.clone()).collect()
    }
}

/// A persist that is running.
pub struct Persist {
    disk: Disk,
    pub mark: SliceMark,
    pub topic: u64,
    /// Only the mark of an unchanged slice.
    marks_only: bool,
}

/// What was found to be present, for a reconcile.
#[derive(Debug, Default)]
struct Staged {
    upto: u64,
    named: BTreeSet<u64>,
    differing: Vec<(String, u64, Option<u64>)>,
    gone: Vec<(String, u64)>,
    absent: BTreeMap<String, u64>,
    /// What rounds have named since knows better, up to a seqno.
    overruled: BTreeMap<String, u64>,
}

/// Up to where a seqno names one message; seqnos up to there and documents above.
type Named = (u64, BTreeSet<(String, u64)>);

/// A slice that is open.
pub struct Store {
    pub name: SliceName,
    pub partitions: u32,
    pub disk: Disk,
    pub rows: Rows,
    bulk: Option<Collected>,
    /// Its last step runs: nothing is collected any more.
    ending: bool,
    pub persist: Option<Persist>,
    /// Of a session: what its list has named, and up to where a seqno names one message.
    listed: Option<(u64, BTreeMap<u16, Named>)>,
    stage: Option<(u64, BTreeMap<u16, Staged>)>,
}

/// Above the start of a range, and up to its end.
fn inside(range: &RangeInclusive<u64>) -> impl Fn(u64) -> bool + '_ {
    |seqno| seqno > *range.start() && seqno <= *range.end()
}

impl Store {
    pub fn open(name: SliceName, partitions: u32, disk: Disk) -> Self {
        Self {
            name,
            partitions,
            rows: disk.rows.clone(),
            bulk: disk.bulk.clone(),
            ending: false,
            persist: None,
            listed: None,
            stage: None,
            disk,
        }
    }

    pub fn in_bulk(&self) -> bool {
        self.bulk.is_some()
    }

    pub fn hosts(&self, docid: &str) -> bool {
        partition_of(docid, self.partitions) == self.name.partition
    }

    pub fn value(&self, vb: u16, docid: &str) -> Value {
        self.rows.get(&(vb, docid.to_owned())).copied()
    }

    /// Documents of a batch as the slice takes them.
    fn each(&self, batch: &Batch, within: impl Fn(u64) -> bool) -> Vec<(String, u64, Option<u64>)> {
        let Some(view) = batch.versions() else { return Vec::new() };
        let mut out = Vec::new();
        for doc in view.docs() {
            if !within(doc.seqno) || !self.hosts(doc.docid) {
                continue;
            }
            let key = doc.keys().find(|k| k.index == self.name.index);
            let uid = key.map(|k| u64::from_be_bytes(k.key.try_into().expect("eight bytes")));
            out.push((doc.docid.to_owned(), doc.seqno, uid));
        }
        out
    }

    fn put_if(&mut self, at: (u16, String), seqno: u64, uid: Option<u64>, good: impl Fn(u64) -> bool) {
        if let Some(collected) = &self.bulk {
            assert!(collected.is_empty() && self.persist.is_none(), "replacing while a build is not durable");
            self.bulk = None;
        }
        if self.rows.get(&at).is_none_or(|(old, _)| good(*old)) {
            match uid {
                Some(uid) => self.rows.insert(at, (seqno, uid)),
                None => self.rows.remove(&at),
            };
        }
    }

    fn remove(&mut self, vb: u16, docid: &str, seqno: u64) {
        self.put_if((vb, docid.to_owned()), seqno, None, |old| old == seqno);
    }

    /// A batch of the live chain.
    pub fn replace(&mut self, batch: &Batch, range: &RangeInclusive<u64>) {
        for (docid, seqno, uid) in self.each(batch, inside(range)) {
            if let Some(staged) = self.stage.as_mut().and_then(|(_, vbs)| vbs.get_mut(&batch.vb)) {
                if uid.is_none() {
                    staged.absent.insert(docid.clone(), seqno);
                } else if seqno <= staged.upto && !staged.named.contains(&seqno) {
                    staged.gone.push((docid.clone(), seqno));
                }
            }
            self.put_if((batch.vb, docid), seqno, uid, |old| seqno > old);
        }
    }

    pub fn collect(&mut self, batch: &Batch, after: u64, bulk: bool) {
        let range = after..=batch.to.seqno;
        if !bulk {
            self.replace(batch, &range);
            return;
        }
        let docs = self.each(batch, inside(&range));
        assert!(!self.ending, "nothing is collected during the last step of a build");
        let Some(collected) = &mut self.bulk else { panic!("bulk into a slice that is not empty") };
        for (docid, seqno, uid) in docs {
            let at = collected.entry((batch.vb, docid)).or_default();
            if seqno >= at.0 {
                *at = (seqno, uid);
            }
        }
    }

    pub fn compare(&mut self, session: u64, batch: &Batch, after: u64, proven: u64) {
        if self.listed.as_ref().is_none_or(|(of, _)| *of != session) {
            self.listed = Some((session, BTreeMap::new()));
        }
        for (docid, seqno, uid) in self.each(batch, inside(&(after..=batch.to.seqno))) {
            let (_, vbs) = self.listed.as_mut().expect("it was just made");
            let (proven, named) = vbs.entry(batch.vb).or_insert((proven, BTreeSet::new()));
            let proven = *proven;
            // Up to `proven` the seqno tells, above it the document.
            named.insert(if seqno <= proven { (String::new(), seqno) } else { (docid.clone(), 0) });
            let differs = self.rows.get(&(batch.vb, docid.clone())).map(|(_, old)| *old) != uid;
            self.put_if((batch.vb, docid), seqno, uid, |old| seqno != old || differs);
        }
    }

    pub fn sweep(&mut self, session: u64, vb: u16) {
        let listed = self.listed.as_mut().filter(|(of, _)| *of == session);
        let (proven, named) = listed.and_then(|(_, vbs)| vbs.remove(&vb)).unwrap_or_default();
        self.rows.retain(|(of, docid), (seqno, _)| {
            let name = if *seqno <= proven { (String::new(), *seqno) } else { (docid.clone(), 0) };
            *of != vb || named.contains(&name)
        });
    }

    pub fn begin_stage(&mut self, reconcile: u64, vbs: u16) {
        self.stage = Some((reconcile, (0..vbs).map(|vb| (vb, Staged::default())).collect()));
    }

    pub fn drop_stage(&mut self) {
        self.stage = None;
    }

    pub fn stage(&mut self, batch: &Batch, after: u64) {
        for (docid, seqno, uid) in self.each(batch, inside(&(after..=batch.to.seqno))) {
            let found = self.value(batch.vb, &docid).map(|(seqno, _)| seqno);
            let Some(staged) = self.stage.as_mut().and_then(|(_, vbs)| vbs.get_mut(&batch.vb)) else { return };
            staged.named.insert(seqno);
            if found != Some(seqno) && (found.is_some() || uid.is_some()) {
                staged.differing.push((docid, seqno, uid));
            }
        }
    }

    pub fn end_stage(&mut self, vb: u16, upto: u64) {
        let rows: Vec<(String, u64)> =
            self.rows.iter().filter(|((of, _), _)| *of == vb).map(|((_, d), (s, _))| (d.clone(), *s)).collect();
        let Some(staged) = self.stage.as_mut().and_then(|(_, vbs)| vbs.get_mut(&vb)) else { return };
        staged.upto = upto;
        staged.gone = rows.into_iter().filter(|(_, seqno)| *seqno <= upto && !staged.named.contains(seqno)).collect();
    }

    /// More than may be staged differs.
    pub fn overfull(&mut self) {
        if let Some((_, vbs)) = &mut self.stage {
            vbs.clear();
        }
    }

    pub fn floor(&mut self, vb: u16, floor: u64) {
        self.rows.retain(|(of, _), (seqno, _)| *of != vb || *seqno >= floor);
    }

    /// Documents that a round names.
    fn name(&mut self, vb: u16, batch: &Batch, read: u64) {
        let at = batch.to.seqno;
        for (docid, seqno, uid) in self.each(batch, |_| true) {
            let newer = self.value(vb, &docid).map_or(read > at, |(held, _)| held > at);
            if newer {
                continue;
            }
            let uid = uid.filter(|_| seqno >= batch.floor);
            if let Some(staged) = self.stage.as_mut().and_then(|(_, vbs)| vbs.get_mut(&vb)) {
                staged.overruled.insert(docid.clone(), at);
            }
            self.put_if((vb, docid), seqno, uid, |_| true);
        }
    }

    /// A round of the chain.
    pub fn carry_out(&mut self, vb: u16, removal: &Removal, step: &Step) {
        let floor = step.batch.floor;
        match *removal {
            Removal::Below(floor) => self.floor(vb, floor),
            Removal::Named { .. } => self.name(vb, &step.batch, step.after),
            Removal::Listed { session, .. } => {
                let Some((_, vbs)) = self.stage.as_mut().filter(|(of, _)| *of == session) else { return };
                let Some(staged) = vbs.remove(&vb) else { return };
                if vbs.is_empty() {
                    self.stage = None;
                }
                let Staged { upto, differing, gone, absent, overruled, .. } = staged;
                let counts = |docid: &str, seqno: u64| overruled.get(docid).is_none_or(|at| seqno > *at);
                for (docid, seqno) in gone.iter().filter(|(docid, seqno)| counts(docid, *seqno)) {
                    self.remove(vb, docid, *seqno);
                }
                let differing =
                    differing.into_iter().filter(|(docid, seqno, _)| *seqno >= floor && counts(docid, *seqno));
                for (docid, seqno, uid) in differing {
                    let newer = match self.value(vb, &docid) {
                        Some((found, _)) => found == seqno || found > upto,
                        None => absent.get(&docid).is_some_and(|seqno| *seqno > upto),
                    };
                    if !newer {
                        self.put_if((vb, docid), seqno, uid, |old| seqno != old);
                    }
                }
            }
        }
    }

    /// Begins to write what is there; false: it writes already.
    pub fn begin_persist(&mut self, mark: SliceMark, topic: u64, why: Why) -> bool {
        if self.persist.is_some() {
            return false;
        }
        let clean = self.bulk.is_none() && self.disk.bulk.is_none() && self.rows == self.disk.rows;
        let marks_only = clean && !self.disk.mark.building && !self.disk.kept.is_empty() && !mark.building;
        let mut disk = Disk { mark: mark.clone(), newer: None, ..self.disk.clone() };
        match &self.bulk {
            _ if marks_only && why != Why::Built => {}
            Some(collected) if why == Why::Interim => disk.bulk = Some(collected.clone()),
            Some(collected) => {
                self.ending = true;
                disk.bulk = None;
                let there = |((vb, d), (s, uid)): (&(u16, String), &(u64, Option<u64>))| {
                    uid.map(|uid| ((*vb, d.clone()), (*s, uid)))
                };
                disk.rows = collected.iter().filter_map(there).collect();
            }
            None => disk.rows = self.rows.clone(),
        }
        if why == Why::Timestamp && !marks_only {
            disk.kept.push((mark.clone(), disk.rows.clone()));
            if disk.kept.len() > KEPT {
                disk.kept.remove(0);
            }
        }
        self.persist = Some(Persist { disk, mark, topic, marks_only: marks_only && why != Why::Built });
        true
    }

    /// It is written, or it failed. Its mark and topic sequence.
    pub fn end_persist(&mut self, good: bool) -> Option<(SliceMark, u64)> {
        let Persist { disk, mark, topic, marks_only } = self.persist.take()?;
        if !good {
            self.ending = false;
        } else if marks_only {
            self.disk.newer = Some((self.disk.mark.st, mark.clone()));
        } else {
            if self.bulk.is_some() && disk.bulk.is_none() {
                self.rows.clone_from(&disk.rows);
                self.bulk = None;
                self.ending = false;
            }
            self.disk = disk;
        }
        Some((mark, topic))
    }

    /// Goes back to a kept snapshot.
    pub fn roll_back(&mut self, st: u64) {
        let at = self.disk.kept.iter().position(|(mark, _)| mark.st == st).expect("it is kept");
        self.disk.kept.truncate(at + 1);
        let (mark, rows) = self.disk.kept[at].clone();
        (self.disk.mark, self.disk.rows, self.disk.newer) = (mark, rows, None);
        *self = Self::open(self.name, self.partitions, std::mem::take(&mut self.disk));
    }
}
