use super::*;
use crate::freshness::Floor;
use highwater_schemas::{
    StVb,
    definition::BucketDefinition,
    state::{Change, PlacedIndex},
    timestamp::{Asked, Position},
};

const INSTANCE: u64 = 5;
const BRANCH: u64 = 0xb;
const RESERVED: u64 = 100_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn append(core: &mut Core, change: Change) {
    let record = core.context().record(change, core.context().term.max(1), 0);
    core.record(&record.to_json(), true).unwrap();
}

fn declared() -> Core {
    let mut core = Core::new(INSTANCE);
    append(
        &mut core,
        Change::BucketAdded { definition: BucketDefinition::kv("users"), vbuuids: vec![BRANCH], starts: vec![0] },
    );
    append(&mut core, Change::NumbersReserved { bucket: "users".into(), below: RESERVED });
    core
}

fn st(number: u64, seqno: u64, wanted: bool) -> StabilityTimestamp {
    let vb = StVb { vbuuid: BRANCH, position: Position::new(seqno, 0), covered: seqno, ..StVb::default() };
    StabilityTimestamp { number, term: 1, wanted, persist: false, vbs: vec![vb] }
}

fn hear(core: &mut Core, now: Duration, st: StabilityTimestamp) {
    core.stability(now, Stability { bucket: "users".into(), st, wanted: Vec::new() });
}

fn report(core: &mut Core, node: &str, incarnation: u64, held: (u64, u64)) {
    core.high_watermark(HighWatermark {
        bucket: "users".into(),
        node: node.into(),
        incarnation,
        hwt: Vec::new(),
        held,
        durable: 0,
        queued: 0,
    });
}

#[test]
fn a_timestamp_with_a_number_that_was_not_reserved_is_not_believed() {
    let mut core = declared();
    for number in [RESERVED, u64::MAX] {
        hear(&mut core, ms(0), st(number, 1, true));
    }
    assert!(core.seen["users"].sts.is_empty());
    hear(&mut core, ms(0), st(RESERVED - 1, 1, true));
    assert_eq!(core.seen["users"].sts.len(), 1);
}

#[test]
fn names_that_host_nothing_are_forgotten_before_they_are_too_many() {
    let mut core = declared();
    let definition = serde_json::from_str(r#"{"bucket":"users","name":"by_age","keys":["age"]}"#).unwrap();
    let index = PlacedIndex { number: 1, id: "x".into(), definition, hosts: vec!["a".into()], language: 1 };
    append(&mut core, Change::IndexCreated { index });
    append(&mut core, Change::IndexBuilding { bucket: "users".into(), indexes: vec![1] });
    report(&mut core, "a", 1, (0, 3));
    for number in 0..MOST_MEMBERS * 2 {
        report(&mut core, &format!("nobody-{number}"), 1, (0, 3));
    }
    let hosts = &core.seen["users"].hosts;
    assert!(hosts.len() <= MOST_MEMBERS, "{}", hosts.len());
    assert!(hosts.contains_key("a"), "a host stays");
}

fn waiting(hosts: &[&str], need: impl Into<Option<Need>>) -> Waiting {
    Waiting {
        bucket: "users".into(),
        hosts: hosts.iter().map(ToString::to_string).collect(),
        need: need.into(),
        since: 1,
        began: ms(0),
        deadline: ms(5_000),
        lowest: 0,
        outlook: Outlook::default(),
    }
}

fn at_plus(seqno: u64) -> Need {
    Need::AtPlus(vec![Floor { vbuuid: None, seqno }])
}

fn used(step: Step) -> StChoice {
    match step {
        Step::Use(choice) => choice.at,
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_of_one_partition_asks_the_node_at_once() {
    let mut core = declared();
    assert_eq!(used(core.step(&mut waiting(&["a"], None), ms(0))), StChoice::AtLeast(0));
}

#[test]
fn the_oldest_timestamp_that_serves_is_waited_for() {
    let mut core = declared();
    for number in 1..=5 {
        hear(&mut core, ms(number), st(number, number * 10, false));
    }
    assert_eq!(used(core.step(&mut waiting(&["a"], at_plus(25)), ms(10))), StChoice::AtLeast(3));
    let mut again = Waiting { lowest: 5, ..waiting(&["a"], at_plus(25)) };
    assert_eq!(used(core.step(&mut again, ms(10))), StChoice::AtLeast(5));
}

#[test]
fn a_scan_wants_at_once_then_again_and_fails_at_its_deadline() {
    let mut core = declared();
    hear(&mut core, ms(0), st(1, 10, false));
    let mut scan = waiting(&["a"], at_plus(25));
    let want = |seq| Step::Send(Want { bucket: "users".into(), catalog: INSTANCE, seq });
    assert_eq!(core.step(&mut scan, ms(0)), want(1));
    assert_eq!(core.step(&mut scan, ms(0)), Step::Sleep(ms(20)));
    // Another scan that began before that want shares it, one that began later does not.
    assert_eq!(core.step(&mut waiting(&["a"], at_plus(26)), ms(5)), Step::Sleep(ms(20)));
    let mut later = Waiting { since: core.next_want(), ..waiting(&["a"], at_plus(26)) };
    assert_eq!(core.step(&mut later, ms(6)), want(2));
    let mut at_once = Waiting { since: core.next_want(), ..waiting(&["a"], at_plus(26)) };
    assert_eq!(core.step(&mut at_once, ms(6)), Step::Sleep(ms(7)));
    assert_eq!(core.step(&mut scan, ms(26)), want(3));
    // An answered want that did not help is followed sooner.
    let mut answered = st(2, 20, true);
    answered.vbs[0].asked.push(Asked { catalog: INSTANCE, seq: 3 });
    hear(&mut core, ms(27), answered);
    let mut young = Waiting { began: ms(26), ..waiting(&["a"], at_plus(25)) };
    assert_eq!(core.step(&mut young, ms(27)), Step::Sleep(ms(28)));
    assert_eq!(core.step(&mut scan, ms(27)), Step::Sleep(ms(26) + ms(26) / 4));
    hear(&mut core, ms(29), st(3, 25, true));
    assert_eq!(used(core.step(&mut scan, ms(29))), StChoice::AtLeast(3));
    let mut late = waiting(&["a"], at_plus(99));
    assert!(matches!(core.step(&mut late, ms(5_000)), Step::Fail(e) if e.code == ErrorCode::Timeout));
}

#[test]
fn several_partitions_scan_at_one_timestamp_that_all_hold() {
    let mut core = declared();
    let mut scan = waiting(&["a", "b"], None);
    assert!(matches!(core.step(&mut scan, ms(0)), Step::Send(_)));
    for number in 1..=6 {
        hear(&mut core, ms(number), st(number, number, number == 4));
    }
    // Nobody has reported: the wanted one may not be skipped.
    assert_eq!(used(core.step(&mut scan, ms(6))), StChoice::Exactly(4));
    // Node a went 5, 6; node b skipped 5 and 6 is not there yet: of the shared ones the wanted one is sure.
    report(&mut core, "a", 1, (1, 5));
    report(&mut core, "a", 1, (1, 6));
    report(&mut core, "b", 1, (1, 4));
    assert_eq!(used(core.step(&mut scan, ms(7))), StChoice::Exactly(4));
    report(&mut core, "b", 1, (1, 6));
    assert_eq!(used(core.step(&mut scan, ms(8))), StChoice::Exactly(6));
    // A restarted node holds nothing until it says so.
    report(&mut core, "b", 2, (0, 0));
    assert_eq!(used(core.step(&mut scan, ms(9))), StChoice::Exactly(4));
    assert_eq!(used(core.step(&mut waiting(&["a", "b"], at_plus(3)), ms(9))), StChoice::Exactly(4));
    // Too new for what is wanted or held by all.
    assert!(matches!(core.step(&mut waiting(&["a", "b"], at_plus(5)), ms(50)), Step::Send(_)));
}

#[test]
fn what_is_taken_back_while_a_scan_waits_for_it_is_lost() {
    let mut core = declared();
    let need = |seqno| Need::AtPlus(vec![Floor { vbuuid: Some(BRANCH), seqno }]);
    hear(&mut core, ms(0), st(1, 10, true));
    let (mut kept, mut lost) = (waiting(&["a"], need(11)), waiting(&["a"], need(20)));
    for scan in [&mut kept, &mut lost] {
        assert!(matches!(core.step(scan, ms(1)), Step::Send(_) | Step::Sleep(_)));
    }
    let new = BRANCH + 1;
    append(
        &mut core,
        Change::BranchStarted {
            bucket: "users".into(),
            vb: 0,
            vbuuid: new,
            start: 15,
            last: 15,
            broken: true,
            bookmarks: Vec::new(),
            reason: String::new(),
        },
    );
    // The new history goes beyond both.
    let mut beyond = st(2, 30, true);
    beyond.vbs[0].vbuuid = new;
    hear(&mut core, ms(2), beyond);
    assert_eq!(used(core.step(&mut kept, ms(3))), StChoice::AtLeast(2));
    assert!(matches!(core.step(&mut lost, ms(3)), Step::Fail(e) if e.code == ErrorCode::BranchLost));
}

#[test]
fn no_timestamp_of_an_abandoned_branch_is_chosen() {
    let mut core = declared();
    hear(&mut core, ms(0), st(1, 10, true));
    for node in ["a", "b"] {
        report(&mut core, node, 1, (1, 1));
    }
    assert_eq!(used(core.step(&mut waiting(&["a", "b"], None), ms(1))), StChoice::Exactly(1));
    let of = |vbuuid| {
        let mut st = st(2, 4, true);
        st.vbs[0].vbuuid = vbuuid;
        st
    };
    let new = BRANCH + 1;
    assert_eq!(core.standing("users", &of(BRANCH)), Standing::InForce);
    assert_eq!(core.standing("users", &of(new)), Standing::Unknown, "the log has not arrived yet");
    append(
        &mut core,
        Change::BranchStarted {
            bucket: "users".into(),
            vb: 0,
            vbuuid: new,
            start: 3,
            last: 3,
            broken: true,
            bookmarks: Vec::new(),
            reason: String::new(),
        },
    );
    // The nodes have not heard of it, and go on saying what they hold.
    for (hosts, need) in [(&["a", "b"][..], None), (&["a"][..], Some(at_plus(2))), (&["a", "b"][..], Some(at_plus(2)))]
    {
        let mut scan = waiting(hosts, need);
        assert!(matches!(core.step(&mut scan, ms(50)), Step::Send(_) | Step::Sleep(_)));
        assert!(matches!(core.step(&mut scan, ms(5_000)), Step::Fail(e) if e.code == ErrorCode::InRollback));
    }
    assert_eq!(core.standing("users", &of(BRANCH)), Standing::Abandoned);
    assert_eq!(core.standing("users", &of(new)), Standing::InForce);
    assert_eq!(core.standing("other", &of(new)), Standing::Unknown);
    hear(&mut core, ms(60), of(new));
    report(&mut core, "a", 1, (2, 2));
    report(&mut core, "b", 1, (2, 2));
    assert_eq!(used(core.step(&mut waiting(&["a", "b"], None), ms(61))), StChoice::Exactly(2));
}

#[test]
fn old_timestamps_lower_terms_and_strange_buckets_are_dropped() {
    let mut core = declared();
    hear(&mut core, ms(0), st(1, 10, true));
    hear(&mut core, ms(1_000), st(2, 20, true));
    let next = StabilityTimestamp { term: core.context().term + 1, ..st(3, 30, true) };
    hear(&mut core, ms(2_500), next.clone());
    assert_eq!(core.seen["users"].sts.len(), 2, "of a term that the log does not know");
    let term = core.context().term + 1;
    let record = core.context().record(Change::TermStarted { coordinator: "next".into() }, term, 0);
    core.record(&record.to_json(), true).unwrap();
    hear(&mut core, ms(2_500), next);
    hear(&mut core, ms(2_600), st(9, 90, true));
    let seen = &core.seen["users"];
    assert_eq!(seen.sts.keys().copied().collect::<Vec<_>>(), [2, 3]);
    core.stability(ms(0), Stability { bucket: "other".into(), st: st(1, 1, false), wanted: Vec::new() });
    assert!(!core.seen.contains_key("other"));
    for number in 10..10 + 2 * MAX_STS as u64 {
        let st = StabilityTimestamp { term: core.context().term, ..st(number, 1, false) };
        hear(&mut core, ms(2_700), st);
    }
    assert_eq!(core.seen["users"].sts.len(), MAX_STS);
    append(&mut core, Change::BucketRemoved { bucket: "users".into() });
    assert!(core.seen.is_empty());
    assert!(
        matches!(core.step(&mut waiting(&["a"], None), ms(0)), Step::Fail(e) if e.code == ErrorCode::BucketNotFound)
    );
}

#[test]
fn a_timestamp_that_is_broadcast_again_serves_as_if_it_had_come_in_time() {
    let mut core = declared();
    hear(&mut core, ms(0), st(4, 40, false));
    hear(&mut core, ms(1), st(2, 20, true));
    assert_eq!(used(core.step(&mut waiting(&["a", "b"], at_plus(15)), ms(1))), StChoice::Exactly(2));
}

#[test]
fn a_run_of_the_server_counts_from_the_first_want_after_it_was_seen() {
    let mut core = declared();
    assert_eq!(core.run_since("users", "KV_users", "one".into()), 1);
    assert!(matches!(core.step(&mut waiting(&["a"], at_plus(25)), ms(0)), Step::Send(_)));
    assert_eq!(core.run_since("users", "KV_users", "one".into()), 1);
    assert_eq!(core.run_since("users", "KV_users", "two".into()), 2);
}
