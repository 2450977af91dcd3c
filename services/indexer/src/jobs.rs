//! Work that would hold a worker up, each kind in a lane of its own: one slice persists at a time, builds fill their own files
//! and may run side by side, layers are merged and files checked one after the other.

use crate::worker::Event;
use highwater_bus::{
    Ending, Incidents, TaskSet, fault,
    supervise::{self, Unfinished},
};
use std::sync::Arc;
use tokio::sync::{
    Mutex,
    mpsc::{self, error::TrySendError},
};

/// Jobs that may wait in a lane.
const WAITING: usize = 1_024;
/// Empty slices that are filled at the same time.
const BUILDS: usize = 2;

/// What to do, and who is told what came of it.
pub(crate) struct Job {
    /// As a person would call it.
    pub(crate) what: String,
    pub(crate) work: Box<dyn FnOnce() -> Event + Send>,
    /// What is told when the work panicked.
    pub(crate) failed: Box<dyn FnOnce(Unfinished) -> Event + Send>,
    pub(crate) to: mpsc::Sender<Event>,
}

/// The lanes of a node.
#[derive(Clone)]
pub(crate) struct Jobs {
    pub(crate) persist: mpsc::Sender<Job>,
    pub(crate) build: mpsc::Sender<Job>,
    pub(crate) merge: mpsc::Sender<Job>,
    pub(crate) check: mpsc::Sender<Job>,
}

impl Jobs {
    /// The lanes' tasks go on as long as anybody can give them work.
    pub(crate) fn start(tasks: &mut TaskSet<&'static str>, incidents: &Incidents) -> Self {
        let mut lane = |name, pass: fn(), at_once| {
            let (sender, waiting) = mpsc::channel(WAITING);
            let waiting = Arc::new(Mutex::new(waiting));
            for _ in 0..at_once {
                tasks.spawn(name, work(pass, incidents.clone(), Arc::clone(&waiting)));
            }
            sender
        };
        Self {
            persist: lane("the lane of persists", || fault("persist", ""), 1),
            build: lane("the lane of builds", || fault("build", ""), BUILDS),
            merge: lane("the lane of merges", || fault("merge", ""), 1),
            check: lane("the lane of checks", || fault("check", ""), 1),
        }
    }
}

/// Does one job after the other; each passes this place, where tests break it.
async fn work(pass: fn(), incidents: Incidents, waiting: Arc<Mutex<mpsc::Receiver<Job>>>) {
    let mut notices: TaskSet<&'static str> = TaskSet::new(incidents.clone());
    loop {
        fault("jobs", "");
        let next = tokio::select! {
            next = async { waiting.lock().await.recv().await } => next,
            Some((_, ending)) = notices.join_next() => match ending {
                // A worker waits in vain for what was to be told: the lane ends, and the service with it.
                Ending::Panicked(_) => return,
                Ending::Done(()) | Ending::Aborted => continue,
            },
        };
        let Some(Job { what, work, failed, to }) = next else { return };
        let run = move || {
            pass();
            work()
        };
        let event = supervise::job(&incidents, what, run).await.done().unwrap_or_else(failed);
        // A worker whose inbox is full must not hold up other workers' jobs, so a task of its own waits for room there; a slice has
        // one job of each kind at a time. A closed inbox is of a worker that ended.
        if let Err(TrySendError::Full(event)) = to.try_send(event) {
            notices.spawn("telling a worker of its job's end", async move {
                fault("errand", "telling a worker of its job's end");
                // The worker may have ended.
                let _ = to.send(event).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_has_failed_and_the_next_one_is_done() {
        let incidents = Incidents::default();
        let mut tasks = TaskSet::new(incidents.clone());
        let jobs = Jobs::start(&mut tasks, &incidents);
        let (to, mut events) = mpsc::channel(1);
        for lane in [&jobs.persist, &jobs.build, &jobs.merge, &jobs.check] {
            for panics in [true, false] {
                let job = Job {
                    what: "a job".into(),
                    work: Box::new(move || if panics { panic!("no more") } else { Event::Tick }),
                    failed: Box::new(|why| Event::TopicOpened {
                        after: why.to_string().len() as u64,
                        created: 0,
                        cut: true,
                        now: 0,
                    }),
                    to: to.clone(),
                };
                assert!(lane.send(job).await.is_ok());
                match events.recv().await {
                    Some(Event::TopicOpened { after, cut: true, .. }) => {
                        assert!(panics && after == "it panicked: no more".len() as u64);
                    }
                    Some(Event::Tick) => assert!(!panics),
                    _ => panic!("another event"),
                }
            }
        }
        drop(jobs);
        let mut ended = 0;
        while let Some((_, ending)) = tasks.join_next().await {
            assert!(ending.done().is_ok());
            ended += 1;
        }
        assert_eq!(ended, 5, "every lane ends when nobody can give it work");
    }
}
