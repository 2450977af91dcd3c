//! Scans beside the writer.

use super::*;
use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
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

#[test]
fn reading_ends_at_its_deadline() {
    let dir = directory();
    let mut store = open(dir.path());
    // A commit, and a layer that takes almost all of it away.
    let key = |i: u64| i.to_be_bytes();
    for (round, kept) in [(1, 20_000), (2, 1)] {
        for i in 0..20_000u64 {
            let entries = [Entry { key: &key(i), include: b"" }];
            let reason = (i % 2 == 1).then_some(Unindexable::NotJson);
            let (entries, reason) = if i < kept { (&entries[..], None) } else { (&[][..], reason) };
            store.replace(0, &i.to_string(), round, entries, reason).expect("replaces");
        }
        store.seal().expect("seals");
        if round == 1 {
            let job = store.begin_persist(mark(1), Purpose::Snapshot { at: 1 }).expect("none runs");
            store.finish_persist(job.run()).expect("persists");
        }
    }
    let snapshot = store.seal().expect("seals");
    let part = [ByteRange { low: vec![0], high: Some(vec![9]) }];
    let soon = || snapshot.clone().until(Instant::now() + Duration::from_secs(600));
    assert_eq!((soon().count(&part).expect("counts"), soon().count(&all()).expect("counts")), (1, 1));
    assert_eq!(soon().unindexed_docs(7).expect("lists").len(), 7);
    assert_eq!(rows(&soon(), &all(), false, None).len(), 1);

    let late = snapshot.clone().until(Instant::now());
    assert!(matches!(late.count(&part), Err(StoreError::Late)), "a part");
    assert!(matches!(late.count(&all()), Err(StoreError::Late)), "the whole, which is known");
    assert!(matches!(late.unindexed_docs(1), Err(StoreError::Late)));
    for reverse in [false, true] {
        assert!(matches!(
            late.scan(&part, reverse, None, &mut |_, _| ControlFlow::Continue(())),
            Err(StoreError::Late)
        ));
        // The only row is met first, or last: behind it nothing is visited, and the deadline counts all the same.
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut visited = 0;
        let scanned = snapshot.clone().until(deadline).scan(&part, reverse, None, &mut |_, _| {
            visited += 1;
            while Instant::now() < deadline {
                std::thread::yield_now();
            }
            ControlFlow::Continue(())
        });
        if reverse {
            assert!(scanned.is_ok() && visited == 1, "the last row was the last step");
        } else {
            assert!(matches!(scanned, Err(StoreError::Late)) && visited == 1, "{scanned:?} after {visited}");
        }
    }
}

#[test]
fn who_waits_for_a_reader_waits_until_its_deadline() {
    let dir = directory();
    let few = StoreLimits { readers: 1, most_readers: 1, reader_wait: Duration::from_secs(600), ..limits() };
    let mut store = LmdbStore::open(dir.path(), &identity(), few).expect("opens");
    store.replace(0, "a", 1, &[Entry { key: b"\x03", include: b"" }], None).expect("replaces");
    let snapshot = store.seal().expect("seals");
    let mut inner = None;
    snapshot
        .scan(&all(), false, None, &mut |_, _| {
            let soon = snapshot.clone().until(Instant::now() + Duration::from_millis(20));
            inner = Some(soon.count(&[ByteRange { low: vec![1], high: None }]));
            ControlFlow::Continue(())
        })
        .expect("scans");
    assert!(matches!(inner, Some(Err(StoreError::Late))));
}
