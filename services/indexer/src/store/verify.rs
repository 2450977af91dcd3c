//! Checking a slice: each thing that is stored twice says the same twice.

use super::{
    SliceMark, StoreError,
    base::{Base, Bytemap, Databases, ReadTxn},
    diff::decode_row_key,
    lmdb::LmdbStore,
    open::DATA,
    pages::Commit,
    undo::{self, History, Slots},
    value,
};
use highwater_schemas::collation::encode_entry_suffix;
use std::sync::Arc;

/// Whether somebody still waits is looked at every so many documents.
const LOOK: u64 = 4_096;

/// What a slice holds, all of it checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Documents in the back index.
    pub documents: u64,
    pub entries: u64,
    /// Documents that the index could not take.
    pub unindexed: u64,
    /// Snapshots to which the slice can be rolled back.
    pub snapshots: u64,
    /// Undo records, one per document and snapshot.
    pub undo: u64,
}

impl LmdbStore {
    /// Reads the whole durable state and checks that forward index, back index, list of unindexed documents, kept snapshots
    /// and undo records agree.
    pub fn verify(&self) -> Result<Verified, StoreError> {
        self.verifier()?.run()
    }

    /// The same, to run on another thread: the newest commit stays as it is until then.
    pub fn verifier(&self) -> Result<Verifier, StoreError> {
        let live = self.live()?;
        let (base, slots) = (Arc::clone(&live.base), Arc::clone(&live.slots));
        let pages = Commit::find(&self.directory().join(DATA), base.commit())?;
        Ok(Verifier { pages, base, slots, history: self.history().clone() })
    }
}

/// A check that is ready to run, on any thread that may block.
pub struct Verifier {
    pub(super) pages: Commit,
    pub(super) base: Arc<Base>,
    pub(super) slots: Slots,
    pub(super) history: History,
}

impl Verifier {
    /// Reads everything and compares; [`StoreError::Damaged`] says what does not agree.
    pub fn run(self) -> Result<Verified, StoreError> {
        self.run_while(&|| true)
    }

    /// As [`Self::run`], as long as somebody waits for the answer: [`StoreError::GivenUp`].
    pub fn run_while(self, waiting: &dyn Fn() -> bool) -> Result<Verified, StoreError> {
        if !waiting() {
            return Err(StoreError::GivenUp);
        }
        let reader = self.base.reader(None)?;
        self.pages.check()?;
        verify(self.base.dbs, &self.slots, &self.history, &reader, waiting)
    }

    /// Only checks that LMDB can be led through the pages.
    pub fn pages(self) -> Result<(), StoreError> {
        // The base keeps the commit's pages as they are.
        self.pages.check()
    }
}

/// Reads every database and compares.
///
/// Entry keys of different documents differ, so equal counts and every derived entry being there mean equality.
fn verify(
    dbs: Databases,
    slots: &Slots,
    history: &History,
    txn: &ReadTxn,
    waiting: &dyn Fn() -> bool,
) -> Result<Verified, StoreError> {
    let mut found = Verified { snapshots: history.kept.len() as u64, ..Verified::default() };
    let mut key = Vec::new();
    let mut last: Option<&[u8]> = None;
    for row in dbs.rows.iter(txn)? {
        let (row_key, bytes) = row?;
        let (vb, docid) = decode_row_key(row_key)?;
        let damaged = |what: &str| StoreError::damaged(format!("document {docid:?} of vbucket {vb}: {what}"));
        if last.is_some_and(|last| last >= row_key) {
            return Err(damaged("stands out of order in the back index"));
        }
        last = Some(row_key);
        value::check(bytes)?;
        let row = value::decode(bytes)?;
        found.documents += 1;
        if found.documents.is_multiple_of(LOOK) && !waiting() {
            return Err(StoreError::GivenUp);
        }
        for entry in row.entries() {
            key.clear();
            key.extend_from_slice(entry.key);
            encode_entry_suffix(docid, vb, &mut key);
            if dbs.entries.get(txn, &key)? != Some(entry.include) {
                return Err(damaged("entry is missing or has other fields"));
            }
            found.entries += 1;
        }
        if let Some(reason) = row.reason {
            let listed = dbs.unindexed.get(txn, row_key)?.map(value::decode_unindexed).transpose()?;
            if listed != Some((row.seqno, reason)) {
                return Err(damaged("not listed as unindexed"));
            }
            found.unindexed += 1;
        }
        if row.reason.is_none() && row.entries().next().is_none() {
            return Err(damaged("has nothing to remember"));
        }
    }
    if found.entries != dbs.entries.len(txn)? || found.unindexed != dbs.unindexed.len(txn)? {
        return Err(StoreError::damaged("entries that belong to no document"));
    }
    if ascending(dbs.entries, txn)? != found.entries || ascending(dbs.unindexed, txn)? != found.unindexed {
        return Err(StoreError::damaged("a scan meets another number of entries than there are"));
    }
    timestamps(history)?;
    found.undo = undo::verify(history, slots, txn)?;
    Ok(found)
}

/// Reads a database from end to end; answers its number of keys, which have to ascend.
fn ascending(db: Bytemap, txn: &ReadTxn) -> Result<u64, StoreError> {
    let (mut count, mut last): (u64, Option<&[u8]>) = (0, None);
    for row in db.iter(txn)? {
        let (key, _) = row?;
        if last.is_some_and(|last| last >= key) {
            return Err(StoreError::damaged("an entry stands out of order"));
        }
        (count, last) = (count + 1, Some(key));
    }
    Ok(count)
}

/// Kept snapshots follow one another: within a branch, positions never fall, and nothing covers what was not read.
fn timestamps(history: &History) -> Result<(), StoreError> {
    let check = |mark: &SliceMark| {
        let bad = mark.vbs.iter().any(|vb| vb.covered > vb.position.seqno.max(vb.content));
        if bad { Err(StoreError::damaged(format!("ST {} covers more than it holds", mark.st))) } else { Ok(()) }
    };
    history.kept.iter().try_for_each(|k| check(&k.mark))?;
    for pair in history.kept.windows(2) {
        let vbs = pair[0].mark.vbs.iter().zip(&pair[1].mark.vbs);
        if vbs.clone().any(|(a, b)| a.vbuuid == b.vbuuid && !a.position.le(b.position)) {
            return Err(StoreError::damaged(format!("ST {} lies behind the one before it", pair[1].mark.st)));
        }
    }
    Ok(())
}
