//! Many keys of one database, in ascending order.
//!
//! LMDB searches from the root for each key that it is asked for by itself. A cursor that stands in the right page already finds the
//! next key there, and where changes are many and sorted that is where most of them are.

use super::{
    StoreError,
    base::Bytemap,
    layer::{Change, Changes, Kind, compose},
};
use heed::{MdbError, PutFlags, RoRange, RoTxn, RwIter, RwTxn, WithoutTls, types::Bytes};
use std::ops::Bound;

/// Records that are passed over before a key is searched from the root; where keys are farther from each other throughout, each is.
const NEAR: u64 = 4;

/// Writes.
pub(super) struct Writer<'t> {
    cursor: RwIter<'t, Bytes, Bytes>,
}

impl<'t> Writer<'t> {
    pub fn new(db: Bytemap, txn: &'t mut RwTxn<'_>) -> Result<Self, StoreError> {
        Ok(Self { cursor: db.iter_mut(txn)? })
    }

    #[allow(unsafe_code)]
    fn put_with(&mut self, flags: PutFlags, key: &[u8], value: &[u8]) -> Result<(), heed::Error> {
        // SAFETY: neither may lie in the database that is changed. The cursor borrows the transaction for as long as it lives, so
        // nobody holds what was read through it. That the key must be the cursor's own holds for `MDB_CURRENT` alone, which
        // `PutFlags` does not have: LMDB looks any other up.
        unsafe { self.cursor.put_current_with_options::<Bytes>(flags, key, value) }
    }

    pub fn put(&mut self, flags: PutFlags, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        Ok(self.put_with(flags, key, value)?)
    }

    /// False: there is one of this key, which stays.
    pub fn put_new(&mut self, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        match self.put_with(PutFlags::NO_OVERWRITE, key, value) {
            Ok(()) => Ok(true),
            Err(heed::Error::Mdb(MdbError::KeyExist)) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// One that is not there is fine, but costs a write.
    #[allow(unsafe_code)]
    pub fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        // The cursor has no search of its own: this leaves it at the key, whether it was there or not.
        self.put_new(key, &[])?;
        // SAFETY: as above.
        let deleted = unsafe { self.cursor.del_current() }?;
        debug_assert!(deleted, "the cursor is at the key");
        Ok(())
    }

    /// Writes the net changes; a later source is newer.
    pub fn apply(&mut self, flags: PutFlags, sources: &[&Changes]) -> Result<(), StoreError> {
        compose(sources, |Change { key, value, kind }| match kind {
            Kind::Delete => self.delete(key),
            Kind::Insert | Kind::Update => self.put(flags, key, value),
        })
    }
}

/// Reads.
pub(super) struct Reader<'t> {
    db: Bytemap,
    txn: &'t RoTxn<'t, WithoutTls>,
    /// None: keys are too far from each other.
    cursor: Option<Cursor<'t>>,
}

struct Cursor<'t> {
    range: RoRange<'t, Bytes, Bytes>,
    at: Option<(&'t [u8], &'t [u8])>,
}

impl<'t> Cursor<'t> {
    fn from(db: Bytemap, txn: &'t RoTxn<'_, WithoutTls>, from: Bound<&[u8]>) -> Result<Self, StoreError> {
        let mut range = db.range(txn, &(from, Bound::Unbounded))?;
        let at = range.next().transpose()?;
        Ok(Self { range, at })
    }
}

impl<'t> Reader<'t> {
    /// About so many keys will be asked for.
    pub fn new(db: Bytemap, txn: &'t RoTxn<'_, WithoutTls>, keys: usize) -> Result<Self, StoreError> {
        let dense = keys as u64 * NEAR >= db.len(txn)?;
        let cursor = if dense { Some(Cursor::from(db, txn, Bound::Unbounded)?) } else { None };
        Ok(Self { db, txn, cursor })
    }

    /// The value of a key that is above the last one.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<&'t [u8]>, StoreError> {
        let Some(cursor) = &mut self.cursor else { return Ok(self.db.get(self.txn, key)?) };
        for _ in 0..=NEAR {
            match cursor.at {
                Some((found, value)) if found == key => return Ok(Some(value)),
                Some((found, _)) if found < key => cursor.at = cursor.range.next().transpose()?,
                _ => return Ok(None),
            }
        }
        *cursor = Cursor::from(self.db, self.txn, Bound::Included(key))?;
        Ok(cursor.at.filter(|(found, _)| *found == key).map(|(_, value)| value))
    }
}
