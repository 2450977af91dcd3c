//! Measures the slice store on this machine: `cargo run --release -p highwater-indexer --example store_speed [directory]`.
//!
//! The directory decides which disk is synced to; default is the system's temporary directory.

use highwater_indexer::store::{Entry, LmdbStore, Purpose, SliceIdentity, SliceMark, SliceStore, Snapshot, StoreLimits};
use highwater_schemas::wire::ByteRange;
use std::{
    error::Error,
    ops::ControlFlow,
    path::PathBuf,
    time::{Duration, Instant},
};

const DOCUMENTS: u64 = 500_000;
const UPDATES: u64 = 300_000;
const GROUP: u64 = 100;
const SLICES_OF_COUNT: u64 = 2;

/// A key as a number and a short text make it, and 30 bytes of included fields: 60 bytes.
fn key(n: u64) -> [u8; 30] {
    let mut key = *b"\x06________\x08a-name-of-20-bytes\0\0";
    key[1..9].copy_from_slice(&n.to_be_bytes());
    key
}

const INCLUDE: &[u8] = br#"{"city":"Oslo","visits":12345}"#;

/// Time of the clock, and of this thread on a processor: on a busy machine only the second one says much.
#[derive(Clone, Copy)]
struct Stopwatch(Instant, Duration);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now(), on_processor())
    }
    fn stop(self) -> [Duration; 2] {
        [self.0.elapsed(), on_processor().saturating_sub(self.1)]
    }
}

/// Zero where the system does not tell.
fn on_processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

fn report(what: &str, n: u64, took: [Duration; 2]) {
    let [clock, processor] = took.map(|t| (t.as_secs_f64() * 1e3, n as f64 / t.as_secs_f64() / 1e6));
    println!(
        "{what:<36} {n:>7} in {:>7.1} ms = {:>6.2} M/s; on processor {:>7.1} ms = {:>6.2} M/s",
        clock.0, clock.1, processor.0, processor.1
    );
}

fn sum(a: [Duration; 2], b: [Duration; 2]) -> [Duration; 2] {
    [a[0] + b[0], a[1] + b[1]]
}

/// Spreads consecutive numbers over the whole range.
fn scatter(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn persist(store: &mut LmdbStore, st: u64, purpose: Purpose) -> Result<[Duration; 2], Box<dyn Error>> {
    let started = Stopwatch::start();
    let job = store.begin_persist(SliceMark { st, ..SliceMark::default() }, purpose).ok_or("a persist is running")?;
    store.finish_persist(job.run())?;
    Ok(started.stop())
}

fn read(snapshot: &Snapshot, what: &str) -> Result<(), Box<dyn Error>> {
    let all = [ByteRange { low: Vec::new(), high: None }];
    for reverse in [false, true] {
        let (started, mut rows, mut bytes) = (Stopwatch::start(), 0, 0);
        snapshot.scan(&all, reverse, None, &mut |key, include| {
            rows += 1;
            bytes += key.len() + include.len();
            ControlFlow::Continue(())
        })?;
        report(&format!("scan {what}{}", if reverse { ", reverse" } else { "" }), rows, started.stop());
        assert!(rows == snapshot.items() && bytes > 0);
    }
    let started = Stopwatch::start();
    let half = |i: u64| key(u64::MAX / SLICES_OF_COUNT * i).to_vec();
    let halves: Vec<_> = (0..SLICES_OF_COUNT).map(|i| ByteRange { low: half(i), high: Some(half(i + 1)) }).collect();
    let count = snapshot.count(&halves)?;
    report(&format!("count {what}"), count, started.stop());
    let started = Stopwatch::start();
    report(&format!("count {what}, everything"), snapshot.count(&all)?, started.stop());
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("store_speed-{}", std::process::id()));
    let identity = SliceIdentity { bucket: "speed".into(), ..SliceIdentity::default() };
    let mut store = LmdbStore::open(&dir, &identity, StoreLimits::default())?;

    let started = Stopwatch::start();
    for i in 0..DOCUMENTS {
        let entry = Entry { key: &key(scatter(i)), include: INCLUDE };
        store.bulk(0, &format!("user:{i:07}"), i + 1, &[entry], None)?;
    }
    let collected = started.stop();
    report("bulk, collect", DOCUMENTS, collected);
    let persisted = persist(&mut store, 1, Purpose::Built)?;
    report("bulk, persist", DOCUMENTS, persisted);
    report("bulk, both", DOCUMENTS, sum(collected, persisted));
    read(&store.seal()?, "commit")?;

    let started = Stopwatch::start();
    for i in 0..UPDATES {
        let document = scatter(i) % DOCUMENTS;
        let entry = Entry { key: &key(scatter(document + i)), include: INCLUDE };
        store.replace(0, &format!("user:{document:07}"), DOCUMENTS + i + 1, &[entry], None)?;
        if i % GROUP == GROUP - 1 {
            store.seal()?;
        }
    }
    let replaced = started.stop();
    report("replace, sealed in groups of 100", UPDATES, replaced);
    println!("memory {} MB in {} layers", store.memory() >> 20, store.stats().layers);
    read(&store.seal()?, "commit and layers")?;
    let persisted = persist(&mut store, 2, Purpose::Snapshot { at: 2 })?;
    report("replace, persist", UPDATES, persisted);
    report("replace, both", UPDATES, sum(replaced, persisted));
    let started = Stopwatch::start();
    report("verify", store.verify()?.documents, started.stop());
    println!("data file {} MB, of it live {} MB", store.stats().file_bytes >> 20, store.stats().live_bytes >> 20);

    drop(store);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
