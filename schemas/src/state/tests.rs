//! Records as they travel.

use super::{Change, FORMAT, Offered, Record, StateContext, StateError, is_record, pack};
use crate::{
    api::NodeKind,
    definition::{BucketDefinition, IndexDefinition},
    language::Language,
    state::{PlacedIndex, SessionVb, SliceName},
    timestamp::{Bookmark, Dropped, Position, StVb, StabilityTimestamp},
};

fn definition() -> IndexDefinition {
    serde_json::from_str(r#"{"bucket":"b","name":"i","keys":["age DESC"],"where":"age > 1"}"#).unwrap()
}

/// One of each.
fn changes() -> Vec<Change> {
    let bucket = || "b".to_owned();
    let st = StabilityTimestamp { number: 7, vbs: vec![StVb::default()], ..StabilityTimestamp::default() };
    let placed =
        PlacedIndex { number: 1, id: "x".into(), definition: definition(), hosts: vec!["n".into()], language: 1 };
    vec![
        Change::TermStarted { coordinator: "c".into() },
        Change::NodeJoined { node: "n".into(), kind: NodeKind::Indexer, incarnation: u64::MAX },
        Change::BucketAdded { definition: BucketDefinition::kv("b"), vbuuids: vec![u64::MAX], starts: vec![5] },
        Change::VbucketAssigned {
            bucket: bucket(),
            vb: 0,
            generation: 1,
            projector: "p".into(),
            incarnation: 3,
            x: Position::new(2, 1),
            restart: 1,
            held: 5,
            dropped: Dropped::default(),
        },
        Change::ReconcileStarted { bucket: bucket(), id: 3, named: false },
        Change::ReconcileStaged { bucket: bucket() },
        Change::ReconcileDone { bucket: bucket(), named: false },
        Change::IndexCreated { index: placed },
        Change::IndexPrepared { bucket: bucket(), index: 1 },
        Change::IndexBuilding { bucket: bucket(), indexes: vec![1] },
        Change::SessionOpened {
            bucket: bucket(),
            session: 1,
            node: "n".into(),
            incarnation: 3,
            slices: vec![SliceName { index: 1, partition: 0 }],
            kind: crate::state::SessionKind::Recovery,
            vbs: vec![SessionVb { generation: 1, from: 0, reconciled: 0 }],
        },
        Change::SessionClosed { bucket: bucket(), session: 1 },
        Change::IndexActive { bucket: bucket(), index: 1 },
        Change::TopicCreated { bucket: bucket(), topic: "t".into() },
        Change::Subscribed {
            bucket: bucket(),
            topic: "t".into(),
            subscriber: "s".into(),
            predicate: "index = 'i'".into(),
        },
        Change::NumbersReserved { bucket: bucket(), below: 10 },
        Change::Bookmarked {
            bucket: bucket(),
            bookmarks: vec![vec![Bookmark { seqno: 3, subject: "$KV.b.k".into(), time: 7, hash: u64::MAX, source: 1 }]],
        },
        Change::Persisted { bucket: bucket(), st },
        Change::BranchStarted {
            bucket: bucket(),
            vb: 0,
            vbuuid: 9,
            start: 0,
            last: 8,
            broken: true,
            bookmarks: Vec::new(),
            reason: "r".into(),
        },
        Change::IndexFailed { bucket: bucket(), index: 1, reason: "r".into() },
        Change::IndexDropped { bucket: bucket(), index: 1, reason: String::new() },
        Change::Unsubscribed { bucket: bucket(), topic: "t".into(), subscriber: "s".into() },
        Change::TopicDeleted { bucket: bucket(), topic: "t".into() },
        Change::NodeLeft { node: "n".into(), kind: NodeKind::Indexer },
        Change::BucketRemoved { bucket: bucket() },
    ]
}

fn append(context: &mut StateContext, change: Change) -> Result<Record, StateError> {
    let record = context.record(change, 1, 0);
    match context.offer(&pack(record.to_json()))? {
        Offered::Applied(record) => Ok(*record),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_change_survives_the_log() {
    let mut context = StateContext::default();
    for change in changes() {
        assert_eq!(append(&mut context, change.clone()).unwrap().change, change);
    }
    assert!(context.buckets.is_empty());
}

#[test]
fn a_log_with_a_hole_or_of_another_life_is_refused() {
    let mut context = StateContext::default();
    append(&mut context, Change::TermStarted { coordinator: "c".into() }).unwrap();
    let good = context.record(Change::NodeLeft { node: "n".into(), kind: NodeKind::Catalog }, 1, 0);
    let mut offer = |record: Record| context.offer(&record.to_json());
    let wrong = offer(Record { version: 3, ..good.clone() });
    assert!(matches!(wrong, Err(StateError::Order { expected: 2, found: 3 })));
    assert!(matches!(offer(Record { prev: "0".repeat(32), ..good.clone() }), Err(StateError::Chain { version: 2 })));
    assert!(matches!(offer(Record { incarnation: 2, ..good.clone() }), Err(StateError::Chain { version: 2 })));
    assert!(matches!(offer(Record { term: 0, ..good.clone() }), Err(StateError::Term { .. })));
    assert!(matches!(offer(Record { format: 1, ..good.clone() }), Err(StateError::Format { found: 1, .. })));
    for foreign in [&b"{"[..], b"", b"x\x9c", b"null", b"{}", br#"{"incarnation":1,"term":1,"version":2,"prev":""}"#] {
        assert!(!is_record(foreign));
        assert_eq!(context.offer(foreign), Ok(Offered::Known), "what is no record is passed over");
    }
    let mut of_a_later_version = serde_json::to_value(&good).unwrap();
    of_a_later_version["change"] = serde_json::json!({ "what": "unheard_of" });
    let of_a_later_version = of_a_later_version.to_string();
    assert!(is_record(of_a_later_version.as_bytes()));
    assert!(matches!(context.offer(of_a_later_version.as_bytes()), Err(StateError::Garbage { .. })));
    let before = context.clone();
    assert!(append(&mut context, Change::SessionClosed { bucket: "none".into(), session: 1 }).is_err());
    assert_eq!(context, before, "a refused record changes nothing");
    assert!(matches!(context.offer(&good.to_json()), Ok(Offered::Applied(_))));
    assert_eq!(context.offer(&good.to_json()), Ok(Offered::Known), "read again");
    let other = Record { at: 7, ..good };
    assert!(matches!(context.offer(&other.to_json()), Err(StateError::Chain { version: 2 })), "not the one we know");
}

/// A context with something of everything, and the records that made it.
fn filled() -> (StateContext, Vec<Record>) {
    let mut context = StateContext::default();
    let kept = changes().into_iter().take(12);
    let records = kept.map(|change| append(&mut context, change).unwrap()).collect();
    (context, records)
}

#[test]
fn a_snapshot_stands_for_all_that_came_before() {
    let (mut context, _) = filled();
    assert!(!context.buckets["b"].indexes.is_empty() && !context.buckets["b"].vbuckets[0].starts.is_empty());
    let change = Change::Snapshot { context: Box::new(context.clone()), reason: String::new() };
    let snapshot = context.record(change, 1, 0).to_json();
    let mut new = StateContext::default();
    assert_eq!(new.offer(&snapshot), Ok(Offered::Replaced), "a log may begin with one");
    assert!(matches!(context.offer(&snapshot), Ok(Offered::Applied(_))), "who knew all before goes on");
    assert_eq!(new, context);
    let mut behind = StateContext::default();
    append(&mut behind, Change::TermStarted { coordinator: "c".into() }).unwrap();
    assert_eq!(behind.offer(&snapshot), Ok(Offered::Replaced), "who was behind goes on from there");
    assert_eq!(append(&mut new, Change::BucketRemoved { bucket: "b".into() }).unwrap().version, context.version + 1);
}

#[test]
fn a_later_life_of_the_log_takes_the_place_of_an_earlier_one() {
    let (short, records) = filled();
    let mut long = short.clone();
    append(&mut long, Change::BucketRemoved { bucket: "b".into() }).unwrap();
    let change = Change::Snapshot { context: Box::new(short.clone()), reason: "lost".into() };
    let anew = Record { incarnation: 2, ..short.record(change, 2, 0) };
    let earlier = long.record(Change::TermStarted { coordinator: "old".into() }, 3, 0);
    assert_eq!(long.offer(&anew.to_json()), Ok(Offered::Replaced));
    assert_eq!((long.incarnation, long.term, long.buckets.len()), (2, 2, 1));
    assert!(long.offer(&earlier.to_json()).is_err(), "the earlier life is over");
    // What was published anew is torn off, and the records before it are back.
    let before = long.clone();
    for (number, record) in records.iter().enumerate() {
        let offered = long.offer(&record.to_json());
        assert!(matches!(offered, Ok(Offered::Known)), "record {number}: {offered:?}");
    }
    assert_eq!(long, before);
    let awake = Record { term: 9, ..records[0].clone() };
    assert!(long.offer(&awake.to_json()).is_err(), "an earlier life that goes on is another log");
    let fenced = Record { incarnation: 3, term: 1, ..anew };
    assert!(matches!(long.offer(&fenced.to_json()), Err(StateError::Term { .. })));
    assert_eq!(FORMAT, 2);
}

#[test]
fn bookmarks_and_history_are_thinned_with_age_and_reach_back() {
    let mut context = StateContext::default();
    let definition = BucketDefinition::kv("b");
    append(&mut context, Change::BucketAdded { definition, vbuuids: vec![1], starts: vec![0] }).unwrap();
    for n in 1..=500u64 {
        let bookmark = |seqno| Bookmark { seqno, ..Bookmark::default() };
        let bookmarks = vec![vec![bookmark(n * 10), bookmark(n * 10 + 5)]];
        append(&mut context, Change::Bookmarked { bucket: "b".into(), bookmarks }).unwrap();
        let st = StabilityTimestamp { number: n, ..StabilityTimestamp::default() };
        append(&mut context, Change::Persisted { bucket: "b".into(), st }).unwrap();
    }
    let bucket = &context.buckets["b"];
    let (kept, history) = (&bucket.vbuckets[0].bookmarks, &bucket.history);
    assert!((16..=64).contains(&kept.len()) && (32..=64).contains(&history.len()));
    assert_eq!((kept[0].seqno, history[0].number), (10, 1), "the oldest stays");
    assert_eq!((kept.last().unwrap().seqno, history.last().unwrap().number), (5_005, 500));
    assert!(kept.is_sorted_by_key(|b| b.seqno) && history.is_sorted_by_key(|s| s.number));
    let newest: Vec<u64> = kept[kept.len() - 16..].iter().map(|b| b.seqno).collect();
    assert_eq!(newest[0], 5_005 - 15 * 5, "nothing is missing among the newest");
    append(
        &mut context,
        Change::BranchStarted {
            bucket: "b".into(),
            vb: 0,
            vbuuid: 2,
            start: 4_000,
            last: 5_000,
            broken: true,
            bookmarks: Vec::new(),
            reason: "r".into(),
        },
    )
    .unwrap();
    assert!(context.buckets["b"].vbuckets[0].bookmarks.iter().all(|b| b.seqno <= 4_000));
}

#[test]
fn a_generation_begins_in_the_term_of_its_record_and_records_without_terms_are_read() {
    let (context, records) = filled();
    let assigned = |r: &&Record| matches!(r.change, Change::VbucketAssigned { .. });
    let term = records.iter().find(assigned).unwrap().term;
    let starts = &context.buckets["b"].vbuckets[0].starts;
    assert!(term > 0 && starts.values().all(|start| start.term == term), "{starts:?}");
    let mut json = serde_json::to_value(&context).unwrap();
    let written = json["buckets"]["b"]["vbuckets"][0]["starts"].as_array_mut().unwrap();
    for start in written {
        assert!(start.as_object_mut().unwrap().remove("term").is_some());
    }
    let old: StateContext = serde_json::from_value(json).unwrap();
    let old = &old.buckets["b"].vbuckets[0].starts;
    assert_eq!(old.keys().collect::<Vec<_>>(), starts.keys().collect::<Vec<_>>());
    assert!(old.values().all(|start| start.term == 0));
}

#[test]
fn an_index_from_before_languages_keeps_its_rules_and_its_record() {
    let text = r#"{"number":3,"id":"x","definition":{"bucket":"b","name":"i","keys":["age"],"where":"age < 18446744073709551617","num_partition":1,"num_replica":0,"include_missing":false,"defer_build":false},"hosts":["n"]}"#;
    let old: PlacedIndex = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&old).unwrap(), text, "a record has the same hash when it is written again");
    assert_eq!(old.compile().unwrap().language, Language::V0);
    // What is refused today was taken then.
    assert!(PlacedIndex { language: 1, ..old.clone() }.compile().is_err());
    let later = PlacedIndex { language: 3, ..old }.compile().unwrap_err();
    assert!(later.message.contains("version 3"), "{later}");
}
