//! What opening accepts, and what failed or lost persists leave behind.

use super::{
    super::meta::{Meta, UndoSlot},
    *,
};
use heed::{CommitOrAbort, EnvOpenOptions, types::Bytes};

const ENTRY: Entry<'_> = Entry { key: b"\x06k", include: b"{}" };

/// Changes the meta record behind the store's back.
#[allow(unsafe_code)]
fn tamper(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    // SAFETY: the store is closed, and nobody else has the files open.
    let env = unsafe { EnvOpenOptions::new().map_size(256 << 20).max_dbs(80).open(dir) }.expect("opens");
    let txn = env.write_txn().expect("writes");
    let done = env.create_databases_and_commit(txn, |opener, txn| -> heed::Result<_> {
        let db = opener.create_database::<Bytes, Bytes>(txn, Some("meta"))?;
        let mut record = db.get(txn, b"meta")?.expect("has a record").to_vec();
        change(&mut record);
        db.put(txn, b"meta", &record)?;
        Ok(CommitOrAbort::<(), ()>::Commit(()))
    });
    assert!(done.is_ok());
}

fn filled(dir: &Path) -> LmdbStore {
    let mut store = open(dir);
    store.replace(0, "u1", 5, &[ENTRY], None).expect("replaces");
    store.seal().expect("seals");
    persist(&mut store, 1);
    store
}

fn refusal(dir: &Path, identity: &SliceIdentity) -> StoreError {
    LmdbStore::open(dir, identity, limits()).err().expect("refused")
}

#[test]
fn any_damaged_byte_of_the_meta_record_is_noticed() {
    let meta = Meta {
        identity: identity(),
        items: 3,
        unindexed: 1,
        undo: UndoSlot { slot: Some(3), bytes: 8 },
        mark: mark(4),
    };
    let bytes = meta.encode();
    assert_eq!(Meta::decode(&bytes).expect("intact"), meta);
    for i in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[i] ^= 0x10;
        assert!(Meta::decode(&damaged).is_err(), "byte {i}");
        assert!(Meta::decode(&bytes[..i]).is_err(), "length {i}");
    }
    assert!(Meta::decode(&[&bytes[..], b"x"].concat()).is_err());
}

#[test]
fn a_damaged_meta_record_is_refused() {
    let dir = directory();
    drop(filled(dir.path()));
    tamper(dir.path(), |record| record[20] ^= 1);
    assert!(matches!(refusal(dir.path(), &identity()), StoreError::Damaged(_)));
}

#[test]
fn an_unknown_version_is_refused() {
    let dir = directory();
    drop(filled(dir.path()));
    tamper(dir.path(), |record| record[4] = 9);
    assert!(matches!(
        refusal(dir.path(), &identity()),
        StoreError::UnknownVersion { found: 9, supported: FORMAT_VERSION }
    ));
}

#[test]
fn counts_that_do_not_match_the_data_are_refused() {
    let dir = directory();
    drop(filled(dir.path()));
    tamper(dir.path(), |record| {
        let mut meta = Meta::decode(record).expect("intact");
        meta.items += 1;
        *record = meta.encode();
    });
    assert!(matches!(refusal(dir.path(), &identity()), StoreError::Damaged(_)));
}

#[test]
fn another_slices_directory_is_refused() {
    let dir = directory();
    drop(filled(dir.path()));
    let own = identity();
    let others = [
        ("bucket", SliceIdentity { bucket: "orders".into(), ..own.clone() }),
        ("bucket declaration", SliceIdentity { declared: 8, ..own.clone() }),
        ("index id", SliceIdentity { index_id: "x".into(), ..own.clone() }),
        ("index number", SliceIdentity { index: 4, ..own.clone() }),
        ("partition", SliceIdentity { partition: 0, ..own }),
    ];
    for (differs, other) in others {
        assert!(matches!(refusal(dir.path(), &other), StoreError::OtherSlice { what, .. } if what == differs));
    }
}

#[test]
fn files_that_are_not_a_slice_are_refused() {
    let dir = directory();
    std::fs::write(dir.path().join("data.mdb"), vec![7; 8192]).expect("writes");
    assert!(matches!(refusal(dir.path(), &identity()), StoreError::Damaged(_)));
}

#[test]
fn a_slice_is_open_once_until_its_last_snapshot_goes() {
    let dir = directory();
    let mut store = filled(dir.path());
    let snapshot = store.seal().expect("seals");
    assert!(matches!(refusal(dir.path(), &identity()), StoreError::AlreadyOpen(_)));
    drop(store);
    assert!(matches!(refusal(dir.path(), &identity()), StoreError::AlreadyOpen(_)));
    assert_eq!(rows(&snapshot, &all(), false, None).len(), 1);
    drop(snapshot);
    assert_eq!(open(dir.path()).durable(), &mark(1));
}

#[test]
fn what_was_not_persisted_is_lost_and_nothing_else() {
    let dir = directory();
    let mut store = filled(dir.path());
    store.replace(0, "u2", 6, &[ENTRY], None).expect("replaces");
    store.seal().expect("seals");
    let job = store.begin_persist(mark(2), Purpose::Snapshot { at: 2 }).expect("begins");
    store.replace(0, "u3", 7, &[ENTRY], None).expect("replaces");
    assert!(store.begin_persist(mark(9), Purpose::Snapshot { at: 9 }).is_none());
    store.finish_persist(job.run()).expect("persists");
    assert_eq!(store.seal().expect("seals").items(), 3);
    drop(store);
    let mut store = open(dir.path());
    assert_eq!((store.seal().expect("seals").items(), store.durable()), (2, &mark(2)));
}

#[test]
fn an_outgrown_map_fails_the_persist_and_keeps_everything_readable() {
    let dir = directory();
    drop(open(dir.path()));
    let small = StoreLimits { map_size: 512 << 10, map_growth: 4 << 20, ..limits() };
    let mut store = LmdbStore::open(dir.path(), &identity(), small).expect("opens");
    let include = vec![b'x'; 1_000];
    for i in 0..1_000 {
        store.replace(0, &format!("u{i}"), 5, &[Entry { key: b"k", include: &include }], None).expect("replaces");
    }
    let snapshot = store.seal().expect("seals");
    let before = rows(&snapshot, &all(), false, None);
    for _ in 0..2 {
        let job = store.begin_persist(mark(1), Purpose::Snapshot { at: 1 }).expect("begins");
        let outcome = job.run();
        assert!(!outcome.is_durable());
        assert!(matches!(store.finish_persist(outcome), Err(StoreError::MapFull)));
        assert_eq!(rows(&store.seal().expect("seals"), &all(), false, None), before);
    }
    store.replace(0, "u1", 6, &[], None).expect("replaces");
    assert_eq!(store.seal().expect("seals").items(), 999);
    assert_eq!((store.durable(), store.stats().poisoned), (&SliceMark::default(), None));
    // Whoever reads keeps it from growing; what they read stays.
    assert!(matches!(store.grow(), Err(StoreError::Busy)));
    assert_eq!(rows(&snapshot, &all(), false, None), before);
    drop(snapshot);
    store.grow().expect("grows");
    assert_eq!(store.seal().expect("seals").items(), 999);
    persist(&mut store, 1);
    assert_eq!(rows(&store.seal().expect("seals"), &all(), false, None).len(), 999);
}

#[test]
fn a_lost_job_is_repeated_but_a_lost_commit_poisons() {
    let dir = directory();
    let mut store = filled(dir.path());
    store.replace(0, "u2", 6, &[ENTRY], None).expect("replaces");
    store.seal().expect("seals");
    drop(store.begin_persist(mark(2), Purpose::Snapshot { at: 2 }).expect("begins"));
    drop(store.begin_persist(mark(3), Purpose::Snapshot { at: 3 }).expect("begins again").run());
    let outcome = store.begin_persist(mark(4), Purpose::Snapshot { at: 4 }).expect("answers").run();
    assert!(matches!(store.finish_persist(outcome), Err(StoreError::Poisoned(_))));
    assert!(store.stats().poisoned.is_some());
    assert_eq!(store.seal().expect("still readable").items(), 2);
    drop(store);
    let mut store = open(dir.path());
    assert_eq!((store.seal().expect("seals").items(), store.durable()), (2, &mark(3)));
    store.replace(0, "u3", 8, &[ENTRY], None).expect("replaces");
    store.seal().expect("seals");
    persist(&mut store, 5);
}

#[test]
fn an_outcome_is_taken_back_only_by_its_store() {
    let (one, two) = (directory(), directory());
    let (mut a, mut b) = (open(one.path()), open(two.path()));
    let foreign = b.begin_persist(mark(1), Purpose::Snapshot { at: 1 }).expect("begins").run();
    assert!(matches!(a.finish_persist(foreign), Err(StoreError::Misuse(_))));
}

#[test]
fn what_a_commit_writes_is_held_twice_only_while_it_does() {
    let dir = directory();
    let mut store = filled(dir.path());
    for n in 0..100 {
        store.replace(0, &format!("d{n}"), 10 + n, &[ENTRY], None).expect("replaces");
    }
    store.seal().expect("seals");
    let held = store.memory();
    let job = store.begin_persist(mark(2), Purpose::Snapshot { at: 2 }).expect("begins");
    assert_eq!(store.memory(), held, "it waits for its turn");
    let outcome = job.run();
    assert!(store.memory() > held + held / 2, "{} of {held}", store.memory());
    store.finish_persist(outcome).expect("persists");
    assert!(store.memory() < held, "{} of {held}", store.memory());
}

#[test]
fn documents_that_come_and_go_between_commits_cost_no_pages_of_the_index() {
    let directory = directory();
    let mut store = open(directory.path());
    store.replace(0, "stays", 1, &[ENTRY], None).expect("replaces");
    store.seal().expect("seals");
    persist(&mut store, 1);
    store.replace(0, "stays", 2, &[], None).expect("replaces");
    store.seal().expect("seals");
    persist(&mut store, 2);
    let pages = |store: &LmdbStore| store.live().expect("is open").env.info().last_page_number;
    let before = pages(&store);
    for number in 0..2_000 {
        let document = format!("comes and goes {number}");
        store.replace(0, &document, 10 + number, &[ENTRY], None).expect("replaces");
        store.replace(0, &document, 11 + number, &[], None).expect("replaces");
    }
    store.seal().expect("seals");
    persist(&mut store, 3);
    // What undoes it names them all.
    let grown = pages(&store) - before;
    assert!(grown < 100, "{grown} pages for 2,000 documents");
}
