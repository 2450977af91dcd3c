use super::*;
use crate::request::Consistency;
use highwater_schemas::{
    StVb, StabilityTimestamp,
    api::ScanResult,
    collation::{encode_entry_suffix, encode_value},
    language::Language,
    wire::{ByteRange, Rows},
};
use proptest::prelude::*;
use serde_json::json;

const BUDGET: usize = 64 * 1024;

fn plan(partitions: usize) -> Plan {
    Plan {
        bucket: "users".into(),
        index: 7,
        hosts: (0..partitions).map(|p| format!("n{p}")).collect(),
        key_names: vec!["n".into()],
        directions: vec![false],
        language: Language::NEWEST,
        ranges: vec![ByteRange { low: vec![], high: None }],
        reverse: false,
        skip: 0,
        left: None,
        page_size: None,
        consistency: Consistency::Any,
        floors: vec![],
        page: None,
        fingerprint: 99,
        streams: vec!["KV_users".into()],
    }
}

fn place(skip: u64) -> Place {
    Place { at: StChoice::Exactly(812), after: None, skip }
}

fn key(n: u64) -> Vec<u8> {
    let mut key = Vec::new();
    encode_value(Some(&json!(n)), false, &mut key);
    encode_entry_suffix(&format!("u{n}"), 0, &mut key);
    key
}

/// What a node answers: a model of the contract that `ScanRequest` states.
fn node(values: &[u64], request: &ScanRequest) -> ScanPage {
    let mut keys: Vec<Vec<u8>> = values.iter().map(|n| key(*n)).collect();
    keys.sort();
    if request.reverse {
        keys.reverse();
    }
    let behind = |key: &Vec<u8>| request.after.as_ref().is_none_or(|a| if request.reverse { key < a } else { key > a });
    keys.retain(behind);
    let skipped = request.skip.min(keys.len() as u64);
    keys.drain(..skipped as usize);
    let mut rows = Rows::default();
    let mut given = 0;
    for key in &keys {
        if given >= request.limit || (given > 0 && rows.size() + key.len() > request.page_bytes as usize) {
            break;
        }
        rows.push(key, br#"{"name":"Ada"}"#);
        given += 1;
    }
    let vbs = vec![StVb { vbuuid: 1, ..StVb::default() }];
    let st = StabilityTimestamp { number: 812, vbs, ..StabilityTimestamp::default() };
    ScanPage { st, unindexed: 1, rows, count: 0, skipped, more: given < keys.len() as u64 }
}

/// All rows over all pages, and how many replies it took.
fn scan(mut plan: Plan, parts: &[Vec<u64>], budget: usize) -> (Vec<u64>, usize) {
    let mut found = Vec::new();
    let mut replies = 0;
    loop {
        let mut place = Place { after: plan.page.as_ref().map(|p| p.after.clone()), ..place(plan.skip) };
        let body = loop {
            let ask = |p: usize| node(&parts[p], &plan.slice_request(p as u32, &place, budget, ScanMode::Rows, 1));
            let pages: Vec<ScanPage> = (0..parts.len()).map(ask).collect();
            match plan.assemble(&pages, &place, (budget, budget)).unwrap() {
                Outcome::Reply { body, .. } => break body,
                Outcome::Skipped(next) => place = next,
            }
        };
        assert!(body.len() <= budget);
        replies += 1;
        let reply: ScanResult = serde_json::from_slice(&body).unwrap();
        assert_eq!(reply.unindexed, parts.len() as u64);
        assert!(reply.rows.len() as u64 <= plan.page_size.unwrap_or(u64::MAX));
        found.extend(reply.rows.iter().map(|row| row.key[0].as_u64().unwrap()));
        let Some(token) = reply.page_token else { return (found, replies) };
        let token = PageToken::read(&token, 99).unwrap();
        plan = Plan { skip: 0, left: token.left, page: Some(token), ..plan };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn pages_put_together_are_what_was_asked_for(
        total in 0u64..400,
        partitions in 1usize..5,
        skip in prop_oneof![Just(0u64), 0u64..500],
        limit in proptest::option::of(0u64..500),
        page_size in proptest::option::of(1u64..90),
        budget in 1_000usize..40_000,
        reverse in any::<bool>(),
    ) {
        let mut parts = vec![Vec::new(); partitions];
        (0..total).for_each(|n| parts[(n.wrapping_mul(2_654_435_761) >> 7) as usize % partitions].push(n));
        let (found, _) = scan(Plan { skip, left: limit, page_size, reverse, ..plan(partitions) }, &parts, budget);
        let all: Vec<u64> = if reverse { (0..total).rev().collect() } else { (0..total).collect() };
        let expected: Vec<u64> = all.into_iter().skip(skip as usize).take(limit.unwrap_or(u64::MAX) as usize).collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn later_pages_ask_for_what_fits() {
    let parts = vec![(0..20_000).collect::<Vec<u64>>()];
    let (found, replies) = scan(plan(1), &parts, BUDGET);
    assert_eq!(found.len(), 20_000);
    let json_bytes = 20_000 * r#"{"id":"u12345","key":[12345],"include":{"name":"Ada"}},"#.len();
    assert!(replies <= json_bytes / BUDGET * 11 / 10 + 2, "{replies} replies for {json_bytes} bytes");
    let token = PageToken { st: 1, left: None, fingerprint: 99, expansion: 1024, after: vec![] };
    let second = Plan { page: Some(token), ..plan(1) };
    assert_eq!(second.slice_request(0, &place(0), BUDGET, ScanMode::Rows, 1).page_bytes as usize, BUDGET / 4);
}

#[test]
fn only_scans_of_several_pages_lease_their_timestamp() {
    let first = plan(2).slice_request(0, &place(3), BUDGET, ScanMode::Rows, 1);
    assert_eq!((first.lease_ms, first.skip, first.limit), (0, 0, u64::MAX));
    let limited = Plan { left: Some(10), page_size: Some(4), ..plan(2) };
    assert_eq!(limited.slice_request(0, &place(3), BUDGET, ScanMode::Rows, 1).limit, 7);
    let lease = plan(2).lease_request(1, 812, 5);
    assert_eq!((lease.lease_ms, lease.limit, lease.at, lease.partition), (LEASE_MS, 0, StChoice::Exactly(812), 1));
}

#[test]
fn answers_that_contradict_each_other_are_an_error() {
    let plan = plan(2);
    let request = plan.slice_request(0, &place(0), BUDGET, ScanMode::Rows, 1);
    let (a, mut b) = (node(&[1], &request), node(&[2], &request));
    b.st.number = 813;
    assert_eq!(plan.assemble(&[a.clone(), b], &place(0), (BUDGET, BUDGET)).unwrap_err().code, ErrorCode::Internal);
    let endless = ScanPage { rows: Rows::default(), more: true, ..a.clone() };
    assert_eq!(plan.assemble(&[a, endless], &place(0), (BUDGET, BUDGET)).unwrap_err().code, ErrorCode::Internal);
    assert_eq!(plan.assemble(&[], &place(0), (BUDGET, BUDGET)).unwrap_err().code, ErrorCode::Internal);
}
