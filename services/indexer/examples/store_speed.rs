//! Measures the slice store by itself:
//! `cargo run --release -p highwater-indexer --example store_speed -- [--entries N] [--slices N] [--directory DIR] [--json]`.
//!
//! Every document has one entry of about 60 bytes in each slice. The slices are filled in bulk as a node does it, sharing its
//! memory quota; then documents are updated, with a persistent snapshot now and then; then everything is opened anew. The
//! directory decides which disk is synced to.

use highwater_indexer::store::{
    Entry, LmdbStore, PersistJob, Purpose, SliceIdentity, SliceMark, SliceStore, Snapshot, StoreLimits,
};
use highwater_schemas::wire::ByteRange;
use std::{
    error::Error,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// What a node lets all of its slices hold in memory.
const QUOTA: usize = 96 << 20;
/// Builds that run side by side.
const BUILDS: usize = 2;
/// Documents updated, in groups of a stability timestamp each, and groups between persistent snapshots.
const UPDATES: u64 = 200_000;
const GROUP: u64 = 100;
const GROUPS: u64 = 500;
const INCLUDE: &[u8] = br#"{"city":"Oslo","visits":12345}"#;
const LOOK: Duration = Duration::from_millis(5);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Options {
    entries: u64,
    slices: usize,
    directory: PathBuf,
    json: bool,
}

impl Options {
    fn read() -> Result<Self> {
        let mut options = Self { entries: 500_000, slices: 1, directory: std::env::temp_dir(), json: false };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--entries" => options.entries = value()?.parse()?,
                "--slices" => options.slices = value()?.parse()?,
                "--directory" => options.directory = value()?.into(),
                "--json" => options.json = true,
                other => return Err(format!("unknown argument {other}").into()),
            }
        }
        if options.slices == 0 || options.entries < options.slices as u64 {
            return Err("one slice and one entry in each are the least".into());
        }
        Ok(options)
    }
}

/// A key as a number and a short text make it: 30 bytes.
fn key(n: u64) -> [u8; 30] {
    let mut key = *b"\x06________\x08a-name-of-20-bytes\0\0";
    key[1..9].copy_from_slice(&n.to_be_bytes());
    key
}

/// Spreads consecutive numbers over the whole range.
fn scatter(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// One measured phase: a name, how many of what, and how long.
struct Phase(&'static str, u64, Duration);

/// The most anonymous memory that this process had resident, bytes; looked at now and then.
static MOST: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicBool = AtomicBool::new(false);

fn watch_memory() {
    while !DONE.load(Ordering::Relaxed) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or_default();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        MOST.fetch_max(kib * 1024, Ordering::Relaxed);
        std::thread::sleep(LOOK);
    }
}

fn identity(slice: usize) -> SliceIdentity {
    SliceIdentity { bucket: "speed".into(), index: slice as u32, ..SliceIdentity::default() }
}

fn open(dir: &Path, slice: usize) -> Result<LmdbStore> {
    Ok(LmdbStore::open(&dir.join(slice.to_string()), &identity(slice), StoreLimits::default())?)
}

fn begin(store: &mut LmdbStore, st: u64, purpose: Purpose) -> Result<PersistJob> {
    Ok(store.begin_persist(SliceMark { st, ..SliceMark::default() }, purpose).ok_or("a persist is running")?)
}

fn persist(store: &mut LmdbStore, st: u64, purpose: Purpose) -> Result<()> {
    let job = begin(store, st, purpose)?;
    Ok(store.finish_persist(job.run())?)
}

/// Makes the largest slice durable while all of them hold too much.
fn keep_quota(stores: &mut [LmdbStore], st: &mut u64) -> Result<()> {
    while stores.iter().map(SliceStore::memory).sum::<usize>() > QUOTA {
        let Some(largest) = stores.iter_mut().max_by_key(|s| s.memory()) else { return Ok(()) };
        *st += 1;
        largest.seal()?;
        persist(largest, *st, Purpose::Interim)?;
    }
    Ok(())
}

fn fill(stores: &mut [LmdbStore], documents: u64, st: &mut u64, phases: &mut Vec<Phase>) -> Result<()> {
    let entries = documents * stores.len() as u64;
    let since = Instant::now();
    for i in 0..documents {
        let docid = format!("user:{i:08}");
        for (n, store) in stores.iter_mut().enumerate() {
            let entry = Entry { key: &key(scatter(i + n as u64)), include: INCLUDE };
            store.bulk(0, &docid, i + 1, &[entry], None)?;
        }
        if i.is_multiple_of(4_096) {
            keep_quota(stores, st)?;
        }
    }
    phases.push(Phase("collect and spool", entries, since.elapsed()));
    let since = Instant::now();
    for group in stores.chunks_mut(BUILDS) {
        *st += 1;
        let jobs = group.iter_mut().map(|s| begin(s, *st, Purpose::Built)).collect::<Result<Vec<_>>>()?;
        let running: Vec<_> = jobs.into_iter().map(|job| std::thread::spawn(|| job.run())).collect();
        for (store, job) in group.iter_mut().zip(running) {
            store.finish_persist(job.join().map_err(|_| "a build panicked")?)?;
        }
    }
    phases.push(Phase("merge and append", entries, since.elapsed()));
    *st += 1;
    for store in stores {
        persist(store, *st, Purpose::Snapshot { at: 0 })?;
    }
    Ok(())
}

fn update(stores: &mut [LmdbStore], documents: u64, st: &mut u64, phases: &mut Vec<Phase>) -> Result<()> {
    let slices = stores.len() as u64;
    let (since, mut persisting) = (Instant::now(), Duration::ZERO);
    for i in 0..UPDATES {
        let document = scatter(i) % documents;
        let entry = Entry { key: &key(scatter(document + i)), include: INCLUDE };
        // Each document of one slice: as many updates whatever the number of slices.
        let store = &mut stores[(i % slices) as usize];
        store.replace(0, &format!("user:{document:08}"), documents + i + 1, &[entry], None)?;
        if i % GROUP == GROUP - 1 {
            stores.iter_mut().try_for_each(|s| s.seal().map(|_| ()))?;
        }
        if i % (GROUP * GROUPS) == GROUP * GROUPS - 1 {
            *st += 1;
            let since = Instant::now();
            for store in stores.iter_mut() {
                persist(store, *st, Purpose::Snapshot { at: *st * 5_000 })?;
            }
            persisting += since.elapsed();
            keep_quota(stores, st)?;
        }
    }
    phases.push(Phase("replace", UPDATES, since.elapsed().saturating_sub(persisting)));
    phases.push(Phase("replace, made durable", UPDATES, persisting));
    Ok(())
}

fn read(snapshot: &Snapshot, phases: &mut Vec<Phase>) -> Result<()> {
    let all = [ByteRange { low: Vec::new(), high: None }];
    let (since, mut rows, mut bytes) = (Instant::now(), 0, 0);
    snapshot.scan(&all, false, None, &mut |key, include| {
        rows += 1;
        bytes += key.len() + include.len();
        ControlFlow::Continue(())
    })?;
    assert!(rows == snapshot.items() && bytes > 0);
    phases.push(Phase("scan of a slice", rows, since.elapsed()));
    let since = Instant::now();
    let half = |i: u64| key(u64::MAX / 2 * i).to_vec();
    let halves: Vec<_> = (0..2).map(|i| ByteRange { low: half(i), high: Some(half(i + 1)) }).collect();
    phases.push(Phase("count of a slice", snapshot.count(&halves)?, since.elapsed()));
    Ok(())
}

/// Opens every slice and reads a row of each.
fn restart(dir: &Path, slices: usize, phases: &mut Vec<Phase>) -> Result<Vec<LmdbStore>> {
    let since = Instant::now();
    let mut stores = Vec::new();
    for slice in 0..slices {
        let mut store = open(dir, slice)?;
        let all = [ByteRange { low: Vec::new(), high: None }];
        store.seal()?.scan(&all, false, None, &mut |_, _| ControlFlow::Break(()))?;
        stores.push(store);
    }
    phases.push(Phase("restart to serving", slices as u64, since.elapsed()));
    Ok(stores)
}

fn main() -> Result<()> {
    let options = Options::read()?;
    let dir = options.directory.join(format!("store_speed-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let watcher = std::thread::spawn(watch_memory);
    let (mut phases, mut st) = (Vec::new(), 0);
    let documents = options.entries / options.slices as u64;
    let mut stores = (0..options.slices).map(|slice| open(&dir, slice)).collect::<Result<Vec<_>>>()?;
    fill(&mut stores, documents, &mut st, &mut phases)?;
    let live: u64 = stores.iter().map(|s| s.stats().live_bytes).sum();
    read(&stores[0].seal()?, &mut phases)?;
    update(&mut stores, documents, &mut st, &mut phases)?;
    let kept = stores[0].kept().first().map(|k| k.mark.st).ok_or("no snapshot is kept")?;
    let since = Instant::now();
    stores.iter_mut().try_for_each(|s| s.roll_back(kept, (0, 0)))?;
    phases.push(Phase("rolled back", UPDATES, since.elapsed()));
    drop(stores);
    let mut stores = restart(&dir, options.slices, &mut phases)?;
    assert!(stores.iter_mut().all(|s| s.seal().is_ok_and(|s| s.items() == documents)));
    DONE.store(true, Ordering::Relaxed);
    watcher.join().map_err(|_| "the watcher panicked")?;
    drop(stores);
    std::fs::remove_dir_all(&dir)?;

    let memory = MOST.load(Ordering::Relaxed);
    if options.json {
        let phases: Vec<_> = phases
            .iter()
            .map(|Phase(name, n, took)| serde_json::json!({"phase": name, "n": n, "seconds": took.as_secs_f64()}))
            .collect();
        let (entries, slices) = (documents * options.slices as u64, options.slices);
        println!(
            "{}",
            serde_json::json!({"entries": entries, "slices": slices, "phases": phases, "rss_anon": memory, "live": live,
                "quota": QUOTA})
        );
        return Ok(());
    }
    for Phase(name, n, took) in phases {
        let seconds = took.as_secs_f64();
        println!("{name:<24} {n:>9} in {:>8.1} ms = {:>7.3} M/s", seconds * 1e3, n as f64 / seconds / 1e6);
    }
    println!("RssAnon at most {} MiB, live pages {} MiB", memory >> 20, live >> 20);
    Ok(())
}
