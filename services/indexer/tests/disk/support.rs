//! Rounds of changes and the model of what they leave; children that run one test of this program.

use highwater_indexer::store::{
    Entry, LmdbStore, Purpose, SliceIdentity, SliceMark, SliceStore, Snapshot, StoreError, StoreLimits,
};
use highwater_schemas::{
    collation::encode_entry_suffix,
    wire::{ByteRange, Unindexable},
};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Entry keys and included fields in scan order.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Names the seed to run again.
pub const SEED: &str = "HIGHWATER_SEED";
/// Set in a child: where its slice is.
pub const SLICE: &str = "HIGHWATER_TEST_SLICE";
/// Set in a child: the file that it appends its findings to.
pub const REPORT: &str = "HIGHWATER_TEST_REPORT";

const DOCUMENTS: u64 = 400;
/// Documents that a round touches.
const CHANGES: u64 = 150;
/// Included fields of some documents, which do not fit a page of LMDB.
const LARGE: u64 = 9_000;

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }
}

/// From `HIGHWATER_SEED`, else always the same; prints it.
pub fn seed(test: &str) -> u64 {
    let seed = std::env::var(SEED).map_or(1, |text| text.parse().expect("the seed is a number"));
    println!("{test}: {SEED}={seed}");
    seed
}

/// The new content of a document.
struct Change {
    docid: String,
    vb: u16,
    seqno: u64,
    reason: Option<Unindexable>,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What round `st` changes: always the same.
fn changes(st: u64) -> Vec<Change> {
    let mut rng = Rng::new(st);
    let mut make = |i: u64| {
        let number = rng.below(DOCUMENTS);
        let include = |rng: &mut Rng| {
            let length = if rng.below(40) == 0 { rng.below(LARGE) } else { rng.below(120) };
            (0..length).map(|_| b'a' + rng.below(26) as u8).collect()
        };
        let entries = rng.below(4);
        let entries = (0..entries).map(|_| (format!("\x08{:05}\0", rng.below(20_000)).into_bytes(), include(&mut rng)));
        let entries: BTreeMap<_, _> = entries.collect();
        let reason = (entries.is_empty() && rng.below(2) == 0).then_some(Unindexable::TooDeep);
        Change { docid: format!("u{number}"), vb: (number % 3) as u16, seqno: st * CHANGES + i, reason, entries }
    };
    (0..CHANGES).map(&mut make).collect()
}

/// Collects round `st` in bulk.
pub fn collect(store: &mut LmdbStore, st: u64) -> Result<(), StoreError> {
    for change in changes(st) {
        let entries: Vec<Entry<'_>> = change.entries.iter().map(|(key, include)| Entry { key, include }).collect();
        store.bulk(change.vb, &change.docid, change.seqno, &entries, change.reason)?;
    }
    Ok(())
}

/// Applies round `st` and seals it.
pub fn apply(store: &mut LmdbStore, st: u64) -> Result<Snapshot, StoreError> {
    for change in changes(st) {
        let entries: Vec<Entry<'_>> = change.entries.iter().map(|(key, include)| Entry { key, include }).collect();
        store.replace(change.vb, &change.docid, change.seqno, &entries, change.reason)?;
    }
    store.seal()
}

/// What a scan of everything visits after rounds 1 to `st`.
pub fn model(st: u64) -> Rows {
    model_of(1..=st)
}

/// What a scan of everything visits after these rounds.
pub fn model_of(rounds: impl IntoIterator<Item = u64>) -> Rows {
    let mut documents = BTreeMap::new();
    for change in rounds.into_iter().flat_map(changes) {
        documents.insert((change.vb, change.docid), change.entries);
    }
    let mut rows = Rows::new();
    for ((vb, docid), entries) in documents {
        for (mut key, include) in entries {
            encode_entry_suffix(&docid, vb, &mut key);
            rows.push((key, include));
        }
    }
    rows.sort();
    rows
}

pub fn identity() -> SliceIdentity {
    SliceIdentity { bucket: "users".into(), declared: 7, ..SliceIdentity::default() }
}

pub fn open(dir: &Path) -> Result<LmdbStore, StoreError> {
    LmdbStore::open(dir, &identity(), StoreLimits { map_size: 64 << 20, ..StoreLimits::default() })
}

/// Makes everything sealed durable as `st`, on this thread.
pub fn persist(store: &mut LmdbStore, st: u64) -> Result<(), StoreError> {
    persist_for(store, st, Purpose::Snapshot { at: st })
}

pub fn persist_for(store: &mut LmdbStore, st: u64, purpose: Purpose) -> Result<(), StoreError> {
    let job = store.begin_persist(SliceMark { st, ..SliceMark::default() }, purpose).expect("no persist runs");
    store.finish_persist(job.run())
}

pub fn rows(snapshot: &Snapshot, reverse: bool) -> Result<Rows, StoreError> {
    let mut rows = Rows::new();
    let all = [ByteRange { low: Vec::new(), high: None }];
    snapshot.scan(&all, reverse, None, &mut |key, include| {
        rows.push((key.to_vec(), include.to_vec()));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

/// Asserts that everything is readable and is what rounds 1 to `st` leave.
pub fn assert_holds(store: &mut LmdbStore, st: u64) {
    assert_is(store, &model(st), st);
}

/// Asserts that everything is readable and is this.
pub fn assert_is(store: &mut LmdbStore, model: &Rows, st: u64) {
    let snapshot = store.seal().expect("seals");
    // Too long to be shown whole.
    assert!(rows(&snapshot, false).expect("scans") == *model, "not the rows of round {st}");
    assert!(rows(&snapshot, true).expect("scans").iter().rev().eq(model), "not the rows of round {st}, backwards");
    assert_eq!(snapshot.items(), model.len() as u64);
}

/// The kind of an error: the name of its variant.
pub fn kind(error: &StoreError) -> String {
    let text = format!("{error:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

/// A directory that goes away with the test; in memory where possible. Its path has no links in it.
pub fn directory() -> (tempfile::TempDir, PathBuf) {
    let shared_memory = Path::new("/dev/shm");
    let made = if shared_memory.is_dir() { tempfile::tempdir_in(shared_memory) } else { tempfile::tempdir() };
    let made = made.expect("temporary directory");
    let path = made.path().canonicalize().expect("is there");
    (made, path)
}

/// In a child: its slice's directory. None: this is no child, and its test has nothing to do.
pub fn slice() -> Option<PathBuf> {
    std::env::var_os(SLICE).map(PathBuf::from)
}

/// In a child: appends a line to its report.
pub fn report(line: &str) {
    let path = std::env::var_os(REPORT).expect("a child has a report");
    let mut file = fs::File::options().create(true).append(true).open(path).expect("opens the report");
    file.write_all(format!("{line}\n").as_bytes()).expect("reports");
}

/// A child of this program that runs one test, with a slice and a report; `wrapper` may start it in another way.
pub fn child(test: &str, slice: &Path, report: &Path, wrapper: &[&str]) -> Command {
    let program = std::env::current_exe().expect("this program has a path");
    let words = wrapper.iter().map(OsStr::new).chain([program.as_os_str()]).collect::<Vec<_>>();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--exact", test, "--nocapture"]).env(SLICE, slice).env(REPORT, report);
    command
}

/// The lines of a report; none when the child never wrote one.
pub fn lines(report: &Path) -> Vec<String> {
    fs::read_to_string(report).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// What a child printed, for the message of a failed assertion.
pub fn printed(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}\n{err}", output.status)
}

/// Says something to whoever runs the tests, also when the test passes.
pub fn tell(line: &str) {
    // Not by a macro: the harness keeps what those print.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Bytes of a page in an LMDB file, as its first meta page says.
pub fn page_size(file: &[u8]) -> usize {
    u32::from_le_bytes(file[40..44].try_into().expect("four bytes")) as usize
}

/// Bytes of a page in the files that LMDB makes on this system.
pub fn system_page() -> u64 {
    /// LMDB makes no larger ones.
    const LARGEST: u64 = 32_768;
    let output = std::process::Command::new("getconf").arg("PAGESIZE").output().expect("getconf runs");
    let page: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number");
    page.min(LARGEST)
}
