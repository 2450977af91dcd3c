//! Undo: what a slice needs to go back to an earlier persistent snapshot.
//!
//! A kept snapshot has an undo slot: one of [`SLOTS`] databases that are there from the beginning, since LMDB wants its
//! databases opened with the environment. It holds, by the key of the back index, the whole row that each document had before
//! the first change since the snapshot before it; no bytes if it had none. The forward index follows from the rows. A snapshot
//! that changed nothing has no slot.
//! A commit that is no snapshot (memory was short, or a catchup goes on) writes into the slot that the next one gets.
//! The oldest snapshot has nothing before it and hence no slot, so dropping the oldest one clears the slot of its successor.

use super::{
    SliceMark, StoreError, StoreLimits,
    ascending::{Reader, Writer},
    base::{Bytemap, Databases, SliceEnv},
    diff::{Sink, decode_row_key},
    layer::{Change, Changes},
    meta::{KeptSnapshot, Meta, UndoSlot},
    persist::META_KEY,
    value::{self, decode},
};
use heed::{PutFlags, RoTxn, RwTxn, WithoutTls};
use highwater_schemas::collation::encode_entry_suffix;
use std::{ops::Bound, sync::Arc};

/// Undo slots of a slice, so the most snapshots kept beside the oldest: four minutes of persistence every five seconds.
pub(crate) const SLOTS: usize = 48;
/// Documents of an undo slot that are taken back at once, and bytes of them: the more, the nearer to each other are the entries that
/// are written one after the other.
const CHUNK: usize = 131_072;
const CHUNK_BYTES: usize = 32 * 1024 * 1024;

/// The kept snapshots, oldest first, and the slot in use.
#[derive(Clone, Default)]
pub(super) struct History {
    pub kept: Vec<KeptSnapshot>,
    pub open: UndoSlot,
}

/// The databases of the undo slots.
pub(super) type Slots = Arc<[Bytemap]>;

/// The key of a kept snapshot's record.
pub(super) fn snapshot_key(st: u64) -> [u8; 8] {
    st.to_be_bytes()
}

impl History {
    /// Reads the records of the kept snapshots.
    pub fn read(dbs: Databases, txn: &RoTxn<'_, WithoutTls>, open: UndoSlot) -> Result<Self, StoreError> {
        let mut kept: Vec<KeptSnapshot> = Vec::new();
        for record in dbs.snapshots.iter(txn)? {
            let (key, record) = record?;
            let snapshot = KeptSnapshot::decode(record)?;
            let in_order = kept.last().is_none_or(|k| k.mark.st < snapshot.mark.st);
            if key != snapshot_key(snapshot.mark.st) || !in_order {
                return Err(StoreError::damaged("kept snapshots are not in order"));
            }
            kept.push(snapshot);
        }
        let history = Self { kept, open };
        history.check()?;
        Ok(history)
    }

    /// The oldest snapshot has no slot, and no two have the same.
    fn check(&self) -> Result<(), StoreError> {
        let mut used = [false; SLOTS];
        for (i, slot) in self.kept.iter().map(|k| k.undo.slot).chain([self.open.slot]).enumerate() {
            match slot.map(usize::from) {
                Some(slot) if slot >= SLOTS || used[slot] || i == 0 => {
                    return Err(StoreError::damaged("kept snapshots share an undo slot"));
                }
                Some(slot) => used[slot] = true,
                // Nothing changed since the snapshot before it.
                None => {}
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.kept.iter().map(|k| k.undo.bytes).sum::<u64>() + self.open.bytes
    }

    /// The slot to write undo records into; none while no snapshot is kept.
    pub fn begin(&mut self, dbs: Databases, slots: &Slots, txn: &mut RwTxn<'_>) -> Result<Option<Bytemap>, StoreError> {
        if self.kept.is_empty() {
            return Ok(None);
        }
        let slot = match self.open.slot {
            Some(slot) => slot,
            None => loop {
                let used = |slot: u8| self.kept.iter().any(|k| k.undo.slot == Some(slot));
                match (0..SLOTS as u8).find(|slot| !used(*slot)) {
                    Some(slot) => break slot,
                    None => self.drop_oldest(dbs, slots, txn)?,
                }
            },
        };
        self.open.slot = Some(slot);
        Ok(slots.get(usize::from(slot)).copied())
    }

    /// Keeps the state of this transaction as a snapshot, and drops what need not be kept any more.
    pub fn keep(
        &mut self,
        (dbs, slots): (Databases, &Slots),
        txn: &mut RwTxn<'_>,
        (mark, at): (SliceMark, u64),
        limits: &StoreLimits,
    ) -> Result<(), StoreError> {
        let (items, unindexed) = (dbs.entries.len(txn)?, dbs.unindexed.len(txn)?);
        let mut snapshot = KeptSnapshot { mark, at, items, unindexed, undo: std::mem::take(&mut self.open) };
        if self.kept.last().is_some_and(|last| last.mark.st >= snapshot.mark.st) {
            // One that is repeated has nothing new.
            let repeated = self.kept.pop_if(|last| last.mark.st == snapshot.mark.st && snapshot.undo.bytes == 0);
            let before = repeated.ok_or(StoreError::Misuse("a snapshot of a stability timestamp that is not newer"))?;
            snapshot.undo = before.undo;
        }
        dbs.snapshots.put(txn, &snapshot_key(snapshot.mark.st), &snapshot.encode())?;
        self.kept.push(snapshot);
        let since = at.saturating_sub(limits.kept_for.as_millis() as u64);
        while self.kept.len() > limits.kept_least.max(1) && self.kept[0].at < since {
            self.drop_oldest(dbs, slots, txn)?;
        }
        while self.kept.len() > 1 && self.bytes() > limits.undo_quota {
            self.drop_oldest(dbs, slots, txn)?;
        }
        Ok(())
    }

    fn drop_oldest(&mut self, dbs: Databases, slots: &Slots, txn: &mut RwTxn<'_>) -> Result<(), StoreError> {
        let oldest = self.kept.remove(0);
        dbs.snapshots.delete(txn, &snapshot_key(oldest.mark.st))?;
        let next = match self.kept.first_mut() {
            Some(next) => &mut next.undo,
            None => &mut self.open,
        };
        clear(slots, txn, std::mem::take(next))?;
        if let Some(next) = self.kept.first() {
            dbs.snapshots.put(txn, &snapshot_key(next.mark.st), &next.encode())?;
        }
        Ok(())
    }

    /// Takes back every change since the snapshot at `st`, newest first, and makes it the newest one.
    pub fn roll_back(&mut self, dbs: Databases, slots: &Slots, txn: &mut RwTxn<'_>, st: u64) -> Result<(), StoreError> {
        if !self.kept.iter().any(|k| k.mark.st == st) {
            return Err(StoreError::NoSuchSnapshot(st));
        }
        take_back(dbs, slots, txn, std::mem::take(&mut self.open))?;
        while let Some(newest) = self.kept.pop_if(|k| k.mark.st > st) {
            take_back(dbs, slots, txn, newest.undo)?;
            dbs.snapshots.delete(txn, &snapshot_key(newest.mark.st))?;
        }
        Ok(())
    }
}

/// Rolls the environment back in one transaction; answers the meta record that is in force then.
pub(super) fn roll_back(
    env: &SliceEnv,
    (dbs, slots): (Databases, &Slots),
    history: &mut History,
    st: u64,
    topic: (u64, i64),
) -> Result<Meta, StoreError> {
    let mut txn = env.write_txn()?;
    let mut rolled = history.clone();
    rolled.roll_back(dbs, slots, &mut txn, st)?;
    let Some(target) = rolled.kept.last() else { return Err(StoreError::NoSuchSnapshot(st)) };
    let record = dbs.meta.get(&txn, META_KEY)?.ok_or_else(|| StoreError::damaged("meta record is missing"))?;
    let mut meta = Meta::decode(record)?;
    meta.mark = SliceMark { topic: topic.0, topic_created: topic.1, ..target.mark.clone() };
    meta.undo = rolled.open;
    (meta.items, meta.unindexed) = (dbs.entries.len(&txn)?, dbs.unindexed.len(&txn)?);
    if (meta.items, meta.unindexed) != (target.items, target.unindexed) {
        return Err(StoreError::damaged("undo leads to another number of entries than the snapshot had"));
    }
    dbs.meta.put(&mut txn, META_KEY, &meta.encode())?;
    txn.commit()?;
    *history = rolled;
    Ok(meta)
}

fn clear(slots: &Slots, txn: &mut RwTxn<'_>, undo: UndoSlot) -> Result<(), StoreError> {
    if let Some(db) = undo.slot.and_then(|slot| slots.get(usize::from(slot))) {
        db.clear(txn)?;
    }
    Ok(())
}

/// Remembers what documents had, keys ascending, unless an earlier change of the same slot did.
pub(super) fn remember(
    slot: Bytemap,
    undo: &mut UndoSlot,
    txn: &mut RwTxn<'_>,
    priors: &Changes,
) -> Result<(), StoreError> {
    let mut slot = Writer::new(slot, txn)?;
    for prior in priors.iter() {
        if slot.put_new(prior.key, prior.value)? {
            undo.bytes += (prior.key.len() + prior.value.len()) as u64;
        }
    }
    Ok(())
}

/// Gives the documents of a slot back what they had, and clears it.
fn take_back(dbs: Databases, slots: &Slots, txn: &mut RwTxn<'_>, undo: UndoSlot) -> Result<(), StoreError> {
    let Some(slot) = undo.slot.and_then(|slot| slots.get(usize::from(slot))) else { return Ok(()) };
    let documents = slot.len(txn)? as usize;
    let mut after: Option<Vec<u8>> = None;
    let (mut priors, mut entries, mut unindexed) = (Changes::default(), Changes::default(), Changes::default());
    loop {
        let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        priors.clear();
        for record in slot.range(txn, &(from, Bound::Unbounded))?.take(CHUNK) {
            let (key, prior) = record?;
            priors.append(key, prior);
            if priors.bytes() > CHUNK_BYTES {
                break;
            }
        }
        let Some(last) = priors.iter().next_back() else { break };
        after = Some(last.key.to_vec());
        entries.clear();
        unindexed.clear();
        let sink = Sink { entries: &mut entries, unindexed: &mut unindexed };
        let present = differences(Reader::new(dbs.rows, txn, documents)?, &priors, sink)?;
        let mut rows = Writer::new(dbs.rows, txn)?;
        for (Change { key, value, .. }, present) in priors.iter().zip(present) {
            if !value.is_empty() {
                rows.put(PutFlags::empty(), key, value)?;
            } else if present {
                rows.delete(key)?;
            }
        }
        drop(rows);
        for (db, changes) in [(dbs.entries, &entries), (dbs.unindexed, &unindexed)] {
            Writer::new(db, txn)?.apply(PutFlags::empty(), &[changes])?;
        }
    }
    clear(slots, txn, undo)
}

/// What turns the present rows of these documents into those that they had; answers which have one.
fn differences(mut rows: Reader<'_>, priors: &Changes, mut sink: Sink<'_>) -> Result<Vec<bool>, StoreError> {
    let (mut suffix, mut there) = (Vec::new(), Vec::with_capacity(priors.len()));
    for Change { key, value, .. } in priors.iter() {
        let present = rows.get(key)?.map(decode).transpose()?;
        there.push(present.is_some());
        let prior = if value.is_empty() { None } else { Some(decode(value)?) };
        let (vb, docid) = decode_row_key(key)?;
        suffix.clear();
        encode_entry_suffix(docid, vb, &mut suffix);
        sink.replace(key, &suffix, present.as_ref(), prior.as_ref());
    }
    Ok(there)
}

/// Checks the records of every slot; answers how many there are.
pub(super) fn verify(history: &History, slots: &Slots, txn: &RoTxn<'_, WithoutTls>) -> Result<u64, StoreError> {
    history.check()?;
    let used = history.kept.iter().map(|k| k.undo).chain([history.open]);
    let used: Vec<UndoSlot> = used.filter(|u| u.slot.is_some()).collect();
    let mut documents = 0;
    for (number, slot) in slots.iter().enumerate() {
        let owner = used.iter().find(|u| u.slot.map(usize::from) == Some(number));
        let mut bytes = 0;
        for record in slot.iter(txn)? {
            let (key, prior) = record?;
            decode_row_key(key)?;
            if !prior.is_empty() {
                value::check(prior)?;
                value::decode(prior)?;
            }
            bytes += (key.len() + prior.len()) as u64;
            documents += 1;
        }
        if owner.map_or(0, |u| u.bytes) != bytes {
            return Err(StoreError::damaged(format!("undo slot {number} has another size than its record says")));
        }
    }
    Ok(documents)
}
