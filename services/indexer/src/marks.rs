//! How far slices are that had nothing to write: one small environment per node.
//!
//! At a persistence timestamp most slices of a large node have not changed. Writing and syncing each of them only to say so
//! would cost more than the changes do, and leaving their old timestamps would drag a restart back to them. So their marks are
//! written here, all in one transaction: by (bucket, slice) the number of the stability timestamp at which the slice's own
//! store is, and the newer mark. A record counts as long as the store is still there; a store that moves by itself makes it
//! void.

use crate::store::{self, SliceMark, StoreError};
use heed::{
    CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, WithoutTls,
    types::{Bytes, Str},
};
use std::{fs, path::Path};

/// Address space: a record has some hundred bytes, and a node some thousand slices.
const MAP: usize = 1 << 30;
const DIRECTORY: &str = "marks";
const NAME: &str = "marks";
/// Bytes before the mark: the store's own stability timestamp, little-endian.
const STORE_ST: usize = 8;

/// The marks of a node.
pub(crate) struct Marks {
    env: Env<WithoutTls>,
    db: Database<'static, Str, Bytes>,
}

/// A slice that has nothing but a newer mark.
pub(crate) struct Unchanged {
    pub(crate) slice: String,
    /// Where its own store is.
    pub(crate) store_st: u64,
    pub(crate) mark: SliceMark,
}

impl Marks {
    /// Opens the environment below the node's data directory, which the caller has locked.
    #[allow(unsafe_code)]
    pub(crate) fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let dir = data_dir.join(DIRECTORY);
        fs::create_dir_all(&dir)?;
        store::check_file(&dir)?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP).max_dbs(1);
        // SAFETY: the node holds a lock on its data directory, so no other process has the file open; nor has this one.
        let env = unsafe { options.open(&dir) }?;
        let txn = env.write_txn()?;
        let created = env.create_databases_and_commit(txn, |opener, txn| -> Result<_, StoreError> {
            Ok(CommitOrAbort::<_, ()>::Commit(opener.create_database::<Str, Bytes>(txn, Some(NAME))?))
        })?;
        let db = created.commit().ok_or(StoreError::Misuse("creation is never aborted"))?;
        Ok(Self { env, db })
    }

    /// Opens the environment to look at it; None if there is none. The caller has locked the data directory.
    #[allow(unsafe_code)]
    pub(crate) fn inspect(data_dir: &Path) -> Result<Option<Self>, StoreError> {
        let dir = data_dir.join(DIRECTORY);
        if !dir.join(store::DATA).exists() {
            return Ok(None);
        }
        store::check_file(&dir)?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP).max_dbs(1);
        // SAFETY: as in `open`; nothing can be written, so no reader table is needed.
        let env = unsafe {
            options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK);
            options.open(&dir)
        }?;
        let txn = env.read_txn()?;
        let opened = env.open_databases_and_commit(txn, |opener, txn| -> Result<_, StoreError> {
            Ok(match opener.open_database::<Str, Bytes>(txn, Some(NAME))? {
                Some(db) => CommitOrAbort::Commit(db),
                None => CommitOrAbort::Abort(()),
            })
        })?;
        Ok(opened.commit().map(|db| Self { env, db }))
    }

    /// Reads every mark; answers how many there are.
    pub(crate) fn verify(&self) -> Result<u64, StoreError> {
        let txn = self.env.read_txn()?;
        let mut marks = 0;
        for record in self.db.iter(&txn)? {
            let (_, record) = record?;
            store::decode_mark(record.get(STORE_ST..).unwrap_or_default())?;
            marks += 1;
        }
        Ok(marks)
    }

    /// Removes an environment that cannot be used: slices then start from their own marks.
    pub(crate) fn discard(data_dir: &Path) -> Result<(), StoreError> {
        Ok(fs::remove_dir_all(data_dir.join(DIRECTORY))?)
    }

    /// Makes the marks durable in one transaction.
    pub(crate) fn write(&self, unchanged: &[Unchanged]) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        for one in unchanged {
            let mut record = one.store_st.to_le_bytes().to_vec();
            record.extend_from_slice(&store::encode_mark(&one.mark));
            self.db.put(&mut txn, &one.slice, &record)?;
        }
        Ok(txn.commit()?)
    }

    /// The mark of a slice whose own store is at `store_st`, if there is a newer one.
    pub(crate) fn newest(&self, slice: &str, store_st: u64) -> Result<Option<SliceMark>, StoreError> {
        let txn = self.env.read_txn()?;
        let Some(record) = self.db.get(&txn, slice)? else { return Ok(None) };
        let Some((at, mark)) = record.split_first_chunk::<STORE_ST>() else {
            return Err(StoreError::Damaged("mark of an unchanged slice is too short".into()));
        };
        if u64::from_le_bytes(*at) != store_st {
            return Ok(None);
        }
        let mark = store::decode_mark(mark)?;
        Ok((mark.st > store_st).then_some(mark))
    }

    /// Forgets slices; needed before a store goes back to where it was when its mark was written.
    pub(crate) fn forget(&self, slices: &[&str]) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn()?;
        let mut any = false;
        for slice in slices {
            any |= self.db.delete(&mut txn, slice)?;
        }
        if any {
            txn.commit()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_while_its_store_stays_where_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = SliceMark { st: 9, topic: 4, ..SliceMark::default() };
        let marks = Marks::open(dir.path()).expect("opens");
        marks.write(&[Unchanged { slice: "b/x.0".into(), store_st: 7, mark: mark.clone() }]).expect("writes");
        drop(marks);
        let marks = Marks::open(dir.path()).expect("opens");
        assert_eq!(marks.newest("b/x.0", 7).expect("reads").as_ref(), Some(&mark));
        assert_eq!(marks.newest("b/x.0", 8).expect("reads"), None);
        assert_eq!(marks.newest("b/x.1", 7).expect("reads"), None);
        drop(marks);
        let marks = Marks::inspect(dir.path()).expect("opens").expect("is there");
        assert_eq!((marks.verify().expect("good"), marks.newest("b/x.0", 7).expect("reads")), (1, Some(mark)));
        drop(marks);
        let marks = Marks::open(dir.path()).expect("opens");
        marks.forget(&["b/x.0", "b/none.0"]).expect("forgets");
        assert_eq!(marks.newest("b/x.0", 7).expect("reads"), None);
        drop(marks);
        Marks::discard(dir.path()).expect("removes");
        assert_eq!(Marks::open(dir.path()).expect("opens").newest("b/x.0", 7).expect("reads"), None);
    }
}
