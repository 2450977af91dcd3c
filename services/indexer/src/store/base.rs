//! A commit and its readers.
//!
//! LMDB cannot open a reader on an older commit, so each commit gets a pool of read transactions before the next one can
//! happen. A transaction may move between threads but serves one scan at a time; while its commit is the newest, the pool grows.

use super::{StoreError, StoreLimits};
use heed::{Database, Env, RoTxn, WithoutTls, types::Bytes};
use std::{
    ops::Deref,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub(super) type SliceEnv = Env<WithoutTls>;
pub(super) type ReadTxn = RoTxn<'static, WithoutTls>;
pub(super) type Bytemap = Database<'static, Bytes, Bytes>;

/// The named databases of a slice.
#[derive(Clone, Copy)]
pub(super) struct Databases {
    pub entries: Bytemap,
    pub rows: Bytemap,
    pub unindexed: Bytemap,
    pub meta: Bytemap,
    pub snapshots: Bytemap,
}

/// A commit that can be read.
pub(super) struct Base {
    env: SliceEnv,
    pub dbs: Databases,
    pub items: u64,
    pub unindexed: u64,
    commit: usize,
    most_readers: usize,
    wait: Duration,
    pool: Mutex<Pool>,
    returned: Condvar,
}

struct Pool {
    idle: Vec<ReadTxn>,
    open: usize,
    /// Readers of this commit can still be opened.
    growing: bool,
}

impl Base {
    /// The newest commit, with its pool and one reader apart from it. No writer may commit meanwhile.
    pub fn open(env: &SliceEnv, dbs: Databases, limits: &StoreLimits) -> Result<(Self, ReadTxn), StoreError> {
        let own = env.clone().static_read_txn()?;
        let mut idle = Vec::with_capacity(limits.readers);
        for _ in 0..limits.readers.max(1) {
            match env.clone().static_read_txn() {
                Ok(txn) => idle.push(txn),
                Err(_) if !idle.is_empty() => break,
                Err(e) => return Err(e.into()),
            }
        }
        let base = Self {
            env: env.clone(),
            dbs,
            items: dbs.entries.len(&own)?,
            unindexed: dbs.unindexed.len(&own)?,
            commit: own.id(),
            most_readers: limits.most_readers,
            wait: limits.reader_wait,
            pool: Mutex::new(Pool { open: idle.len(), idle, growing: true }),
            returned: Condvar::new(),
        };
        Ok((base, own))
    }

    /// The number of its transaction.
    pub fn commit(&self) -> u64 {
        self.commit as u64
    }

    /// Checks a reader out, waiting for one to be returned if need be, until `deadline` at the latest.
    pub fn reader(&self, deadline: Option<Instant>) -> Result<Reader<'_>, StoreError> {
        let mut pool = self.pool();
        if pool.idle.is_empty() && pool.growing && pool.open < self.most_readers {
            match self.env.clone().static_read_txn() {
                Ok(txn) if txn.id() == self.commit => {
                    pool.open += 1;
                    return Ok(Reader { base: self, txn: Some(txn) });
                }
                Ok(_) => pool.growing = false,
                // The reader table is full or the environment failed: the open readers still work.
                Err(_) => {}
            }
        }
        let wait = deadline.map_or(self.wait, |at| at.saturating_duration_since(Instant::now()).min(self.wait));
        let waited = self.returned.wait_timeout_while(pool, wait, |p| p.idle.is_empty());
        let (mut pool, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let late = || deadline.is_some_and(|at| Instant::now() >= at);
        let txn = pool.idle.pop().ok_or_else(|| if late() { StoreError::Late } else { StoreError::Busy })?;
        Ok(Reader { base: self, txn: Some(txn) })
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader that is checked out; dropping returns it, also when a scan panics.
pub(super) struct Reader<'b> {
    base: &'b Base,
    txn: Option<ReadTxn>,
}

impl Deref for Reader<'_> {
    type Target = ReadTxn;

    fn deref(&self) -> &ReadTxn {
        self.txn.as_ref().expect("present until dropped")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Some(txn) = self.txn.take() {
            self.base.pool().idle.push(txn);
            self.base.returned.notify_one();
        }
    }
}
