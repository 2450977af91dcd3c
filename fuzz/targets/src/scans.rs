//! Scan requests: what nodes send one another, and what clients write, down to byte ranges.

use crate::wire::with_header;
use highwater_catalog::{Mode, byte_ranges};
use highwater_schemas::{
    collation::MAX_ENTRY_KEY,
    definition::{BucketDefinition, IndexDefinition},
    language::Language,
    state::{Bucket, Failover, Index, IndexState, PlacedIndex, StateContext, Vbucket},
    wire::{ByteRange, Message, ScanRequest, decode, encode},
};
use std::sync::LazyLock;

const BUCKET: &str = "people";
/// Indexes that requests may name, with their keys; the last one is primary.
const INDEXES: [(&str, &[&str]); 4] =
    [("age", &["age"]), ("new", &["seen DESC"]), ("mixed", &["age DESC", "city", "name"]), ("all", &[])];

static CONTEXT: LazyLock<StateContext> = LazyLock::new(context);

/// Takes the bytes as a request between nodes, with and without a header, and as the JSON of a client's scan and count.
pub fn scan_request(data: &[u8]) {
    between_nodes(data);
    between_nodes(&with_header(ScanRequest::KIND as u8, data));
    for mode in [Mode::Scan, Mode::Count] {
        if let Ok(ranges) = byte_ranges(data, mode, &CONTEXT) {
            check(&ranges);
        }
    }
}

fn between_nodes(bytes: &[u8]) {
    if let Ok(request) = decode::<ScanRequest>(bytes) {
        assert_eq!(decode(&encode(&request)).as_ref(), Ok(&request));
    }
}

/// Disjoint, ascending, none empty, and short enough for the store to seek.
fn check(ranges: &[ByteRange]) {
    for range in ranges {
        assert!(range.low.len() <= MAX_ENTRY_KEY);
        if let Some(high) = &range.high {
            assert!(range.low < *high && high.len() <= MAX_ENTRY_KEY, "{range:?}");
        }
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].high.as_ref().is_some_and(|high| *high < pair[1].low), "{pair:?}");
    }
}

/// A bucket of one stream with the indexes above, all of them active.
fn context() -> StateContext {
    let failover = [(2, 50), (1, 0)].map(|(vbuuid, start)| Failover { vbuuid, start, ..Failover::default() });
    let vbucket = Vbucket { generation: 1, ..Vbucket::new(failover.to_vec(), 0) };
    let indexes = (1..).zip(INDEXES).map(|(number, (name, keys))| (number, index(number, name, keys)));
    let bucket = Bucket { indexes: indexes.collect(), ..Bucket::new(BucketDefinition::kv(BUCKET), vec![vbucket], 1) };
    let mut context = StateContext::default();
    context.buckets.insert(BUCKET.into(), bucket);
    context
}

fn index(number: u32, name: &str, keys: &[&str]) -> Index {
    let definition = IndexDefinition {
        bucket: BUCKET.into(),
        name: name.into(),
        keys: keys.iter().map(|&key| key.into()).collect(),
        condition: None,
        include: Vec::new(),
        num_partition: 1,
        num_replica: 0,
        include_missing: false,
        defer_build: false,
    };
    let compiled = definition.compile(Language::NEWEST).expect("a good definition");
    let placed = PlacedIndex { number, id: name.into(), definition, hosts: vec!["n1".into()], language: 1 };
    Index { placed, compiled, state: IndexState::Active, topology: 1 }
}
