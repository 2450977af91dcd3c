//! Scans and counts in the background, at every consistency, each of which is proven afterwards to keep its promises ([`proof`]).
//!
//! One task for each consistency, so that one that waits does not hold up the others: `any`; `request_plus`; `at_plus` with what
//! the writer saw acknowledged; and two indexes at one `st`, the second with `at_snapshot`.
//!
//! A *fault* is what the test says it is ([`Checker::fault`], [`Checker::over`]). Whenever it is, a failure has a code and says that
//! it may be tried again. Only during a fault may there be no reply. Outside of it most requests succeed.

mod proof;

use crate::{
    ask::{self, Span},
    client::{Client, Refused},
    oracle::{Index, Row},
    rng::Rng,
    source::Source,
    wait::until,
};
use anyhow::{Context, Result, ensure};
use proof::{Answer, Found};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

pub use proof::Proof;

/// What a request says about its patience, and how long its reply is waited for.
const TIMEOUT_MS: u64 = 2_000;
const REPLY_WITHIN: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(40);
/// In percent, of the requests outside of faults.
const MUST_SUCCEED: u64 = 70;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Any,
    RequestPlus,
    AtPlus,
    AtSnapshot,
}

const KINDS: [Kind; 4] = [Kind::Any, Kind::RequestPlus, Kind::AtPlus, Kind::AtSnapshot];

/// When a request was under way, as seen from the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Before,
    During,
    After,
}

/// A request, or two at one `st`.
struct Made {
    kind: Kind,
    /// That were asked.
    indexes: Vec<usize>,
    began: Instant,
    ended: Instant,
    answers: Vec<Answer>,
    failed: Option<Refused>,
}

/// What all tasks of a checker share.
struct Shared {
    client: Client,
    source: Source,
    indexes: Vec<Index>,
    over: AtomicBool,
    made: Mutex<Vec<Made>>,
}

/// Asks until it is told to stop.
pub struct Checker {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    began: Instant,
    /// From when to when something is broken.
    fault: Option<(Instant, Option<Instant>)>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Report {
    pub proof: Proof,
    /// Succeeded and made, by consistency and phase.
    counts: BTreeMap<(Kind, Phase), (u64, u64)>,
    /// By code.
    failed: BTreeMap<String, u64>,
    /// By consistency, the longest time without a success of the index that did worst.
    unavailable: BTreeMap<Kind, Duration>,
}

impl Checker {
    /// The indexes are of the source's bucket, and active.
    pub fn start(client: &Client, source: &Source, indexes: &[Index], rng: &mut Rng) -> Self {
        let shared = Arc::new(Shared {
            client: client.clone(),
            source: source.clone(),
            indexes: indexes.to_vec(),
            over: AtomicBool::new(false),
            made: Mutex::default(),
        });
        let task = |kind| tokio::spawn(Arc::clone(&shared).ask(kind, rng.fork()));
        let tasks = KINDS.map(task).into();
        Self { shared, tasks, began: Instant::now(), fault: None }
    }

    /// From now on something is broken.
    pub fn fault(&mut self) {
        self.fault = Some((Instant::now(), None));
    }

    /// Nothing is broken any more.
    pub fn over(&mut self) {
        if let Some((_, end)) = &mut self.fault {
            *end = Some(Instant::now());
        }
    }

    /// Waits until so many further requests of each consistency have succeeded that began from now on.
    pub async fn answered(&self, further: usize, within: Duration) -> Result<()> {
        let from = Instant::now();
        until("scans are answered", within, async || {
            let made = self.shared.made();
            let good = |kind| made.iter().filter(|m| m.kind == kind && m.began >= from && m.failed.is_none()).count();
            let counts = KINDS.map(good);
            let last = made.iter().rev().find_map(|m| m.failed.as_ref());
            if counts.iter().all(|count| *count >= further) { Ok(()) } else { Err(format!("{counts:?}, {last:?}")) }
        })
        .await
    }

    /// Ends, and proves every answer; the writer has ended, and its log has every write.
    pub async fn prove(self) -> Result<Report> {
        self.shared.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("a scan panicked")?;
        }
        let ended = Instant::now();
        let made = std::mem::take(&mut *self.shared.made());
        let fault = self.fault.map(|(from, to)| (from, to.unwrap_or(ended)));
        let phase = |made: &Made| match fault {
            Some((_, to)) if made.began >= to => Phase::After,
            Some((from, _)) if made.ended >= from => Phase::During,
            _ => Phase::Before,
        };
        let mut report = Report::default();
        let mut last = BTreeMap::new();
        for made in &made {
            let phase = phase(made);
            let (good, all) = report.counts.entry((made.kind, phase)).or_default();
            *all += 1;
            let Some(refused) = &made.failed else {
                *good += 1;
                for index in &made.indexes {
                    let last = last.entry((made.kind, *index)).or_insert(self.began);
                    report.pause(made.kind, made.ended.saturating_duration_since(*last));
                    *last = made.ended;
                }
                continue;
            };
            *report.failed.entry(refused.code.clone()).or_default() += 1;
            ensure!(is_proper(refused, phase), "{:?} {phase:?} a fault: {refused:?}", made.kind);
        }
        for ((kind, _), last) in last {
            report.pause(kind, ended.saturating_duration_since(last));
        }
        let answers: Vec<Answer> = made.into_iter().flat_map(|made| made.answers).collect();
        report.proof = proof::prove(&answers, &self.shared.source.log(), &self.shared.indexes)?;
        println!("{report}");
        report.check(fault.is_some())?;
        Ok(report)
    }
}

/// Whether a refusal is as it must be.
fn is_proper(refused: &Refused, phase: Phase) -> bool {
    match refused.code.as_str() {
        // Whoever was asked was killed, or nobody is there.
        "no_reply" | "no_responders" => phase == Phase::During,
        "internal" => false,
        code => refused.retry && refused.headers.0.as_deref() == Some(code),
    }
}

impl Report {
    fn pause(&mut self, kind: Kind, pause: Duration) {
        let longest = self.unavailable.entry(kind).or_default();
        *longest = pause.max(*longest);
    }

    /// Succeeded and made.
    fn sum(&self, of: impl Fn(Kind, Phase) -> bool) -> (u64, u64) {
        let all = self.counts.iter().filter(|((kind, phase), _)| of(*kind, *phase));
        all.fold((0, 0), |sum, (_, counts)| (sum.0 + counts.0, sum.1 + counts.1))
    }

    fn check(&self, fault: bool) -> Result<()> {
        for kind in KINDS {
            for phase in [Phase::Before, Phase::During, Phase::After] {
                let (good, all) = self.sum(|k, p| (k, p) == (kind, phase));
                ensure!(all > 0 || !fault && phase != Phase::Before, "{kind:?}: none was made {phase:?} the fault");
                ensure!(good > 0 || all == 0 || phase == Phase::During, "{kind:?}: none succeeded {phase:?} the fault");
            }
        }
        let (good, all) = self.sum(|_, phase| phase != Phase::During);
        ensure!(good * 100 >= all * MUST_SUCCEED, "{good} of {all} succeeded outside of the fault");
        Ok(())
    }

    /// The longest time without a success, of the consistency that did worst.
    pub fn unavailable(&self) -> Duration {
        self.unavailable.values().copied().max().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  scans")?;
        for phase in [Phase::Before, Phase::During, Phase::After] {
            let (good, all) = self.sum(|_, p| p == phase);
            write!(f, ", {good} of {all} {phase:?}")?;
        }
        let Proof { timestamps, exact, shared } = self.proof;
        write!(f, "; {timestamps} timestamps, {exact} exact, {shared} of several indexes; longest without")?;
        for (kind, pause) in &self.unavailable {
            write!(f, " {kind:?} {pause:.1?}")?;
        }
        if !self.failed.is_empty() {
            write!(f, "; failed: {:?}", self.failed)?;
        }
        Ok(())
    }
}

impl Shared {
    fn made(&self) -> MutexGuard<'_, Vec<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(self: Arc<Self>, kind: Kind, mut rng: Rng) {
        // By index, what was answered last: bounds are taken from there.
        let mut seen = vec![Vec::new(); self.indexes.len()];
        while !self.over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let first = rng.below(self.indexes.len() as u64) as usize;
            let mut indexes = vec![first];
            if kind == Kind::AtSnapshot {
                indexes.push((first + 1 + rng.below(self.indexes.len() as u64 - 1) as usize) % self.indexes.len());
            }
            let mut answers = Vec::new();
            let failed = self.turn(kind, &indexes, &mut seen, &mut rng, &mut answers).await.err();
            self.made().push(Made { kind, indexes, began, ended: Instant::now(), answers, failed });
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn turn(
        &self,
        kind: Kind,
        indexes: &[usize],
        seen: &mut [Vec<Row>],
        rng: &mut Rng,
        answers: &mut Vec<Answer>,
    ) -> Result<(), Refused> {
        let floor = self.source.log().acknowledged();
        let none = vec![0; floor.len()];
        let (consistency, floor) = match kind {
            Kind::Any => (json!("any"), none.clone()),
            Kind::AtPlus => (self.at_plus(&floor), floor),
            Kind::RequestPlus | Kind::AtSnapshot => (json!("request_plus"), floor),
        };
        let first = self.one(indexes[0], &consistency, floor, seen, rng).await?;
        let st = first.st;
        answers.push(first);
        for other in &indexes[1..] {
            answers.push(self.one(*other, &json!({"at_snapshot": st}), none.clone(), seen, rng).await?);
        }
        Ok(())
    }

    fn at_plus(&self, floor: &[u64]) -> Value {
        let named = self.source.streams.iter().zip(floor).map(|((name, _), seqno)| (name.clone(), json!(seqno)));
        json!({"at_plus": Value::Object(named.collect())})
    }

    /// One scan or count.
    async fn one(
        &self,
        at: usize,
        consistency: &Value,
        floor: Vec<u64>,
        seen: &mut [Vec<Row>],
        rng: &mut Rng,
    ) -> Result<Answer, Refused> {
        let index = &self.indexes[at];
        let mut request = json!({"bucket": self.source.bucket, "index": index.name, "consistency": consistency});
        request["timeout_ms"] = TIMEOUT_MS.into();
        let mut spans = Vec::new();
        if rng.chance(30) && !seen[at].is_empty() {
            spans = (0..=rng.below(2)).map(|_| Span::random(index, &seen[at], rng)).collect();
            request["spans"] = spans.iter().map(Span::to_json).collect();
        }
        let count = rng.chance(25);
        let reply = if count {
            self.client.request_within("hw.query.count", &request, REPLY_WITHIN).await?
        } else {
            if rng.chance(30) {
                request["page_size"] = (50 + rng.below(500)).into();
            }
            self.client.scan_within(&request, REPLY_WITHIN).await?
        };
        let answer = self.read(at, &reply, count, floor, spans);
        let answer = answer.map_err(|e| Refused::without_reply("odd_reply", format!("{e:#}: {reply}"), false))?;
        if let Found::Rows(rows) = &answer.found
            && answer.spans.is_empty()
        {
            seen[at].clone_from(rows);
        }
        Ok(answer)
    }

    fn read(&self, index: usize, reply: &Value, count: bool, floor: Vec<u64>, spans: Vec<Span>) -> Result<Answer> {
        let found = if count {
            Found::Count(reply["count"].as_u64().context("no count")?)
        } else {
            Found::Rows(ask::read_rows(reply, &self.source, &self.indexes[index])?)
        };
        Ok(Answer {
            index,
            st: reply["st"].as_u64().context("no st")?,
            timestamp: reply["timestamp"].clone(),
            seqnos: self.source.seqnos(reply)?,
            floor,
            exact: reply["exact"].as_bool().context("no exact")?,
            unindexed: reply["unindexed"].as_u64().context("no unindexed")?,
            spans,
            found,
        })
    }
}
