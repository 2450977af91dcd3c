//! What a slice does when the source's history has changed.

use super::*;

/// Branch 8 began at `start`, after branch 7.
fn branched(start: u64, broken: bool) -> BucketView {
    let mut view = view(&[(2, 30)]);
    view.shares[0].vbuuid = 8;
    view.shares[0].branches = vec![branch(8, start, broken), branch(7, 0, false)];
    view
}

fn mark(vbuuid: u64, st: u64, content: u64) -> SliceMark {
    let vb = SliceVb { vbuuid, position: Position::new(content, 0), covered: content, content, ..SliceVb::default() };
    SliceMark { st, vbs: vec![vb], ..SliceMark::default() }
}

#[test]
fn on_another_branch_a_slice_goes_back_as_far_as_it_must_and_is_compared() {
    let mut core = in_step(10, &[(1, 0)]);
    let actions = core.state(branched(6, true));
    assert!(actions.iter().any(|a| matches!(a, Action::Rewind { .. })), "{actions:?}");
    assert!(core.slices().next().is_none());
    let kept = [mark(7, 1, 4), mark(7, 2, 6), mark(7, 3, 9)];
    let actions = core.opened(SLICE, &mark(7, 4, 10), &kept, false);
    assert!(matches!(actions[..], [Action::RollBack { st: 2, .. }]), "{actions:?}");
    core.opened(SLICE, &kept[1], &kept[..2], false);
    let slice = core.slices().next().unwrap();
    assert_eq!(
        (slice.state(), slice.compare, slice.readable, slice.vbs[0].vbuuid),
        (SliceState::Catchup, true, false, 8)
    );
}

#[test]
fn what_cannot_go_back_is_compared_as_it_is_and_what_has_nothing_in_common_begins_again() {
    let mut core = BucketCore::new();
    core.state(branched(6, true));
    core.opened(SLICE, &mark(7, 4, 10), &[mark(7, 3, 9)], false);
    assert!(core.slices().next().unwrap().compare);
    for (view, mark) in [(branched(0, true), mark(7, 4, 10)), (branched(6, false), mark(5, 4, 10))] {
        let mut core = BucketCore::new();
        core.state(view);
        let actions = core.opened(SLICE, &mark, &[], false);
        assert!(matches!(actions[..], [Action::Open { reset: true, .. }]), "{actions:?}");
    }
    let mut core = BucketCore::new();
    core.state(branched(0, false));
    core.opened(SLICE, &mark(7, 4, 10), &[], false);
    assert!(core.slices().next().unwrap().compare, "unproven is not gone");
}

#[test]
fn a_list_is_compared_and_swept_before_the_slice_follows_its_session() {
    let mut core = BucketCore::new();
    let mut seen = branched(6, true);
    seen.sessions.insert(9, OpenSession { lists: true, ..open_session(&[SLICE]) });
    core.state(seen);
    core.opened(SLICE, &mark(8, 4, 5), &[], false);
    assert!(core.slices().all(|s| s.mode == Mode::InStep), "it is on the branch and needs none");
    let mut left = SliceMark { compare: true, ..mark(8, 4, 40) };
    left.vbs[0].proven = 6;
    core.opened(SLICE, &left, &[], false);
    core.live(1, parsed(&empty(8, 2, 1, 0, (30, 31), 31)));
    let actions = core.session_batch(9, 1, &parsed(&empty(8, 2, 1, 9, (0, 20), 0)));
    assert!(matches!(actions[..], [Action::Compare { after: 0, proven: 6, .. }]), "{actions:?}");
    let end = Some(Removal::Listed { session: 9, upto: 30 });
    let actions = core.session_batch(9, 2, &parsed(&wire::Batch { removal: end, ..empty(8, 2, 1, 9, (20, 30), 30) }));
    let [Action::Sweep { vb: 0, walk, .. }] = actions[..] else { panic!("{actions:?}") };
    assert!(core.slices().all(|s| s.mode == Mode::Session) && core.session_paused(9), "it is swept first");
    assert!(core.walked(SLICE, walk + 1).is_empty(), "another walk");
    core.walked(SLICE, walk);
    assert_eq!(state(&core), SliceState::Merged);
    let slice = core.slices().next().unwrap();
    assert!(!slice.compare);
    assert_eq!(slice.readable_from, [30], "what it held of another branch is not waited for");
}

#[test]
fn a_walk_of_what_the_slice_was_before_counts_no_more() {
    let mut core = BucketCore::new();
    let mut seen = branched(6, true);
    seen.sessions.insert(9, OpenSession { lists: true, ..open_session(&[SLICE]) });
    core.state(seen.clone());
    let left = SliceMark { compare: true, ..mark(8, 4, 40) };
    core.opened(SLICE, &left, &[], false);
    core.live(1, parsed(&empty(8, 2, 1, 0, (30, 31), 31)));
    let end = Some(Removal::Listed { session: 9, upto: 30 });
    let actions = core.session_batch(9, 1, &parsed(&wire::Batch { removal: end, ..empty(8, 2, 1, 9, (0, 30), 30) }));
    let [Action::Sweep { walk, .. }] = actions[..] else { panic!("{actions:?}") };
    // The session breaks, and the next one lists anew.
    seen.sessions = BTreeMap::from([(10, OpenSession { lists: true, ..open_session(&[SLICE]) })]);
    core.state(seen);
    assert!(!core.is_walking(SLICE, walk) && core.walked(SLICE, walk).is_empty());
    assert!(core.slices().all(|s| s.mode == Mode::Session && s.compare) && !core.session_paused(10));
}
