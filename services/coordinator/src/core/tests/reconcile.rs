//! What vanished without a message.

use super::*;
use crate::core::reconcile::{AT_ONCE, NAMED_WAITS};
use highwater_schemas::{
    api::BucketReconcile,
    state::{Reconcile, Session, SessionKind},
};

/// With an index in step.
fn in_step() -> Driver {
    let mut d = Driver::with_index();
    d.append(Change::IndexActive { bucket: "b".into(), index: 1 });
    d.sync(1, 9, 0);
    d.tick(20);
    tell(&mut d, active());
    d.tick(1);
    assert!(sessions(&d).is_empty(), "{:?}", sessions(&d));
    d
}

fn active() -> SliceReport {
    SliceReport { done_with: 9, ..report(SliceState::Active, 9) }
}

fn tell(d: &mut Driver, report: SliceReport) {
    let branch = d.core.context().buckets["b"].branch();
    d.join(NodeKind::Indexer, "i", 1, vec![SliceReport { branch, ..report }], None);
    d.tick(1);
}

fn ask(d: &mut Driver) -> u64 {
    let ddl = Ddl::BucketReconcile(BucketReconcile { name: "b".into() });
    d.event(Event::Ddl { token: 2, ddl, probe: Ok(vec![].into()), random: 3 });
    let after = d.replies.pop().unwrap().unwrap()["after"].as_u64().unwrap();
    d.tick(1);
    after
}

fn reconcile(d: &Driver) -> Option<Reconcile> {
    d.core.context().buckets["b"].reconcile.clone()
}

fn naming(d: &Driver) -> Option<u64> {
    d.core.context().buckets["b"].naming
}

fn sessions(d: &Driver) -> Vec<Session> {
    d.core.context().buckets["b"].sessions.values().cloned().collect()
}

/// The round is in the chain.
fn in_the_chain(d: &mut Driver, id: u64) {
    let vbuuid = d.core.context().buckets["b"].vbuckets[0].vbuuid();
    let state =
        StVb { vbuuid, generation: 1, position: Position::new(9, 1), covered: 9, reconciled: id, ..StVb::default() };
    let vb = SyncVb { vb: 0, state, source_last: 9, bookmark: None };
    d.event(Event::Sync(Sync { bucket: "b".into(), vbs: vec![vb] }));
    d.tick(20);
    d.tick(1);
}

#[test]
fn slices_stage_then_the_chains_have_it_and_then_it_is_over() {
    let mut d = in_step();
    let after = ask(&mut d);
    let id = reconcile(&d).unwrap().id;
    assert!(id > after);
    d.tick(1);
    let open = sessions(&d);
    assert_eq!(open.iter().map(|s| (s.kind, s.slices.len())).collect::<Vec<_>>(), [(SessionKind::Reconcile, 1)]);
    tell(&mut d, active());
    assert!(!reconcile(&d).unwrap().staged);
    tell(&mut d, SliceReport { staged: id, ..active() });
    assert!(reconcile(&d).unwrap().staged && sessions(&d).is_empty());
    in_the_chain(&mut d, id);
    let bucket = &d.core.context().buckets["b"];
    assert_eq!((bucket.reconcile.clone(), bucket.reconciled.as_ref().map(|r| r.id)), (None, Some(id)));
}

#[test]
fn a_list_that_told_a_slice_nothing_is_followed_by_another() {
    let mut d = in_step();
    ask(&mut d);
    d.tick(1);
    let first = sessions(&d)[0].id;
    tell(&mut d, SliceReport { unstaged: first, ..active() });
    d.tick(1);
    let open = sessions(&d);
    assert!(open.len() == 1 && open[0].id > first, "{open:?}");
}

#[test]
fn what_is_not_in_step_is_not_waited_for() {
    let mut d = in_step();
    ask(&mut d);
    tell(&mut d, report(SliceState::Catchup, 0));
    assert!(reconcile(&d).unwrap().staged, "it is compared when it meets the round");
}

#[test]
fn a_projector_asks_until_one_has_begun_after_it_asked() {
    let mut d = in_step();
    let asks = |after| vec![Item::Reconcile { bucket: "b".into(), after }];
    let mut newest = 0;
    for _ in 0..AT_ONCE {
        d.report(NodeKind::Projector, "p", 1, asks(newest));
        d.tick(1);
        let id = reconcile(&d).unwrap().id;
        assert!(id > newest);
        tell(&mut d, SliceReport { staged: id, ..active() });
        in_the_chain(&mut d, id);
        assert_eq!(reconcile(&d), None, "that one is enough");
        newest = id;
    }
    d.report(NodeKind::Projector, "p", 1, asks(newest));
    d.tick(1);
    assert_eq!(reconcile(&d), None, "not without end");
    d.tick(6_000);
    assert!(reconcile(&d).unwrap().id > newest);
}

#[test]
fn documents_that_a_projector_names_are_a_round_without_a_session() {
    let mut d = in_step();
    names(&mut d, Some(0));
    let first = naming(&d).unwrap();
    assert!(reconcile(&d).is_none() && sessions(&d).is_empty(), "slices have nothing to stage");
    in_the_chain(&mut d, first);
    d.tick(10_000);
    assert_eq!(naming(&d), None, "that one was enough");
    assert_eq!(d.core.context().buckets["b"].reconciled, None, "what was named was not all");
    names(&mut d, Some(first));
    assert!(naming(&d).unwrap() > first);
}

#[test]
fn documents_are_named_while_slices_stage_a_reconcile() {
    let mut d = in_step();
    ask(&mut d);
    d.tick(1);
    let all = reconcile(&d).unwrap().id;
    assert_eq!(sessions(&d).len(), 1);
    names(&mut d, Some(0));
    let first = naming(&d).unwrap();
    assert!(first < all, "{first} comes before {all} in the chain");
    tell(&mut d, SliceReport { staged: all, ..active() });
    assert!(!reconcile(&d).unwrap().staged, "one round after the other");
    in_the_chain(&mut d, first);
    assert!(naming(&d).is_none() && reconcile(&d).unwrap().staged);
    names(&mut d, Some(first));
    d.tick(10_000);
    assert_eq!(naming(&d), None, "the other one goes into the chain");
    in_the_chain(&mut d, all);
    assert_eq!(reconcile(&d), None);
    d.tick(1);
    assert!(naming(&d).unwrap() > all);
}

#[test]
fn documents_are_named_though_slices_are_not_in_step_but_not_at_once() {
    let mut d = in_step();
    tell(&mut d, report(SliceState::Catchup, 0));
    names(&mut d, Some(0));
    assert_eq!(naming(&d), None);
    d.tick(NAMED_WAITS);
    d.tick(1);
    assert!(naming(&d).is_some());
}

#[test]
fn a_session_that_broke_is_followed_by_a_comparison() {
    let mut d = in_step();
    tell(&mut d, report(SliceState::Catchup, 9));
    d.tick(1);
    let open = sessions(&d);
    assert_eq!(open[0].kind, SessionKind::Recovery);
    let broken = Item::BrokenSession { bucket: "b".into(), session: open[0].id };
    d.report(NodeKind::Projector, "p", 1, vec![broken]);
    d.tick(1);
    d.tick(1);
    assert_eq!(sessions(&d).iter().map(|s| s.kind).collect::<Vec<_>>(), [SessionKind::Comparison]);
}

/// A projector has documents to name, in a reconcile above this one.
fn names(d: &mut Driver, after: Option<u64>) {
    let items = after.map(|after| Item::Named { bucket: "b".into(), after }).into_iter().collect();
    d.report(NodeKind::Projector, "p", 1, items);
    d.tick(1);
}
