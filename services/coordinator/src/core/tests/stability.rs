//! What a broadcast says, and what follows when it was missed.

use super::*;
use highwater_schemas::{
    timestamp::{Asked, MOST_CATALOGS},
    wire::{MOST_NAMED, Missed},
};

/// STs, each wanted, 2 ms apart.
fn wanted(d: &mut Driver, count: u64) {
    for _ in 0..count {
        d.now += 2;
        d.sync(1, d.now, d.now);
    }
}

fn told(d: &mut Driver, numbers: &[u64]) -> Vec<u64> {
    d.published.clear();
    let missed = Missed { bucket: "b".into(), term: d.core.context().term, numbers: numbers.to_vec() };
    d.event(Event::Missed(missed));
    d.published.iter().map(|stability| stability.st.number).collect()
}

#[test]
fn a_broadcast_names_the_wanted_timestamps_of_the_last_second() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    wanted(&mut d, 10);
    let first = d.published[0].st.number;
    let names = &d.published.last().unwrap().wanted;
    assert_eq!(*names, (first..first + 9).collect::<Vec<_>>(), "those before it");
    let most = MOST_NAMED as u64 + 40;
    wanted(&mut d, most);
    let last = d.published.last().unwrap();
    assert_eq!(last.wanted, (last.st.number - MOST_NAMED as u64..last.st.number).collect::<Vec<_>>());
    d.now += 1_000;
    d.sync(1, d.now, 0);
    assert_eq!(d.published.last().unwrap().wanted, [0; 0]);
}

#[test]
fn what_was_missed_is_told_again_as_it_was_and_not_too_often() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    wanted(&mut d, 10);
    let before: Vec<_> = d.published.iter().map(|stability| stability.st.clone()).collect();
    let number = before[3].number;
    d.now += 100;
    assert_eq!(told(&mut d, &[number, number, 999, 0]), [number], "what is not known is not answered");
    assert_eq!((&d.published[0].st, &d.published[0].wanted[..]), (&before[3], &[0; 0][..]));
    assert_eq!(told(&mut d, &[number]), [0; 0], "everyone heard it just now");
    d.now += 20;
    assert_eq!(told(&mut d, &[number]), [number]);
    let missed = Missed { bucket: "b".into(), term: 0, numbers: vec![number] };
    d.now += 20;
    d.published.clear();
    d.event(Event::Missed(missed));
    assert!(d.published.is_empty(), "of another term");
}

#[test]
fn questions_are_answered_by_so_many_broadcasts_at_most() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    wanted(&mut d, MOST_NAMED as u64 + 1);
    let all: Vec<u64> = (0..1_000).collect();
    let last = d.last().number;
    let newest: Vec<u64> = (last + 1 - MOST_NAMED as u64..=last).collect();
    d.now += 200;
    assert_eq!(told(&mut d, &newest).len(), MOST_NAMED);
    d.now += 50;
    assert_eq!(told(&mut d, &newest).len(), 0, "the share of this time is used up");
    assert_eq!(told(&mut d, &all).len(), 0);
    d.now += 50;
    assert_eq!(told(&mut d, &newest).len(), MOST_NAMED);
}

#[test]
fn of_more_catalogs_than_are_remembered_those_that_wanted_last_are_told_of() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    let vbuuid = d.core.context().buckets["b"].vbuckets[0].vbuuid();
    let want = |catalog: usize, seq| Asked { catalog: u64::MAX - catalog as u64, seq };
    let first: Vec<_> = (0..MOST_CATALOGS).map(|catalog| want(catalog, 1)).collect();
    let rest: Vec<_> = (1..=MOST_CATALOGS).map(|catalog| want(catalog, 2)).collect();
    // A vbucket may remember another one for longer.
    let both: Vec<_> = first[..1].iter().chain(&rest).copied().collect();
    for (asked, told) in [(first.clone(), first), (both, rest)] {
        d.now += 10;
        let position = Position::new(d.now, 0);
        let state = StVb { vbuuid, generation: 1, position, covered: d.now, asked, ..StVb::default() };
        let vbs = vec![SyncVb { vb: 0, state, source_last: 5, bookmark: None }];
        d.event(Event::Sync(Sync { bucket: "b".into(), vbs }));
        assert_eq!(d.last().vbs[0].asked, told);
    }
}

#[test]
fn what_is_kept_of_a_timestamp_is_without_wants() {
    let mut d = Driver::with_index();
    d.now = 10_000;
    d.sync(1, 5, 7);
    d.now += 10_000;
    d.sync(1, 6, 8);
    let marked = d.last().clone();
    assert!(marked.persist && !marked.vbs[0].asked.is_empty());
    d.event(Event::HighWatermark(HighWatermark {
        bucket: "b".into(),
        node: "i".into(),
        incarnation: 1,
        hwt: Vec::new(),
        held: (0, 0),
        durable: marked.number,
        queued: 0,
    }));
    assert_eq!(d.core.context().buckets["b"].history, [marked.without_wants()]);
}
