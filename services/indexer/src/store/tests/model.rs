//! Random histories against the model.

use super::{super::persist::Done, *};
use proptest::{collection::vec, prelude::*};

/// Cases of a run; set the variable for more.
const CASES: u32 = 400;
const CASES_VARIABLE: &str = "HIGHWATER_STORE_CASES";
const BUILDING: usize = 30;
const OPERATIONS: usize = 80;

#[derive(Clone, Debug)]
enum Op {
    Replace(Change),
    Bulk(Change),
    /// Seal and check; keep the snapshot.
    Hold,
    Release(usize),
    Begin(Kind),
    Run,
    Finish,
    /// Drop a job that has not run.
    Lose,
    BeginMerge,
    FinishMerge,
    RollBack(usize),
    Reopen,
    Scan {
        bounds: Vec<Vec<u8>>,
        open_low: bool,
        open_high: bool,
        reverse: bool,
        after: Option<usize>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Interim,
    Snapshot,
    Built,
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

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![2 => Just(Kind::Interim), 3 => Just(Kind::Snapshot), 1 => Just(Kind::Built)]
}

/// What happens while a slice is built: nothing is replaced yet.
fn building() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![8 => Just(Kind::Interim), 1 => Just(Kind::Snapshot), 1 => Just(Kind::Built)];
    prop_oneof![
        20 => change().prop_map(Op::Bulk),
        1 => Just(Op::Hold),
        2 => kind.prop_map(Op::Begin),
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
        2 => change().prop_map(Op::Bulk),
        10 => Just(Op::Hold),
        2 => (0usize..8).prop_map(Op::Release),
        5 => kind().prop_map(Op::Begin),
        5 => Just(Op::Run),
        5 => Just(Op::Finish),
        1 => Just(Op::Lose),
        2 => Just(Op::BeginMerge),
        2 => Just(Op::FinishMerge),
        2 => (0usize..8).prop_map(Op::RollBack),
        2 => Just(Op::Reopen),
        8 => scan.prop_map(|(mut bounds, open_low, open_high, reverse, after)| {
            bounds.sort();
            bounds.dedup();
            Op::Scan { bounds, open_low, open_high, reverse, after }
        }),
    ]
}

/// How long snapshots are kept here, in stability timestamps, and how many at least.
const KEPT_FOR: u64 = 4;
const KEPT_LEAST: usize = 2;

/// Few layers, so that they are merged often; builds through files of their own, or not.
fn reopened(dir: &Path, files: bool) -> LmdbStore {
    let (build_memory, small_build) = if files { (1, 0) } else { (1 << 20, 1 << 30) };
    let kept_for = std::time::Duration::from_millis(KEPT_FOR);
    let limits =
        StoreLimits { merge_layers: 2, kept_for, kept_least: KEPT_LEAST, build_memory, small_build, ..limits() };
    LmdbStore::open(dir, &identity(), limits).expect("opens")
}

/// What bulk documents make: of each, the operation with the highest seqno, also when it removes it.
#[derive(Clone, Default)]
struct Bulk(BTreeMap<(u16, String), Document>);

impl Bulk {
    fn put(&mut self, vb: u16, docid: &str, document: Document) {
        let key = (vb, docid.to_owned());
        if self.0.get(&key).is_none_or(|old| old.seqno <= document.seqno) {
            self.0.insert(key, document);
        }
    }
    fn model(&self) -> Model {
        let there = |d: &Document| !d.entries.is_empty() || d.reason.is_some();
        Model(self.0.iter().filter(|(_, d)| there(d)).map(|(k, d)| (k.clone(), d.clone())).collect())
    }
}

/// What a persist that was begun writes.
#[derive(Clone)]
struct Running {
    mark: SliceMark,
    kind: Kind,
    /// Of a build; else what is sealed.
    bulk: Option<Bulk>,
    sealed: Model,
}

#[derive(Clone, Default)]
struct Durable {
    model: Model,
    mark: SliceMark,
    /// What runs hold, while nothing else is durable.
    runs: Option<Bulk>,
    kept: Vec<(SliceMark, Model)>,
}

impl Durable {
    fn after(&self, running: &Running, built: bool) -> Self {
        let mut next = Self { mark: running.mark.clone(), ..self.clone() };
        match (&running.bulk, running.kind) {
            (Some(bulk), Kind::Interim) => {
                next.runs = Some(bulk.clone());
                return next;
            }
            // Nothing is in place before the outcome is taken back.
            (Some(_), _) if !built => return self.clone(),
            (Some(bulk), _) => next.model = bulk.model(),
            (None, _) => next.model = running.sealed.clone(),
        }
        next.runs = None;
        if running.kind == Kind::Snapshot {
            next.kept.push((next.mark.clone(), next.model.clone()));
            while next.kept.len() > KEPT_LEAST && next.kept[0].0.st + KEPT_FOR < next.mark.st {
                next.kept.remove(0);
            }
        }
        next
    }
}

struct Harness {
    dir: tempfile::TempDir,
    files: bool,
    store: Option<LmdbStore>,
    /// Everything, sealed or not.
    live: Model,
    /// What a persist that begins now writes.
    sealed: Model,
    /// While the slice is filled from nothing.
    bulk: Option<Bulk>,
    durable: Durable,
    job: Option<PersistJob>,
    outcome: Option<PersistOutcome>,
    running: Option<Running>,
    merged: Option<MergeOutcome>,
    held: Vec<(Snapshot, Model)>,
    st: u64,
}

impl Harness {
    fn new(files: bool) -> Self {
        let dir = directory();
        let store = Some(reopened(dir.path(), files));
        Self {
            dir,
            files,
            store,
            live: Model::default(),
            sealed: Model::default(),
            bulk: Some(Bulk::default()),
            durable: Durable::default(),
            job: None,
            outcome: None,
            running: None,
            merged: None,
            held: Vec::new(),
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
        assert_eq!(self.store().in_bulk(), self.bulk.is_some());
        if bulk {
            let ending = self.running.as_ref().is_some_and(|r| r.bulk.is_some() && r.kind != Kind::Interim);
            match (
                self.store.as_mut().expect("open").bulk(vb, docid, change.seqno, &entries, change.reason),
                &mut self.bulk,
            ) {
                (Ok(()), Some(bulk)) => bulk.put(vb, docid, document),
                (Err(StoreError::Misuse(_)), None) => {}
                (Err(StoreError::Misuse(_)), Some(_)) if ending => {}
                (other, _) => panic!("bulk: {other:?}"),
            }
            return;
        }
        let building = self.bulk.as_ref().is_some_and(|b| !b.0.is_empty()) || self.durable.runs.is_some();
        let frozen = self.bulk.is_some() && self.running.is_some();
        match self.store().replace(vb, docid, change.seqno, &entries, change.reason) {
            Ok(()) => {
                assert!(!building && !frozen, "replaced in the middle of a build");
                self.bulk = None;
                self.live.replace(vb, docid, document);
            }
            Err(StoreError::Misuse(_)) => assert!(building || frozen, "refused without reason"),
            Err(e) => panic!("{e}"),
        }
    }

    fn seal(&mut self) -> (Snapshot, Model) {
        let snapshot = self.store().seal().expect("seals");
        self.sealed = self.live.clone();
        let model = self.live.clone();
        check(&snapshot, &model);
        (snapshot, model)
    }

    fn begin(&mut self, kind: Kind) {
        let running = self.job.is_some() || self.outcome.is_some();
        let next = mark(self.st + 1);
        let purpose = match kind {
            Kind::Interim => Purpose::Interim,
            Kind::Snapshot => Purpose::Snapshot { at: self.st + 1 },
            Kind::Built => Purpose::Built,
        };
        let job = self.store().begin_persist(next.clone(), purpose);
        assert_eq!(job.is_none(), running);
        if job.is_none() {
            return;
        }
        self.job = job;
        self.st += 1;
        self.running = Some(Running { mark: next, kind, bulk: self.bulk.clone(), sealed: self.sealed.clone() });
    }

    fn finish(&mut self) {
        let Some(outcome) = self.outcome.take() else { return };
        self.store().finish_persist(outcome).expect("persists");
        let running = self.running.take().expect("a persist runs");
        if running.bulk.is_some() && running.kind != Kind::Interim {
            self.bulk = None;
            self.live = running.bulk.as_ref().map(Bulk::model).unwrap_or_default();
            self.sealed = self.live.clone();
        }
        self.durable = self.durable.after(&running, true);
        self.check_durable();
    }

    fn check_durable(&mut self) {
        let durable = self.durable.clone();
        let store = self.store();
        assert_eq!(store.durable(), &durable.mark);
        let marks: Vec<_> = store.kept().iter().map(|k| k.mark.clone()).collect();
        assert_eq!(marks, durable.kept.iter().map(|(mark, _)| mark.clone()).collect::<Vec<_>>());
        if durable.runs.is_none() {
            let verified = store.verify().expect("databases agree");
            assert_eq!(verified.documents, durable.model.0.len() as u64);
            assert_eq!(verified.entries, durable.model.rows().len() as u64);
        }
    }

    fn reopen(&mut self) {
        self.job = None;
        if let Some(outcome) = self.outcome.take() {
            assert!(outcome.is_durable());
            let in_place = !matches!(outcome.result, Ok(Done::Built));
            self.durable = self.durable.after(&self.running.clone().expect("a persist runs"), in_place);
        }
        self.held.clear();
        (self.store, self.running, self.merged) = (None, None, None);
        self.store = Some(reopened(self.dir.path(), self.files));
        (self.live, self.sealed) = (self.durable.model.clone(), self.durable.model.clone());
        let empty = self.durable.mark == SliceMark::default();
        self.bulk = self.durable.runs.clone().or(empty.then(Bulk::default));
        self.check_durable();
        self.seal();
    }

    fn roll_back(&mut self, i: usize) {
        let topic = (77, 78);
        let Some((mark, model)) = self.durable.kept.get(i % self.durable.kept.len().max(1)).cloned() else {
            let st = self.st;
            let refused = self.store().roll_back(st, topic);
            assert!(matches!(refused, Err(StoreError::NoSuchSnapshot(_) | StoreError::Misuse(_))));
            return;
        };
        match self.store().roll_back(mark.st, topic) {
            Ok(()) => {
                assert!(self.running.is_none(), "rolled back during a persist");
                (self.live, self.sealed) = (model.clone(), model.clone());
                self.durable.kept.truncate(i % self.durable.kept.len() + 1);
                self.durable.model = model;
                self.durable.mark = SliceMark { topic: topic.0, topic_created: topic.1, ..mark };
                self.check_durable();
                self.seal();
            }
            Err(StoreError::Misuse(_)) => assert!(self.running.is_some(), "refused without reason"),
            Err(e) => panic!("{e}"),
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Replace(change) => self.change(change, false),
            Op::Bulk(change) => self.change(change, true),
            Op::Hold => {
                let held = self.seal();
                // A build takes the environment that it replaces away from everybody.
                if self.bulk.is_none() {
                    self.held.push(held);
                }
            }
            Op::Release(i) if *i < self.held.len() => drop(self.held.remove(*i)),
            Op::Release(_) => {}
            Op::Begin(kind) => self.begin(*kind),
            Op::Run => {
                if let Some(job) = self.job.take() {
                    self.outcome = Some(job.run());
                }
            }
            Op::Finish => self.finish(),
            Op::Lose => self.job = None,
            Op::BeginMerge => {
                if let Some(job) = self.store().begin_merge() {
                    self.merged = Some(job.run());
                }
            }
            Op::FinishMerge => {
                if let Some(outcome) = self.merged.take() {
                    self.store().finish_merge(Some(outcome));
                    self.seal();
                }
            }
            Op::RollBack(i) => self.roll_back(*i),
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
    let cases = std::env::var(CASES_VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let history = (vec(building(), 0..BUILDING), vec(op(), 1..OPERATIONS)).prop_map(|(a, b)| [a, b].concat());
    each(cases, &(any::<bool>(), history), |(files, history)| {
        let mut harness = Harness::new(files);
        for op in &history {
            harness.apply(op);
        }
        for (snapshot, model) in &harness.held {
            check(snapshot, model);
        }
        Ok(())
    });
}
