//! Wanted timestamps of which only the number came.

use super::{
    super::missed::{ASK_AGAIN, PATIENCE},
    *,
};
use highwater_schemas::wire::MOST_NAMED;

/// In step at 0, ST 1; the chain goes to 9, ST 2 at 4 is wanted, and only its number came, with ST 3 at 9.
fn missing() -> BucketCore {
    let mut core = in_step(0, &[(1, 0)]);
    core.live(1, batch(1, 1, 0, 0, 9, 9));
    core.named(1, &[1, 2]);
    core.stability([st(3, 1, 9, 9, false)]);
    core
}

fn asked(actions: &[Action]) -> Vec<&[u64]> {
    let mut asked = Vec::new();
    for action in actions {
        if let Action::Ask { numbers } = action {
            asked.push(&numbers[..]);
        }
    }
    asked
}

fn numbers(actions: &[Action]) -> Vec<u64> {
    applied(actions).iter().map(|applied| applied.0).collect()
}

#[test]
fn unwanted_timestamps_may_be_skipped_and_wanted_ones_may_not() {
    let mut core = in_step(0, &[(1, 0)]);
    core.live(1, batch(1, 1, 0, 0, 9, 9));
    core.stability([st(2, 1, 1, 1, false), st(3, 1, 4, 4, true), st(4, 1, 5, 5, false), st(5, 1, 9, 9, false)]);
    let numbers: Vec<u64> = applied(&core.advance(0)).iter().map(|a| a.0).collect();
    assert_eq!(numbers, [3, 5]);
}

#[test]
fn a_wanted_timestamp_that_was_missed_is_asked_for_and_not_skipped() {
    let mut core = missing();
    let actions = core.advance(1_000);
    assert_eq!((asked(&actions), numbers(&actions)), (vec![&[2][..]], vec![]), "ST 1 is what it shows already");
    assert!(core.advance(1_000 + ASK_AGAIN - 1).is_empty());
    assert_eq!(asked(&core.advance(1_000 + ASK_AGAIN)), [[2]]);
    core.stability([st(2, 1, 4, 4, true)]);
    let actions = core.advance(1_000 + ASK_AGAIN + 1);
    assert_eq!((asked(&actions), numbers(&actions)), (vec![], vec![2, 3]));
}

#[test]
fn one_that_nobody_can_tell_is_given_up_and_not_asked_for_again() {
    let mut core = missing();
    for at in 1_000..1_000 + PATIENCE {
        assert_eq!(numbers(&core.advance(at)), [0; 0]);
    }
    assert_eq!(numbers(&core.advance(1_000 + PATIENCE)), [3]);
    core.named(1, &[2]);
    core.stability([st(4, 1, 9, 9, true)]);
    let actions = core.advance(1_000 + PATIENCE + 1);
    assert_eq!((asked(&actions), numbers(&actions)), (vec![], vec![4]));
    // While its chain stands still it does not ask again either.
    let mut core = in_step(0, &[(1, 0)]);
    let mut questions = 0;
    for at in 0..500 {
        core.named(1, &[2]);
        core.stability([st(3, 1, 9, 9, false)]);
        questions += asked(&core.advance(at)).len() as u64;
    }
    assert_eq!(questions, PATIENCE / ASK_AGAIN);
}

#[test]
fn a_question_is_bounded_and_only_slices_that_are_read_ask() {
    let mut core = in_step(0, &[(1, 0)]);
    let all: Vec<u64> = (2..=2 + MOST_NAMED as u64).collect();
    core.named(1, &all);
    assert_eq!(asked(&core.advance(0)), [&all[1..]], "of more than a broadcast names the newest count");
    core.named(2, &[500]);
    assert!(asked(&core.advance(0)).is_empty(), "of another term");
    let mut waiting = BucketCore::new();
    waiting.state(view(&[(1, 0)]));
    waiting.opened(SLICE, &SliceMark { building: true, ..SliceMark::default() }, &[], true);
    waiting.named(1, &[2]);
    assert!(asked(&waiting.advance(0)).is_empty());
}

#[test]
fn what_a_term_before_named_is_forgotten() {
    let mut core = missing();
    let mut next = view(&[(1, 0)]);
    next.term = 2;
    core.state(next);
    assert!(asked(&core.advance(0)).is_empty());
}
