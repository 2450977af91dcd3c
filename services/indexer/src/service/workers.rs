//! The threads of the buckets' workers, and what follows when one panics: its snapshots close, its slices report an error, and it
//! is started again from disk, at most once a minute.

use super::{Running, Shell, infos, view};
use crate::{
    report::BucketReport,
    worker::{Event, Outside, Worker},
};
use highwater_bus::{Ending, TaskSet, fault, supervise};
use highwater_schemas::{ErrorCode, api::SliceState};
use std::{
    fmt,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// A worker that panics again is not started again before this.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);
/// How long buckets may take to make themselves durable at the end.
const DRAIN: Duration = Duration::from_secs(20);

/// Whose worker it is.
#[derive(Debug, Clone)]
pub(super) struct Of {
    bucket: String,
    declared: u64,
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the worker of bucket {}", self.bucket)
    }
}

impl Running {
    /// Its worker has ended: nothing feeds it any more, and its slices report why.
    fn fail(&mut self, why: &str, again: Instant) {
        for task in self.tasks.drain(..).chain(std::mem::take(&mut self.sessions).into_values()) {
            task.abort();
        }
        let mut report: BucketReport = self.report.borrow().clone();
        report.notable += 1;
        for slice in &mut report.slices {
            // An index of which a partition fails while it is built has failed for good; this one goes on soon.
            if slice.state != SliceState::Building {
                slice.state = SliceState::Error;
            }
            slice.error = Some(why.to_owned());
        }
        self.report = watch::channel(report).1;
        self.again = Some(again);
    }
}

impl Shell {
    /// Starts the thread of a worker; false when there is none to be had, which counts as its end.
    pub(super) fn start_worker(
        &mut self,
        bucket: &str,
        declared: u64,
        outside: Outside,
        inbox: mpsc::Receiver<Event>,
    ) -> bool {
        let of = Of { bucket: bucket.to_owned(), declared };
        let run = move || Worker::new(outside).run(inbox);
        match supervise::thread(&self.bus.incidents(), of.to_string(), run) {
            Ok(worker) => {
                self.workers.spawn(of, worker);
                true
            }
            Err(error) => {
                self.bus.incidents().note(&of, &error);
                self.failed(&of, &format!("its worker cannot be started: {error}"));
                false
            }
        }
    }

    /// A worker has ended; true when its slices have something to report.
    pub(super) fn worker_ended(&mut self, of: &Of, ending: Ending<Ending<()>>) -> bool {
        let ended = match ending {
            Ending::Done(ended) => ended,
            Ending::Panicked(why) => Ending::Panicked(why),
            Ending::Aborted => Ending::Aborted,
        };
        match ended {
            Ending::Panicked(why) => self.failed(of, &format!("the bucket's worker panicked: {why}")),
            // It was told to, or its bucket is gone.
            Ending::Done(()) | Ending::Aborted => false,
        }
    }

    fn failed(&mut self, of: &Of, why: &str) -> bool {
        let Some(running) = self.buckets.get_mut(&of.bucket).filter(|r| r.declared == of.declared) else {
            return false;
        };
        self.scans.held.close_all(&of.bucket, ErrorCode::Internal, why);
        let now = Instant::now();
        let last = self.restarted.get(&of.bucket);
        running.fail(why, last.map_or(now, |last| now.max(*last + AT_MOST_EVERY)));
        true
    }

    /// Starts the workers that panicked and are due.
    pub(super) fn start_again(&mut self) {
        let now = Instant::now();
        let due = self.buckets.iter().filter(|(_, running)| running.again.is_some_and(|at| at <= now));
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            self.buckets.remove(&name);
            self.restarted.insert(name.clone(), now);
            let Some(bucket) = self.state.context().buckets.get(&name) else { continue };
            let (view, infos) =
                (view(&self.config, self.state.context().term, bucket), infos(&self.config.node, bucket));
            let declared = bucket.declared;
            tracing::info!(bucket = name, "starting the bucket's worker again");
            self.start(&name, declared, view, infos);
        }
        self.restarted.retain(|_, at| *at + AT_MOST_EVERY > now);
    }

    /// Makes durable what is applied; a worker that is busy holds up no other one.
    pub(super) async fn drain(&mut self) {
        let mut draining: TaskSet<String> = TaskSet::new(self.bus.incidents());
        for (name, running) in &self.buckets {
            let (events, (done, drained)) = (running.events.clone(), oneshot::channel());
            draining.spawn(format!("making bucket {name} durable"), async move {
                fault("drain", "");
                if events.send(Event::Drain(done)).await.is_ok() {
                    // One that panics meanwhile answers nothing.
                    let _ = drained.await;
                }
            });
        }
        let all = async { while draining.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            tracing::warn!("not everything could be made durable in time");
        }
    }
}
