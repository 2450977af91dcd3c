//! Removals without a message.

use super::*;

/// The round after `round` at `seqno`.
fn round(generation: u64, seqno: u64, round: u64, removal: Removal) -> Arc<Batch> {
    let empty = empty(7, generation, 1, 0, (seqno, seqno), seqno);
    let (from, to) = (Position::new(seqno, round), Position::new(seqno, round + 1));
    parsed(&wire::Batch { from, to, removal: Some(removal), ..empty })
}

fn listed(session: u64) -> Removal {
    Removal::Listed { session, upto: 0 }
}

fn at_round(st: StabilityTimestamp, round: u64, reconciled: u64) -> StabilityTimestamp {
    let vbs = st.vbs.into_iter().map(|vb| {
        let position = Position::new(vb.position.seqno, round);
        StVb { position, reconciled, ..vb }
    });
    StabilityTimestamp { vbs: vbs.collect(), ..st }
}

/// The removals of every apply.
fn removals(actions: &[Action]) -> Vec<Removal> {
    let steps = actions.iter().filter_map(|action| match action {
        Action::Apply { steps, .. } => Some(steps),
        _ => None,
    });
    steps.flatten().filter_map(|(_, step)| step.batch.removal.clone()).collect()
}

/// In step at 10, with session 9 of reconcile 8 open.
fn reconciling() -> BucketCore {
    let mut core = in_step(10, &[(1, 0)]);
    let mut seen = view(&[(1, 0)]);
    seen.sessions.insert(9, OpenSession { lists: true, stages: Some(8), ..open_session(&[SLICE]) });
    let actions = core.state(seen);
    assert!(matches!(actions[..], [Action::BeginStage { reconcile: 8, vbs: 1, .. }]), "{actions:?}");
    core
}

fn list_ends(core: &mut BucketCore, upto: u64) -> Vec<Action> {
    let end = wire::Batch { removal: Some(Removal::Listed { session: 9, upto }), ..empty(7, 1, 1, 9, (8, upto), upto) };
    core.session_batch(9, 2, &parsed(&end))
}

fn staged(core: &BucketCore) -> (u64, u64) {
    core.slices().map(|s| (s.staged, s.unstaged)).next().unwrap()
}

#[test]
fn a_round_is_applied_with_the_st_that_has_it_and_not_before() {
    let mut core = in_step(10, &[(1, 0)]);
    core.live(1, batch(1, 1, 0, 10, 12, 12));
    core.live(2, round(1, 12, 0, Removal::Below(5)));
    core.stability([st(2, 1, 12, 12, true)]);
    let actions = core.advance(0);
    assert_eq!((applied(&actions), removals(&actions)), (vec![(2, true, vec![11, 12])], vec![]));
    core.stability([at_round(st(3, 1, 12, 12, true), 1, 0)]);
    assert_eq!(removals(&core.advance(0)), [Removal::Below(5)]);
}

#[test]
fn a_round_beyond_the_start_of_the_next_generation_is_void() {
    let mut core = in_step(10, &[(1, 0)]);
    core.state(view(&[(1, 0), (2, 10)]));
    core.live(1, round(1, 10, 0, Removal::Below(5)));
    core.stability([at_round(st(2, 2, 10, 10, true), 1, 0)]);
    assert!(removals(&core.advance(0)).is_empty());
    core.live(2, round(2, 10, 0, Removal::Below(6)));
    assert_eq!(removals(&core.advance(0)), [Removal::Below(6)]);
}

#[test]
fn what_is_staged_is_applied_where_the_chain_says_so() {
    let mut core = reconciling();
    let actions = core.session_batch(9, 1, &parsed(&empty(7, 1, 1, 9, (0, 8), 0)));
    assert!(matches!(actions[..], [Action::Stage { after: 0, .. }]), "{actions:?}");
    let actions = list_ends(&mut core, 10);
    let Action::EndStage { vb: 0, upto: 10, walk, .. } = actions[0] else { panic!("{actions:?}") };
    assert_eq!(staged(&core), (0, 0), "what the list did not name is yet to be looked for");
    core.walked(SLICE, walk);
    assert_eq!((staged(&core), state(&core)), ((8, 0), SliceState::Active), "it is read meanwhile");
    core.state(view(&[(1, 0)]));
    core.live(1, round(1, 10, 0, listed(8)));
    core.stability([at_round(st(2, 1, 10, 10, true), 1, 8)]);
    assert_eq!(removals(&core.advance(0)), [listed(8)]);
    // Another owner of the vbucket may say it again.
    core.live(2, round(1, 10, 1, listed(8)));
    core.stability([at_round(st(3, 1, 10, 10, true), 2, 8)]);
    assert_eq!((removals(&core.advance(0)), state(&core)), (vec![], SliceState::Active));
}

#[test]
fn a_slice_that_has_not_staged_falls_out_and_is_compared() {
    let mut core = reconciling();
    core.state(view(&[(1, 0)]));
    core.live(1, round(1, 10, 0, listed(8)));
    core.stability([at_round(st(2, 1, 10, 10, true), 1, 8)]);
    assert!(removals(&core.advance(0)).is_empty());
    assert_eq!(state(&core), SliceState::Catchup);
    assert!(core.slices().all(|s| s.compare && !s.readable));
}

#[test]
fn a_slice_that_could_not_stage_all_of_it_falls_out_though_its_list_ended() {
    let mut core = reconciling();
    core.session_batch(9, 1, &parsed(&empty(7, 1, 1, 9, (0, 8), 0)));
    core.unprepared(SLICE);
    let actions = list_ends(&mut core, 10);
    let Action::EndStage { walk, .. } = actions[0] else { panic!("{actions:?}") };
    core.walked(SLICE, walk);
    assert_eq!(staged(&core), (8, 0), "nobody waits for it");
    core.live(1, round(1, 10, 0, listed(8)));
    core.stability([at_round(st(2, 1, 10, 10, true), 1, 8)]);
    assert!(removals(&core.advance(0)).is_empty());
    assert!(core.slices().all(|s| s.compare && !s.readable));
}

#[test]
fn a_list_that_ends_below_the_slice_tells_it_nothing() {
    let mut core = reconciling();
    list_ends(&mut core, 9);
    assert_eq!(staged(&core), (0, 9), "what was removed between 9 and 10 might come back");
}

#[test]
fn what_joins_behind_a_reconcile_that_it_has_not_seen_is_compared_first() {
    for (opened, compared) in [(7, true), (8, false)] {
        let mut core = BucketCore::new();
        let mut seen = view(&[(1, 0)]);
        seen.sessions.insert(9, OpenSession { reconciled: vec![opened], ..open_session(&[SLICE]) });
        core.state(seen);
        core.opened(SLICE, &SliceMark::default(), &[], false);
        let live = wire::Batch { floor: 4, reconciled: 8, ..empty(7, 1, 1, 0, (20, 21), 21) };
        core.live(1, parsed(&live));
        let actions = core.session_batch(9, 1, &batch(1, 1, 9, 0, 25, 25));
        assert_eq!(core.slices().all(|s| s.compare), compared);
        let floor = actions.iter().find_map(|a| match a {
            Action::Floor { floor: 4, walk, .. } => Some(*walk),
            _ => None,
        });
        assert_eq!(floor.is_some(), !compared, "{actions:?}");
        let Some(walk) = floor else { continue };
        // It follows the chain once that is gone.
        core.stability([at_round(st(2, 1, 21, 21, true), 0, 8)]);
        core.live(2, parsed(&wire::Batch { floor: 4, reconciled: 8, ..empty(7, 1, 1, 0, (21, 26), 26) }));
        core.stability([at_round(st(3, 1, 26, 26, true), 0, 8)]);
        assert!(core.advance(0).is_empty());
        core.walked(SLICE, walk);
        assert!(core.advance(0).iter().any(|a| matches!(a, Action::Apply { readable: true, .. })));
    }
}

#[test]
fn what_was_closed_for_long_is_compared_unless_the_chain_has_all_that_it_missed() {
    let mut core = in_step(10, &[(1, 0)]);
    assert!(core.late(SLICE).is_empty());
    core.live(1, batch(1, 1, 0, 10, 12, 12));
    core.stability([st(2, 1, 12, 12, true)]);
    core.advance(0);
    assert!(core.slices().all(|s| !s.late && s.readable));
    let mut core = in_step(10, &[(1, 0)]);
    core.late(SLICE);
    core.live(1, batch(1, 1, 0, 20, 22, 22));
    core.stability([st(2, 1, 22, 22, true)]);
    core.advance(0);
    core.advance(GAP_AFTER);
    assert!(core.slices().all(|s| s.compare), "the chain has a hole");
}

#[test]
fn a_session_does_not_bring_what_was_closed_for_long_up_to_date() {
    for bulk in [false, true] {
        let mut core = BucketCore::new();
        let mut with_session = view(&[(1, 0)]);
        with_session.sessions = BTreeMap::from([(9, open_session(&[SLICE]))]);
        core.state(with_session);
        core.opened(SLICE, &SliceMark::default(), &[], bulk);
        assert!(core.slices().all(|s| s.following.is_some()));
        let actions = core.late(SLICE);
        if bulk {
            assert!(matches!(actions[..], [Action::Open { reset: true, .. }]));
        } else {
            assert!(core.slices().all(|s| s.following.is_none() && s.compare && s.done_with == 9));
        }
    }
}

#[test]
fn a_list_is_not_taken_up_in_the_middle() {
    let mut core = reconciling();
    core.compare_again(SLICE);
    let mut seen = view(&[(1, 0)]);
    seen.sessions.insert(9, OpenSession { lists: true, stages: Some(8), ..open_session(&[SLICE]) });
    seen.sessions.insert(10, OpenSession { lists: true, ..open_session(&[SLICE]) });
    core.state(seen);
    core.live(1, parsed(&empty(7, 1, 1, 0, (10, 10), 10)));
    let end = Some(Removal::Listed { session: 10, upto: 10 });
    let actions = core.session_batch(10, 1, &parsed(&wire::Batch { removal: end, ..empty(7, 1, 1, 10, (0, 10), 10) }));
    let [Action::Sweep { walk, .. }] = actions[..] else { panic!("{actions:?}") };
    core.walked(SLICE, walk);
    assert_eq!((state(&core), staged(&core)), (SliceState::Merged, (0, 9)));
}
