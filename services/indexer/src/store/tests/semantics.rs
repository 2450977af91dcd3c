//! What replacing means.

use super::*;

fn entry<'a>(key: &'a [u8], include: &'a [u8]) -> Entry<'a> {
    Entry { key, include }
}

#[test]
fn a_lower_or_equal_seqno_never_overwrites_wherever_the_document_lies() {
    let dir = directory();
    let mut store = open(dir.path());
    let expect = |store: &mut LmdbStore, include: &[u8]| {
        let got = rows(&store.seal().expect("seals"), &all(), false, None);
        assert_eq!(got, [(entry_key(b"k", 0, "u"), include.to_vec())]);
    };
    let try_older = |store: &mut LmdbStore| {
        for seqno in [9, 10] {
            store.replace(0, "u", seqno, &[entry(b"old", b"")], None).expect("ignored");
            store.replace(0, "u", seqno, &[], None).expect("ignored");
        }
    };
    store.replace(0, "u", 10, &[entry(b"k", b"1")], None).expect("replaces");
    try_older(&mut store);
    expect(&mut store, b"1");
    try_older(&mut store);
    expect(&mut store, b"1");
    let job = store.begin_persist(mark(1), Purpose::Interim).expect("begins");
    try_older(&mut store);
    expect(&mut store, b"1");
    store.finish_persist(job.run()).expect("persists");
    try_older(&mut store);
    expect(&mut store, b"1");
    store.replace(0, "u", 11, &[entry(b"k", b"2")], None).expect("replaces");
    expect(&mut store, b"2");
}

#[test]
fn unchanged_entries_make_no_changes_but_the_seqno_counts() {
    let dir = directory();
    let mut store = open(dir.path());
    let entries = [entry(b"a", b"1"), entry(b"b", b"2")];
    store.replace(0, "u", 1, &entries, None).expect("replaces");
    store.seal().expect("seals");
    assert_eq!(store.stats().layers, 1);
    store.replace(0, "u", 2, &[entries[1], entries[0]], None).expect("replaces");
    store.seal().expect("seals");
    assert_eq!(store.stats().layers, 1, "nothing changed in the forward index");
    store.replace(0, "u", 2, &[], None).expect("ignored");
    assert_eq!(store.seal().expect("seals").items(), 2);
    persist(&mut store, 1);
}

#[test]
fn equal_keys_of_a_document_are_one_entry() {
    let dir = directory();
    let mut store = open(dir.path());
    store.replace(0, "u", 1, &[entry(b"b", b"1"), entry(b"a", b""), entry(b"b", b"2")], None).expect("replaces");
    let got = rows(&store.seal().expect("seals"), &all(), false, None);
    assert_eq!(got, [(entry_key(b"a", 0, "u"), b"".to_vec()), (entry_key(b"b", 0, "u"), b"2".to_vec())]);
    persist(&mut store, 1);
}

#[test]
fn equal_docids_of_two_vbuckets_are_two_documents() {
    let dir = directory();
    let mut store = open(dir.path());
    store.replace(0, "u", 5, &[entry(b"k", b"0")], None).expect("replaces");
    store.replace(1, "u", 1, &[entry(b"k", b"1")], None).expect("replaces");
    store.replace(0, "u", 6, &[], None).expect("replaces");
    let got = rows(&store.seal().expect("seals"), &all(), false, None);
    assert_eq!(got, [(entry_key(b"k", 1, "u"), b"1".to_vec())]);
}

#[test]
fn what_does_not_fit_a_key_is_refused_or_listed_shortened() {
    let dir = directory();
    let mut store = open(dir.path());
    let long = vec![3; MAX_KEY];
    for bulk in [true, false] {
        let entries = [entry(&long, b"")];
        let refused =
            if bulk { store.bulk(0, "u", 1, &entries, None) } else { store.replace(0, "u", 1, &entries, None) };
        assert!(matches!(refused, Err(StoreError::TooLong { limit: MAX_KEY, .. })));
    }
    let docid = "ü".repeat(3_000);
    let other = format!("{docid}ü");
    store.replace(0, &docid, 1, &[], Some(Unindexable::IdTooLong)).expect("listed");
    store.replace(0, &other, 2, &[], Some(Unindexable::IdTooLong)).expect("listed");
    let listed = store.seal().expect("seals").unindexed_docs(9).expect("lists");
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|(_, id, _, _)| id.starts_with("üü") && id.len() < MAX_KEY));
    persist(&mut store, 1);
    let longest = vec![3; MAX_KEY - (entry_key(b"", 0, "u").len())];
    store.replace(0, "u", 1, &[entry(&longest, b"")], None).expect("fits");
    store.seal().expect("seals");
    persist(&mut store, 2);
}
