//! The index manager's own durable copy of the log: an LMDB environment.
//!
//! # Format (version 1)
//! | database | key | value |
//! |---|---|---|
//! | `meta` | `format` | 1 |
//! | `meta` | `term` | the highest term heard of, 8 bytes, little-endian |
//! | `meta` | `base` | version of the record that reading begins with: the first, or a snapshot |
//! | `log` | version, 8 bytes, big-endian | the record, JSON |
//! | `chain` | version, 8 bytes, big-endian | its hash, 16 bytes |
//!
//! Each write is one transaction, synced. A crash leaves what was there before it, or after it. Records before the base stay for
//! a while, for people.

use crate::manager::chain::{Chain, Linked, MOST, What};
use heed::{
    CommitOrAbort, Database, Env, EnvOpenOptions, RoTxn, RwTxn, WithoutTls,
    types::{Bytes, Str},
};
use highwater_schemas::state::{StateContext, StateError};
use std::{ops::Bound, path::Path};

const FORMAT: u64 = 1;
const DIRECTORY: &str = "state";
/// Address space; the copy of ten thousand indexes takes some tens of MiB.
const MAP: usize = 4 << 30;
/// Records kept before the newest snapshot.
const HISTORY: u64 = 1_000;

/// Why the copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Lmdb(#[from] heed::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("format {0} is not one that this version reads")]
    Format(u64),
    #[error("it does not add up: {0}; move the directory away to begin with what the log holds")]
    Damaged(#[from] StateError),
}

/// The open copy.
pub(crate) struct Copy {
    env: Env<WithoutTls>,
    meta: Database<'static, Str, Bytes>,
    log: Database<'static, Bytes, Bytes>,
    chain: Database<'static, Bytes, Bytes>,
}

/// What the copy holds.
pub(crate) struct Kept {
    pub(crate) context: StateContext,
    pub(crate) chain: Chain,
    pub(crate) term: u64,
}

impl Copy {
    /// Opens the copy in a directory that the caller has locked, and reads it.
    #[allow(unsafe_code)]
    pub(crate) fn open(dir: &Path) -> Result<(Self, Kept), CopyError> {
        let dir = dir.join(DIRECTORY);
        std::fs::create_dir_all(&dir)?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP).max_dbs(3);
        // SAFETY: the service holds the lock of its directory, so no other process maps the file.
        let env = unsafe { options.open(&dir) }?;
        let txn = env.write_txn()?;
        let created = env.create_databases_and_commit(txn, |opener, txn| -> Result<_, CopyError> {
            Ok(CommitOrAbort::<_, ()>::Commit((
                opener.create_database::<Str, Bytes>(txn, Some("meta"))?,
                opener.create_database::<Bytes, Bytes>(txn, Some("log"))?,
                opener.create_database::<Bytes, Bytes>(txn, Some("chain"))?,
            )))
        })?;
        let Some((meta, log, chain)) = created.commit() else { return Err(CopyError::Format(0)) };
        let copy = Self { env, meta, log, chain };
        let mut txn = copy.env.write_txn()?;
        match copy.number(&txn, "format")? {
            None => copy.set(&mut txn, "format", FORMAT)?,
            Some(FORMAT) => {}
            Some(other) => return Err(CopyError::Format(other)),
        }
        txn.commit()?;
        let kept = copy.read()?;
        Ok((copy, kept))
    }

    fn read(&self) -> Result<Kept, CopyError> {
        let txn = self.env.read_txn()?;
        let mut context = StateContext::default();
        let base = self.number(&txn, "base")?.unwrap_or(0);
        for row in self.log.range(&txn, &(Bound::Included(&base.to_be_bytes()[..]), Bound::Unbounded))? {
            context.offer(row?.1)?;
        }
        let mut chain = Chain::default();
        for row in self.chain.iter(&txn)? {
            let (version, hash) = row?;
            if let (Ok(version), Ok(hash)) = (version.try_into(), hash.try_into()) {
                chain.push_hash(u64::from_be_bytes(version), u128::from_be_bytes(hash));
            }
        }
        Ok(Kept { context, chain, term: self.number(&txn, "term")?.unwrap_or(0) })
    }

    /// The newest records, the oldest of them first: at most so many, and no more bytes than that. A record of more than half of
    /// the bytes is summarised.
    pub(crate) fn newest(&self, most: usize, bytes: usize) -> Result<Vec<Vec<u8>>, CopyError> {
        let txn = self.env.read_txn()?;
        let (mut size, mut records) = (0, Vec::new());
        for row in self.log.rev_iter(&txn)?.take(most) {
            let record = row?.1;
            let record = if record.len() > bytes / 2 { shortened(record) } else { record.to_vec() };
            size += record.len() + 1;
            if size > bytes {
                break;
            }
            records.push(record);
        }
        records.reverse();
        Ok(records)
    }

    /// Keeps the highest term heard of.
    pub(crate) fn keep_term(&self, term: u64) -> Result<(), CopyError> {
        let mut txn = self.env.write_txn()?;
        self.set(&mut txn, "term", term)?;
        Ok(txn.commit()?)
    }

    /// Keeps records behind those that are there, or instead of them.
    pub(crate) fn keep(&self, records: &[Linked], anew: bool) -> Result<(), CopyError> {
        let mut txn = self.env.write_txn()?;
        if anew {
            self.log.clear(&mut txn)?;
            self.chain.clear(&mut txn)?;
            self.set(&mut txn, "base", 0)?;
        }
        for Linked { link, json } in records {
            let hash = u128::from_str_radix(&link.hash, 16).unwrap_or_default();
            self.log.put(&mut txn, &link.version.to_be_bytes(), json)?;
            self.chain.put(&mut txn, &link.version.to_be_bytes(), &hash.to_be_bytes())?;
            if link.what == What::Snapshot {
                self.set(&mut txn, "base", link.version)?;
                let old = link.version.saturating_sub(HISTORY).to_be_bytes();
                self.log.delete_range(&mut txn, &(Bound::Unbounded, Bound::Excluded(&old[..])))?;
                let forgotten = link.version.saturating_sub(MOST as u64).to_be_bytes();
                self.chain.delete_range(&mut txn, &(Bound::Unbounded, Bound::Excluded(&forgotten[..])))?;
            }
        }
        Ok(txn.commit()?)
    }

    fn number(&self, txn: &RoTxn<'_>, key: &str) -> Result<Option<u64>, CopyError> {
        let value = self.meta.get(txn, key)?;
        Ok(value.and_then(|v| v.try_into().ok()).map(u64::from_le_bytes))
    }

    fn set(&self, txn: &mut RwTxn<'_>, key: &str, value: u64) -> Result<(), CopyError> {
        Ok(self.meta.put(txn, key, &value.to_le_bytes())?)
    }
}

/// A summary of a large record: its version, its time, the kind of its change, and its size.
fn shortened(record: &[u8]) -> Vec<u8> {
    let whole: serde_json::Value = serde_json::from_slice(record).unwrap_or_default();
    let change = serde_json::json!({ "what": whole["change"]["what"], "bytes": record.len() });
    serde_json::json!({ "version": whole["version"], "at": whole["at"], "change": change }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{api::NodeKind, state::Change};

    fn append(context: &mut StateContext, change: Change) -> Linked {
        let record = Linked::from(&context.record(change, 1, 0));
        context.offer(&record.json).unwrap();
        record
    }

    #[test]
    fn a_copy_is_what_was_kept_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut context = StateContext::default();
        let joined = |n: u64| Change::NodeJoined { node: "n".into(), kind: NodeKind::Indexer, incarnation: n };
        {
            let (copy, kept) = Copy::open(dir.path()).unwrap();
            assert_eq!((kept.context.version, kept.term), (0, 0));
            let records: Vec<_> = (1..=3).map(|n| append(&mut context, joined(n))).collect();
            copy.keep(&records, false).unwrap();
            copy.keep_term(7).unwrap();
        }
        let snapshot = Change::Snapshot { context: Box::new(context.clone()), reason: String::new() };
        {
            let (copy, kept) = Copy::open(dir.path()).unwrap();
            assert_eq!((&kept.context, kept.term), (&context, 7));
            let records = [append(&mut context, snapshot), append(&mut context, joined(9))];
            copy.keep(&records, false).unwrap();
            let newest = |most, bytes: usize| {
                let records = copy.newest(most, bytes).unwrap();
                let size: usize = records.iter().map(|record| record.len() + 1).sum();
                assert!(size <= bytes, "{size} bytes of {bytes}");
                records
            };
            assert_eq!(newest(10, 1 << 20).len(), 5, "what is before the snapshot stays for a while");
            let last = &records[1].json;
            let one = std::slice::from_ref(last);
            assert_eq!(newest(1, 1 << 20), *one);
            for bytes in 0..4 * last.len() {
                newest(usize::MAX, bytes);
            }
            assert_eq!(newest(1, 2 * last.len()), *one, "at the bound");
            let short = newest(1, 2 * last.len() - 1);
            let short: serde_json::Value = serde_json::from_slice(&short[0]).unwrap();
            assert_eq!(short["version"], 5);
            assert_eq!(short["change"], serde_json::json!({"what": "node_joined", "bytes": last.len()}));
        }
        let (copy, kept) = Copy::open(dir.path()).unwrap();
        assert_eq!(kept.context, context);
        assert_eq!(kept.chain.agrees(5, &context.hash), Some(true));
        assert_eq!(kept.chain.len(), 5);
        let mut other = StateContext::default();
        copy.keep(&[append(&mut other, joined(1))], true).unwrap();
        assert_eq!(copy.read().unwrap().context, other);
    }
}
