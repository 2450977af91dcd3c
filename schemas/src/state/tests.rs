//! Records as they travel.

use super::{Change, Record, StateContext, StateError};
use crate::{
    api::NodeKind,
    definition::{BucketDefinition, IndexDefinition},
    state::{PlacedIndex, SessionVb, SliceName},
    timestamp::{Position, StVb, StabilityTimestamp},
};

fn definition() -> IndexDefinition {
    serde_json::from_str(r#"{"bucket":"b","name":"i","keys":["age DESC"],"where":"age > 1"}"#).unwrap()
}

/// One of each.
fn changes() -> Vec<Change> {
    let bucket = || "b".to_owned();
    let st = StabilityTimestamp { number: 7, vbs: vec![StVb::default()], ..StabilityTimestamp::default() };
    let placed = PlacedIndex { number: 1, id: "x".into(), definition: definition(), hosts: vec!["n".into()] };
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
        },
        Change::IndexCreated { index: placed },
        Change::IndexBuilding { bucket: bucket(), indexes: vec![1] },
        Change::SessionOpened {
            bucket: bucket(),
            session: 1,
            node: "n".into(),
            incarnation: 3,
            slices: vec![SliceName { index: 1, partition: 0 }],
            vbs: vec![SessionVb { generation: 1, from: 0 }],
        },
        Change::SessionClosed { bucket: bucket(), session: 1 },
        Change::IndexActive { bucket: bucket(), index: 1 },
        Change::NumbersReserved { bucket: bucket(), below: 10 },
        Change::Persisted { bucket: bucket(), st },
        Change::BranchStarted { bucket: bucket(), vb: 0, vbuuid: 9, start: 0, reason: "r".into() },
        Change::IndexFailed { bucket: bucket(), index: 1, reason: "r".into() },
        Change::IndexDropped { bucket: bucket(), index: 1 },
        Change::NodeLeft { node: "n".into(), kind: NodeKind::Indexer },
        Change::BucketRemoved { bucket: bucket() },
    ]
}

fn append(context: &mut StateContext, change: Change) -> Result<Record, StateError> {
    let record = Record {
        incarnation: "log".into(),
        term: 1,
        version: context.version + 1,
        prev: context.hash.clone(),
        at: 0,
        change,
    };
    context.apply_json(&record.to_json())
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
    let mut next = Record {
        incarnation: "log".into(),
        term: 1,
        version: 2,
        prev: context.hash.clone(),
        at: 0,
        change: Change::NodeLeft { node: "n".into(), kind: NodeKind::Catalog },
    };
    let good = next.clone();
    next.version = 3;
    assert!(matches!(context.apply_json(&next.to_json()), Err(StateError::Order { expected: 2, found: 3 })));
    next = Record { prev: "other".into(), ..good.clone() };
    assert!(matches!(context.apply_json(&next.to_json()), Err(StateError::Chain { version: 2 })));
    next = Record { term: 0, ..good.clone() };
    assert!(matches!(context.apply_json(&next.to_json()), Err(StateError::Term { .. })));
    assert!(matches!(context.apply_json(b"{"), Err(StateError::Garbage { .. })));
    let before = context.clone();
    assert!(append(&mut context, Change::SessionClosed { bucket: "none".into(), session: 1 }).is_err());
    assert_eq!(context, before, "a refused record changes nothing");
    context.apply_json(&good.to_json()).unwrap();
}
