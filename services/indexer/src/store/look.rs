//! Looking into a slice: documents of the back index as they are durable, and the runs of a build.

use super::{
    LmdbStore, SliceIdentity, SliceMark, StoreError,
    base::{Base, Databases, ReadTxn},
    build::RUNS,
    diff::{decode_row_key, encode_row_key},
    parts::present,
    rows::{Rows, hash_key},
    run::{self, RunReader},
    value,
};
use highwater_schemas::wire::Unindexable;
use std::{
    fs,
    ops::{Bound, ControlFlow},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes of a record that says that a document has nothing in the index.
const NOTHING: usize = 8;

/// A document of the back index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub vb: u16,
    pub docid: String,
    pub seqno: u64,
    pub reason: Option<Unindexable>,
    /// Keys, without docid and vbucket, and included fields.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The documents of the newest commit, to be read on any thread that may block.
pub struct BackIndex {
    base: Arc<Base>,
    dir: PathBuf,
}

impl BackIndex {
    /// The slice's directory.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// Visits the documents in their order, from this one on, until told to stop.
    pub fn visit(
        &self,
        (vb, docid): (u16, &str),
        mut visit: impl FnMut(Document) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let reader = self.base.reader()?;
        let mut from = Vec::new();
        encode_row_key(vb, docid, &mut from);
        for row in self.base.dbs.rows.range(&reader, &(Bound::Included(&from[..]), Bound::Unbounded))? {
            let (key, row) = row?;
            let (vb, docid) = decode_row_key(key)?;
            value::check(row)?;
            let row = value::decode(row)?;
            let entries = row.entries().map(|e| (e.key.to_vec(), e.include.to_vec())).collect();
            let document = Document { vb, docid: docid.to_owned(), seqno: row.seqno, reason: row.reason, entries };
            if visit(document).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Shows the documents of a vbucket: those of `newer` rows, the newest first, and below them of the commit.
fn visit(
    dbs: Databases,
    reader: &ReadTxn,
    newer: &[&Rows],
    vb: u16,
    visit: &mut dyn FnMut(&str, u64) -> bool,
) -> Result<(), StoreError> {
    let mut look = |key: &[u8], row: &[u8]| -> Result<bool, StoreError> {
        Ok(visit(decode_row_key(key)?.1, value::decode(row)?.seqno))
    };
    for (i, rows) in newer.iter().enumerate() {
        for at in 0..rows.len() {
            let (key, row) = (rows.key(at), rows.row(at));
            let shadowed = || newer[..i].iter().any(|above| above.get(hash_key(key), key).is_some());
            if !row.is_empty() && decode_row_key(key)?.0 == vb && !shadowed() && !look(key, row)? {
                return Ok(());
            }
        }
    }
    let mut from = Vec::new();
    encode_row_key(vb, "", &mut from);
    for row in dbs.rows.range(reader, &(Bound::Included(&from[..]), Bound::Unbounded))? {
        let (key, row) = row?;
        if decode_row_key(key)?.0 != vb {
            break;
        }
        let shadowed = newer.iter().any(|rows| !rows.is_empty() && rows.get(hash_key(key), key).is_some());
        if !shadowed && !look(key, row)? {
            break;
        }
    }
    Ok(())
}

impl LmdbStore {
    /// The rows that are not in the commit, the newest first.
    fn newer_rows(&self) -> impl Iterator<Item = &Rows> {
        [Some(&self.open.rows), Some(&self.rows), self.frozen.as_deref().map(|f| &f.rows)].into_iter().flatten()
    }

    pub(super) fn seqno_of(&self, vb: u16, docid: &str) -> Result<Option<u64>, StoreError> {
        let mut key = Vec::new();
        encode_row_key(vb, docid, &mut key);
        let row = present(self.newer_rows(), self.live()?, &key, hash_key(&key))?;
        Ok(row.map(|row| row.seqno))
    }

    pub(super) fn visit_rows(&self, vb: u16, show: &mut dyn FnMut(&str, u64) -> bool) -> Result<(), StoreError> {
        let live = self.live()?;
        let newer: Vec<&Rows> = self.newer_rows().collect();
        visit(live.dbs, &live.lookup, &newer, vb, show)
    }

    /// The documents of the newest commit.
    pub fn back_index(&self) -> Result<BackIndex, StoreError> {
        Ok(BackIndex { base: Arc::clone(&self.live()?.base), dir: self.directory().to_owned() })
    }
}

/// A run of a build, whole as far as its end says.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInfo {
    pub path: PathBuf,
    pub bytes: u64,
    /// Documents, each once.
    pub records: u64,
    pub identity: SliceIdentity,
    /// How far the build was with this run.
    pub mark: SliceMark,
}

/// The runs of the build in a slice's directory, oldest first; nothing is touched. What has not got its name is no run yet.
pub fn runs(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    Ok(run::find(&dir.join(RUNS))?.0.into_iter().map(|(_, path)| path).collect())
}

/// Reads the end of a run.
pub fn run_info(path: &Path) -> Result<RunInfo, StoreError> {
    let (_, meta) = RunReader::open(path)?;
    let bytes = fs::metadata(path)?.len();
    Ok(RunInfo { path: path.to_owned(), bytes, records: meta.items, identity: meta.identity, mark: meta.mark })
}

/// Reads a run from its beginning to its end: every checksum, the order of the keys, and every document's record.
pub fn check_run(path: &Path) -> Result<RunInfo, StoreError> {
    let damaged = |what: &str| StoreError::damaged(format!("run {}: {what}", path.display()));
    let info = run_info(path)?;
    let (mut run, _) = RunReader::open(path)?;
    let (mut records, mut last): (u64, Option<Vec<u8>>) = (0, None);
    while run.advance()? {
        decode_row_key(run.key())?;
        if last.as_deref().is_some_and(|last| last > run.key()) {
            return Err(damaged("a record stands out of order"));
        }
        let last = last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(run.key());
        if run.value().len() != NOTHING {
            value::check(run.value())?;
            value::decode(run.value())?;
        }
        records += 1;
    }
    if records != info.records {
        return Err(damaged("its end counts other records than there are"));
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, Purpose, SliceStore, StoreLimits};
    use super::*;

    #[test]
    fn documents_and_runs_are_seen_as_they_lie_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = SliceIdentity { bucket: "b".into(), index_id: "i".into(), ..SliceIdentity::default() };
        let limits = || StoreLimits { map_size: 64 << 20, ..StoreLimits::default() };
        let mut store = LmdbStore::open(dir.path(), &identity, limits()).expect("opens");
        let entry = [Entry { key: b"\x03", include: b"{}" }];
        let persist = |store: &mut LmdbStore, st, purpose| {
            let mark = SliceMark { st, building: true, ..SliceMark::default() };
            let job = store.begin_persist(mark, purpose).expect("no persist runs");
            store.finish_persist(job.run()).expect("persists");
        };
        for n in 0..5u64 {
            store.bulk(0, &format!("d{n}"), n + 1, if n == 3 { &[] } else { &entry }, None).expect("collects");
        }
        persist(&mut store, 1, Purpose::Interim);
        let found = runs(dir.path()).expect("lists");
        let run = check_run(&found[0]).expect("whole");
        assert_eq!((found.len(), run.records, run.mark.st, &run.identity), (1, 5, 1, &identity));
        let whole = fs::read(&found[0]).expect("reads");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&found[0], &bytes).expect("writes");
            assert!(check_run(&found[0]).is_err(), "byte {at}");
        }
        fs::write(&found[0], &whole).expect("writes");

        persist(&mut store, 2, Purpose::Built);
        assert!(runs(dir.path()).expect("lists").is_empty());
        let mut seen = Vec::new();
        let back = store.back_index().expect("opens");
        back.visit((0, "d1"), |d| {
            seen.push((d.vb, d.docid, d.seqno, d.entries.len()));
            if seen.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("reads");
        assert_eq!(seen, [(0, "d1".to_owned(), 2, 1), (0, "d2".to_owned(), 3, 1)]);
        seen.clear();
        back.visit((0, "d3"), |d| {
            seen.push((d.vb, d.docid, d.seqno, d.entries.len()));
            ControlFlow::Continue(())
        })
        .expect("reads");
        assert_eq!(seen, [(0, "d4".to_owned(), 5, 1)]);
    }
}
