//! Opening a slice's directory, or making one.

use super::{
    MAX_KEY, SliceIdentity, StoreError, StoreLimits,
    base::{Bytemap, Databases, SliceEnv},
    meta::Meta,
    persist::META_KEY,
};
use heed::{
    CommitOrAbort, EnvOpenOptions, OnCommit,
    types::{Bytes, DecodeIgnore},
};
use std::{fs, path::Path};

const ENTRIES: &str = "fi";
const ROWS: &str = "bi";
const UNINDEXED: &str = "ui";
const META: &str = "meta";
/// Room for further named databases, which later versions may add.
const MAX_DATABASES: u32 = 32;
/// Slots of LMDB's reader table; every commit that is still read takes some.
const MAX_READERS: u32 = 1_024;

type Opened<'t> = heed::Database<'t, Bytes, Bytes>;

/// The environment, its databases and its meta record, checked against the identity.
pub(super) fn open(
    dir: &Path,
    identity: &SliceIdentity,
    limits: &StoreLimits,
) -> Result<(SliceEnv, Databases, Meta), StoreError> {
    let fresh = !dir.exists();
    fs::create_dir_all(dir)?;
    let env = open_env(dir, limits).map_err(|e| match e {
        heed::Error::EnvAlreadyOpened => StoreError::AlreadyOpen(dir.to_owned()),
        other => other.into(),
    })?;
    if env.max_key_size() < MAX_KEY {
        return Err(StoreError::Lmdb(format!("keys have {} bytes at most on this system", env.max_key_size())));
    }
    env.clear_stale_readers()?;
    let (dbs, meta) = match read(&env)? {
        Some(found) => found,
        None => create(&env, identity)?,
    };
    identity.expect(&meta.identity)?;
    if fresh {
        // The new files have to outlive a power cut as well as what is written into them.
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
        for dir in [Some(dir), parent].into_iter().flatten() {
            fs::File::open(dir)?.sync_all()?;
        }
    }
    Ok((env, dbs, meta))
}

#[allow(unsafe_code)]
fn open_env(dir: &Path, limits: &StoreLimits) -> heed::Result<SliceEnv> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(limits.map_size).max_dbs(MAX_DATABASES).max_readers(MAX_READERS);
    // SAFETY: the mapped files belong to this process alone: the node holds a lock on its data directory, and heed refuses to
    // open the same path twice. No flag that weakens LMDB's guarantees is set.
    unsafe { options.open(dir) }
}

/// What an existing environment holds; None if it is new.
fn read(env: &SliceEnv) -> Result<Option<(Databases, Meta)>, StoreError> {
    let txn = env.read_txn()?;
    let found = env.open_databases_and_commit(txn, |opener, txn| {
        let Some(names) = opener.open_database::<Bytes, DecodeIgnore>(txn, None)? else {
            return Err(StoreError::damaged("no main database"));
        };
        if names.is_empty(txn)? {
            return Ok(CommitOrAbort::Abort(()));
        }
        // The meta record first: in another format version, other databases may exist.
        let missing = |name: &str| StoreError::damaged(format!("database {name} is missing"));
        let db = |name: &str| -> Result<Opened<'_>, StoreError> {
            opener.open_database::<Bytes, Bytes>(txn, Some(name))?.ok_or_else(|| missing(name))
        };
        let records = db(META)?;
        let meta = records.get(txn, META_KEY)?.ok_or_else(|| missing("meta record"))?;
        let meta = Meta::decode(meta)?;
        Ok(CommitOrAbort::Commit(((db(ENTRIES)?, db(ROWS)?, db(UNINDEXED)?, records), Found(meta))))
    })?;
    Ok(found.commit().map(|(dbs, Found(meta))| (databases(dbs), meta)))
}

fn create(env: &SliceEnv, identity: &SliceIdentity) -> Result<(Databases, Meta), StoreError> {
    let txn = env.write_txn()?;
    let meta = Meta { identity: identity.clone(), ..Meta::default() };
    let created = env.create_databases_and_commit(txn, |opener, txn| -> Result<_, StoreError> {
        let entries = opener.create_database::<Bytes, Bytes>(txn, Some(ENTRIES))?;
        let rows = opener.create_database::<Bytes, Bytes>(txn, Some(ROWS))?;
        let unindexed = opener.create_database::<Bytes, Bytes>(txn, Some(UNINDEXED))?;
        let records = opener.create_database::<Bytes, Bytes>(txn, Some(META))?;
        records.put(txn, META_KEY, &meta.encode())?;
        Ok(CommitOrAbort::<_, ()>::Commit((entries, rows, unindexed, records)))
    })?;
    let dbs = created.commit().ok_or(StoreError::Misuse("creation is never aborted"))?;
    Ok((databases(dbs), meta))
}

fn databases((entries, rows, unindexed, meta): (Bytemap, Bytemap, Bytemap, Bytemap)) -> Databases {
    Databases { entries, rows, unindexed, meta }
}

/// Carries the meta record through heed's commit.
struct Found(Meta);

impl OnCommit for Found {
    type Committed = Self;

    fn on_commit(self, _: &heed::CommitToken) -> Self {
        self
    }
}
