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
