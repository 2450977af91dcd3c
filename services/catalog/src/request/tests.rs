use super::*;
use highwater_schemas::{
    definition::{BucketDefinition, IndexDefinition, Source, SourceStream},
    state::{Failover, PlacedIndex, Vbucket},
};
use serde_json::{Value, json};

fn parse(request: &Value) -> Result<Query, ApiError> {
    Query::parse(request.to_string().as_bytes(), Mode::Scan, Deadlines::default())
}

#[test]
fn a_catalog_sets_its_own_deadlines() {
    let (unsaid, most) = (Duration::from_millis(70), Duration::from_millis(80));
    let parse = |request: &Value| Query::parse(request.to_string().as_bytes(), Mode::Scan, Deadlines { unsaid, most });
    assert_eq!(parse(&with(&json!({}))).unwrap().timeout, unsaid);
    assert_eq!(parse(&with(&json!({"timeout_ms": 80}))).unwrap().timeout, most);
    let error = parse(&with(&json!({"timeout_ms": 81}))).unwrap_err();
    assert!(error.message.contains("1 to 80"), "{}", error.message);
}

/// The smallest good request with further fields.
fn with(fields: &Value) -> Value {
    let mut request = json!({"bucket": "users", "index": "by_age"});
    for (name, value) in fields.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

fn bucket(streams: &[&str]) -> Bucket {
    let streams =
        streams.iter().map(|s| SourceStream { name: (*s).into(), strip_prefix: String::new() }).collect::<Vec<_>>();
    let failover = [(2, 50), (1, 0)].map(|(vbuuid, start)| Failover { vbuuid, start, ..Failover::default() }).to_vec();
    let vbucket = Vbucket { generation: 1, ..Vbucket::new(failover, 0) };
    let vbuckets = vec![vbucket; streams.len()];
    let source = Source { streams: Some(streams), ..Source::default() };
    Bucket::new(BucketDefinition { name: "users".into(), source }, vbuckets, 1)
}

fn context(streams: &[&str], number: u32, state: IndexState) -> StateContext {
    let definition: IndexDefinition =
        serde_json::from_value(json!({"bucket": "users", "name": "by_age", "keys": ["age DESC", "city"]})).unwrap();
    let compiled = definition.compile(Language::NEWEST).unwrap();
    let placed = PlacedIndex { number, id: format!("i{number}"), definition, hosts: vec!["n1".into()], language: 1 };
    let mut bucket = bucket(streams);
    bucket.indexes.insert(number, Index { placed, compiled, state, topology: 1 });
    let mut context = StateContext::default();
    context.buckets.insert("users".into(), bucket);
    context
}

fn plan(fields: &Value) -> Result<Plan, ApiError> {
    parse(&with(fields)).unwrap().plan(&context(&["KV_users"], 7, IndexState::Active))
}

#[test]
fn a_request_without_options_has_the_documented_defaults() {
    let query = parse(&with(&json!({"limit": null}))).unwrap();
    assert_eq!((query.offset, query.limit, query.page_size, query.reverse), (0, None, None, false));
    assert_eq!(query.consistency, Consistency::Any);
    assert_eq!(query.timeout, Duration::from_secs(5));
    assert!(query.spans.is_empty() && query.page_token.is_none());
}

#[test]
fn every_bad_field_is_refused_by_name() {
    use ErrorCode::{BadConsistency, BadName, MalformedRequest, UnknownField};
    let rows = [
        (json!({"limit": "ten"}), MalformedRequest, "limit"),
        (json!({"limit": -1}), MalformedRequest, "limit"),
        (json!({"limit": 1.5}), MalformedRequest, "limit"),
        (json!({"offset": []}), MalformedRequest, "offset"),
        (json!({"page_size": 0}), MalformedRequest, "page_size"),
        (json!({"page_size": "x"}), MalformedRequest, "page_size"),
        (json!({"timeout_ms": 0}), MalformedRequest, "timeout_ms"),
        (json!({"timeout_ms": 60_001}), MalformedRequest, "timeout_ms"),
        (json!({"timeout_ms": u64::MAX}), MalformedRequest, "timeout_ms"),
        (json!({"timeout_ms": "1s"}), MalformedRequest, "timeout_ms"),
        (json!({"reverse": 1}), MalformedRequest, "reverse"),
        (json!({"spans": 5}), MalformedRequest, "spans"),
        (json!({"spans": [{"low": 30}]}), MalformedRequest, "spans[0]"),
        (json!({"spans": [{}, {"inclusion": "all"}]}), MalformedRequest, "spans[1]"),
        (json!({"spans": [{"lo": [30]}]}), UnknownField, "lo"),
        (json!({"page_token": 7}), MalformedRequest, "page_token"),
        (json!({"bucket": null}), MalformedRequest, "bucket"),
        (json!({"bucket": 7}), MalformedRequest, "bucket"),
        (json!({"bucket": "a.b"}), BadName, "bucket"),
        (json!({"index": "*"}), BadName, "index"),
        (json!({"limt": 5}), UnknownField, "limt"),
        (json!({"consistency": "newest"}), BadConsistency, "consistency"),
        (json!({"consistency": 7}), BadConsistency, "consistency"),
        (json!({"consistency": {}}), BadConsistency, "consistency"),
        (json!({"consistency": {"at_plus": 1, "at_snapshot": 1}}), BadConsistency, "consistency"),
        (json!({"consistency": {"at": 1}}), BadConsistency, "consistency"),
        (json!({"consistency": {"at_snapshot": "812"}}), BadConsistency, "at_snapshot"),
        (json!({"consistency": {"at_snapshot": 0}}), BadConsistency, "at_snapshot"),
        (json!({"consistency": {"at_plus": -1}}), BadConsistency, "at_plus"),
        (json!({"consistency": {"at_plus": {"KV_users": "x"}}}), BadConsistency, "KV_users"),
        (json!({"consistency": {"at_plus": {"KV_users": {"seqno": 1}}}}), BadConsistency, "KV_users"),
        (json!({"consistency": {"at_plus": {"KV_users": {"vbuuid": "zz", "seqno": 1}}}}), BadConsistency, "KV_users"),
    ];
    for (fields, code, word) in rows {
        let error = parse(&with(&fields)).unwrap_err();
        assert_eq!(error.code, code, "{fields}: {error}");
        assert!(error.message.contains(word), "{fields}: {error}");
    }
    let many = json!({"spans": vec![json!({}); MAX_SPANS + 1]});
    assert!(parse(&with(&many)).unwrap_err().message.contains("spans"));
    assert!(parse(&json!({"bucket": "users"})).unwrap_err().message.starts_with("index is missing"));
}

#[test]
fn a_text_within_a_text_is_no_consistency() {
    for consistency in [
        r#"{"$serde_json::private::RawValue":"\"any\""}"#,
        r#"{"$serde_json::private::RawValue":"{\"at_snapshot\":7}"}"#,
        r#"{"at_snapshot":{"$serde_json::private::RawValue":"7"}}"#,
        r#"{"at_plus":{"$serde_json::private::RawValue":"7"}}"#,
        r#"{"at_plus":{"KV_users":{"$serde_json::private::RawValue":"7"}}}"#,
    ] {
        let request = format!(r#"{{"bucket":"users","index":"by_age","consistency":{consistency}}}"#);
        let error = Query::parse(request.as_bytes(), Mode::Scan, Deadlines::default()).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadConsistency, "{consistency}: {error}");
    }
}

#[test]
fn a_count_is_of_whole_ranges() {
    for field in ["offset", "limit", "page_size"] {
        let request = with(&json!({field: 1}));
        let error = Query::parse(request.to_string().as_bytes(), Mode::Count, Deadlines::default()).unwrap_err();
        assert_eq!(error.code, ErrorCode::MalformedRequest);
        assert!(error.message.contains(field), "{error}");
    }
    let token = with(&json!({"page_token": "ab"}));
    assert!(Query::parse(token.to_string().as_bytes(), Mode::Count, Deadlines::default()).is_err());
    let reverse = with(&json!({"reverse": true}));
    assert!(Query::parse(reverse.to_string().as_bytes(), Mode::Count, Deadlines::default()).is_ok());
}

#[test]
fn names_and_states_are_checked_against_the_log() {
    let query = parse(&with(&json!({}))).unwrap();
    let code = |context: &StateContext| query.plan(context).unwrap_err().code;
    assert_eq!(code(&StateContext::default()), ErrorCode::BucketNotFound);
    for (state, expected) in [
        (IndexState::Created, ErrorCode::IndexNotActive),
        (IndexState::Building, ErrorCode::IndexNotActive),
        (IndexState::Failed("disk".into()), ErrorCode::IndexFailed),
    ] {
        assert_eq!(code(&context(&["KV_users"], 7, state)), expected);
    }
    let mut other = context(&["KV_users"], 7, IndexState::Active);
    other.buckets.get_mut("users").unwrap().indexes.clear();
    assert_eq!(code(&other), ErrorCode::IndexNotFound);
}

#[test]
fn spans_become_ranges_of_the_index() {
    assert_eq!(plan(&json!({})).unwrap().ranges, [ByteRange { low: vec![], high: None }]);
    assert_eq!(plan(&json!({"spans": [{"equal": [33]}, {"equal": [40]}]})).unwrap().ranges.len(), 2);
    for (spans, code) in [
        (json!([{"low": [40], "high": [30]}]), ErrorCode::SpanInverted),
        (json!([{"low": [30, "a"], "high": [40, "b"]}]), ErrorCode::SpanNotContiguous),
        (json!([{"equal": [1, 2, 3]}]), ErrorCode::BadSpan),
    ] {
        assert_eq!(plan(&json!({"spans": spans})).unwrap_err().code, code);
    }
}

#[test]
fn at_plus_is_bound_to_the_buckets_streams() {
    let floors = |streams: &[&str], at_plus: Value| {
        let query = parse(&with(&json!({"consistency": {"at_plus": at_plus}}))).unwrap();
        query.plan(&context(streams, 7, IndexState::Active)).map(|plan| plan.floors).map_err(|e| e.code)
    };
    let floor = |vbuuid, seqno| Floor { vbuuid, seqno };
    assert_eq!(floors(&["KV_users"], json!(34_006)), Ok(vec![floor(None, 34_006)]));
    assert_eq!(floors(&["A", "B"], json!(34_006)), Err(ErrorCode::BadConsistency));
    assert_eq!(floors(&["A", "B"], json!({"B": 5})), Ok(vec![floor(None, 0), floor(None, 5)]));
    assert_eq!(floors(&["A", "B"], json!({"C": 5})), Err(ErrorCode::BadConsistency));
    assert_eq!(floors(&["A"], json!({"A": {"vbuuid": "0000000000000002", "seqno": 60}})), Ok(vec![floor(Some(2), 60)]));
    // Branch 1 was left at 50.
    assert_eq!(floors(&["A"], json!({"A": {"vbuuid": "1", "seqno": 50}})), Ok(vec![floor(Some(1), 50)]));
    assert_eq!(floors(&["A"], json!({"A": {"vbuuid": "1", "seqno": 51}})), Err(ErrorCode::BranchLost));
    assert_eq!(floors(&["A"], json!({"A": {"vbuuid": "9", "seqno": 1}})), Err(ErrorCode::BranchLost));
    for (branch, unknown) in [("1", false), ("2", false), ("9", true)] {
        let query = parse(&with(&json!({"consistency": {"at_plus": {"A": {"vbuuid": branch, "seqno": 51}}}}))).unwrap();
        let context = context(&["A"], 7, IndexState::Active);
        assert_eq!(query.names_unknown_branch(&context), unknown, "{branch}");
    }
}

#[test]
fn a_page_token_is_good_for_its_request_and_index_only() {
    let first = json!({"limit": 10, "offset": 3, "consistency": "request_plus"});
    let plan = plan(&first).unwrap();
    assert_eq!((plan.skip, plan.left), (3, Some(10)));
    let token = PageToken { st: 812, left: Some(6), fingerprint: plan.fingerprint, expansion: 600, after: vec![1] };
    let next = |fields: &Value, number: u32| {
        let mut request = first.clone();
        request["page_token"] = json!(token.write());
        for (name, value) in fields.as_object().unwrap() {
            request[name] = value.clone();
        }
        parse(&with(&request)).unwrap().plan(&context(&["KV_users"], number, IndexState::Active))
    };
    let second = next(&json!({"page_size": 2, "timeout_ms": 100}), 7).unwrap();
    assert_eq!((second.skip, second.left, second.page.as_ref()), (0, Some(6), Some(&token)));
    for changed in [
        json!({"limit": 11}),
        json!({"offset": 4}),
        json!({"reverse": true}),
        json!({"consistency": "any"}),
        json!({"spans": [{"equal": [1]}]}),
        json!({"page_token": "00"}),
    ] {
        assert_eq!(next(&changed, 7).unwrap_err().code, ErrorCode::BadPageToken, "{changed}");
    }
    assert_eq!(next(&json!({}), 8).unwrap_err().code, ErrorCode::BadPageToken);
}
