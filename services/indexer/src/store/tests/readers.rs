//! Scans beside the writer.

use super::*;
use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Ends the readers, also when the writer fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_scan_beside_the_writer_reads_exactly_its_timestamp() {
    const DOCUMENTS: u64 = 200;
    const ROUNDS: u64 = 60;
    let dir = directory();
    let mut store =
        LmdbStore::open(dir.path(), &identity(), StoreLimits { merge_layers: 3, ..limits() }).expect("opens");
    let newest = Mutex::new((0u64, store.seal().expect("seals")));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (newest, done) = (&newest, &done);
            scope.spawn(move || {
                let mut held = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    held.push(newest.lock().expect("healthy").clone());
                    for (round, snapshot) in &held {
                        let got = rows(snapshot, &all(), reader % 2 == 1, None);
                        assert_eq!(got.len() as u64, if *round == 0 { 0 } else { DOCUMENTS });
                        assert!(got.iter().all(|(_, at)| *at == round.to_be_bytes()), "another state than {round}");
                    }
                    if held.len() > 6 {
                        held.clear();
                    }
                }
            });
        }
        let _done = Done(&done);
        let mut job = None;
        for round in 1..=ROUNDS {
            for i in 0..DOCUMENTS {
                let key = (i * 31 % DOCUMENTS + round).to_be_bytes();
                let entry = Entry { key: &key, include: &round.to_be_bytes() };
                store.replace(0, &i.to_string(), round, &[entry], None).expect("replaces");
            }
            let snapshot = store.seal().expect("seals");
            assert_eq!(snapshot.items(), DOCUMENTS);
            *newest.lock().expect("healthy") = (round, snapshot);
            if let Some(merge) = store.begin_merge() {
                store.finish_merge(Some(merge.run()));
            }
            if round % 3 == 0 {
                job = store
                    .begin_persist(mark(round), Purpose::Snapshot { at: round })
                    .map(|job| scope.spawn(|| job.run()));
            } else if let Some(job) = job.take_if(|_| round % 3 == 2) {
                store.finish_persist(job.join().expect("runs")).expect("persists");
                store.verify().expect("databases agree");
            }
        }
    });
    assert!(store.durable().st > 0);
}

#[test]
fn a_held_snapshot_outlives_many_commits() {
    let dir = directory();
    let mut store = open(dir.path());
    let mut held = Vec::new();
    for st in 1..20 {
        store.replace(0, "u", st, &[Entry { key: &[st as u8], include: b"" }], None).expect("replaces");
        held.push((store.seal().expect("seals"), st as u8));
        persist(&mut store, st);
    }
    for (snapshot, key) in held {
        assert_eq!(rows(&snapshot, &all(), false, None), [(entry_key(&[key], 0, "u"), Vec::new())]);
    }
}

#[test]
fn scans_wait_for_a_reader_only_so_long_and_always_return_it() {
    let dir = directory();
    let limits = StoreLimits { readers: 1, most_readers: 1, reader_wait: Duration::from_millis(20), ..limits() };
    let mut store = LmdbStore::open(dir.path(), &identity(), limits).expect("opens");
    store.replace(0, "u", 1, &[Entry { key: b"k", include: b"" }], None).expect("replaces");
    let snapshot = store.seal().expect("seals");
    let nested = &mut |_: &[u8], _: &[u8]| {
        assert!(matches!(snapshot.unindexed_docs(1), Err(StoreError::Busy)));
        ControlFlow::Continue(())
    };
    snapshot.scan(&all(), false, None, nested).expect("scans");
    let panicking = AssertUnwindSafe(|| snapshot.scan(&all(), false, None, &mut |_, _| panic!("a visitor fails")));
    assert!(catch_unwind(panicking).is_err());
    assert_eq!(rows(&snapshot, &all(), false, None).len(), 1);
}

#[test]
fn the_newest_commit_gets_further_readers_and_an_older_one_does_not() {
    let dir = directory();
    let limits = StoreLimits { readers: 1, most_readers: 3, reader_wait: Duration::from_millis(20), ..limits() };
    let mut store = LmdbStore::open(dir.path(), &identity(), limits).expect("opens");
    let nested_scans = |snapshot: &Snapshot, answers: &mut Vec<bool>| {
        let outer = &mut |_: &[u8], _: &[u8]| {
            answers.push(snapshot.unindexed_docs(1).is_ok());
            ControlFlow::Continue(())
        };
        snapshot.scan(&all(), false, None, outer).expect("scans");
    };
    store.replace(0, "u", 1, &[Entry { key: b"k", include: b"" }], None).expect("replaces");
    let old = store.seal().expect("seals");
    persist(&mut store, 1);
    let new = store.seal().expect("seals");
    let mut answers = Vec::new();
    nested_scans(&old, &mut answers);
    nested_scans(&new, &mut answers);
    assert_eq!(answers, [false, true]);
}
