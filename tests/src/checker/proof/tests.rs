use super::*;
use crate::log::Gone;
use crate::source::{Log, Op, Write};
use serde_json::json;
use std::{sync::Arc, time::Duration};

const OLD: &str = "a1";
const NEW: &str = "b2";

fn indexes() -> Vec<Index> {
    let named = |name: &str, path| Index { name: name.into(), keys: vec![(path, false)], ..Index::default() };
    vec![named("a", "a"), named("b", "b")]
}

fn put(id: &str, n: u64) -> Write {
    Write::put(0, id, &json!({"a": n, "b": n}))
}

/// `x` is 1, then 2 at seqno 3; `y` is 7 at seqno 2. Both in both indexes.
fn log() -> Log {
    let mut log = Log::for_streams(1);
    for (seqno, id, n) in [(1, "x", 1), (2, "y", 7), (3, "x", 2)] {
        log.add(put(id, n), seqno);
    }
    log
}

fn row(id: &str, n: u64) -> Row {
    Row { document: (0, id.into()), key: vec![Some(n.into())], include: None }
}

/// So many seconds after the tests began.
fn second(n: u64) -> Instant {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *BEGAN.get_or_init(Instant::now) + Duration::from_secs(n)
}

fn acknowledged(epoch: usize, seqno: u64) -> Need {
    Need::Acknowledged { epoch, seqnos: vec![seqno] }
}

fn answer(seqno: u64, exact: bool, floor: u64, rows: &[(&str, u64)]) -> Answer {
    Answer {
        index: 0,
        st: 9,
        timestamp: json!({"s": {"seqno": seqno}}),
        branches: vec![OLD.into()],
        seqnos: vec![seqno],
        need: acknowledged(0, floor),
        began: second(1),
        ended: second(1),
        exact,
        unindexed: 0,
        spans: Vec::new(),
        found: Found::Rows(rows.iter().map(|(id, n)| row(id, *n)).collect()),
    }
}

fn proven(answers: &[Answer], log: &Log) -> Result<Proof> {
    prove(answers, &Truth::new(vec![Arc::new(log.clone())], (second(10), second(20)), &indexes()))
}

fn holds(answers: &[Answer]) -> bool {
    proven(answers, &log()).is_ok()
}

#[test]
fn an_exact_answer_is_the_source_at_its_seqno() {
    assert!(holds(&[answer(2, true, 0, &[("x", 1), ("y", 7)])]));
    assert!(holds(&[answer(3, true, 0, &[("x", 2), ("y", 7)])]));
    for wrong in
        [&[("x", 2), ("y", 7)][..], &[("y", 7)], &[("x", 1)], &[("x", 1), ("y", 7), ("z", 8)], &[("y", 7), ("x", 1)]]
    {
        assert!(!holds(&[answer(2, true, 0, wrong)]), "{wrong:?}");
    }
}

#[test]
fn one_that_is_not_exact_is_within_its_floor_and_its_seqno() {
    let old = &[("x", 1), ("y", 7)];
    assert!(holds(&[answer(3, false, 2, old)]));
    assert!(!holds(&[answer(3, false, 3, old)]), "older than the floor");
    assert!(!holds(&[answer(2, false, 3, old)]), "the timestamp is older than the floor");
    assert!(!holds(&[answer(2, false, 0, &[("x", 2), ("y", 7)])]), "newer than its seqno");
    assert!(!holds(&[answer(4, false, 0, old)]), "newer than the source");
    assert!(holds(&[answer(3, false, 0, &[("x", 1)])]), "y may be hidden as well");
    assert!(!holds(&[answer(3, false, 2, &[("x", 1)])]));
}

#[test]
fn answers_of_one_number_agree() {
    let (old, new) = (answer(3, false, 2, &[("x", 1), ("y", 7)]), answer(3, false, 2, &[("x", 2), ("y", 7)]));
    let other = |answer: &Answer| Answer { index: 1, ..answer.clone() };
    assert_eq!(proven(&[old.clone(), other(&old)], &log()).unwrap().shared, 1);
    assert!(!holds(&[old.clone(), other(&new)]), "two revisions of x");
    let exact = Answer { exact: true, ..other(&new) };
    assert!(!holds(&[old.clone(), exact]), "what is exact for one is for all");
    assert!(!holds(&[old.clone(), Answer { timestamp: json!({}), ..old.clone() }]), "two timestamps");
    assert!(holds(&[old, Answer { st: 10, ..new }]));
}

#[test]
fn counts_are_what_they_may_be() {
    let count = |seqno, exact, n| Answer { found: Found::Count(n), ..answer(seqno, exact, 0, &[]) };
    assert!(holds(&[count(1, true, 1)]) && !holds(&[count(1, true, 2)]));
    assert!(holds(&[count(3, false, 0), count(3, false, 2)]) && !holds(&[count(3, false, 3)]));
    assert!(!holds(&[Answer { unindexed: 1, ..count(1, true, 1) }]));
}

#[test]
fn what_was_not_acknowledged_may_be_where_nothing_is_known() {
    let mut log = log();
    let rows = [("x", 2), ("y", 8)];
    log.doubts.insert((0, "y".into()), vec![(1, Some(r#"{"a": 8, "b": 8}"#.into()))]);
    let holds = |log: &Log| proven(&[answer(3, true, 0, &rows)], log).is_ok();
    assert!(!holds(&log), "every seqno is known");
    log.documents.insert((0, "y".into()), vec![(1, None)]);
    log.unknown[0].insert(2);
    assert!(holds(&log));
    log.add(Write { vb: 0, id: "y".into(), op: Op::Delete }, 3);
    assert!(!holds(&log), "it is overwritten since");
}

/// [`log`] until it is cut after seqno 2 between seconds 10 and 11; then `x` is 5 at seqno 3 and `y` is 6 at seqno 4. It is all
/// over at second 20.
fn cut() -> Vec<Arc<Log>> {
    let old = Arc::new(log());
    let mut stored = Log::for_streams(1);
    stored.add(put("x", 1), 1);
    stored.add(put("y", 7), 2);
    stored.since = Some(second(11));
    let mut new = Log::after(std::slice::from_ref(&old), stored);
    assert_eq!((new.epoch, new.history[0], new.began_at[0]), (1, 1, 2));
    new.add(put("x", 5), 3);
    new.add(put("y", 6), 4);
    vec![old, Arc::new(new)]
}

fn holds_cut(answers: &[Answer]) -> bool {
    prove(answers, &Truth::new(cut(), (second(10), second(20)), &indexes())).is_ok()
}

/// An exact answer of a branch to a request of these seconds.
fn of(st: u64, branch: &str, (began, ended): (u64, u64), need: Need, seqno: u64, rows: &[(&str, u64)]) -> Answer {
    Answer {
        st,
        timestamp: json!({"s": {"vbuuid": branch, "seqno": seqno}}),
        branches: vec![branch.into()],
        began: second(began),
        ended: second(ended),
        need,
        ..answer(seqno, true, 0, rows)
    }
}

const LOST: [(&str, u64); 2] = [("x", 2), ("y", 7)];
const AGAIN: [(&str, u64); 2] = [("x", 5), ("y", 7)];

#[test]
fn a_branch_is_of_one_history() {
    let any = || Need::Nothing;
    let old = of(1, OLD, (12, 13), any(), 3, &LOST);
    let new = of(2, NEW, (14, 15), any(), 3, &AGAIN);
    assert!(holds_cut(&[old.clone(), new.clone()]));
    assert!(!holds_cut(&[old.clone(), of(2, OLD, (14, 15), any(), 3, &AGAIN)]), "two histories of one branch");
    assert!(!holds_cut(&[of(1, NEW, (12, 13), any(), 3, &[("x", 5), ("y", 6)])]), "a mixture of both");
    let common = of(3, NEW, (14, 15), any(), 2, &[("x", 1), ("y", 7)]);
    assert!(holds_cut(&[old, new, common]));
}

#[test]
fn nothing_is_of_a_history_that_is_yet_to_come_or_is_over() {
    let any = || Need::Nothing;
    assert!(!holds_cut(&[of(1, NEW, (1, 2), any(), 3, &AGAIN)]), "it was answered before");
    assert!(holds_cut(&[of(1, OLD, (1, 2), any(), 3, &LOST)]));
    assert!(!holds_cut(&[of(1, OLD, (20, 21), any(), 3, &LOST)]), "it was asked for afterwards");
    assert!(holds_cut(&[of(1, NEW, (20, 21), any(), 3, &AGAIN)]));
    assert!(holds_cut(&[of(1, OLD, (19, 21), any(), 3, &LOST)]));
}

#[test]
fn request_plus_is_never_older_than_the_surviving_history() {
    let plus = |time, branch, epoch, acknowledged_at, seqno, rows: &[_]| {
        holds_cut(&[of(1, branch, time, acknowledged(epoch, acknowledged_at), seqno, rows)])
    };
    let left = [("x", 1), ("y", 7)];
    assert!(plus((10, 12), OLD, 0, 3, 3, &LOST), "it may have been read before the loss");
    assert!(!plus((12, 13), OLD, 0, 3, 3, &LOST), "the source had lost that already");
    assert!(plus((10, 12), NEW, 0, 3, 2, &left), "what was lost is not asked for");
    assert!(!plus((10, 12), NEW, 0, 3, 1, &[("x", 1)]), "what was not lost is");
    assert!(!plus((12, 13), NEW, 0, 0, 1, &[("x", 1)]), "it was there again when this began");
    assert!(!plus((12, 13), NEW, 1, 3, 2, &left), "it is acknowledged anew");
    assert!(!plus((10, 13), OLD, 1, 3, 3, &LOST), "of the new history, and asked for");
    let stale = Answer { exact: false, ..of(1, NEW, (12, 13), acknowledged(1, 3), 3, &left) };
    assert!(!holds_cut(&[stale]), "an older revision than was asked for");
}

#[test]
fn what_was_seen_is_not_taken_back_in_silence() {
    let seen = |seqno| Need::Seen { branches: vec![OLD.into()], seqnos: vec![seqno] };
    let old = of(1, OLD, (1, 2), Need::Nothing, 3, &LOST);
    assert!(!holds_cut(&[old.clone(), of(2, NEW, (20, 21), seen(3), 3, &AGAIN)]), "it was lost");
    assert!(holds_cut(&[old.clone(), of(2, NEW, (20, 21), seen(2), 3, &AGAIN)]));
    assert!(holds_cut(&[old.clone(), of(2, OLD, (12, 13), seen(3), 3, &LOST)]));
    let early = Answer { exact: false, ..of(2, OLD, (12, 13), seen(3), 3, &[("x", 1), ("y", 7)]) };
    assert!(!holds_cut(&[old, early]), "older than what was seen");
    assert!(!holds_cut(&[of(2, NEW, (20, 21), seen(2), 3, &AGAIN)]), "nobody ever answered that");
    let named = Need::Named(vec![3]);
    assert!(holds_cut(&[of(2, NEW, (20, 21), named.clone(), 3, &AGAIN)]), "a bare number is of any history");
    assert!(!holds_cut(&[of(2, NEW, (20, 21), named, 2, &[("x", 1), ("y", 7)])]));
}

#[test]
fn a_stream_that_lost_nothing_has_its_history_still() {
    let old = Arc::new(log());
    let mut stored = log();
    stored.since = Some(second(11));
    let new = Log::after(std::slice::from_ref(&old), stored);
    assert_eq!((new.epoch, new.history[0]), (1, 0));
    // A document that is rewritten, with an older revision that is current again: the history is another one.
    let mut stored = Log::for_streams(1);
    stored.add(put("x", 1), 1);
    stored.cover_all(0, 3);
    let lost = Log::after(std::slice::from_ref(&old), stored);
    assert_eq!((lost.history[0], lost.complete()[0], lost.common(&old, 0)), (1, 3, 1));
    // What comes back is the history that it was.
    let pasts = [old, Arc::new(lost)];
    let again = Log::after(&pasts, log());
    assert_eq!((again.epoch, again.history[0]), (2, 0));
}

/// [`log`] from which `y` went after second 10; the timestamps from 30 on are known to follow.
fn vanished() -> Log {
    let mut log = log();
    log.compare(0, &BTreeMap::from([((0, "x".into()), 3)]), second(10));
    assert_eq!(log.now().len(), 1);
    log.followed(30);
    log
}

#[test]
fn what_vanishes_is_there_until_it_may_go_and_gone_when_that_is_followed() {
    let (with, without) = ([("x", 2), ("y", 7)], [("x", 2)]);
    let at = |st, second, rows: &[_]| of(st, OLD, (second, second), Need::Nothing, 3, rows);
    let log = vanished();
    let holds = |answers: &[Answer]| proven(answers, &log).is_ok();
    assert!(holds(&[at(9, 9, &with)]));
    assert!(!holds(&[at(9, 9, &without)]), "it had not gone yet");
    assert!(!holds(&[at(20, 9, &with), at(19, 12, &without)]), "a later timestamp is older than that");
    assert!(holds(&[at(20, 12, &with), at(21, 12, &without), at(29, 12, &without)]));
    assert!(!holds(&[at(21, 12, &without), at(29, 12, &with)]), "it came back");
    let count = |st, n| Answer { found: Found::Count(n), ..at(st, 12, &[]) };
    assert!(!holds(&[at(21, 12, &without), count(29, 2)]), "it came back");
    assert!(!holds(&[at(20, 12, &with), Answer { index: 1, ..at(20, 12, &without) }]), "two indexes at one number");
    assert!(!holds(&[at(30, 15, &with)]), "it has gone");
    assert!(holds(&[at(30, 15, &without)]));
    assert!(holds(&[count(20, 1), count(20, 2), count(30, 1)]) && !holds(&[count(30, 2)]));
    assert!(!holds(&[of(20, OLD, (12, 12), Need::Nothing, 1, &[])]), "nothing of x went");
}

#[test]
fn an_older_revision_may_be_current_again() {
    let mut log = log();
    log.compare(0, &BTreeMap::from([((0, "x".into()), 1), ((0, "y".into()), 2)]), second(10));
    log.followed(30);
    let at = |st, rows: &[_]| proven(&[of(st, OLD, (12, 12), Need::Nothing, 3, rows)], &log).is_ok();
    assert!(at(20, &[("x", 1), ("y", 7)]) && at(20, &[("x", 2), ("y", 7)]));
    assert!(!at(20, &[("y", 7)]), "something of it is left");
    assert!(at(30, &[("x", 1), ("y", 7)]) && !at(30, &[("x", 2), ("y", 7)]));
    log.compare(0, &BTreeMap::from([((0, "y".into()), 2)]), second(20));
    let gone = |st, rows: &[_]| proven(&[of(st, OLD, (22, 22), Need::Nothing, 3, rows)], &log).is_ok();
    assert!(gone(40, &[("x", 1), ("y", 7)]) && gone(40, &[("y", 7)]) && !gone(40, &[("x", 2), ("y", 7)]));
}

#[test]
fn what_went_while_documents_were_written_is_hidden_by_what_came_then() {
    let mut log = log();
    for gone in [Gone::Below(0, 3), Gone::Message((0, "x".into()), 3)] {
        log.gone(second(10), &gone);
    }
    log.add(put("x", 4), 4);
    log.add(put("y", 8), 5);
    log.followed(30);
    let at = |st, seqno, rows: &[_]| proven(&[of(st, OLD, (12, 12), Need::Nothing, seqno, rows)], &log).is_ok();
    assert!(at(20, 3, &[("x", 2), ("y", 7)]) && at(20, 3, &[("x", 2)]) && at(20, 3, &[("x", 1)]) && at(20, 3, &[]));
    assert!(at(20, 4, &[("x", 4)]) && !at(20, 4, &[("y", 7)]), "x was written since");
    assert!(!at(20, 5, &[("x", 4)]) && at(20, 5, &[("x", 4), ("y", 8)]));
    let mut log = self::log();
    log.gone(second(10), &Gone::Document((0, "x".into()), 3, 4));
    log.add(put("x", 4), 4);
    log.followed(30);
    let at = |seqno, rows: &[_]| proven(&[of(30, OLD, (12, 12), Need::Nothing, seqno, rows)], &log).is_ok();
    assert!(!at(3, &[("x", 2), ("y", 7)]) && at(3, &[("y", 7)]));
    assert!(at(4, &[("x", 4), ("y", 7)]) && at(4, &[("y", 7)]), "it may have gone as well");
    let before = |rows: &[_]| proven(&[of(20, OLD, (12, 12), Need::Nothing, 4, rows)], &log).is_ok();
    assert!(before(&[("x", 2), ("y", 7)]) && !at(4, &[("x", 2), ("y", 7)]), "and before anybody read it");
    let (older, without) = ([("x", 2), ("y", 7)], [("y", 7)]);
    let shown = |answers: &[(u64, &[_])]| {
        let answers: Vec<Answer> =
            answers.iter().map(|(st, rows)| of(*st, OLD, (12, 12), Need::Nothing, 4, rows)).collect();
        proven(&answers, &log).is_ok()
    };
    assert!(shown(&[(20, &older), (21, &older), (22, &without)]), "that the older one is shown follows nothing");
    assert!(!shown(&[(20, &older), (21, &without), (22, &older)]), "it came back");
}
