//! What a store is made of: its open environment, the layer that is being collected, a build in progress.

use super::{
    SliceIdentity, StoreError, StoreLimits,
    base::{Base, Databases, ReadTxn, SliceEnv},
    build::{Collected, Progress},
    layer::Changes,
    meta::Meta,
    open::{self, Use},
    rows::Rows,
    scan::Snapshot,
    undo::{History, Slots},
    value::{self, Row},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// An open environment.
pub(super) struct Live {
    pub env: SliceEnv,
    pub dbs: Databases,
    pub slots: Slots,
    pub base: Arc<Base>,
    /// Reads `base`; for looking documents up.
    pub lookup: ReadTxn,
    pub snapshot: Snapshot,
}

/// The layer that is being collected.
#[derive(Default)]
pub(super) struct Open {
    pub entries: Changes,
    pub unindexed: Changes,
    pub rows: Rows,
}

/// A slice on its way to its first commit.
#[derive(Default)]
pub(super) struct Building {
    pub collected: Collected,
    pub runs: Vec<PathBuf>,
    pub next_run: u32,
    pub progress: Arc<Progress>,
    /// The last step has begun: nothing more is collected.
    pub ending: bool,
}

/// Kept from call to call to allocate nothing per document.
#[derive(Default)]
pub(super) struct Buffers {
    pub key: Vec<u8>,
    pub suffix: Vec<u8>,
    pub row: Vec<u8>,
}

impl Live {
    pub fn open(
        dir: &Path,
        identity: Option<&SliceIdentity>,
        limits: &StoreLimits,
        usage: Use,
    ) -> Result<(Self, Meta, History), StoreError> {
        let open::OpenEnv { env, dbs, slots, meta } = open::open(dir, identity, limits, usage)?;
        let (base, lookup) = Base::open(&env, dbs, limits)?;
        if (base.items, base.unindexed) != (meta.items, meta.unindexed) {
            return Err(StoreError::damaged("meta record counts other entries than there are"));
        }
        let history = History::read(dbs, &lookup, meta.undo)?;
        let base = Arc::new(base);
        let snapshot = Snapshot::new(base.clone(), Vec::new());
        Ok((Self { env, dbs, slots, base, lookup, snapshot }, meta, history))
    }

    /// Closes an environment of which nobody else holds anything.
    pub fn close(self) {
        let Self { env, base, lookup, snapshot, .. } = self;
        drop((base, lookup, snapshot));
        env.prepare_for_closing().wait();
    }
}

impl Open {
    pub fn memory(&self) -> usize {
        self.entries.memory() + self.unindexed.memory() + self.rows.memory()
    }
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.unindexed.is_empty() && self.rows.is_empty()
    }
}

/// The document's present row, the newest rows first; `None` if it has none.
pub(super) fn present<'a>(
    rows: impl IntoIterator<Item = &'a Rows>,
    live: &'a Live,
    key: &[u8],
    hash: u64,
) -> Result<Option<Row<'a>>, StoreError> {
    for rows in rows {
        if let Some(row) = rows.get(hash, key) {
            return if row.is_empty() { Ok(None) } else { value::decode(row).map(Some) };
        }
    }
    live.dbs.rows.get(&live.lookup, key)?.map(value::decode).transpose()
}
