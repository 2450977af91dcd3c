//! Scans and counts in the background, at every consistency, each of which is proven afterwards to keep its promises ([`proof`]).
//!
//! One task for each consistency, so that one that waits does not hold up the others: `any`; `request_plus`; `at_plus` with what
//! the writer saw acknowledged, or with the whole timestamp of an answer; and two indexes at one `st`, the second with
//! `at_snapshot`.
//!
//! A *fault* is what the test says it is ([`Checker::through`]). Whenever it is, a failure has a code and says that it may be tried
//! again, but for `branch_lost` where a timestamp is named that is older than the end of the fault. Only during a fault may there
//! be no reply. Outside of it most requests succeed.

mod asking;
mod proof;
mod report;
mod truth;

use crate::{
    client::{Client, Refused},
    load::Writer,
    oracle::Index,
    rng::Rng,
    source::Source,
    wait::until,
};
use anyhow::{Context, Result, ensure};
use asking::{Asker, Shared};
use proof::Answer;
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use truth::Truth;

pub use proof::Proof;
pub use report::Report;

/// So many of each consistency are answered before a fault, and after it.
const BEFORE: usize = 3;
const AFTER: usize = 5;

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
    /// When the timestamp that `at_plus` names was answered.
    named: Option<Instant>,
    began: Instant,
    ended: Instant,
    answers: Vec<Answer>,
    failed: Option<Refused>,
}

/// Asks until it is told to stop.
pub struct Checker {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    writer: Option<Writer>,
    began: Instant,
    /// The source's when the first was asked.
    epoch: usize,
    /// From when to when something is broken.
    fault: Option<(Instant, Option<Instant>)>,
}

impl Checker {
    /// The indexes are of the source's bucket, and active.
    pub fn start(client: &Client, source: &Source, indexes: &[Index], rng: &mut Rng) -> Self {
        let shared = Arc::new(Shared::new(client, source, indexes));
        let (began, epoch) = (Instant::now(), source.log().epoch);
        let task = |kind| tokio::spawn(Asker::new(Arc::clone(&shared), kind, rng.fork()).ask());
        let tasks = KINDS.map(task).into();
        Self { shared, tasks, writer: None, began, epoch, fault: None }
    }

    /// Documents are written meanwhile, until all answers are proven.
    #[must_use]
    pub fn with_writer(self, writer: Writer) -> Self {
        Self { writer: Some(writer), ..self }
    }

    /// Scans before a fault, during it and after it, each of which is proven. In the end the fault is over.
    pub async fn through<T>(
        mut self,
        within: Duration,
        fault: impl AsyncFnOnce(&Self) -> Result<T>,
    ) -> Result<(T, Report)> {
        self.answered(BEFORE, within).await.context("before")?;
        self.fault = Some((Instant::now(), None));
        let outcome = fault(&self).await?;
        if let Some((_, end)) = &mut self.fault {
            *end = Some(Instant::now());
        }
        self.answered(AFTER, within).await.context("afterwards")?;
        Ok((outcome, self.prove().await?))
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

    /// Ends, and proves every answer; nobody else writes any more.
    async fn prove(self) -> Result<Report> {
        self.shared.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("a scan panicked")?;
        }
        let ended = Instant::now();
        if let Some(writer) = self.writer {
            writer.stop().await?;
        }
        let Shared { source, indexes, .. } = &*self.shared;
        source.fill().await?;
        let made = std::mem::take(&mut *self.shared.made());
        let fault = self.fault.map(|(from, to)| (from, to.unwrap_or(ended)));
        let mut report = Report::default();
        let mut last = BTreeMap::new();
        for made in &made {
            let phase = made.phase(fault);
            report.count(made.kind, phase, made.failed.as_ref());
            match &made.failed {
                Some(refused) => {
                    ensure!(made.is_proper(refused, fault), "{:?} {phase:?} a fault: {refused:?}", made.kind);
                }
                None => {
                    for index in &made.indexes {
                        let last = last.entry((made.kind, *index)).or_insert(self.began);
                        report.pause(made.kind, made.ended.saturating_duration_since(*last));
                        *last = made.ended;
                    }
                }
            }
        }
        for ((kind, _), last) in last {
            report.pause(kind, ended.saturating_duration_since(last));
        }
        let answers: Vec<Answer> = made.into_iter().flat_map(|made| made.answers).collect();
        let truth = Truth::new(source.logs(self.epoch), fault, indexes);
        report.proof = proof::prove(&answers, &truth)?;
        println!("{report}");
        report.check(fault.is_some())?;
        Ok(report)
    }
}

impl Made {
    fn phase(&self, fault: Option<(Instant, Instant)>) -> Phase {
        match fault {
            Some((_, to)) if self.began >= to => Phase::After,
            Some((from, _)) if self.ended >= from => Phase::During,
            _ => Phase::Before,
        }
    }

    /// Whether a refusal is as it must be.
    fn is_proper(&self, refused: &Refused, fault: Option<(Instant, Instant)>) -> bool {
        let phase = self.phase(fault);
        let coded = refused.headers.0.as_deref() == Some(&refused.code);
        match refused.code.as_str() {
            // Whoever was asked was killed, or nobody is there.
            "no_reply" | "no_responders" => phase == Phase::During,
            "internal" => false,
            "branch_lost" => {
                let before_the_end = |named: Instant| fault.is_some_and(|(_, to)| named < to);
                coded && !refused.retry && phase != Phase::Before && self.named.is_some_and(before_the_end)
            }
            _ => refused.retry && coded,
        }
    }
}
