//! Files that were made on a system with pages of another size.

use super::*;
use std::fs;

/// What LMDB writes into a new file: two meta pages, and no commit.
fn new_file(page_size: u32) -> Vec<u8> {
    let page = |number: u64| {
        let mut page = number.to_le_bytes().to_vec();
        page.extend([0, 0, 8, 0, 0, 0, 0, 0]);
        let tree = |pad: u32, flags: u16| {
            let mut tree = pad.to_le_bytes().to_vec();
            tree.extend(flags.to_le_bytes());
            tree.extend([0; 34]);
            tree.extend(u64::MAX.to_le_bytes());
            tree
        };
        let (magic, version, map) = (0xBEEF_C0DEu32, 1u32, 256u64 << 20);
        page.extend(magic.to_le_bytes());
        page.extend(version.to_le_bytes());
        page.extend(0u64.to_le_bytes());
        page.extend(map.to_le_bytes());
        // The keys of free pages are integers.
        page.extend(tree(page_size, 8));
        page.extend(tree(0, 0));
        page.extend(1u64.to_le_bytes());
        page.extend(0u64.to_le_bytes());
        page.resize(page_size as usize, 0);
        page
    };
    [page(0), page(1)].concat()
}

fn fill(store: &mut LmdbStore, round: u64) {
    for i in 0..3_000u64 {
        let key = (i * 7).to_be_bytes();
        // Some do not fit a page of any size.
        let include = vec![b'x'; if i % 500 == 3 { 40_000 } else { (i % 90) as usize }];
        store.replace(0, &format!("d{i}"), round, &[Entry { key: &key, include: &include }], None).expect("replaces");
    }
    store.seal().expect("seals");
    let job = store.begin_persist(mark(round * 2 + 1), Purpose::Snapshot { at: round }).expect("none runs");
    store.finish_persist(job.run()).expect("persists");
}

#[test]
fn a_file_is_read_and_written_with_the_pages_that_it_was_made_with() {
    for page_size in [4_096, 8_192, 16_384, 32_768] {
        let dir = directory();
        let file = dir.path().join(open::DATA);
        fs::write(&file, new_file(page_size)).expect("writes");
        for round in 1..=3 {
            let mut store = open(dir.path());
            fill(&mut store, round);
            assert_eq!(store.stats().live_bytes % u64::from(page_size), 0);
            let found = store.verifier().expect("opens").run().expect("is whole");
            assert_eq!((found.documents, found.entries), (3_000, 3_000));
        }
        let whole = fs::read(&file).expect("reads");
        assert_eq!(whole[40..44], page_size.to_le_bytes(), "LMDB kept the pages as they were");
        check_file(dir.path()).expect("is whole");
        // Where a branch or a leaf says which page it is; LMDB would follow it.
        let mut noticed = 0;
        for page in whole.chunks(page_size as usize).enumerate().skip(2).map(|(number, _)| number).take(60) {
            let mut bytes = whole.clone();
            bytes[page * page_size as usize + 10] ^= 3;
            fs::write(&file, &bytes).expect("writes");
            noticed += u32::from(matches!(check_file(dir.path()), Err(StoreError::Damaged(_))));
        }
        assert!(noticed > 20, "{noticed} of 60 damaged pages were noticed; the others are free");
        fs::write(&file, &whole[..whole.len() - page_size as usize]).expect("writes");
        assert!(matches!(check_file(dir.path()), Err(StoreError::Damaged(_))), "cut");
    }
}

#[test]
fn pages_that_cannot_be_are_refused_and_say_so() {
    let dir = directory();
    let file = dir.path().join(open::DATA);
    for (page_size, part) in [(0, "pages of 0 bytes"), (6_000, "pages of 6000 bytes"), (65_536, "pages of 65536 bytes")]
    {
        let mut bytes = new_file(4_096);
        bytes[40..44].copy_from_slice(&u32::to_le_bytes(page_size));
        fs::write(&file, bytes).expect("writes");
        let Err(error) = LmdbStore::open(dir.path(), &identity(), limits()) else { panic!("opens") };
        assert!(matches!(error, StoreError::Damaged(_)) && error.to_string().contains(part), "{error}");
    }
    // Both meta pages say the same, or one of them is wrong.
    let mut bytes = new_file(8_192);
    bytes[8_192 + 40..8_192 + 44].copy_from_slice(&u32::to_le_bytes(4_096));
    fs::write(&file, bytes).expect("writes");
    let error = check_file(dir.path()).expect_err("disagrees").to_string();
    assert!(error.contains("meta page 1 says that pages have 4096 bytes"), "{error}");
    // Too small for the keys that may come: nothing is lost, nothing is begun.
    fs::write(&file, new_file(1_024)).expect("writes");
    let Err(error) = LmdbStore::open(dir.path(), &identity(), limits()) else { panic!("opens") };
    assert!(error.to_string().contains("the pages of its file take keys of"), "{error}");
}
