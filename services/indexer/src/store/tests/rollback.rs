//! Kept snapshots, and going back to them.

use super::*;
use std::time::Duration;

fn put(store: &mut LmdbStore, docid: &str, seqno: u64, include: &[u8]) {
    store.replace(0, docid, seqno, &[Entry { key: b"k", include }], None).expect("replaces");
}

fn includes(store: &mut LmdbStore) -> Vec<Vec<u8>> {
    let snapshot = store.seal().expect("seals");
    rows(&snapshot, &all(), false, None).into_iter().map(|(_, include)| include).collect()
}

fn kept(store: &LmdbStore) -> Vec<u64> {
    store.kept().iter().map(|k| k.mark.st).collect()
}

#[test]
fn a_rollback_brings_entries_and_included_fields_back_for_good() {
    let dir = directory();
    let mut store = open(dir.path());
    put(&mut store, "a", 1, b"1");
    store.replace(1, "bad", 2, &[], Unindexable::from_code(1)).expect("replaces");
    store.seal().expect("seals");
    persist(&mut store, 1);
    put(&mut store, "a", 3, b"2");
    put(&mut store, "b", 4, b"2");
    store.replace(1, "bad", 5, &[], None).expect("replaces");
    store.seal().expect("seals");
    persist(&mut store, 2);
    store.replace(0, "a", 6, &[], None).expect("replaces");
    store.seal().expect("seals");
    // Memory was short: this belongs to the next snapshot.
    persist_for(&mut store, 3, Purpose::Interim);
    put(&mut store, "a", 7, b"7");
    store.seal().expect("seals");
    persist(&mut store, 4);
    put(&mut store, "c", 8, b"not durable");
    let held = store.seal().expect("seals");

    store.roll_back(2, (5, 6)).expect("rolls back");
    assert_eq!(includes(&mut store), [b"2", b"2"]);
    assert_eq!(store.durable(), &SliceMark { topic: 5, topic_created: 6, ..mark(2) });
    assert_eq!(kept(&store), [1, 2]);
    assert_eq!(rows(&held, &all(), false, None).len(), 3, "a snapshot that is held stays as it is");
    drop(held);
    // A lower seqno than before may follow.
    put(&mut store, "a", 4, b"4");
    store.seal().expect("seals");
    persist(&mut store, 5);
    drop(store);

    let mut store = open(dir.path());
    assert_eq!(includes(&mut store), [b"4", b"2"]);
    store.roll_back(1, (0, 0)).expect("rolls back");
    assert_eq!(includes(&mut store), [b"1"]);
    assert_eq!(store.seal().expect("seals").unindexed_docs(9).expect("lists").len(), 1);
    assert_eq!(store.verify().expect("agrees").undo, 0);
    assert!(matches!(store.roll_back(2, (0, 0)), Err(StoreError::NoSuchSnapshot(2))));
}

#[test]
fn snapshots_are_kept_by_age_number_and_bytes() {
    let dir = directory();
    let limits = StoreLimits { kept_for: Duration::from_millis(3), kept_least: 2, undo_quota: 2_000, ..limits() };
    let mut store = LmdbStore::open(dir.path(), &identity(), limits.clone()).expect("opens");
    for st in 1..=9 {
        put(&mut store, "a", st, b"x");
        store.seal().expect("seals");
        persist(&mut store, st);
    }
    assert_eq!(kept(&store), [6, 7, 8, 9], "those of the last three milliseconds");
    let persist_at = |store: &mut LmdbStore, st: u64, at: u64| {
        let job = store.begin_persist(mark(st), Purpose::Snapshot { at }).expect("begins");
        store.finish_persist(job.run()).expect("persists");
    };
    persist_at(&mut store, 10, 99);
    assert_eq!(kept(&store), [9, 10], "two at least");
    for st in 11..=13 {
        put(&mut store, "a", st, &[b'y'; 900]);
        store.seal().expect("seals");
        persist_at(&mut store, st, 99);
    }
    assert_eq!(kept(&store), [10, 11, 12, 13]);
    put(&mut store, "a", 14, b"z");
    store.seal().expect("seals");
    persist_at(&mut store, 14, 99);
    assert_eq!(kept(&store), [12, 13, 14], "the oldest go when their undo records take too much");
    store.verify().expect("agrees");
    drop(store);
    let mut store = LmdbStore::open(dir.path(), &identity(), limits).expect("opens");
    assert_eq!(kept(&store), [12, 13, 14]);
    store.roll_back(12, (0, 0)).expect("rolls back");
    assert_eq!(includes(&mut store), [[b'y'; 900]]);
}

#[test]
fn more_snapshots_than_slots_cost_the_oldest() {
    let dir = directory();
    let mut store = open(dir.path());
    for st in 1..=60 {
        put(&mut store, "a", st, &st.to_be_bytes());
        store.seal().expect("seals");
        persist(&mut store, st);
    }
    let oldest = kept(&store)[0];
    assert_eq!(kept(&store).len() as u64, 60 - oldest + 1);
    assert!(kept(&store).len() > 36, "three minutes of one every five seconds");
    store.roll_back(oldest, (0, 0)).expect("rolls back");
    assert_eq!(includes(&mut store), [oldest.to_be_bytes()]);
}
