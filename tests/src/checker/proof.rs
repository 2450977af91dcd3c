//! Whether answers keep what they promise, computed from every write that was acknowledged.
//!
//! An answer has a stability timestamp: a number, and a branch and a seqno per stream. What is proven of all answers of one number,
//! whatever index they are of and whenever they were given:
//! - They have the same timestamp. A row is of a document that was written; the rows are in the index's order, one a document.
//! - For each document there is one revision that every one of these answers shows: with its row as the oracle makes it, or
//!   without a row if the oracle makes none. That is, the indexes agree.
//! - This revision is not newer than the timestamp's seqno, and not older than the *floor*: what any of these answers had to
//!   contain. That is what was acknowledged before a request for `request_plus`, what the request named for `at_plus`, nothing for
//!   `any`. If any answer says `exact`, the floor is the seqno itself, and so it is *the* revision at that seqno.
//! - A count, and how many documents are unindexed, is a sum over such revisions. For an exact one that is a single number.
//!
//! All of that holds against one history of each stream, which is the same one for all answers that name the same branch, whatever
//! their number; [`super::truth`] says which may be meant. An answer to `at_plus` with a timestamp is of a history that has all
//! which that timestamp had.
//!
//! What vanished without a message may be gone from a timestamp that nobody had before that. It is gone from every one that is newer
//! than one from which it is gone, or from which on the indexes are known to have followed. Before that it may also be what it was
//! before a revision that went before anybody read it.
//!
//! What cannot be proven: which revision below its seqno an answer that is not exact shows of one document, and which of another.
//! A write that was not acknowledged counts as one that may have been stored at any seqno of which nobody knows the write.

mod document;
#[cfg(test)]
mod tests;

use super::truth::Truth;
use crate::{
    ask::Span,
    oracle::{Index, Row, same},
    source::Name,
};
use anyhow::{Context, Result, bail, ensure};
use document::{Document, Revision};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// More ways than these to choose a history for each branch are not tried.
const MOST_WAYS: usize = 4_096;

/// What one scan or count answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Number of the index.
    pub(super) index: usize,
    pub(super) st: u64,
    pub(super) timestamp: Value,
    /// Of the timestamp, by stream.
    pub(super) branches: Vec<String>,
    pub(super) seqnos: Vec<u64>,
    pub(super) need: Need,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) exact: bool,
    pub(super) unindexed: u64,
    /// None: everything.
    pub(super) spans: Vec<Span>,
    pub(super) found: Found,
}

/// What an answer had to contain; seqnos are by stream.
#[derive(Debug, Clone)]
pub(super) enum Need {
    Nothing,
    /// What was acknowledged in this epoch of the source.
    Acknowledged {
        epoch: usize,
        seqnos: Vec<u64>,
    },
    /// What was named by number alone, of whatever history.
    Named(Vec<u64>),
    /// What an earlier answer had.
    Seen {
        branches: Vec<String>,
        seqnos: Vec<u64>,
    },
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
    /// Branches of all streams.
    pub branches: u64,
}

/// A branch: its stream, and its name.
type Branch<'a> = (usize, &'a str);

/// The answers of one number.
type Group<'a> = Vec<Checked<'a>>;

struct Checked<'a> {
    /// Its place among all answers.
    at: usize,
    answer: &'a Answer,
    rows: BTreeMap<&'a Name, &'a Row>,
}

/// The least and the most that an answer's sums may be.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    count: (u64, u64),
    unindexed: (u64, u64),
}

impl Answer {
    fn shows(&self, row: &Row, index: &Index) -> bool {
        self.spans.is_empty() || self.spans.iter().any(|span| span.contains(&index.components(row)))
    }

    fn what(&self, indexes: &[Index]) -> String {
        let Self { st, timestamp, need, exact, spans, .. } = self;
        let spans: Value = spans.iter().map(Span::to_json).collect();
        let name = &indexes[self.index].name;
        format!("{name} at {st} {timestamp} (exact: {exact}, needed: {need:?}), spans {spans}")
    }
}

/// Proves that all answers keep their promises. The logs must have every write.
pub(super) fn prove(answers: &[Answer], truth: &Truth) -> Result<Proof> {
    let groups = groups(answers, truth.indexes)?;
    let mut branches: BTreeMap<Branch, Vec<&Group>> = BTreeMap::new();
    for group in groups.values() {
        for (vb, branch) in group[0].answer.branches.iter().enumerate() {
            branches.entry((vb, branch)).or_default().push(group);
        }
    }
    let issued = Issued::of(answers);
    let mut ways = Vec::new();
    for ((vb, branch), groups) in &branches {
        let possible = possible(*vb, groups, truth, &issued);
        ways.push(((*vb, *branch), possible.with_context(|| format!("stream {vb}, branch {branch}"))?));
    }
    choose(answers, &ways, truth)?;
    let several = |group: &&Group| group.iter().any(|a| a.answer.index != group[0].answer.index);
    Ok(Proof {
        timestamps: groups.len() as u64,
        exact: groups.values().filter(|group| group.iter().any(|a| a.answer.exact)).count() as u64,
        shared: groups.values().filter(several).count() as u64,
        branches: branches.len() as u64,
    })
}

fn groups<'a>(answers: &'a [Answer], indexes: &[Index]) -> Result<BTreeMap<u64, Group<'a>>> {
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    for (at, answer) in answers.iter().enumerate() {
        let what = || answer.what(indexes);
        let checked = Checked::new(at, answer, indexes).with_context(what)?;
        let group = groups.entry(answer.st).or_default();
        if let Some(first) = group.first() {
            let (one, other) = (&first.answer.timestamp, &answer.timestamp);
            ensure!(one == other, "{}: its number also names {one}, not {other}", what());
        }
        group.push(checked);
    }
    Ok(groups)
}

/// Which timestamps were there at which time.
struct Issued(Vec<(Instant, u64)>);

impl Issued {
    fn of(answers: &[Answer]) -> Self {
        let mut all: Vec<_> = answers.iter().map(|answer| (answer.ended, answer.st)).collect();
        all.sort_unstable();
        let mut newest = 0;
        for (_, number) in &mut all {
            newest = newest.max(*number);
            *number = newest;
        }
        Self(all)
    }

    /// The newest that was answered by then.
    fn before(&self, time: Instant) -> u64 {
        let behind = self.0.partition_point(|(ended, _)| *ended < time);
        behind.checked_sub(1).map_or(0, |at| self.0[at].1)
    }
}

/// By history, what the answers of a branch may add up to, as far as its stream goes; only those that all of them hold against.
type Possible = Vec<(usize, BTreeMap<usize, Sums>)>;

fn possible(vb: usize, groups: &[&Group], truth: &Truth, issued: &Issued) -> Result<Possible> {
    let answers = || groups.iter().copied().flatten();
    let meant = answers().map(|checked| truth.histories(checked.answer, vb));
    let meant = meant.reduce(|all, one| all.intersection(&one).copied().collect()).unwrap_or_default();
    if meant.is_empty() {
        let each: BTreeSet<String> = answers()
            .map(|checked| (checked.answer, truth.histories(checked.answer, vb)))
            .map(|(answer, histories)| format!("{histories:?}: {}", answer.what(truth.indexes)))
            .collect();
        bail!("its answers are of no one history:\n  {}", each.into_iter().collect::<Vec<_>>().join("\n  "));
    }
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    // The newest first.
    for history in meant.into_iter().rev() {
        match holds(vb, history, groups, truth, issued) {
            Ok(sums) => good.push((history, sums)),
            Err(error) => bad.push(format!("history {history}: {error:#}")),
        }
    }
    ensure!(!good.is_empty(), "{}", bad.join("\n"));
    Ok(good)
}

/// Whether these answers hold against one history of a stream.
fn holds(
    vb: usize,
    history: usize,
    groups: &[&Group],
    truth: &Truth,
    issued: &Issued,
) -> Result<BTreeMap<usize, Sums>> {
    let log = truth.log(vb, history);
    let complete = log.complete()[vb];
    for checked in groups.iter().copied().flatten() {
        let (answer, what) = (checked.answer, || checked.answer.what(truth.indexes));
        let (seqno, needed) = (answer.seqnos[vb], truth.needed(answer, vb, history));
        ensure!(needed <= seqno, "{}: it is older than what was asked for, {needed}", what());
        ensure!(seqno <= complete, "{}: the source ends at {complete}", what());
        if let Some(stranger) = checked.rows.keys().find(|name| name.0 == vb && !log.documents.contains_key(**name)) {
            bail!("{}: {stranger:?} was never written", what());
        }
    }
    let floor = |group: &Group| group.iter().map(|checked| truth.floor(checked.answer, vb, history)).max();
    let floors: Vec<u64> = groups.iter().map(|group| floor(group).unwrap_or(0)).collect();
    let mut sums: BTreeMap<usize, Sums> = BTreeMap::new();
    for name in log.documents.keys().filter(|name| name.0 == vb) {
        let document = Document::new(name, log, truth.indexes, issued);
        for (group, floor) in groups.iter().zip(&floors) {
            let first = group[0].answer;
            let (number, seqno) = (first.st, first.seqnos[vb]);
            let may_be = document.may_be(number, *floor, seqno);
            agree(group, name, &may_be, truth.indexes).with_context(|| document.vanished())?;
            document.learn(number, *floor, seqno, |revision| group.iter().all(|a| a.is(name, revision, truth.indexes)));
            for checked in *group {
                sums.entry(checked.at).or_default().add(checked, &may_be, truth.indexes);
            }
        }
    }
    Ok(sums)
}

/// That one revision of a document is in all answers of a number.
fn agree(group: &Group, name: &Name, may_be: &[&Revision], indexes: &[Index]) -> Result<()> {
    let agrees = |revision: &&Revision| group.iter().all(|a| a.is(name, revision, indexes));
    if !may_be.iter().any(agrees) {
        let seen: Vec<String> =
            group.iter().map(|a| format!("{}: {:?}", a.answer.what(indexes), a.rows.get(name))).collect();
        let wanted: Vec<_> = may_be.iter().map(|revision| (revision.seqno, &revision.rows)).collect();
        bail!("no revision of {name:?} is in\n  {}\nthose that may be are {wanted:?}", seen.join("\n  "));
    }
    Ok(())
}

/// Chooses one of the possible histories of each branch so that everything holds that is of several streams.
fn choose(answers: &[Answer], ways: &[(Branch, Possible)], truth: &Truth) -> Result<()> {
    let count = ways.iter().try_fold(1usize, |product, (_, possible)| product.checked_mul(possible.len()));
    let count = count.filter(|count| *count <= MOST_WAYS).context("too many histories may be meant")?;
    let mut failed = None;
    for number in 0..count {
        let mut rest = number;
        let mut chosen = BTreeMap::new();
        for (branch, possible) in ways {
            chosen.insert(*branch, &possible[rest % possible.len()]);
            rest /= possible.len();
        }
        match fits(answers, &chosen, truth) {
            Ok(()) => return Ok(()),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn fits(answers: &[Answer], chosen: &BTreeMap<Branch, &(usize, BTreeMap<usize, Sums>)>, truth: &Truth) -> Result<()> {
    for (at, answer) in answers.iter().enumerate() {
        let what = || answer.what(truth.indexes);
        let mut all = Sums::default();
        for (vb, branch) in answer.branches.iter().enumerate() {
            let (history, sums) = chosen[&(vb, branch.as_str())];
            all.join(sums.get(&at));
            if let Need::Seen { branches, seqnos } = &answer.need {
                let (seen, _) = chosen.get(&(vb, branches[vb].as_str())).context("a timestamp that nobody answered")?;
                let common = truth.common(vb, *seen, *history);
                ensure!(seqnos[vb] <= common, "{}: what it names was taken back above {common}", what());
            }
        }
        if let Found::Count(counted) = answer.found {
            ensure!(
                (all.count.0..=all.count.1).contains(&counted),
                "{}: counted {counted}, not {:?}",
                what(),
                all.count
            );
        }
        let (said, may_be) = (answer.unindexed, all.unindexed);
        ensure!((may_be.0..=may_be.1).contains(&said), "{}: unindexed {said}, not {may_be:?}", what());
    }
    Ok(())
}

/// The least and the most that a document adds to a sum over what holds for a revision.
fn bounds(may_be: &[&Revision], holds: impl Fn(&Revision) -> bool) -> (u64, u64) {
    let all = may_be.iter().filter(|revision| holds(revision)).count();
    (u64::from(all == may_be.len()), u64::from(all > 0))
}

impl Sums {
    fn add(&mut self, checked: &Checked, may_be: &[&Revision], indexes: &[Index]) {
        let count = bounds(may_be, |revision| checked.wanted(revision, indexes).is_some());
        let unindexed = bounds(may_be, |revision| revision.unindexed);
        self.join(Some(&Self { count, unindexed }));
    }

    fn join(&mut self, other: Option<&Self>) {
        let Some(other) = other else { return };
        let add = |mine: &mut (u64, u64), theirs: (u64, u64)| *mine = (mine.0 + theirs.0, mine.1 + theirs.1);
        add(&mut self.count, other.count);
        add(&mut self.unindexed, other.unindexed);
    }
}

impl<'a> Checked<'a> {
    fn new(at: usize, answer: &'a Answer, indexes: &[Index]) -> Result<Self> {
        let index = &indexes[answer.index];
        let mut rows = BTreeMap::new();
        if let Found::Rows(all) = &answer.found {
            for pair in all.windows(2) {
                ensure!(index.order(&pair[0], &pair[1]).is_lt(), "{:?} comes before {:?}", pair[0], pair[1]);
            }
            rows = all.iter().map(|row| (&row.document, row)).collect();
            ensure!(rows.len() == all.len(), "a document has several rows");
        }
        Ok(Self { at, answer, rows })
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
