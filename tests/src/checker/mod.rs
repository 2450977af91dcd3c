//! Scans and counts in the background, at every consistency, each of which is proven afterwards to keep its promises ([`proof`]).
//!
//! One task for each consistency, so that one that waits does not hold up the others: `any`; `request_plus`; `at_plus` with what
//! the writer saw acknowledged, or with the whole timestamp of an answer; and two indexes at one `st`, the second with
//! `at_snapshot`.
//!
//! A *fault* is what the test says it is ([`Checker::through`]). Whenever it is, a failure has a code and says that it may be tried
//! again, but for `branch_lost` where a timestamp is named that is older than the end of the fault, and of branches that nobody
//! answers any more. Only during a fault may there be no reply. Before it nothing fails but for want of time. Before it and after
//! it requests of each consistency succeed.

mod asking;
mod made;
mod proof;
mod report;
mod truth;

use crate::{client::Client, load::Writer, oracle::Index, rng::Rng, source::Source, wait::until};
use anyhow::{Context, Result};
use asking::{Asker, Shared};
use proof::Answer;
use std::{
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

/// Asks until it is told to stop.
pub struct Checker {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    writer: Option<Writer>,
    began: Instant,
    /// The source's when the first was asked.
    epoch: usize,
}

impl Checker {
    /// The indexes are of the source's bucket, and active.
    pub fn start(client: &Client, source: &Source, indexes: &[Index], rng: &mut Rng) -> Self {
        let shared = Arc::new(Shared::new(client, source, indexes));
        let (began, epoch) = (Instant::now(), source.log().epoch);
        let task = |kind| tokio::spawn(Asker::new(Arc::clone(&shared), kind, rng.fork()).ask());
        let tasks = KINDS.map(task).into();
        Self { shared, tasks, writer: None, began, epoch }
    }

    /// Documents are written meanwhile, until all answers are proven.
    #[must_use]
    pub fn with_writer(self, writer: Writer) -> Self {
        Self { writer: Some(writer), ..self }
    }

    /// Scans before a fault, during it and after it, each of which is proven. In the end the fault is over.
    pub async fn through<T>(
        self,
        within: Duration,
        fault: impl AsyncFnOnce(&Self) -> Result<T>,
    ) -> Result<(T, Report)> {
        self.answered(BEFORE, within).await.context("before")?;
        let from = Instant::now();
        let outcome = fault(&self).await?;
        // One that was over at once has to meet requests all the same.
        self.asked_since(from, within).await?;
        let to = Instant::now();
        self.answered(AFTER, within).await.context("afterwards")?;
        Ok((outcome, self.prove((from, to)).await?))
    }

    /// Waits until a request of each consistency has ended since then, however it ended.
    async fn asked_since(&self, from: Instant, within: Duration) -> Result<()> {
        until("scans are asked for", within, async || {
            let made = self.shared.made();
            let asked = |kind: &Kind| made.iter().any(|m| m.kind == *kind && m.ended >= from);
            let missing: Vec<Kind> = KINDS.into_iter().filter(|kind| !asked(kind)).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        })
        .await
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
    async fn prove(self, fault: (Instant, Instant)) -> Result<Report> {
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
        let mut report = Report::of(&made, fault, (self.began, ended))?;
        let answers: Vec<Answer> = made.into_iter().flat_map(|made| made.answers).collect();
        report.proof = proof::prove(&answers, &Truth::new(source.logs(self.epoch), fault, indexes))?;
        println!("{report}");
        report.check()?;
        Ok(report)
    }
}
