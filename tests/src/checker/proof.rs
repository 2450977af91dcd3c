//! Whether answers keep what they promise, computed from every write that was acknowledged.
//!
//! An answer has a stability timestamp: a number, and a seqno per stream. What is proven of all answers of one number, whatever
//! index they are of and whenever they were given:
//! - They have the same timestamp. A row is of a document that was written; the rows are in the index's order, one a document.
//! - For each document there is one revision that every one of these answers shows: with its row as the oracle makes it, or
//!   without a row if the oracle makes none. That is, the indexes agree.
//! - This revision is not newer than the timestamp's seqno, and not older than the *floor*: what any of these answers had to
//!   contain. That is what was acknowledged before a request for `request_plus`, what the request named for `at_plus`, nothing for
//!   `any`. If any answer says `exact`, the floor is the seqno itself, and so it is *the* revision at that seqno.
//! - A count, and how many documents are unindexed, is a sum over such revisions. For an exact one that is a single number.
//!
//! What cannot be proven: which revision below its seqno an answer that is not exact shows of one document, and which of another.
//! A write that was not acknowledged counts as one that may have been stored at any seqno of which nobody knows the write.

use crate::{
    ask::Span,
    oracle::{Index, Row, same},
    source::{Log, Name},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::Value;
use std::collections::BTreeMap;

/// What one scan or count answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Number of the index.
    pub(super) index: usize,
    pub(super) st: u64,
    pub(super) timestamp: Value,
    /// Of the timestamp, by stream.
    pub(super) seqnos: Vec<u64>,
    /// By stream: what it had to contain.
    pub(super) floor: Vec<u64>,
    pub(super) exact: bool,
    pub(super) unindexed: u64,
    /// None: everything.
    pub(super) spans: Vec<Span>,
    pub(super) found: Found,
}

#[derive(Debug, Clone)]
pub(super) enum Found {
    Rows(Vec<Row>),
    Count(u64),
}

/// How much was proven.
#[derive(Debug, Default, Clone, Copy)]
pub struct Proof {
    pub timestamps: u64,
    /// Timestamps that are the source's documents exactly.
    pub exact: u64,
    /// Timestamps at which several indexes agree.
    pub shared: u64,
}

/// A revision of a document.
struct Revision {
    /// Its seqno; of one that was not acknowledged, what it is above.
    seqno: u64,
    unindexed: bool,
    /// By index.
    rows: Vec<Option<Row>>,
}

/// The answers of one number, and what they bound.
struct Group<'a> {
    answers: Vec<Checked<'a>>,
    floor: Vec<u64>,
}

struct Checked<'a> {
    answer: &'a Answer,
    rows: BTreeMap<&'a Name, &'a Row>,
    /// The least and the most that may be counted.
    count: (u64, u64),
    unindexed: (u64, u64),
}

impl Answer {
    fn shows(&self, row: &Row, index: &Index) -> bool {
        self.spans.is_empty() || self.spans.iter().any(|span| span.contains(&index.components(row)))
    }

    fn what(&self, indexes: &[Index]) -> String {
        let Self { st, seqnos, floor, exact, spans, .. } = self;
        let spans: Value = spans.iter().map(Span::to_json).collect();
        let name = &indexes[self.index].name;
        format!("{name} at {st} {seqnos:?} (exact: {exact}, needed: {floor:?}), spans {spans}")
    }
}

/// Proves that all answers keep their promises. The log must have every write.
pub(super) fn prove(answers: &[Answer], log: &Log, indexes: &[Index]) -> Result<Proof> {
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    let complete = log.complete();
    for answer in answers {
        let what = || answer.what(indexes);
        for ((seqno, floor), complete) in answer.seqnos.iter().zip(&answer.floor).zip(&complete) {
            ensure!(floor <= seqno, "{}: it is older than what was asked for", what());
            ensure!(seqno <= complete, "{}: the source ends at {complete}", what());
        }
        let checked = Checked::new(answer, indexes).with_context(what)?;
        let group = groups.entry(answer.st).or_insert_with(|| Group { answers: Vec::new(), floor: Vec::new() });
        if let Some(first) = group.answers.first() {
            let (one, other) = (&first.answer.timestamp, &answer.timestamp);
            ensure!(one == other, "{}: its number also names {one}, not {other}", what());
        }
        group.raise(answer);
        group.answers.push(checked);
    }
    for (name, known) in &log.documents {
        let revisions = revisions(name, known, indexes);
        let doubts: Vec<Revision> =
            log.doubts.get(name).into_iter().flatten().map(|d| revision(name, d, indexes)).collect();
        for group in groups.values_mut() {
            let seqno = group.answers[0].answer.seqnos[name.0];
            let floor = group.floor[name.0];
            let newest = |at: u64| revisions.partition_point(|revision| revision.seqno <= at) - 1;
            let (oldest, newest) = (newest(floor), newest(seqno));
            let stored_at = |above: u64| log.unknown[name.0].range(above + 1..).next().is_some_and(|at| *at <= seqno);
            let perhaps = doubts.iter().filter(|doubt| stored_at(doubt.seqno.max(revisions[oldest].seqno)));
            let may_be: Vec<&Revision> = revisions[oldest..=newest].iter().chain(perhaps).collect();
            group.document(name, &may_be, indexes)?;
        }
    }
    for group in groups.values() {
        group.sums(log, indexes)?;
    }
    let shared = |group: &&Group| group.answers.iter().any(|a| a.answer.index != group.answers[0].answer.index);
    Ok(Proof {
        timestamps: groups.len() as u64,
        exact: groups.values().filter(|group| group.answers.iter().any(|a| a.answer.exact)).count() as u64,
        shared: groups.values().filter(shared).count() as u64,
    })
}

/// Of a document that is not there at first.
fn revisions(name: &Name, known: &[(u64, Option<Bytes>)], indexes: &[Index]) -> Vec<Revision> {
    let none = (0, None);
    [&none].into_iter().chain(known).map(|known| revision(name, known, indexes)).collect()
}

fn revision(name: &Name, (seqno, payload): &(u64, Option<Bytes>), indexes: &[Index]) -> Revision {
    let document = payload.as_ref().map(|payload| serde_json::from_slice::<Value>(payload));
    let unindexed = matches!(document, Some(Err(_)));
    let document = document.and_then(Result::ok);
    let row = |index: &Index| index.row_of(name, document.as_ref()?);
    Revision { seqno: *seqno, unindexed, rows: indexes.iter().map(row).collect() }
}

/// The least and the most that a document adds to a sum over what holds for a revision.
fn bounds(may_be: &[&Revision], holds: impl Fn(&Revision) -> bool) -> (u64, u64) {
    let all = may_be.iter().filter(|revision| holds(revision)).count();
    (u64::from(all == may_be.len()), u64::from(all > 0))
}

impl<'a> Checked<'a> {
    fn new(answer: &'a Answer, indexes: &[Index]) -> Result<Self> {
        let index = &indexes[answer.index];
        let mut rows = BTreeMap::new();
        if let Found::Rows(all) = &answer.found {
            for pair in all.windows(2) {
                ensure!(index.order(&pair[0], &pair[1]).is_lt(), "{:?} comes before {:?}", pair[0], pair[1]);
            }
            rows = all.iter().map(|row| (&row.document, row)).collect();
            ensure!(rows.len() == all.len(), "a document has several rows");
        }
        Ok(Self { answer, rows, count: (0, 0), unindexed: (0, 0) })
    }

    /// What the index has of a revision, as far as this answer shows it.
    fn wanted<'r>(&self, revision: &'r Revision, indexes: &[Index]) -> Option<&'r Row> {
        let at = self.answer.index;
        revision.rows[at].as_ref().filter(|row| self.answer.shows(row, &indexes[at]))
    }

    fn is(&self, name: &Name, revision: &Revision, indexes: &[Index]) -> bool {
        match (&self.answer.found, self.rows.get(name), self.wanted(revision, indexes)) {
            (Found::Count(_), ..) | (_, None, None) => true,
            (_, Some(got), Some(wanted)) => same(got, wanted),
            _ => false,
        }
    }
}

impl Group<'_> {
    fn raise(&mut self, answer: &Answer) {
        let floor = if answer.exact { &answer.seqnos } else { &answer.floor };
        self.floor.resize(floor.len(), 0);
        self.floor.iter_mut().zip(floor).for_each(|(mine, theirs)| *mine = (*mine).max(*theirs));
    }

    fn document(&mut self, name: &Name, may_be: &[&Revision], indexes: &[Index]) -> Result<()> {
        let agrees = |revision: &&&Revision| self.answers.iter().all(|a| a.is(name, revision, indexes));
        if !may_be.iter().any(|revision| agrees(&revision)) {
            let seen: Vec<String> =
                self.answers.iter().map(|a| format!("{}: {:?}", a.answer.what(indexes), a.rows.get(name))).collect();
            let wanted: Vec<_> = may_be.iter().map(|revision| (revision.seqno, &revision.rows)).collect();
            anyhow::bail!("no revision of {name:?} is in\n  {}\nthose that may be are {wanted:?}", seen.join("\n  "));
        }
        for checked in &mut self.answers {
            let counted = bounds(may_be, |revision| checked.wanted(revision, indexes).is_some());
            let unindexed = bounds(may_be, |revision| revision.unindexed);
            checked.count = (checked.count.0 + counted.0, checked.count.1 + counted.1);
            checked.unindexed = (checked.unindexed.0 + unindexed.0, checked.unindexed.1 + unindexed.1);
        }
        Ok(())
    }

    /// After all documents.
    fn sums(&self, log: &Log, indexes: &[Index]) -> Result<()> {
        for Checked { answer, rows, count, unindexed } in &self.answers {
            let what = || answer.what(indexes);
            if let Some(stranger) = rows.keys().find(|name| !log.documents.contains_key(**name)) {
                anyhow::bail!("{}: {stranger:?} was never written", what());
            }
            if let Found::Count(counted) = answer.found {
                ensure!((count.0..=count.1).contains(&counted), "{}: counted {counted}, not {count:?}", what());
            }
            let said = answer.unindexed;
            ensure!((unindexed.0..=unindexed.1).contains(&said), "{}: unindexed {said}, not {unindexed:?}", what());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Op, Write};
    use serde_json::json;

    fn indexes() -> Vec<Index> {
        let named = |name: &str, path| Index { name: name.into(), keys: vec![(path, false)], ..Index::default() };
        vec![named("a", "a"), named("b", "b")]
    }

    /// `x` is 1, then 2 at seqno 3; `y` is 7 at seqno 2. Both in both indexes.
    fn log() -> Log {
        let mut log = Log::for_streams(1);
        for (seqno, id, n) in [(1, "x", 1), (2, "y", 7), (3, "x", 2)] {
            log.add(Write::put(0, id, &json!({"a": n, "b": n})), seqno);
        }
        log
    }

    fn row(id: &str, n: u64) -> Row {
        Row { document: (0, id.into()), key: vec![Some(n.into())], include: None }
    }

    fn answer(seqno: u64, exact: bool, floor: u64, rows: &[(&str, u64)]) -> Answer {
        Answer {
            index: 0,
            st: 9,
            timestamp: json!({"s": {"seqno": seqno}}),
            seqnos: vec![seqno],
            floor: vec![floor],
            exact,
            unindexed: 0,
            spans: Vec::new(),
            found: Found::Rows(rows.iter().map(|(id, n)| row(id, *n)).collect()),
        }
    }

    fn holds(answers: &[Answer]) -> bool {
        prove(answers, &log(), &indexes()).is_ok()
    }

    #[test]
    fn an_exact_answer_is_the_source_at_its_seqno() {
        assert!(holds(&[answer(2, true, 0, &[("x", 1), ("y", 7)])]));
        assert!(holds(&[answer(3, true, 0, &[("x", 2), ("y", 7)])]));
        for wrong in [
            &[("x", 2), ("y", 7)][..],
            &[("y", 7)],
            &[("x", 1)],
            &[("x", 1), ("y", 7), ("z", 8)],
            &[("y", 7), ("x", 1)],
        ] {
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
        assert_eq!(prove(&[old.clone(), other(&old)], &log(), &indexes()).unwrap().shared, 1);
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
        let proven = |log: &Log| prove(&[answer(3, true, 0, &rows)], log, &indexes()).is_ok();
        assert!(!proven(&log), "every seqno is known");
        log.documents.insert((0, "y".into()), vec![(1, None)]);
        log.unknown[0].insert(2);
        assert!(proven(&log));
        log.add(Write { vb: 0, id: "y".into(), op: Op::Delete }, 3);
        assert!(!proven(&log), "it is overwritten since");
    }
}
