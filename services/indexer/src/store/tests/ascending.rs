//! One cursor for many keys, beside a map.

use super::{
    super::ascending::{Reader, Writer},
    *,
};
use heed::PutFlags;
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
};

const CASES: u32 = 48;

/// What becomes of a key.
#[derive(Clone, Debug)]
enum Step {
    Put(Vec<u8>),
    PutNew(Vec<u8>),
    Delete,
}

/// Some lie side by side and some far from each other, and the longer ones fill pages soon.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let long = |n: u16| n.is_multiple_of(7);
    (0_u16..3_000, 1_usize..300).prop_map(move |(n, len)| {
        let rest = vec![7; if long(n) { len } else { 0 }];
        [&n.to_be_bytes()[..], &rest].concat()
    })
}

/// Steps in the order of their keys.
fn steps() -> impl Strategy<Value = Vec<(Vec<u8>, Step)>> {
    let value = || vec(any::<u8>(), 0..200);
    let step =
        prop_oneof![3 => value().prop_map(Step::Put), 1 => value().prop_map(Step::PutNew), 3 => Just(Step::Delete)];
    btree_map(key(), step, 0..1_500).prop_map(|steps| steps.into_iter().collect())
}

#[test]
fn rounds_of_sorted_steps_are_what_a_map_makes_of_them() {
    each(CASES, &vec(steps(), 1..5), |rounds| {
        let directory = directory();
        let store = open(directory.path());
        let live = store.live().expect("is open");
        let db = live.dbs.rows;
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut txn = live.env.write_txn().expect("writes");
        for steps in rounds {
            let mut writer = Writer::new(db, &mut txn).expect("opens a cursor");
            for (key, step) in &steps {
                match step {
                    Step::Put(value) => {
                        writer.put(PutFlags::empty(), key, value).expect("puts");
                        model.insert(key.clone(), value.clone());
                    }
                    Step::PutNew(value) => {
                        let new = writer.put_new(key, value).expect("puts");
                        prop_assert_eq!(new, !model.contains_key(key));
                        model.entry(key.clone()).or_insert_with(|| value.clone());
                    }
                    Step::Delete => {
                        writer.delete(key).expect("deletes");
                        model.remove(key);
                    }
                }
            }
            drop(writer);
            let found: Vec<_> = db.iter(&txn).expect("reads").map(|record| record.expect("reads")).collect();
            let wanted: Vec<_> = model.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            prop_assert!(found == wanted, "{} records instead of {}", found.len(), wanted.len());
            prop_assert_eq!(db.len(&txn).expect("counts"), model.len() as u64);
            for keys in [0, usize::from(u16::MAX)] {
                let mut reader = Reader::new(db, &txn, keys).expect("opens a cursor");
                for (key, _) in &steps {
                    prop_assert_eq!(reader.get(key).expect("reads"), model.get(key).map(Vec::as_slice));
                }
            }
        }
        let mut writer = Writer::new(db, &mut txn).expect("opens a cursor");
        for key in model.keys() {
            writer.delete(key).expect("deletes");
        }
        drop(writer);
        prop_assert!(db.is_empty(&txn).expect("reads"));
        Ok(())
    });
}
