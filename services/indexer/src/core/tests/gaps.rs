//! What a slice does that the chain cannot carry on.

use super::{super::gaps::GAP_SOON, *};

#[test]
fn what_the_topic_has_dropped_is_not_waited_for() {
    for (cut, patience) in [(true, GAP_SOON), (false, GAP_AFTER)] {
        let mut core = in_step(5, &[(1, 0)]);
        core.topic_opened(3, 1, cut);
        core.live(9, batch(1, 1, 0, 8, 12, 12));
        core.stability([st(2, 1, 12, 12, true)]);
        core.advance(1_000);
        core.advance(1_000 + patience - 1);
        assert_eq!(state(&core), SliceState::Active, "what is on its way may still help");
        core.advance(1_000 + patience);
        assert_eq!(state(&core), SliceState::Catchup);
    }
}

#[test]
fn a_slice_that_has_applied_what_nobody_else_heard_of_falls_out() {
    // Its generation went on without it, from 5; it comes back with what it had applied at 8.
    let mut core = in_step(8, &[(1, 0), (2, 5)]);
    core.stability([st(2, 2, 8, 8, false)]);
    core.advance(0);
    assert!(core.slices().all(Slice::in_step), "as far as the chain is by now");
    let mut core = in_step(8, &[(1, 0), (2, 5)]);
    core.stability([st(2, 2, 6, 6, false)]);
    core.advance(0);
    assert_eq!(state(&core), SliceState::Catchup);
}

#[test]
fn what_is_beyond_the_start_of_any_later_generation_is_void() {
    // Whoever began generation 3 had not heard of the ST at which generation 2 began.
    let mut core = in_step(4, &[(1, 0), (2, 8), (3, 5)]);
    core.live(1, batch(1, 1, 0, 4, 7, 7));
    core.live(2, batch(2, 1, 0, 7, 9, 9));
    assert_eq!(core.high_watermark().unwrap()[0].seqno, 5);
    core.live(3, batch(3, 1, 0, 5, 9, 9));
    assert_eq!(core.high_watermark().unwrap()[0].seqno, 9);
}

#[test]
fn of_merged_starts_nothing_counts_and_what_they_made_void_stays_void() {
    // Generation 2 began at 6 and stands for generation 1, which began at 3.
    let mut core = in_step(3, &[(2, 3), (3, 9)]);
    let mut later = view(&[(2, 3), (3, 9)]);
    later.shares[0].starts.get_mut(&2).unwrap().merged = true;
    assert!(
        !later.shares[0].counts(&st(2, 1, 5, 5, false).vbs[0]) && later.shares[0].counts(&st(2, 2, 5, 5, false).vbs[0])
    );
    core.state(later);
    core.live(1, batch(2, 1, 0, 3, 9, 9));
    assert_eq!(core.high_watermark().unwrap()[0].seqno, 3, "what it sent from 6 on is not told from what it repeated");
    core.live(2, batch(3, 1, 0, 3, 12, 12));
    core.stability([st(3, 3, 12, 12, true)]);
    core.advance(0);
    core.advance(GAP_AFTER);
    assert_eq!(state(&core), SliceState::Catchup);
}

#[test]
fn a_void_timestamp_is_not_waited_for() {
    // It was issued for generation 1 when generation 2 had begun at 6, and its place is none of that.
    let mut core = in_step(5, &[(1, 0), (2, 6)]);
    core.live(1, batch(1, 1, 0, 5, 6, 6));
    core.live(2, batch(2, 1, 0, 6, 9, 9));
    let mut void = st(2, 1, 8, 8, true);
    void.vbs[0].position.round = 1;
    core.stability([void, st(3, 2, 9, 9, true)]);
    core.advance(0);
    core.advance(GAP_AFTER);
    assert_eq!((state(&core), core.high_watermark().unwrap()[0].seqno), (SliceState::Active, 9));
    assert!(core.slices().all(|slice| slice.applied == 3));
}

/// The log of term 2: generation 2 began at 5, in term `began`.
fn second_generation(began: u64) -> BucketView {
    let start = |x: u64, term| Start { x: Position::new(x, 0), term, merged: false };
    let mut view = view(&[]);
    view.term = 2;
    view.shares[0].generation = 2;
    view.shares[0].starts = BTreeMap::from([(1, start(0, 1)), (2, start(5, began))]);
    view
}

/// A slice comes back with an ST of this term at this place, durable and complete.
fn comes_back(view: BucketView, position: Position, term: u64) -> (BucketCore, SliceMark) {
    let mut core = BucketCore::new();
    core.state(view);
    let vb = SliceVb { vbuuid: 7, position, covered: position.seqno, content: position.seqno, ..SliceVb::default() };
    let mark = SliceMark { st: 3, term, vbs: vec![vb], ..SliceMark::default() };
    core.opened(SLICE, &mark, &[], false);
    (core, mark)
}

#[test]
fn what_comes_back_beyond_a_generation_of_a_later_term_needs_a_session() {
    for (position, term, began, good) in [
        // Whoever began generation 2 had not heard of what it applied.
        (Position::new(8, 0), 1, 2, false),
        (Position::new(5, 1), 1, 2, false),
        (Position::new(5, 0), 1, 2, true),
        // It was applied in the term of the generation's start, or in a later one: that began at or below it, and knew.
        (Position::new(8, 0), 2, 2, true),
        (Position::new(8, 0), 2, 1, true),
        // Records of an earlier version do not tell.
        (Position::new(8, 0), 1, 0, true),
    ] {
        let (core, mark) = comes_back(second_generation(began), position, term);
        assert_eq!(
            (core.counts(&mark), core.slices().all(Slice::in_step)),
            (good, good),
            "{position:?} {term} {began}"
        );
        assert_eq!(state(&core), if good { SliceState::Active } else { SliceState::Catchup });
    }
}

#[test]
fn what_comes_back_void_shows_no_timestamp_that_the_others_show() {
    // It had applied 6 to 8. The next generation has other batches there: of what was overwritten meanwhile nothing is left.
    let (mut core, _) = comes_back(second_generation(2), Position::new(8, 0), 1);
    core.live(1, batch(2, 1, 0, 5, 10, 10));
    let st = StabilityTimestamp { term: 2, ..st(9, 2, 10, 10, true) };
    core.stability([st]);
    assert_eq!(
        applied(&core.advance(0)),
        [],
        "the chain passes its position, and its rows are not those of the others"
    );
    let mut view = second_generation(2);
    view.sessions.insert(4, OpenSession { from: vec![8], ..open_session(&[SLICE]) });
    core.state(view);
    core.session_batch(4, 1, &batch(2, 1, 4, 8, 12, 12));
    assert_eq!(state(&core), SliceState::Merged);
    core.live(2, batch(2, 1, 0, 10, 12, 12));
    core.stability([StabilityTimestamp { term: 2, ..super::st(10, 2, 12, 12, true) }]);
    core.advance(0);
    assert_eq!(state(&core), SliceState::Active);
}
