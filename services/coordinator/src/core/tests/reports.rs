//! What nodes report, in parts.

use super::*;
use highwater_schemas::{
    api::MOST_WORDS,
    report::{Reporter, SliceItem},
    state::{PlacedIndex, RollbackPhase},
};

const I: NodeKind = NodeKind::Indexer;

fn slice(index: u32, state: SliceState) -> Item {
    Item::slice(&SliceReport::new("b", SliceName { index, partition: 0 }, state))
}

fn heartbeat(d: &Driver, parts: u64) -> Event {
    let report = Told { edition: d.edition, parts };
    Event::Join(Join { term: d.core.context().term, report, ..Join::new(I, "i", 1) })
}

#[test]
fn changes_leave_the_rest_as_it_was() {
    let mut d = Driver::with_index();
    d.join(I, "i", 1, vec![report(SliceState::Building, 0)], None);
    let index = |d: &Driver| d.core.context().buckets["b"].indexes[&1].state.clone();
    let branch = d.core.context().buckets["b"].branch();
    let active = |branch| vec![Item::slice(&SliceReport { branch, ..report(SliceState::Active, 9) })];
    let items = vec![slice(7, SliceState::Active)];
    d.event(Event::Report(ReportPart { items, ..d.part(I, "i", 1, 1) }));
    assert_eq!(d.core.members.slices().count(), 2);
    d.event(Event::Report(ReportPart { items: active(branch), ..d.part(I, "i", 2, 2) }));
    assert_eq!(index(&d), IndexState::Building, "of another life");
    d.event(Event::Report(ReportPart { items: active(7), ..d.part(I, "i", 1, 2) }));
    d.tick(60);
    assert_eq!(index(&d), IndexState::Building, "of another branch");
    d.event(Event::Report(ReportPart { items: active(branch), ..d.part(I, "i", 1, 3) }));
    d.tick(60);
    assert_eq!(index(&d), IndexState::Active);
    let gone = vec![("b".to_owned(), slice(7, SliceState::Active).key())];
    d.event(Event::Report(ReportPart { gone, ..d.part(I, "i", 1, 4) }));
    assert_eq!(d.core.members.slices().count(), 1);
}

#[test]
fn a_report_that_is_not_whole_says_nothing() {
    let d = Driver::with_index();
    let mut d = Driver::over(d.core.context().clone(), 0);
    d.edition = 1;
    d.event(heartbeat(&d, 0));
    let part = |d: &Driver, part, items| ReportPart { whole: false, items, ..d.part(I, "i", 1, part) };
    d.event(Event::Report(part(&d, 0, vec![slice(1, SliceState::Active)])));
    d.tick(60);
    assert!(!d.core.has_report_of("i") && d.core.members.slices().count() == 0, "it is waited for");
    assert!(!d.core.ready(), "no timestamp is issued before it is known what was applied");
    d.event(Event::Report(ReportPart { whole: true, ..part(&d, 1, vec![slice(2, SliceState::Active)]) }));
    assert!(d.core.has_report_of("i") && d.core.members.slices().count() == 2 && d.core.ready());
    // A further edition: the one before counts until it is whole.
    d.edition = 2;
    d.event(heartbeat(&d, 0));
    d.event(Event::Report(part(&d, 0, vec![slice(2, SliceState::Catchup)])));
    assert!(d.core.has_report_of("i") && d.core.members.slices().count() == 2);
    d.event(Event::Report(ReportPart { whole: true, ..part(&d, 1, vec![]) }));
    assert_eq!(d.core.members.slices().map(|slice| slice.state).collect::<Vec<_>>(), [SliceState::Catchup]);
}

#[test]
fn what_got_lost_is_asked_for_and_a_restarted_node_begins_anew() {
    let mut d = Driver::with_index();
    d.join(I, "i", 1, vec![report(SliceState::Building, 0)], None);
    let (edition, beat) = (d.edition, |d: &mut Driver, parts| {
        let event = heartbeat(d, parts);
        d.event(event);
    });
    beat(&mut d, 1);
    d.now += 1_000;
    d.event(Event::Tick { random: 1 });
    assert!(d.asked.is_empty(), "all that was sent has come");
    beat(&mut d, 2);
    d.now += 50;
    d.event(Event::Tick { random: 1 });
    assert!(d.asked.is_empty(), "it may be on its way");
    d.now += 60;
    d.event(Event::Tick { random: 1 });
    d.event(Event::Tick { random: 1 });
    assert_eq!(d.asked, ["i"], "once");
    assert_eq!(d.core.members.slices().count(), 1, "what was known counts meanwhile");
    d.now += 500;
    d.event(Event::Tick { random: 1 });
    assert_eq!(d.asked.len(), 2, "the question may have got lost");
    d.join(I, "i", 1, vec![report(SliceState::Building, 0)], None);
    assert_eq!(d.edition, edition + 1);
    d.now += 2_000;
    d.event(Event::Tick { random: 1 });
    assert_eq!(d.asked.len(), 2);
    // Another life has told nothing yet.
    d.event(Event::Join(Join { term: d.core.context().term, ..Join::new(I, "i", 2) }));
    assert!(!d.core.has_report_of("i") && d.core.members.slices().count() == 0);
}

#[test]
fn a_part_without_a_heartbeat_is_of_nobody() {
    let mut d = Driver::with_index();
    d.event(Event::Report(ReportPart { items: vec![slice(1, SliceState::Active)], ..d.part(I, "x", 1, 0) }));
    assert_eq!(d.core.members.slices().count(), 0);
}

#[test]
fn a_suspicion_that_is_repeated_begins_one_branch() {
    let mut d = Driver::with_index();
    d.append(Change::IndexActive { bucket: "b".into(), index: 1 });
    let vbuuid = d.core.context().buckets["b"].vbuckets[0].vbuuid();
    let suspicion = Item::Suspicion(Suspicion {
        bucket: "b".into(),
        vb: 0,
        vbuuid,
        reason: "r".into(),
        intact: 5,
        last: 9,
        broken: true,
        bookmarks: vec![],
    });
    d.report(NodeKind::Projector, "p", 1, vec![suspicion.clone()]);
    d.report(NodeKind::Projector, "q", 1, vec![suspicion]);
    d.pass(400, &[]);
    let bucket = &d.core.context().buckets["b"];
    assert_eq!(bucket.vbuckets[0].failover.len(), 2);
    assert_eq!(bucket.rollback.as_ref().map(|r| r.phase), Some(RollbackPhase::Started));
}

/// Parts and housekeeping with as many slices as a node may have, all of them in sessions and then in step.
#[test]
fn twenty_thousand_slices_are_taken_in_parts_and_looked_at() {
    const SLICES: u32 = 20_000;
    let mut d = Driver::with_index();
    let definition = serde_json::from_str(r#"{"bucket":"b","name":"y","keys":["a"]}"#).unwrap();
    let hosts = vec!["i".to_owned(); SLICES as usize];
    d.append(Change::IndexCreated { index: PlacedIndex { number: 2, id: "y".into(), definition, hosts, language: 1 } });
    d.append(Change::IndexBuilding { bucket: "b".into(), indexes: vec![2] });
    let branch = d.core.context().buckets["b"].branch();
    let all = |state, done_with| -> Vec<Item> {
        let name = |partition| SliceName { index: 2, partition };
        let one = |partition| SliceReport { branch, done_with, ..SliceReport::new("b", name(partition), state) };
        (0..SLICES).map(|partition| Item::slice(&one(partition))).collect()
    };
    let mut reporter = Reporter::default();
    let tell = |d: &mut Driver, reporter: &mut Reporter| {
        let (mut parts, mut bytes) = (0, 0);
        while let Some(part) = reporter.next_part("i", I, 1) {
            let json = serde_json::to_vec(&part).unwrap();
            (parts, bytes) = (parts + 1, bytes + json.len());
            d.event(Event::Report(serde_json::from_slice(&json).unwrap()));
        }
        (parts, bytes)
    };
    d.edition = 100;
    (0..100).for_each(|_| reporter.begin(d.core.context().term));
    d.event(heartbeat(&d, 0));
    reporter.set("b", all(SliceState::Building, 0));
    let full = tell(&mut d, &mut reporter);
    let sessions = |d: &Driver| -> Vec<usize> {
        d.core.context().buckets["b"].sessions.values().map(|session| session.slices.len()).collect()
    };
    d.tick(60);
    assert_eq!(sessions(&d), [SLICES as usize], "one session for all");
    reporter.set("b", all(SliceState::Active, 9));
    let changed = tell(&mut d, &mut reporter);
    d.tick(60);
    assert_eq!((sessions(&d).len(), &d.core.context().buckets["b"].indexes[&2].state), (0, &IndexState::Active));
    for (parts, bytes) in [full, changed] {
        assert!(parts > 50 && bytes < 4 << 20, "{bytes} bytes in {parts} parts");
    }
    for _ in 0..20 {
        d.now += 50;
        d.event(heartbeat(&d, reporter.told().parts));
        d.event(Event::Tick { random: 1 });
    }
    assert!(d.asked.is_empty());
}

#[test]
fn why_an_index_fails_is_cut_before_it_is_written_down() {
    let mut d = Driver::with_index();
    let Item::Slice(failed) = slice(1, SliceState::Error) else { panic!("a slice") };
    d.told(I, "i", 1, vec![Item::Slice(SliceItem { error: Some("full ".repeat(100)), ..failed })]);
    let definition = serde_json::from_str(r#"{"bucket":"b","name":"y","keys":["a"]}"#).unwrap();
    let index = PlacedIndex { number: 2, id: "y2".into(), definition, hosts: vec!["i".into()], language: 1 };
    d.append(Change::IndexCreated { index });
    let mut actions = d.core.handle(d.now, Event::Tick { random: 5 });
    let asked = actions.iter().find_map(|action| match action {
        Action::Assign { job, node, .. } => Some((*job, node.clone())),
        _ => None,
    });
    let (job, node) = asked.unwrap();
    let outcome = Err(ApiError::new(ErrorCode::StorageFailed, "full ".repeat(100)));
    actions.extend(d.core.handle(d.now, Event::Assigned { job, node, outcome }));
    let reasons = actions.into_iter().filter_map(|action| match action {
        Action::Append(Change::IndexFailed { reason, .. } | Change::IndexDropped { reason, .. }) => Some(reason.len()),
        _ => None,
    });
    assert_eq!(reasons.collect::<Vec<_>>(), [MOST_WORDS; 2]);
}
