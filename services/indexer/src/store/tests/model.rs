//! Random histories against the model.

use super::*;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use std::hash::{BuildHasher, RandomState};

const CASES: u32 = 400;
const BUILDING: usize = 30;
const OPERATIONS: usize = 80;
/// Set to repeat a run.
const SEED: &str = "HIGHWATER_STORE_SEED";

#[derive(Clone, Debug)]
enum Op {
    Replace(Change),
    Bulk(Change),
    /// Seal and check; keep the snapshot.
    Hold,
    Release(usize),
    Begin,
    Run,
    Finish,
    /// Drop a job that has not run.
    Lose,
    Reopen,
    Scan {
        bounds: Vec<Vec<u8>>,
        open_low: bool,
        open_high: bool,
        reverse: bool,
        after: Option<usize>,
    },
}

#[derive(Clone, Debug)]
struct Change {
    vb: u16,
    doc: usize,
    seqno: u64,
    entries: Vec<(u8, u8)>,
    reason: Option<Unindexable>,
}

const DOCIDS: [&str; 8] = ["", "a", "b", "ab", "x\0y", "x\u{1}", "lång", "doc-0001"];

/// Keys are distinct by their first byte, so none is a prefix of another, as with encoded keys.
fn key_of(n: u8) -> Vec<u8> {
    if n == 7 { vec![n; 1_900] } else { vec![n, n, 0] }
}

fn include_of(n: u8) -> Vec<u8> {
    match n {
        0 => Vec::new(),
        1 => vec![b'{'; 5_000],
        n => vec![n; usize::from(n)],
    }
}

fn change() -> impl Strategy<Value = Change> {
    let entries = vec((0u8..8, 0u8..4), 0..4);
    let reason = prop_oneof![5 => Just(None), 1 => (1u8..6).prop_map(Unindexable::from_code)];
    (0u16..2, 0..DOCIDS.len(), 1u64..16, entries, reason).prop_map(|(vb, doc, seqno, entries, reason)| Change {
        vb,
        doc,
        seqno,
        entries,
        reason,
    })
}

/// Places between entries, and entries that may exist.
fn bound() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0u8..9).prop_map(|n| vec![n]),
        (0u8..9, 0u8..9, 0u8..3).prop_map(|(a, b, c)| vec![a, b, c, b'b']),
        (0u8..8, 0u16..2, 0..DOCIDS.len()).prop_map(|(n, vb, doc)| entry_key(&key_of(n), vb, DOCIDS[doc])),
    ]
}

/// What happens while a slice is built: nothing is replaced yet.
fn building() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => change().prop_map(Op::Bulk),
        1 => Just(Op::Hold),
        2 => Just(Op::Begin),
        2 => Just(Op::Run),
        2 => Just(Op::Finish),
        1 => Just(Op::Lose),
        1 => Just(Op::Reopen),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let scan = (vec(bound(), 1..5), any::<bool>(), any::<bool>(), any::<bool>(), proptest::option::of(0usize..20));
    prop_oneof![
        30 => change().prop_map(Op::Replace),
        8 => change().prop_map(Op::Bulk),
        10 => Just(Op::Hold),
        2 => (0usize..8).prop_map(Op::Release),
        4 => Just(Op::Begin),
        4 => Just(Op::Run),
        4 => Just(Op::Finish),
        1 => Just(Op::Lose),
        2 => Just(Op::Reopen),
        8 => scan.prop_map(|(mut bounds, open_low, open_high, reverse, after)| {
            bounds.sort();
            bounds.dedup();
            Op::Scan { bounds, open_low, open_high, reverse, after }
        }),
    ]
}

/// Few layers, so that they are merged often.
fn reopened(dir: &Path) -> LmdbStore {
    LmdbStore::open(dir, &identity(), StoreLimits { merge_layers: 2, ..limits() }).expect("opens")
}

struct Harness {
    dir: tempfile::TempDir,
    store: Option<LmdbStore>,
    /// Everything, sealed or not.
    live: Model,
    /// What a persist that begins now writes.
    sealed: Model,
    durable: (Model, SliceMark),
    job: Option<PersistJob>,
    outcome: Option<PersistOutcome>,
    /// What the running persist writes.
    running: Option<(Model, SliceMark)>,
    held: Vec<(Snapshot, Model)>,
    /// Documents replaced: since the running persist began, and within it.
    replaced: (bool, bool),
    /// The same for bulk documents.
    bulked: (bool, bool),
    st: u64,
}

impl Harness {
    fn new() -> Self {
        let dir = directory();
        let store = Some(reopened(dir.path()));
        Self {
            dir,
            store,
            live: Model::default(),
            sealed: Model::default(),
            durable: (Model::default(), SliceMark::default()),
            job: None,
            outcome: None,
            running: None,
            held: Vec::new(),
            replaced: (false, false),
            bulked: (false, false),
            st: 0,
        }
    }

    fn store(&mut self) -> &mut LmdbStore {
        self.store.as_mut().expect("open")
    }

    fn change(&mut self, change: &Change, bulk: bool) {
        let data: Vec<_> = change.entries.iter().map(|&(k, i)| (key_of(k), include_of(i))).collect();
        let entries: Vec<_> = data.iter().map(|(key, include)| Entry { key, include }).collect();
        let (vb, docid) = (change.vb, DOCIDS[change.doc]);
        let document = Document { seqno: change.seqno, reason: change.reason, entries: data.iter().cloned().collect() };
        if !bulk {
            self.store().replace(vb, docid, change.seqno, &entries, change.reason).expect("replaces");
            self.live.replace(vb, docid, document);
            self.replaced.0 = true;
            return;
        }
        match self.store().bulk(vb, docid, change.seqno, &entries, change.reason) {
            Ok(()) => {
                self.live.replace(vb, docid, document.clone());
                self.sealed.replace(vb, docid, document);
                self.bulked.0 = true;
            }
            Err(StoreError::Misuse(_)) => assert!(self.replaced.0 || self.replaced.1, "refused without reason"),
            Err(e) => panic!("{e}"),
        }
    }

    /// The state that a snapshot taken now has to show; None where bulk documents make it inexact.
    fn visible(&self) -> Option<Model> {
        match (self.bulked.0 || self.bulked.1, self.replaced.0 || self.replaced.1) {
            (false, _) => Some(self.live.clone()),
            (true, false) => Some(self.durable.0.clone()),
            (true, true) => None,
        }
    }

    fn seal(&mut self) -> Option<(Snapshot, Model)> {
        let snapshot = self.store().seal().expect("seals");
        self.sealed = self.live.clone();
        let model = self.visible()?;
        check(&snapshot, &model);
        Some((snapshot, model))
    }

    fn begin(&mut self) {
        let running = self.job.is_some() || self.outcome.is_some();
        let next = mark(self.st + 1);
        let job = self.store().begin_persist(next.clone());
        assert_eq!(job.is_none(), running);
        if job.is_none() {
            return;
        }
        if self.running.take().is_some() {
            // The last job was lost.
            self.bulked.0 |= self.bulked.1;
        }
        self.job = job;
        self.st += 1;
        self.running = Some((self.sealed.clone(), next));
        let open = self.replaced.0 && self.live != self.sealed;
        self.replaced = (open, self.replaced.0 || self.replaced.1);
        self.bulked = (false, self.bulked.0);
    }

    fn finish(&mut self) {
        let Some(outcome) = self.outcome.take() else { return };
        self.store().finish_persist(outcome).expect("persists");
        self.durable = self.running.take().expect("a persist runs");
        (self.replaced.1, self.bulked.1) = (false, false);
        self.check_durable();
    }

    fn check_durable(&mut self) {
        let (model, mark) = self.durable.clone();
        assert_eq!(self.store().durable(), &mark);
        assert_eq!(self.store().verify().expect("databases agree"), model.0.len() as u64);
    }

    fn reopen(&mut self) {
        self.job = None;
        if let Some(outcome) = self.outcome.take() {
            assert!(outcome.is_durable());
            self.durable = self.running.clone().expect("a persist runs");
        }
        self.held.clear();
        self.store = None;
        self.running = None;
        self.store = Some(reopened(self.dir.path()));
        (self.live, self.sealed) = (self.durable.0.clone(), self.durable.0.clone());
        (self.replaced, self.bulked) = ((false, false), (false, false));
        self.check_durable();
        self.seal();
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Replace(change) => self.change(change, false),
            Op::Bulk(change) => self.change(change, true),
            Op::Hold => {
                let held = self.seal();
                self.held.extend(held);
            }
            Op::Release(i) if *i < self.held.len() => drop(self.held.remove(*i)),
            Op::Release(_) => {}
            Op::Begin => self.begin(),
            Op::Run => {
                if let Some(job) = self.job.take() {
                    self.outcome = Some(job.run());
                }
            }
            Op::Finish => self.finish(),
            Op::Lose => self.job = None,
            Op::Reopen => self.reopen(),
            Op::Scan { bounds, open_low, open_high, reverse, after } => {
                let mut bounds = bounds.clone();
                if *open_low {
                    bounds[0] = Vec::new();
                }
                let pair = |pair: &[Vec<u8>]| ByteRange { low: pair[0].clone(), high: pair.get(1).cloned() };
                let mut ranges: Vec<ByteRange> = bounds.chunks(2).map(pair).collect();
                if let (true, Some(last)) = (open_high, ranges.last_mut()) {
                    last.high = None;
                }
                for (snapshot, model) in &self.held {
                    let model = model.rows();
                    check_scan(snapshot, &model, &ranges, *reverse, *after);
                    // A range whose ends are entries.
                    if let (Some((low, _)), Some((high, _))) = (model.get(after.unwrap_or(0)), model.last()) {
                        let range = ByteRange { low: low.clone(), high: Some(high.clone()) };
                        check_scan(snapshot, &model, &[range], *reverse, None);
                    }
                }
            }
        }
    }
}

fn check_scan(snapshot: &Snapshot, model: &Rows, ranges: &[ByteRange], reverse: bool, after: Option<usize>) {
    // An entry that exists, or a place between entries.
    let after = after.map(|i| model.get(i).map_or_else(|| vec![i as u8 % 8, 1], |(key, _)| key.clone()));
    let after = after.as_deref();
    assert_eq!(rows(snapshot, ranges, reverse, after), expected(model, ranges, reverse, after));
    let count = snapshot.count(ranges).expect("counts");
    assert_eq!(count, expected(model, ranges, false, None).len() as u64);
}

fn check(snapshot: &Snapshot, model: &Model) {
    let entries = model.rows();
    assert_eq!(snapshot.items(), entries.len() as u64);
    assert_eq!(snapshot.count(&all()).expect("counts"), entries.len() as u64);
    assert_eq!(rows(snapshot, &all(), false, None), entries);
    let unindexed = model.unindexed();
    assert_eq!(snapshot.unindexed(), unindexed.len() as u64);
    assert_eq!(snapshot.unindexed_docs(usize::MAX).expect("lists"), unindexed);
    assert_eq!(snapshot.unindexed_docs(1).expect("lists"), unindexed[..unindexed.len().min(1)]);
}

#[test]
fn random_histories_match_the_model() {
    let seed = std::env::var(SEED).ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| RandomState::new().hash_one(0));
    eprintln!("{SEED}={seed}");
    let config =
        Config { cases: CASES, failure_persistence: None, rng_seed: RngSeed::Fixed(seed), ..Config::default() };
    let history = (vec(building(), 0..BUILDING), vec(op(), 1..OPERATIONS)).prop_map(|(a, b)| [a, b].concat());
    let run = TestRunner::new(config).run(&history, |history| {
        let mut harness = Harness::new();
        for op in &history {
            harness.apply(op);
        }
        for (snapshot, model) in &harness.held {
            check(snapshot, model);
        }
        Ok(())
    });
    if let Err(failure) = run {
        panic!("{SEED}={seed}: {failure}");
    }
}
