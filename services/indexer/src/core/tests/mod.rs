//! The core of one bucket, event by event.

mod branches;
mod gaps;
mod missed;
mod rounds;

use super::{gaps::GAP_AFTER, *};
use crate::{payload::Payload, store::SliceVb};
use highwater_schemas::{
    StVb,
    api::SliceState,
    wire::{self, DocOp, KeyVersions, Removal},
};

const SLICE: SliceName = SliceName { index: 1, partition: 0 };

/// A batch of generation `generation` over (from, to], one document per seqno.
fn batch(generation: u64, topology: u64, session: u64, from: u64, to: u64, covered: u64) -> Arc<Batch> {
    let mut versions = KeyVersions::default();
    for seqno in from + 1..=to {
        versions.push_doc(seqno, &format!("d{seqno}"), DocOp::Put);
    }
    parsed(&wire::Batch { versions, ..empty(7, generation, topology, session, (from, to), covered) })
}

fn empty(
    vbuuid: u64,
    generation: u64,
    topology: u64,
    session: u64,
    (from, to): (u64, u64),
    covered: u64,
) -> wire::Batch {
    wire::Batch {
        bucket: "b".into(),
        vb: 0,
        vbuuid,
        generation,
        topology,
        session,
        from: Position::new(from, 0),
        to: Position::new(to, 0),
        covered,
        server_time: 0,
        hash: 0,
        attempt: 0,
        floor: 0,
        reconciled: 0,
        removal: None,
        only: Vec::new(),
        versions: KeyVersions::default(),
    }
}

fn parsed(batch: &wire::Batch) -> Arc<Batch> {
    Arc::new(Batch::parse("b", Payload::new(wire::encode(batch).into(), None)).unwrap())
}

fn st(number: u64, generation: u64, seqno: u64, covered: u64, wanted: bool) -> StabilityTimestamp {
    let vb = StVb { vbuuid: 7, generation, position: Position::new(seqno, 0), covered, ..StVb::default() };
    StabilityTimestamp { number, term: 1, wanted, persist: false, vbs: vec![vb] }
}

fn branch(vbuuid: u64, start: u64, broken: bool) -> Branch {
    Branch { vbuuid, start, broken }
}

fn open_session(slices: &[SliceName]) -> OpenSession {
    OpenSession { slices: slices.to_vec(), from: vec![0], ..OpenSession::default() }
}

fn view(starts: &[(u64, u64)]) -> BucketView {
    let start = |(g, x): &(u64, u64)| (*g, Start { x: Position::new(*x, 0), ..Start::default() });
    let starts: BTreeMap<u64, Start> = starts.iter().map(start).collect();
    let generation = starts.keys().next_back().copied().unwrap_or(0);
    BucketView {
        term: 1,
        numbers_below: 1_000_000,
        topology: 1,
        shares: vec![Shares { vbuuid: 7, generation, starts, branches: vec![branch(7, 0, false)] }],
        slices: BTreeMap::from([(SLICE, 1)]),
        sessions: BTreeMap::new(),
    }
}

/// A slice that is in step at `seqno`.
fn in_step(seqno: u64, starts: &[(u64, u64)]) -> BucketCore {
    let mut core = BucketCore::new();
    core.state(view(starts));
    let vb =
        SliceVb { vbuuid: 7, position: Position::new(seqno, 0), covered: seqno, content: seqno, ..SliceVb::default() };
    core.opened(SLICE, &SliceMark { st: 1, vbs: vec![vb], ..SliceMark::default() }, &[], false);
    core
}

/// (ST, readable, seqnos applied) of every apply.
fn applied(actions: &[Action]) -> Vec<(u64, bool, Vec<u64>)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Apply { steps, st, readable, .. } => {
                let seqnos = steps.iter().flat_map(|(_, step)| {
                    let docs: Vec<u64> = step.batch.versions().unwrap().docs().map(|d| d.seqno).collect();
                    docs.into_iter().filter(|s| *s > step.after && *s <= step.upto)
                });
                Some((st.number, *readable, seqnos.collect()))
            }
            _ => None,
        })
        .collect()
}

fn state(core: &BucketCore) -> SliceState {
    core.slices().next().unwrap().state()
}

#[test]
fn an_st_applies_exactly_what_is_at_or_below_it() {
    let mut core = in_step(10, &[(1, 0)]);
    core.live(1, batch(1, 1, 0, 10, 12, 12));
    core.live(2, batch(1, 1, 0, 12, 15, 15));
    core.stability([st(2, 1, 13, 13, true)]);
    assert_eq!(applied(&core.advance(0)), [(2, true, vec![11, 12, 13])]);
    core.stability([st(3, 1, 15, 15, false)]);
    assert_eq!(applied(&core.advance(0)), [(3, true, vec![14, 15])]);
}

#[test]
fn batches_out_of_order_and_repeated_come_out_right() {
    let mut core = in_step(0, &[(1, 0)]);
    core.live(1, batch(1, 1, 0, 4, 6, 6));
    core.live(2, batch(1, 1, 0, 0, 4, 4));
    core.live(3, batch(1, 1, 0, 0, 4, 4));
    core.stability([st(2, 1, 6, 6, true)]);
    assert_eq!(applied(&core.advance(0)), [(2, true, vec![1, 2, 3, 4, 5, 6])]);
}

#[test]
fn a_generation_counts_only_in_its_share_also_when_it_arrives_late() {
    // Generation 2 began at X = 5; what generation 1 published beyond is void.
    let mut core = in_step(0, &[(1, 0), (2, 5)]);
    core.live(1, batch(2, 1, 0, 3, 8, 8));
    core.live(2, batch(1, 1, 0, 0, 7, 7));
    core.stability([st(2, 2, 8, 8, true)]);
    let all = applied(&core.advance(0));
    assert_eq!(all, [(2, true, vec![1, 2, 3, 4, 5, 6, 7, 8])]);
    let share = |g: u64, range: std::ops::RangeInclusive<u64>| {
        let mut lone = in_step(*range.start() - 1, &[(1, 0), (2, 5)]);
        lone.live(1, batch(g, 1, 0, range.start() - 1, *range.end(), 0));
        lone.high_watermark().unwrap()[0].seqno
    };
    assert_eq!(share(1, 6..=7), 5, "beyond X, generation 1 brings nothing");
    assert_eq!(share(1, 4..=7), 5);
    assert_eq!(share(2, 6..=7), 7);
}

#[test]
fn a_batch_ahead_of_what_the_node_knows_is_held_until_it_does() {
    let mut core = in_step(0, &[(1, 0)]);
    core.live(1, batch(2, 1, 0, 0, 3, 3));
    core.stability([st(2, 2, 3, 3, true)]);
    assert!(applied(&core.advance(0)).is_empty());
    core.state(view(&[(1, 0), (2, 0)]));
    assert_eq!(applied(&core.advance(0)), [(2, true, vec![1, 2, 3])]);
}

#[test]
fn a_gap_that_stays_asks_for_a_session_from_what_is_covered() {
    let mut core = in_step(10, &[(1, 0)]);
    core.live(5, batch(1, 1, 0, 12, 15, 15));
    core.stability([st(2, 1, 15, 15, true)]);
    assert!(applied(&core.advance(0)).is_empty());
    core.advance(GAP_AFTER - 1);
    assert_eq!(state(&core), SliceState::Active);
    core.advance(GAP_AFTER);
    assert_eq!(state(&core), SliceState::Catchup);
    assert_eq!(core.slices().next().unwrap().resume(), [10]);
}

#[test]
fn a_gap_is_none_the_less_one_while_another_vbucket_goes_on() {
    let mut core = BucketCore::new();
    let mut two = view(&[(1, 0)]);
    two.shares.push(two.shares[0].clone());
    core.state(two);
    let vb = SliceVb { vbuuid: 7, ..SliceVb::default() };
    core.opened(SLICE, &SliceMark { st: 1, vbs: vec![vb.clone(), vb], ..SliceMark::default() }, &[], false);
    let at = |n: u64, seqno: u64| st(n, 1, seqno, seqno, true).vbs.swap_remove(0);
    core.live(1, batch(1, 1, 0, 1, 2, 2));
    for now in (0..=GAP_AFTER).step_by(100) {
        let n = now / 100 + 1;
        let of_other = wire::Batch { vb: 1, ..empty(7, 1, 1, 0, (n - 1, n), n) };
        core.live(n + 1, parsed(&of_other));
        core.stability([StabilityTimestamp { vbs: vec![at(n + 1, 2), at(n + 1, n)], ..st(n + 1, 1, 2, 2, true) }]);
        assert_eq!(state(&core), SliceState::Active, "at {now}");
        assert!(applied(&core.advance(now)).is_empty());
    }
    assert_eq!(state(&core), SliceState::Catchup);
}

#[test]
fn a_chain_that_grows_has_no_gap_though_another_vbucket_rests() {
    let mut core = BucketCore::new();
    let mut two = view(&[(1, 0)]);
    two.shares.push(two.shares[0].clone());
    core.state(two);
    let vb = SliceVb { vbuuid: 7, ..SliceVb::default() };
    core.opened(SLICE, &SliceMark { st: 1, vbs: vec![vb.clone(), vb], ..SliceMark::default() }, &[], false);
    let vbs = vec![st(2, 1, 1_000, 1_000, true).vbs[0].clone(), st(2, 1, 0, 0, true).vbs[0].clone()];
    core.stability([StabilityTimestamp { vbs, ..st(2, 1, 0, 0, true) }]);
    for now in (0..=3 * GAP_AFTER).step_by(100) {
        let n = now / 100 + 1;
        core.live(n, batch(1, 1, 0, n - 1, n, n));
        core.advance(now);
        assert_eq!(state(&core), SliceState::Active, "at {now}");
    }
}

#[test]
fn a_build_joins_the_live_chain_and_is_readable_once_everything_it_holds_is_covered() {
    let mut core = BucketCore::new();
    let mut with_session = view(&[(1, 0)]);
    core.state(with_session.clone());
    core.opened(SLICE, &SliceMark::default(), &[], true);
    assert_eq!(state(&core), SliceState::Building);
    with_session.sessions = BTreeMap::from([(9, open_session(&[SLICE]))]);
    core.state(with_session);
    // Live batches are held from S = 20 on.
    core.live(1, batch(1, 1, 0, 20, 22, 22));
    let collects =
        |actions: Vec<Action>| actions.iter().filter(|a| matches!(a, Action::Collect { bulk: true, .. })).count();
    assert_eq!(collects(core.session_batch(9, 1, &batch(1, 1, 9, 0, 15, 15))), 1);
    assert_eq!(state(&core), SliceState::Building, "it has not covered S");
    let actions = core.session_batch(9, 2, &batch(1, 1, 9, 15, 25, 25));
    let mark = actions.iter().find_map(|a| match a {
        Action::Persist { mark, .. } => Some(mark.clone()),
        _ => None,
    });
    assert!(core.session_paused(9), "nothing more is collected while it is flushed");
    core.persisted(SLICE, &mark.unwrap(), 2, true);
    assert_eq!(state(&core), SliceState::Merged);
    // It holds documents up to 25: an ST that covers less must not be shown.
    core.stability([st(2, 1, 22, 22, true)]);
    assert_eq!(applied(&core.advance(0)), [(2, false, vec![])], "the session has read it, and it may have gone since");
    core.live(2, batch(1, 1, 0, 22, 26, 26));
    core.stability([st(3, 1, 26, 26, true)]);
    assert_eq!(applied(&core.advance(0)), [(3, true, vec![26])]);
    assert_eq!(state(&core), SliceState::Active);
}

#[test]
fn the_last_step_of_a_build_outlives_its_session() {
    let mut core = BucketCore::new();
    let mut seen = view(&[(1, 0)]);
    let session = |id| BTreeMap::from([(id, open_session(&[SLICE]))]);
    seen.sessions = session(9);
    core.state(seen.clone());
    core.opened(SLICE, &SliceMark::default(), &[], true);
    core.live(1, batch(1, 1, 0, 20, 22, 22));
    let actions = core.session_batch(9, 1, &batch(1, 1, 9, 0, 25, 25));
    let built = actions.into_iter().find_map(|a| match a {
        Action::Persist { mark, why: Why::Built, .. } => Some(mark),
        _ => None,
    });
    // A projector was restarted: the session ends, and another one begins while the step is running.
    seen.sessions = BTreeMap::new();
    core.state(seen.clone());
    seen.sessions = session(10);
    core.state(seen);
    let actions = core.session_batch(10, 1, &batch(1, 1, 10, 0, 5, 5));
    assert!(!actions.iter().any(|a| matches!(a, Action::Collect { .. })), "nothing can be collected");
    core.set_bulk(SLICE, false);
    core.persisted(SLICE, &built.unwrap(), 1, true);
    // What the first session brought is there, and covers where the live chain begins.
    assert_eq!(state(&core), SliceState::Merged);
}

#[test]
fn a_session_with_a_hole_is_given_up() {
    let mut core = BucketCore::new();
    let mut with_session = view(&[(1, 0)]);
    with_session.sessions = BTreeMap::from([(9, open_session(&[SLICE]))]);
    core.state(with_session);
    core.opened(SLICE, &SliceMark::default(), &[], true);
    core.session_batch(9, 1, &batch(1, 1, 9, 0, 5, 5));
    core.session_batch(9, 2, &batch(1, 1, 9, 7, 9, 9));
    let slice = core.slices().next().unwrap();
    assert_eq!((slice.mode.clone(), slice.done_with, slice.resume()), (Mode::Waiting, 9, vec![5]));
}

#[test]
fn what_a_session_may_have_missed_comes_with_the_chain() {
    let mut core = BucketCore::new();
    let mut with_session = view(&[(1, 0)]);
    with_session.sessions = BTreeMap::from([(9, open_session(&[SLICE]))]);
    core.state(with_session);
    core.opened(SLICE, &SliceMark::default(), &[], false);
    core.live(1, batch(1, 1, 0, 20, 26, 26));
    core.session_batch(9, 1, &batch(1, 1, 9, 0, 25, 22));
    core.stability([st(2, 1, 26, 26, true)]);
    assert_eq!(applied(&core.advance(0)), [(2, true, vec![23, 24, 25, 26])]);
}

#[test]
fn a_slice_takes_up_only_a_session_that_is_for_what_it_is() {
    let above = OpenSession { from: vec![3], ..open_session(&[SLICE]) };
    let lists = OpenSession { lists: true, ..open_session(&[SLICE]) };
    for (session, fits) in [(above, false), (lists, false), (open_session(&[SLICE]), true)] {
        let mut core = BucketCore::new();
        let mut with_session = view(&[(1, 0)]);
        with_session.sessions = BTreeMap::from([(9, session)]);
        core.state(with_session);
        core.opened(SLICE, &SliceMark::default(), &[], true);
        assert_eq!(core.slices().all(|s| s.following.is_some()), fits);
    }
}

#[test]
fn a_slice_beyond_the_start_of_a_new_generation_merges_again() {
    let mut core = in_step(10, &[(1, 0)]);
    let actions = core.state(view(&[(1, 0), (2, 8)]));
    assert!(actions.iter().any(|a| matches!(a, Action::Report)));
    assert_eq!(state(&core), SliceState::Catchup);
}

#[test]
fn a_mark_never_points_beyond_a_batch_that_is_not_wholly_applied() {
    let mut core = in_step(0, &[(1, 0)]);
    core.topic_opened(0, 1, false);
    core.live(4, batch(1, 1, 0, 0, 3, 3));
    core.live(5, batch(1, 1, 0, 3, 9, 9));
    core.stability([st(2, 1, 5, 5, true)]);
    core.advance(0);
    assert_eq!(core.mark(SLICE).unwrap().topic, 4, "the batch at 5 is applied in part");
    core.stability([st(3, 1, 9, 9, true)]);
    core.advance(0);
    assert_eq!(core.mark(SLICE).unwrap().topic, 5);
}

/// A slice whose session has read enough: the last step of its build is running.
fn in_its_last_step() -> (BucketCore, BucketView) {
    let mut core = BucketCore::new();
    let mut seen = view(&[(1, 0)]);
    seen.sessions = BTreeMap::from([(9, open_session(&[SLICE]))]);
    core.state(seen.clone());
    core.opened(SLICE, &SliceMark::default(), &[], true);
    core.live(1, batch(1, 1, 0, 20, 22, 22));
    core.session_batch(9, 1, &batch(1, 1, 9, 0, 25, 25));
    (core, seen)
}

#[test]
fn a_slice_that_failed_stays_so_when_its_session_ends() {
    let (mut core, mut seen) = in_its_last_step();
    core.failed(SLICE, "the disk is gone".into());
    assert!(core.slices().all(|s| !s.persisting), "nothing is waited for");
    seen.sessions = BTreeMap::from([(10, open_session(&[SLICE]))]);
    core.state(seen);
    assert_eq!(state(&core), SliceState::Error);
}

#[test]
fn a_slice_that_could_not_be_opened_is_tried_again_and_not_wiped() {
    let mut core = BucketCore::new();
    core.state(view(&[(1, 0)]));
    core.failed(SLICE, "too many open files".into());
    let actions = core.state(view(&[(1, 0)]));
    assert!(actions.iter().any(|a| matches!(a, Action::Open { reset: false, .. })));
    assert!(!actions.iter().any(|a| matches!(a, Action::Open { reset: true, .. })));
}

#[test]
fn a_session_that_will_be_followed_waits_for_the_last_step_of_a_build() {
    let (mut core, mut seen) = in_its_last_step();
    seen.sessions = BTreeMap::from([(10, open_session(&[SLICE]))]);
    core.state(seen);
    assert!(core.session_paused(10));
    assert!(!core.session_paused(9), "it is over: what it still brings counts for nothing");
}

#[test]
fn what_joins_a_chain_where_nothing_is_written_shows_the_last_st() {
    let mut core = in_step(20, &[(1, 0)]);
    core.stability([st(2, 1, 20, 20, false)]);
    assert_eq!(applied(&core.advance(0)), [(2, true, vec![])]);
    let further = SliceName { index: 2, partition: 0 };
    let mut seen = BucketView { topology: 2, ..view(&[(1, 0)]) };
    seen.slices.insert(further, 2);
    seen.sessions = BTreeMap::from([(9, open_session(&[further]))]);
    core.state(seen);
    core.opened(further, &SliceMark::default(), &[], true);
    core.live(1, batch(1, 2, 0, 20, 20, 20));
    assert_eq!(applied(&core.advance(0)), []);
    let actions = core.session_batch(9, 1, &batch(1, 2, 9, 0, 20, 20));
    let mark = actions.into_iter().find_map(|a| match a {
        Action::Persist { mark, .. } => Some(mark),
        _ => None,
    });
    core.persisted(further, &mark.unwrap(), 1, true);
    assert_eq!(applied(&core.advance(0)), [(2, true, vec![])], "without another broadcast");
}

#[test]
fn a_persistence_timestamp_that_finds_the_slice_becoming_durable_is_made_up_for() {
    let mut core = in_step(10, &[(1, 0)]);
    core.live(1, batch(1, 1, 0, 10, 15, 15));
    let persist = |number, seqno| StabilityTimestamp { persist: true, ..st(number, 1, seqno, seqno, true) };
    let marks = |actions: &[Action]| -> Vec<SliceMark> {
        let marks = actions.iter().filter_map(|a| match a {
            Action::Persist { mark, why: Why::Timestamp, .. } => Some(mark.clone()),
            _ => None,
        });
        marks.collect()
    };
    core.stability([persist(2, 12)]);
    let first = marks(&core.advance(0)).pop().unwrap();
    core.stability([persist(3, 15)]);
    assert_eq!(marks(&core.advance(0)), [], "one at a time");
    let second = marks(&core.persisted(SLICE, &first, 0, true)).pop().unwrap();
    assert_eq!((first.st, second.st, second.vbs[0].position.seqno), (2, 3, 15));
    assert_eq!(marks(&core.persisted(SLICE, &second, 0, true)), []);
    assert_eq!(core.durable(), 3);
}
