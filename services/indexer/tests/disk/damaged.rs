//! Data files with damage in many places: what is opened, verified and scanned is refused or right.

use crate::{
    promises,
    support::{
        self, REPORT, Rng, SEED, apply, child, directory, kind, lines, model, page_size, persist, printed, report,
        rows, tell,
    },
};
use highwater_indexer::store::{FORMAT_VERSION, SliceStore, StoreError};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Rounds in the undamaged file.
const ROUNDS: u64 = 3;
/// Damaged files that are looked at; names another number.
const CASES: u64 = 600;
const VARIABLE: &str = "HIGHWATER_DAMAGES";
/// In a child: the seed, the first case and the one behind the last.
const RANGE: &str = "HIGHWATER_TEST_RANGE";
/// Files that one child looks at: what one of them does to the process shall not be blamed on many others.
const BATCH: u64 = 20;
/// Seconds on the processor after which a child that follows a circle of pages is ended.
const LIMITED: &str = r#"ulimit -c 0; ulimit -t 20; exec "$0" "$@""#;
/// About what LMDB uses of a page of its own: header and tree roots.
const META_USED: u64 = 200;
const PAGE_HEADER: u64 = 20;
const SECTOR: u64 = 512;
/// How a meta record of the store begins, its version behind it, and the bytes to damage in it.
const RECORD: &[u8] = b"HWSL";
const RECORD_USED: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    OneBit,
    Noise,
    PageHeader,
    ZeroPage,
    NoisePage,
    MisplacedPage,
    TornPage,
    CutOff,
    GarbageBehind,
    LmdbMeta,
    MetaRecord,
    Version,
}

const DAMAGES: [Damage; 12] = [
    Damage::OneBit,
    Damage::Noise,
    Damage::PageHeader,
    Damage::ZeroPage,
    Damage::NoisePage,
    Damage::MisplacedPage,
    Damage::TornPage,
    Damage::CutOff,
    Damage::GarbageBehind,
    Damage::LmdbMeta,
    Damage::MetaRecord,
    Damage::Version,
];

impl Damage {
    fn of(case: u64) -> Self {
        DAMAGES[(case % DAMAGES.len() as u64) as usize]
    }

    /// Damages the file, and says where.
    fn inflict(self, file: &mut Vec<u8>, rng: &mut Rng) -> String {
        let flip = |file: &mut [u8], at: u64, rng: &mut Rng| file[at as usize] ^= 1 << rng.below(8);
        let length = file.len() as u64;
        let size = page_size(file);
        let pages = length / size as u64;
        // LMDB's own pages are another kind of damage.
        let page = (2 + rng.below(pages - 2)) * size as u64;
        let whole = page as usize..page as usize + size;
        let what = page_type(&file[whole.clone()]);
        let mut noise = |length: usize| -> Vec<u8> { (0..length).map(|_| rng.below(256) as u8).collect() };
        match self {
            Self::OneBit => {
                let at = page + rng.below(size as u64);
                flip(file, at, rng);
                return format!("{what}, byte {}", at - page);
            }
            Self::Noise => {
                let noise = noise(16);
                let at = rng.below((size - noise.len()) as u64) as usize;
                file[whole][at..][..noise.len()].copy_from_slice(&noise);
                return format!("{what}, byte {at}");
            }
            Self::PageHeader => {
                let at = rng.below(PAGE_HEADER);
                flip(file, page + at, rng);
                return format!("{what}, byte {at}");
            }
            Self::ZeroPage => file[whole].fill(0),
            Self::NoisePage => file[whole].copy_from_slice(&noise(size)),
            Self::MisplacedPage => {
                let from = (2 + rng.below(pages - 2)) as usize * size;
                let other = file[from..from + size].to_vec();
                let said = format!("{what} by {}", page_type(&other));
                file[whole].copy_from_slice(&other);
                return said;
            }
            Self::TornPage => {
                let kept = ((1 + rng.below(size as u64 / SECTOR - 1)) * SECTOR) as usize;
                file[whole][kept..].fill(0);
                return format!("{what} from {kept} on");
            }
            Self::CutOff => {
                file.truncate(rng.below(length) as usize);
                return format!("{} of {length} bytes are left", file.len());
            }
            Self::GarbageBehind => {
                let garbage = noise(3 * size + 100);
                file.extend(garbage);
                return String::new();
            }
            Self::LmdbMeta => {
                let at = rng.below(2) * size as u64 + rng.below(META_USED);
                flip(file, at, rng);
                return format!("page {}, byte {}", at / size as u64, at % size as u64);
            }
            Self::MetaRecord => {
                // Older records lie in pages that are free by now.
                let at = rng.below(RECORD_USED);
                for record in records(file) {
                    flip(file, record as u64 + at, rng);
                }
                return format!("byte {at}");
            }
            Self::Version => {
                let version = FORMAT_VERSION as u8 + 1 + rng.below(250) as u8;
                for record in records(file) {
                    file[record + RECORD.len()] = version;
                }
            }
        }
        what.into()
    }
}

/// By LMDB's flags; what is not in use looks like what it was.
fn page_type(page: &[u8]) -> &'static str {
    match u16::from_le_bytes([page[10], page[11]]) & 0xf {
        1 => "branch page",
        2 => "leaf page",
        4 => "overflow page",
        _ => "page of no type",
    }
}

fn records(file: &[u8]) -> Vec<usize> {
    (0..file.len() - RECORD_USED as usize).filter(|&at| file[at..].starts_with(RECORD)).collect()
}

/// In a child: opens one damaged file after the other and looks at everything.
#[test]
fn inspector() {
    let Some(slice) = support::slice() else { return };
    let range = std::env::var(RANGE).expect("a child is given its cases");
    let [seed, first, end] = range.split(' ').map(|n| n.parse().expect("a number")).collect::<Vec<u64>>()[..] else {
        panic!("three numbers: {range}")
    };
    let file = fs::read(slice.join("data.mdb")).expect("reads");
    let models: Vec<_> = (0..=ROUNDS + 1).map(model).collect();
    // Below the parent's directory: a child that is killed leaves its files behind.
    let report_path = PathBuf::from(std::env::var_os(REPORT).expect("a child has a report"));
    for case in first..end {
        let mut damaged = file.clone();
        let place = Damage::of(case).inflict(&mut damaged, &mut Rng::new(seed ^ (case << 20)));
        report(&format!("case {case} {place}"));
        let dir = report_path.with_extension(format!("case-{case}"));
        fs::create_dir(&dir).expect("creates");
        fs::write(dir.join("data.mdb"), damaged).expect("writes");
        let looked = catch_unwind(AssertUnwindSafe(|| inspect(&dir, &models)));
        report(&format!("end {}", looked.unwrap_or_else(|_| "panicked".into())));
        fs::remove_dir_all(&dir).expect("removes");
    }
}

/// What comes of one file.
fn inspect(dir: &Path, models: &[support::Rows]) -> String {
    let refused = |stage: &str, error: &StoreError| format!("{stage}: {}", kind(error));
    report("stage open");
    let mut store = match support::open(dir) {
        Ok(store) => store,
        Err(error) => return refused("open", &error),
    };
    report("stage verify");
    if let Err(error) = store.verify() {
        return refused("verify", &error);
    }
    report("stage scan");
    let found = store.seal().and_then(|snapshot| {
        snapshot.unindexed_docs(usize::MAX)?;
        Ok((rows(&snapshot, false)?, rows(&snapshot, true)?))
    });
    let st = store.durable().st as usize;
    match found {
        Err(error) => return refused("scan", &error),
        Ok((rows, mut reverse)) => {
            reverse.reverse();
            if st > ROUNDS as usize || rows != models[st] || reverse != rows {
                return "wrong".into();
            }
        }
    }
    report("stage persist");
    let next = st as u64 + 1;
    let persisted = apply(&mut store, next).and_then(|_| persist(&mut store, next)).and_then(|()| store.verify());
    if let Err(error) = persisted {
        return refused("right, then persist", &error);
    }
    match store.seal().and_then(|snapshot| rows(&snapshot, false)) {
        Err(error) => refused("right, then scan", &error),
        Ok(rows) if rows == models[next as usize] => "right".into(),
        Ok(_) => "right, then persisted wrong".into(),
    }
}

/// Looks at the cases of a range in a child; when one ends it, that is its outcome, and another child takes the rest.
fn outcomes(slice: &Path, seed: u64, cases: u64) -> Vec<(Damage, String, String)> {
    let mut found = Vec::new();
    let (_keep, dir) = directory();
    while (found.len() as u64) < cases {
        let first = found.len() as u64;
        let findings = dir.join(format!("report-{first}"));
        let mut command = child("damaged::inspector", slice, &findings, &["sh", "-c", LIMITED]);
        command.env(RANGE, format!("{seed} {first} {}", cases.min(first + BATCH)));
        let output = command.output().expect("starts itself");
        let (mut open, mut stage) = (None, String::new());
        for line in lines(&findings) {
            match line.split_once(' ').expect("two words") {
                ("case", rest) => open = rest.split_once(' ').map(|(_, place)| place.to_owned()),
                ("stage", now) => now.clone_into(&mut stage),
                (_, outcome) => {
                    let place = open.take().expect("a case has begun");
                    found.push((Damage::of(found.len() as u64), outcome.to_owned(), place));
                }
            }
        }
        match (open, output.status.signal()) {
            (None, None) => assert!(output.status.success(), "{}", printed(&output)),
            (Some(place), Some(signal)) => {
                found.push((Damage::of(found.len() as u64), format!("{stage}: killed by {}", name(signal)), place));
            }
            (open, signal) => panic!("{open:?} {signal:?}: {}", printed(&output)),
        }
    }
    found
}

fn name(signal: i32) -> String {
    match signal {
        6 => "SIGABRT".into(),
        7 => "SIGBUS".into(),
        8 => "SIGFPE".into(),
        11 => "SIGSEGV".into(),
        24 => "SIGXCPU".into(),
        other => format!("signal {other}"),
    }
}

#[test]
fn what_is_damaged_is_refused_or_right() {
    let seed = support::seed("damaged");
    let cases = std::env::var(VARIABLE).map_or(CASES, |text| text.parse().expect("a number of cases"));
    let (_keep, dir) = directory();
    let mut store = support::open(&dir).expect("opens");
    for st in 1..=ROUNDS {
        apply(&mut store, st).expect("applies");
        persist(&mut store, st).expect("persists");
    }
    drop(store);

    let found = outcomes(&dir, seed, cases);
    let mut table: BTreeMap<(Damage, &str), (u64, &str)> = BTreeMap::new();
    for (damage, outcome, place) in &found {
        table.entry((*damage, outcome)).or_insert((0, place)).0 += 1;
    }
    for ((damage, outcome), (count, place)) in &table {
        println!("{:>16} {count:>4} {outcome:<44} such as: {place}", format!("{damage:?}"));
    }

    let count = |what: &str| found.iter().filter(|(_, outcome, _)| outcome.contains(what)).count();
    if count("killed") + count("wrong") > 0 {
        tell(&format!(
            "{SEED}={seed}: of {cases} damaged files {} killed the process and {} were taken for good, which the store does not prevent yet",
            count("killed"),
            count("wrong"),
        ));
    }
    for (damage, outcome, place) in &found {
        let case = format!("{damage:?} ({place}): {outcome}");
        assert!(outcome != "panicked", "{case}");
        let broken = outcome.contains("killed") || outcome.contains("wrong");
        match damage {
            Damage::Version => assert_eq!(outcome, "open: UnknownVersion", "{case}"),
            Damage::GarbageBehind => assert_eq!(outcome, "right", "{case}"),
            Damage::MetaRecord => assert!(!broken && outcome != "right", "{case}"),
            _ => assert!(!broken || !promises::DAMAGED_PAGES_ARE_REFUSED, "{case}"),
        }
    }
}
