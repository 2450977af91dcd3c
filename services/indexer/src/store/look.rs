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
        let reader = self.base.reader(None)?;
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

/// Documents that a page picks at most of the commit, and looks at of what is not in it; documents of the commit that it looks at.
const PICKED: usize = 16_384;
const LOOKED_AT: usize = 65_536;

/// How far a walk over the documents of a vbucket is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Beginning,
    /// Among what is not in the commit, at this hash of its key.
    Newer(u64),
    /// Behind what was not in the commit, and behind this document of the commit.
    Behind(String),
}

/// Some documents of a vbucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picked {
    /// Document ids with seqnos.
    pub documents: Vec<(String, u64)>,
    /// Where to go on; None: that was all.
    pub next: Option<Place>,
}

/// Picks from the rows that are not in the commit, the newest first, a page of them from a hash on; answers where the next page
/// begins.
///
/// In the order of their hashes, which stays what it is when rows become durable, or newer ones come, between two pages. What
/// has become durable is met again in the commit, which is walked over afterwards.
fn pick_newer(
    newer: &[&Rows],
    (vb, from): (u16, u64),
    wanted: &mut dyn FnMut(&str, u64) -> bool,
    documents: &mut Vec<(String, u64)>,
) -> Result<Option<u64>, StoreError> {
    let pages = newer.iter().map(|rows| rows.len()).sum::<usize>() / (PICKED / 2) + 1;
    let mut upto = from.saturating_add(u64::MAX / pages as u64);
    // Document ids can be chosen for their hashes to lie together.
    while upto > from && newer.iter().map(|rows| rows.within(from..=upto).count()).sum::<usize>() > PICKED {
        upto = from + (upto - from) / 2;
    }
    for (i, rows) in newer.iter().enumerate() {
        for (key, row) in rows.within(from..=upto).map(|at| (rows.key(at), rows.row(at))) {
            let shadowed = || newer[..i].iter().any(|above| above.get(hash_key(key), key).is_some());
            let (of, docid) = decode_row_key(key)?;
            if of == vb && !row.is_empty() && !shadowed() {
                let seqno = value::decode(row)?.seqno;
                if wanted(docid, seqno) {
                    documents.push((docid.to_owned(), seqno));
                }
            }
        }
    }
    Ok(upto.checked_add(1))
}

/// A page of the documents of a vbucket: of `newer` rows, the newest first, and below them of the commit.
fn pick(
    dbs: Databases,
    reader: &ReadTxn,
    newer: &[&Rows],
    (vb, place): (u16, &Place),
    wanted: &mut dyn FnMut(&str, u64) -> bool,
) -> Result<Picked, StoreError> {
    let mut documents = Vec::new();
    let mut key_of = Vec::new();
    let from = match place {
        Place::Behind(docid) => {
            encode_row_key(vb, docid, &mut key_of);
            Bound::Excluded(&key_of[..])
        }
        Place::Beginning | Place::Newer(_) => {
            let from = if let Place::Newer(hash) = place { *hash } else { 0 };
            if let Some(next) = pick_newer(newer, (vb, from), wanted, &mut documents)? {
                return Ok(Picked { documents, next: Some(Place::Newer(next)) });
            }
            encode_row_key(vb, "", &mut key_of);
            Bound::Included(&key_of[..])
        }
    };
    let (mut looked_at, full) = (0, documents.len() + PICKED);
    for row in dbs.rows.range(reader, &(from, Bound::Unbounded))? {
        let (key, row) = row?;
        let (of, docid) = decode_row_key(key)?;
        if of != vb {
            break;
        }
        if !newer.iter().any(|rows| !rows.is_empty() && rows.get(hash_key(key), key).is_some()) {
            let seqno = value::decode(row)?.seqno;
            if wanted(docid, seqno) {
                documents.push((docid.to_owned(), seqno));
            }
        }
        looked_at += 1;
        if documents.len() == full || looked_at == LOOKED_AT {
            return Ok(Picked { documents, next: Some(Place::Behind(docid.to_owned())) });
        }
    }
    Ok(Picked { documents, next: None })
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

    pub(super) fn pick_rows(
        &self,
        vb: u16,
        place: &Place,
        wanted: &mut dyn FnMut(&str, u64) -> bool,
    ) -> Result<Picked, StoreError> {
        let live = self.live()?;
        let newer: Vec<&Rows> = self.newer_rows().collect();
        pick(live.dbs, &live.lookup, &newer, (vb, place), wanted)
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
    use std::collections::BTreeMap;

    #[test]
    fn a_walk_in_pages_meets_every_document_once_and_may_remove_what_it_picked() {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = SliceIdentity { bucket: "b".into(), index_id: "i".into(), ..SliceIdentity::default() };
        let limits = StoreLimits { map_size: 256 << 20, ..StoreLimits::default() };
        let mut store = LmdbStore::open(dir.path(), &identity, limits).expect("opens");
        let entry = [Entry { key: b"\x03", include: b"" }];
        let mut present: [BTreeMap<String, u64>; 3] = Default::default();
        // In the commit more than two pages of vbucket 1; above it some of each vbucket: new, changed and removed ones.
        for (vb, n) in (0..LOOKED_AT * 2 + 99)
            .map(|n| (1, n))
            .chain([0, 2].into_iter().flat_map(|vb| (0..9).map(move |n| (vb, n))))
        {
            store.bulk(vb, &format!("d{n}"), 1, &entry, None).expect("collects");
            present[usize::from(vb)].insert(format!("d{n}"), 1);
        }
        let job = store.begin_persist(SliceMark { st: 1, ..SliceMark::default() }, Purpose::Built).expect("none runs");
        store.finish_persist(job.run()).expect("persists");
        for (vb, n, seqno) in (0..3u16).flat_map(|vb| [(vb, 3, 7), (vb, 1_000_000, 8), (vb, 5, 9)]) {
            let docid = format!("d{n}");
            store.replace(vb, &docid, seqno, if n == 5 { &[] } else { &entry }, None).expect("replaces");
            let of = &mut present[usize::from(vb)];
            if n == 5 {
                of.remove(&docid)
            } else {
                of.insert(docid, seqno)
            };
        }
        for (vb, present) in (0..3u16).zip(&present) {
            let (mut place, mut met, mut pages, mut picked) = (Some(Place::Beginning), BTreeMap::new(), 0, 0);
            while let Some(at) = place.take() {
                let wanted = &mut |docid: &str, seqno: u64| {
                    assert_eq!(met.insert(docid.to_owned(), seqno), None, "{docid} twice");
                    docid.ends_with('7')
                };
                let page = store.pick(vb, &at, wanted).expect("reads");
                assert!(page.documents.len() <= PICKED + 2);
                (pages, picked) = (pages + 1, picked + page.documents.len());
                for (docid, seqno) in &page.documents {
                    store.remove(vb, docid, *seqno).expect("removes");
                }
                store.seal().expect("seals");
                place = page.next;
            }
            assert!(met == *present, "vbucket {vb}");
            let ends = present.keys().filter(|docid| docid.ends_with('7')).count();
            assert_eq!((picked, pages > 2), (ends, vb == 1));
            let mut left = 0;
            let mut place = Some(Place::Beginning);
            while let Some(at) = place.take() {
                place = store
                    .pick(vb, &at, &mut |_, _| {
                        left += 1;
                        false
                    })
                    .expect("reads")
                    .next;
            }
            assert_eq!(left, present.len() - ends);
        }
    }

    #[test]
    fn a_walk_takes_pages_of_what_is_in_memory_also_while_it_becomes_durable() {
        const MANY: usize = PICKED * 3;
        let dir = tempfile::tempdir().expect("a directory");
        let identity = SliceIdentity { bucket: "b".into(), index_id: "i".into(), ..SliceIdentity::default() };
        let limits = StoreLimits { map_size: 256 << 20, ..StoreLimits::default() };
        let mut store = LmdbStore::open(dir.path(), &identity, limits).expect("opens");
        let entry = [Entry { key: b"\x03", include: b"" }];
        for n in 0..9 {
            store.bulk(1, &format!("c{n}"), 1, &entry, None).expect("collects");
        }
        let job = store.begin_persist(SliceMark { st: 1, ..SliceMark::default() }, Purpose::Built).expect("none runs");
        store.finish_persist(job.run()).expect("persists");
        // Three generations of memory: what is being made durable, what is sealed, what is open.
        let put = |store: &mut LmdbStore, of: std::ops::Range<usize>, seqno| {
            for n in of {
                store.replace(1, &format!("d{n}"), seqno, &entry, None).expect("replaces");
            }
        };
        put(&mut store, 0..MANY, 2);
        let mut job = store.begin_persist(SliceMark { st: 2, ..SliceMark::default() }, Purpose::Snapshot { at: 1 });
        put(&mut store, MANY / 2..MANY * 2, 3);
        store.seal().expect("seals");
        put(&mut store, MANY..MANY * 2 + 99, 4);
        let newest = |n: usize| match n {
            _ if n >= MANY => 4,
            _ if n >= MANY / 2 => 3,
            _ => 2,
        };

        let (mut place, mut met, mut pages) = (Some(Place::Beginning), BTreeMap::new(), 0);
        let mut removed = 0;
        while let Some(at) = place.take() {
            let (mut looked, durable) = (0, job.is_none());
            let wanted = &mut |docid: &str, seqno: u64| {
                looked += 1;
                let before = met.insert(docid.to_owned(), seqno);
                assert!(before.is_none() || (durable && before == Some(seqno)), "{docid}: {before:?}, then {seqno}");
                docid.ends_with('7')
            };
            let page = store.pick(1, &at, wanted).expect("reads");
            assert!(looked <= PICKED || !matches!(page.next, Some(Place::Newer(_))), "{at:?}: {looked}");
            for (docid, seqno) in &page.documents {
                store.remove(1, docid, *seqno).expect("removes");
            }
            removed += page.documents.len();
            pages += 1;
            if pages == 3 {
                store.finish_persist(job.take().expect("runs").run()).expect("persists");
            }
            place = page.next;
        }
        assert!(pages > 6, "{pages} pages");
        let wanted: BTreeMap<String, u64> = (0..9)
            .map(|n| (format!("c{n}"), 1))
            .chain((0..MANY * 2 + 99).map(|n| (format!("d{n}"), newest(n))))
            .collect();
        assert!(met == wanted, "{} documents, not {}", met.len(), wanted.len());
        assert_eq!(removed, wanted.keys().filter(|docid| docid.ends_with('7')).count());
    }

    #[test]
    fn a_page_of_memory_has_its_bound_however_the_hashes_lie() {
        let mut rows = Rows::default();
        let mut key = Vec::new();
        let mut row = Vec::new();
        value::encode(5, None, &[], &mut row).expect("encodes");
        for n in 0..PICKED as u64 * 2 + 5 {
            encode_row_key(1, &format!("d{n}"), &mut key);
            rows.put(n + 7, &key, &row);
        }
        let (mut from, mut met, mut pages) = (Some(0), 0, 0);
        while let Some(at) = from {
            let mut documents = Vec::new();
            from = pick_newer(&[&rows], (1, at), &mut |_, _| true, &mut documents).expect("reads");
            assert!(documents.len() <= PICKED, "{}", documents.len());
            (met, pages) = (met + documents.len(), pages + 1);
        }
        assert_eq!(met, rows.len());
        assert!(pages < 100, "{pages}");
    }

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
