//! Opening a slice's directory, or making one.

use super::{
    MAX_KEY, SliceIdentity, StoreError, StoreLimits,
    base::{Bytemap, Databases, SliceEnv},
    meta::Meta,
    pages,
    persist::META_KEY,
    undo::{SLOTS, Slots},
};
use heed::{
    CommitOrAbort, EnvFlags, EnvOpenOptions, OnCommit,
    types::{Bytes, DecodeIgnore},
};
use std::{
    fs,
    io::{self, Write},
    path::Path,
};

/// The databases in their order here; the undo slots follow.
const NAMES: [&str; 5] = ["fi", "bi", "ui", "meta", "snap"];
const META: usize = 3;
/// Every database, with room for some that later versions may add.
const MAX_DATABASES: u32 = NAMES.len() as u32 + SLOTS as u32 + 16;
/// Slots of LMDB's reader table; every commit that is still read takes some.
const MAX_READERS: u32 = 1_024;
/// The file that LMDB keeps in a directory.
pub(crate) const DATA: &str = "data.mdb";
const LOCK: &str = "lock.mdb";

type Opened<'t> = heed::Database<'t, Bytes, Bytes>;

/// An environment and what is in it.
pub(super) struct OpenEnv {
    pub env: SliceEnv,
    pub dbs: Databases,
    pub slots: Slots,
    pub meta: Meta,
}

/// How an environment is used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Every commit is synced.
    Durable,
    /// Not synced until the user does: nobody reads it before.
    Fresh,
    /// Only looked at; nothing is made or changed.
    ReadOnly,
}

/// Opens or makes the environment, and checks it against the identity where there is one to expect.
pub(super) fn open(
    dir: &Path,
    identity: Option<&SliceIdentity>,
    limits: &StoreLimits,
    usage: Use,
) -> Result<OpenEnv, StoreError> {
    let fresh = !dir.join(DATA).exists();
    if usage == Use::ReadOnly && fresh {
        return Err(StoreError::NoSlice(dir.to_owned()));
    }
    fs::create_dir_all(dir)?;
    if !fresh {
        let file = dir.join(DATA);
        let small = fs::metadata(&file)?.len() <= limits.check_at_open;
        pages::check(&file, if small { pages::Depth::Leaves } else { pages::Depth::Branches })?;
    }
    if usage != Use::ReadOnly {
        allocate_readers(dir)?;
    }
    let env = open_env(dir, limits, usage).map_err(|e| match e {
        heed::Error::EnvAlreadyOpened => StoreError::AlreadyOpen(dir.to_owned()),
        other => other.into(),
    })?;
    if env.max_key_size() < MAX_KEY {
        return Err(StoreError::Lmdb(format!(
            "the pages of its file take keys of {} bytes at most",
            env.max_key_size()
        )));
    }
    if usage != Use::ReadOnly {
        env.clear_stale_readers()?;
    }
    let found = match (read(&env)?, identity) {
        (Some(found), _) => found,
        (None, Some(identity)) if usage != Use::ReadOnly => create(&env, identity)?,
        (None, _) => return Err(StoreError::NoSlice(dir.to_owned())),
    };
    let ((dbs, slots), meta) = found;
    if let Some(identity) = identity {
        identity.expect(&meta.identity)?;
    }
    if fresh && usage == Use::Durable {
        // The new files have to outlive a power cut as well as what is written into them.
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
        for dir in [Some(dir), parent].into_iter().flatten() {
            fs::File::open(dir)?.sync_all()?;
        }
    }
    Ok(OpenEnv { env, dbs, slots, meta })
}

/// Gives LMDB's reader table its space on the disk: LMDB would leave holes, and writing into one that a full disk cannot fill
/// ends the process.
fn allocate_readers(dir: &Path) -> Result<(), StoreError> {
    /// Of a reader, and of what stands before the readers, rounded up.
    const SLOT: usize = 64;
    const HEAD: usize = 8_192;
    let made = fs::File::create_new(dir.join(LOCK)).and_then(|mut file| {
        file.write_all(&vec![0; MAX_READERS as usize * SLOT + HEAD])?;
        file.sync_all()
    });
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => {
            // Half a table would be taken for a whole one.
            let _ = fs::remove_file(dir.join(LOCK));
            Err(e.into())
        }
        Ok(()) => Ok(()),
    }
}

#[allow(unsafe_code)]
fn open_env(dir: &Path, limits: &StoreLimits, usage: Use) -> heed::Result<SliceEnv> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(limits.map_size).max_dbs(MAX_DATABASES).max_readers(MAX_READERS);
    let flags = match usage {
        Use::Durable => EnvFlags::empty(),
        Use::Fresh => EnvFlags::NO_SYNC,
        // No reader table either: nobody writes meanwhile, and the directory may not even be writable.
        Use::ReadOnly => EnvFlags::READ_ONLY | EnvFlags::NO_LOCK,
    };
    // SAFETY: the mapped files belong to this process alone: the node holds a lock on its data directory, and heed refuses to
    // open the same path twice. Only a file that nobody reads until it is synced is written without syncing.
    unsafe {
        options.flags(flags);
        options.open(dir)
    }
}

type Found = ((Databases, Slots), Meta);

/// What an existing environment holds; None if it is new.
fn read(env: &SliceEnv) -> Result<Option<Found>, StoreError> {
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
        let record = db(NAMES[META])?.get(txn, META_KEY)?.ok_or_else(|| missing("meta record"))?;
        let meta = Meta::decode(record)?;
        let named: Vec<Opened<'_>> = NAMES.iter().map(|name| db(name)).collect::<Result<_, _>>()?;
        let undo: Vec<Opened<'_>> = (0..SLOTS).map(|slot| db(&undo_name(slot))).collect::<Result<_, _>>()?;
        Ok(CommitOrAbort::Commit((All { named, undo }, Kept(meta))))
    })?;
    Ok(found.commit().map(|(dbs, Kept(meta))| (dbs, meta)))
}

fn create(env: &SliceEnv, identity: &SliceIdentity) -> Result<Found, StoreError> {
    let txn = env.write_txn()?;
    let meta = Meta { identity: identity.clone(), ..Meta::default() };
    let created = env.create_databases_and_commit(txn, |opener, txn| -> Result<_, StoreError> {
        let (mut named, mut undo) = (Vec::with_capacity(NAMES.len()), Vec::with_capacity(SLOTS));
        for name in NAMES {
            named.push(opener.create_database::<Bytes, Bytes>(txn, Some(name))?);
        }
        for slot in 0..SLOTS {
            undo.push(opener.create_database::<Bytes, Bytes>(txn, Some(&undo_name(slot)))?);
        }
        named[META].put(txn, META_KEY, &meta.encode())?;
        Ok(CommitOrAbort::<_, ()>::Commit(All { named, undo }))
    })?;
    let dbs = created.commit().ok_or(StoreError::Misuse("creation is never aborted"))?;
    Ok((dbs, meta))
}

fn undo_name(slot: usize) -> String {
    format!("undo{slot:02}")
}

/// Carries the databases through heed's commit.
struct All<'t> {
    named: Vec<Opened<'t>>,
    undo: Vec<Opened<'t>>,
}

impl OnCommit for All<'_> {
    type Committed = (Databases, Slots);

    fn on_commit(self, token: &heed::CommitToken) -> Self::Committed {
        let mut named = self.named.into_iter().map(|db| db.on_commit(token));
        let mut next = || -> Bytemap { named.next().expect("one for each name") };
        let dbs = Databases { entries: next(), rows: next(), unindexed: next(), meta: next(), snapshots: next() };
        (dbs, self.undo.into_iter().map(|db| db.on_commit(token)).collect())
    }
}

/// Carries the meta record through heed's commit.
struct Kept(Meta);

impl OnCommit for Kept {
    type Committed = Self;

    fn on_commit(self, _: &heed::CommitToken) -> Self {
        self
    }
}
