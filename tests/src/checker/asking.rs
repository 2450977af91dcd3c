//! The requests of one consistency, one after the other.

use super::{
    Kind,
    made::{Made, Seen},
    proof::{Answer, Found, Need},
};
use crate::{
    ask::{self, Span},
    client::{Client, Refused},
    oracle::{Index, Row},
    rng::Rng,
    source::Source,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// What a request says about its patience, and how long its reply is waited for.
const TIMEOUT_MS: u64 = 2_000;
const REPLY_WITHIN: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(40);
/// An index with more rows is mostly counted, and hardly ever scanned as a whole: every row is kept for the proof.
const MANY_ROWS: usize = 4_000;

/// What all tasks of a checker share.
pub(super) struct Shared {
    client: Client,
    pub(super) source: Source,
    pub(super) indexes: Vec<Index>,
    pub(super) over: AtomicBool,
    made: Mutex<Vec<Made>>,
}

impl Shared {
    pub(super) fn new(client: &Client, source: &Source, indexes: &[Index]) -> Self {
        Self {
            client: client.clone(),
            source: source.clone(),
            indexes: indexes.to_vec(),
            over: AtomicBool::new(false),
            made: Mutex::default(),
        }
    }

    pub(super) fn made(&self) -> MutexGuard<'_, Vec<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks at one consistency.
pub(super) struct Asker {
    shared: Arc<Shared>,
    kind: Kind,
    rng: Rng,
    /// By index, what was answered last: bounds are taken from there.
    rows: Vec<Vec<Row>>,
    /// The last answer's timestamp.
    seen: Option<Seen>,
}

impl Asker {
    pub(super) fn new(shared: Arc<Shared>, kind: Kind, rng: Rng) -> Self {
        let rows = vec![Vec::new(); shared.indexes.len()];
        Self { shared, kind, rng, rows, seen: None }
    }

    /// Until it is told to stop.
    pub(super) async fn ask(mut self) {
        while !self.shared.over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let indexes = self.choose();
            let named = self.seen.clone().filter(|_| self.kind == Kind::AtPlus && self.rng.chance(50));
            let mut answers = Vec::new();
            let failed = self.turn(&indexes, named.as_ref(), &mut answers).await.err();
            self.remember(&answers, failed.as_ref());
            let kind = self.kind;
            self.shared.made().push(Made { kind, indexes, named, began, ended: Instant::now(), answers, failed });
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One index; for `at_snapshot` two, the same one twice if there is no other.
    fn choose(&mut self) -> Vec<usize> {
        let count = self.shared.indexes.len();
        let first = self.rng.below(count as u64) as usize;
        let others = (count as u64 - 1).max(1);
        match self.kind {
            Kind::AtSnapshot => vec![first, (first + 1 + self.rng.below(others) as usize) % count],
            _ => vec![first],
        }
    }

    fn remember(&mut self, answers: &[Answer], failed: Option<&Refused>) {
        if failed.is_some_and(|refused| refused.code == "branch_lost") {
            self.seen = None;
        }
        if let Some(Answer { timestamp, branches, seqnos, ended, .. }) = answers.last() {
            let (timestamp, branches, seqnos) = (timestamp.clone(), branches.clone(), seqnos.clone());
            self.seen = Some(Seen { timestamp, branches, seqnos, at: *ended });
        }
    }

    async fn turn(
        &mut self,
        indexes: &[usize],
        named: Option<&Seen>,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Refused> {
        let (consistency, need) = self.needed(named);
        let first = self.one(indexes[0], &consistency, need).await?;
        let st = first.st;
        answers.push(first);
        for other in &indexes[1..] {
            answers.push(self.one(*other, &json!({"at_snapshot": st}), Need::Nothing).await?);
        }
        Ok(())
    }

    /// What is asked for, and what the answer must have.
    fn needed(&self, named: Option<&Seen>) -> (Value, Need) {
        let source = &self.shared.source;
        let (epoch, seqnos) = {
            let log = source.log();
            (log.epoch, log.acknowledged())
        };
        match (self.kind, named) {
            (Kind::Any, _) => (json!("any"), Need::Nothing),
            (Kind::RequestPlus | Kind::AtSnapshot, _) => (json!("request_plus"), Need::Acknowledged { epoch, seqnos }),
            (Kind::AtPlus, Some(Seen { timestamp, branches, seqnos, .. })) => {
                let need = Need::Seen { branches: branches.clone(), seqnos: seqnos.clone() };
                (json!({"at_plus": timestamp}), need)
            }
            (Kind::AtPlus, None) => {
                let named = source.streams.iter().zip(&seqnos).map(|((name, _), seqno)| (name.clone(), json!(seqno)));
                (json!({"at_plus": Value::Object(named.collect())}), Need::Named(seqnos))
            }
        }
    }

    /// One scan or count.
    async fn one(&mut self, at: usize, consistency: &Value, need: Need) -> Result<Answer, Refused> {
        let began = Instant::now();
        let Shared { client, source, indexes, .. } = &*self.shared;
        let index = &indexes[at];
        let mut request = json!({"bucket": source.bucket, "index": index.name, "consistency": consistency});
        request["timeout_ms"] = TIMEOUT_MS.into();
        let mut spans = Vec::new();
        let many = self.rows[at].len() > MANY_ROWS;
        if self.rng.chance(if many { 95 } else { 30 }) && !self.rows[at].is_empty() {
            spans = (0..=self.rng.below(2)).map(|_| Span::random(index, &self.rows[at], &mut self.rng)).collect();
            request["spans"] = spans.iter().map(Span::to_json).collect();
        }
        let count = self.rng.chance(if many { 80 } else { 25 });
        let reply = if count {
            client.request_within("hw.query.count", &request, REPLY_WITHIN).await?
        } else {
            if self.rng.chance(30) {
                request["page_size"] = (50 + self.rng.below(500)).into();
            }
            client.scan_within(&request, REPLY_WITHIN).await?
        };
        let answer = read(&self.shared, (at, &reply, count), need, spans, began);
        let answer = answer.map_err(|e| Refused::without_reply("odd_reply", format!("{e:#}: {reply}"), false))?;
        if let Found::Rows(rows) = &answer.found
            && answer.spans.is_empty()
        {
            self.rows[at].clone_from(rows);
        }
        Ok(answer)
    }
}

fn read(
    shared: &Shared,
    (index, reply, count): (usize, &Value, bool),
    need: Need,
    spans: Vec<Span>,
    began: Instant,
) -> Result<Answer> {
    let Shared { source, indexes, .. } = shared;
    let found = if count {
        Found::Count(reply["count"].as_u64().context("no count")?)
    } else {
        Found::Rows(ask::read_rows(reply, source, &indexes[index])?)
    };
    Ok(Answer {
        index,
        st: reply["st"].as_u64().context("no st")?,
        timestamp: reply["timestamp"].clone(),
        branches: source.branches(reply)?,
        seqnos: source.seqnos(reply)?,
        need,
        began,
        ended: Instant::now(),
        exact: reply["exact"].as_bool().context("no exact")?,
        unindexed: reply["unindexed"].as_u64().context("no unindexed")?,
        spans,
        found,
    })
}
