//! Tests of the store: what opening accepts, what replacing means, scans beside the writer, and random histories.

mod ascending;
mod builds;
mod durability;
mod model;
mod page_sizes;
mod readers;
mod rollback;
mod semantics;

use super::*;
use highwater_schemas::{collation::encode_entry_suffix, wire::ByteRange};
use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngSeed, TestCaseResult, TestRunner},
};
use std::{collections::BTreeMap, path::Path};

/// Set for other random cases than always the same.
const SEED: &str = "HIGHWATER_SEED";

/// Entries of a slice in scan order.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// A directory that goes away with the test; in memory where possible, as syncs to disk would dominate the tests.
fn directory() -> tempfile::TempDir {
    let shared_memory = Path::new("/dev/shm");
    let made = if shared_memory.is_dir() { tempfile::tempdir_in(shared_memory) } else { tempfile::tempdir() };
    made.expect("temporary directory")
}

/// Tries random cases, and says with which seed.
fn each<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value) -> TestCaseResult) {
    let seed = std::env::var(SEED).map_or(1, |text| text.parse().expect("the seed is a number"));
    eprintln!("{SEED}={seed}");
    let config = Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(seed), ..Config::default() };
    if let Err(failure) = TestRunner::new(config).run(strategy, test) {
        panic!("{SEED}={seed}: {failure}");
    }
}

fn identity() -> SliceIdentity {
    SliceIdentity { bucket: "users".into(), declared: 7, index_id: "by_age".into(), index: 3, partition: 1 }
}

fn limits() -> StoreLimits {
    StoreLimits { map_size: 256 << 20, ..StoreLimits::default() }
}

fn open(dir: &Path) -> LmdbStore {
    LmdbStore::open(dir, &identity(), limits()).expect("opens")
}

fn mark(st: u64) -> SliceMark {
    let position = highwater_schemas::Position::new(st * 10, 2);
    let vb = SliceVb {
        vbuuid: 5,
        position,
        covered: st * 9,
        content: st * 10,
        proven: st * 8,
        reconciled: st,
        server_time: -4,
        hash: 6,
    };
    SliceMark {
        st,
        term: 2,
        compare: false,
        building: st.is_multiple_of(2),
        vbs: vec![vb],
        topic: st * 3,
        topic_created: -9,
        docs_done: st,
        events: st * 2,
        at: st * 5,
    }
}

/// Makes a persistent snapshot on this thread.
fn persist(store: &mut LmdbStore, st: u64) {
    persist_for(store, st, Purpose::Snapshot { at: st });
}

fn persist_for(store: &mut LmdbStore, st: u64, purpose: Purpose) {
    let job = store.begin_persist(mark(st), purpose).expect("no persist runs");
    store.finish_persist(job.run()).expect("persists");
    assert_eq!(store.durable(), &mark(st));
    if !store.in_bulk() {
        store.verify().expect("databases agree");
    }
}

fn all() -> [ByteRange; 1] {
    [ByteRange { low: Vec::new(), high: None }]
}

fn rows(snapshot: &Snapshot, ranges: &[ByteRange], reverse: bool, after: Option<&[u8]>) -> Rows {
    let mut out = Rows::new();
    let visit = &mut |key: &[u8], include: &[u8]| {
        out.push((key.to_vec(), include.to_vec()));
        std::ops::ControlFlow::Continue(())
    };
    snapshot.scan(ranges, reverse, after, visit).expect("scans");
    out
}

fn entry_key(key: &[u8], vb: u16, docid: &str) -> Vec<u8> {
    let mut out = key.to_vec();
    encode_entry_suffix(docid, vb, &mut out);
    out
}

/// What the store has to hold, kept in the simplest way.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model(BTreeMap<(u16, String), Document>);

#[derive(Clone, Debug, PartialEq)]
struct Document {
    seqno: u64,
    reason: Option<Unindexable>,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Model {
    fn replace(&mut self, vb: u16, docid: &str, document: Document) {
        let key = (vb, docid.to_owned());
        if self.0.get(&key).is_some_and(|stored| document.seqno <= stored.seqno) {
            return;
        }
        if document.entries.is_empty() && document.reason.is_none() {
            self.0.remove(&key);
        } else {
            self.0.insert(key, document);
        }
    }

    fn rows(&self) -> Rows {
        let mut out: Rows = Vec::new();
        for ((vb, docid), document) in &self.0 {
            out.extend(document.entries.iter().map(|(key, include)| (entry_key(key, *vb, docid), include.clone())));
        }
        out.sort();
        out
    }

    fn unindexed(&self) -> Vec<(u16, String, u64, Unindexable)> {
        let docs = self.0.iter();
        docs.filter_map(|((vb, id), d)| d.reason.map(|reason| (*vb, id.clone(), d.seqno, reason))).collect()
    }
}

/// Rows that a scan of these ranges has to visit.
fn expected(rows: &Rows, ranges: &[ByteRange], reverse: bool, after: Option<&[u8]>) -> Rows {
    let within = |key: &[u8]| {
        ranges.iter().any(|r| r.low.as_slice() <= key && r.high.as_deref().is_none_or(|high| key < high))
            && after.is_none_or(|after| if reverse { key < after } else { key > after })
    };
    let mut out: Rows = rows.iter().filter(|(key, _)| within(key)).cloned().collect();
    if reverse {
        out.reverse();
    }
    out
}
