//! Filling an empty slice.

use super::{
    super::build::{FRESH, MOST_RUNS},
    *,
};

/// Everything through files, or all in memory.
fn open_with(dir: &Path, files: bool) -> LmdbStore {
    let (build_memory, small_build) = if files { (4_096, 0) } else { (1 << 20, 1 << 30) };
    LmdbStore::open(dir, &identity(), StoreLimits { build_memory, small_build, ..limits() }).expect("opens")
}

/// Documents in three rounds, each revision moving most of them; some go in the last one, some cannot be indexed.
fn collect(store: &mut LmdbStore, model: &mut Model, round: u64) {
    for i in 0..500u64 {
        let (docid, seqno) = (format!("u{i}"), round * 500 + i + 1);
        let key = (i * 7_919 % 500 + round).to_be_bytes();
        let entries = [Entry { key: &key, include: b"{}" }];
        let (entries, reason) = match i % 10 {
            3 if round == 2 => (&[][..], None),
            4 => (&[][..], Unindexable::from_code(1)),
            _ => (&entries[..], None),
        };
        store.bulk(0, &docid, seqno, entries, reason).expect("collects");
        let entries = entries.iter().map(|e| (e.key.to_vec(), e.include.to_vec())).collect();
        model.replace(0, &docid, Document { seqno, reason, entries });
    }
}

fn check(store: &mut LmdbStore, model: &Model) {
    let snapshot = store.seal().expect("seals");
    assert_eq!(rows(&snapshot, &all(), false, None), model.rows());
    assert_eq!(snapshot.unindexed_docs(usize::MAX).expect("lists"), model.unindexed());
    let verified = store.verify().expect("databases agree");
    assert_eq!((verified.documents, verified.snapshots), (model.0.len() as u64, 0));
}

#[test]
fn a_build_holds_the_newest_revision_of_each_document_and_no_undo() {
    for files in [false, true] {
        let dir = directory();
        let mut store = open_with(dir.path(), files);
        let mut model = Model::default();
        for round in 0..3 {
            collect(&mut store, &mut model, round);
            if files {
                persist_for(&mut store, round + 1, Purpose::Interim);
            }
            assert_eq!(store.seal().expect("seals").items(), 0, "nothing is to be seen yet");
        }
        store.bulk(0, "u1", 3, &[], None).expect("an old revision changes nothing");
        persist_for(&mut store, 9, Purpose::Built);
        check(&mut store, &model);
        assert!(matches!(store.bulk(0, "u2", 9_999, &[], None), Err(StoreError::Misuse(_))));
        drop(store);
        let mut store = open_with(dir.path(), files);
        check(&mut store, &model);
        assert_eq!(store.stats().undo_bytes, 0);
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("lists").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}

#[test]
fn a_build_goes_on_from_its_last_run_and_its_last_step_is_repeated() {
    let dir = directory();
    let mut model = Model::default();
    for round in 0..3 {
        let mut store = open_with(dir.path(), true);
        assert_eq!(store.durable().st, round);
        collect(&mut store, &mut model, round);
        persist_for(&mut store, round + 1, Purpose::Interim);
        // Not durable, so not there next time.
        store.bulk(0, "lost", 9_999, &[Entry { key: b"lost", include: b"" }], None).expect("collects");
    }
    for taken_back in [false, true] {
        let mut store = open_with(dir.path(), true);
        assert_eq!(store.durable(), &mark(3));
        let outcome = store.begin_persist(mark(4), Purpose::Built).expect("begins").run();
        assert!(outcome.is_durable() && dir.path().join(FRESH).exists());
        assert_eq!(store.stats().built.0, store.stats().built.1);
        if taken_back {
            store.finish_persist(outcome).expect("takes its place");
            check(&mut store, &model);
        }
    }
}

#[test]
fn a_damaged_run_fails_the_build_and_says_so() {
    let dir = directory();
    let mut store = open_with(dir.path(), true);
    collect(&mut store, &mut Model::default(), 0);
    persist_for(&mut store, 1, Purpose::Interim);
    drop(store);
    let run = dir.path().join("runs").join("00000000.run");
    let mut bytes = std::fs::read(&run).expect("reads");
    bytes[200] ^= 1;
    std::fs::write(&run, bytes).expect("writes");
    let mut store = open_with(dir.path(), true);
    let job = store.begin_persist(mark(2), Purpose::Built).expect("begins");
    assert!(matches!(store.finish_persist(job.run()), Err(StoreError::Damaged(_))));
}

#[test]
fn many_runs_are_merged_before_there_are_too_many() {
    let dir = directory();
    let (mut store, mut model) = (open_with(dir.path(), true), Model::default());
    for st in 1..=3 * MOST_RUNS as u64 {
        let entries = [Entry { key: &st.to_be_bytes(), include: b"" }];
        let docid = format!("u{}", st % 50);
        store.bulk(0, &docid, st, &entries, None).expect("collects");
        let entries = entries.iter().map(|e| (e.key.to_vec(), Vec::new())).collect();
        model.replace(0, &docid, Document { seqno: st, reason: None, entries });
        persist_for(&mut store, st, Purpose::Interim);
        let runs = std::fs::read_dir(dir.path().join("runs")).expect("lists").count();
        assert!(runs <= MOST_RUNS, "{runs} runs");
        if st % 50 == 0 {
            drop(store);
            store = open_with(dir.path(), true);
            assert_eq!(store.durable(), &mark(st));
        }
    }
    persist_for(&mut store, 900, Purpose::Built);
    check(&mut store, &model);
}
