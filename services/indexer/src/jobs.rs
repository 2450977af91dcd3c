//! Work that would hold a worker up, each kind in a lane of its own: one slice persists at a time, builds fill their own files
//! and may run side by side, layers are merged and files checked one after the other.

use crate::worker::Event;
use std::sync::Arc;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};

/// Jobs that may wait in a lane.
const WAITING: usize = 1_024;
/// Empty slices that are filled at the same time.
const BUILDS: usize = 2;

/// What to do, and who is told what came of it.
pub(crate) struct Job {
    pub(crate) work: Box<dyn FnOnce() -> Event + Send>,
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
    pub(crate) fn start(tasks: &mut JoinSet<()>) -> Self {
        Self { persist: lane(tasks, 1), build: lane(tasks, BUILDS), merge: lane(tasks, 1), check: lane(tasks, 1) }
    }
}

fn lane(tasks: &mut JoinSet<()>, at_once: usize) -> mpsc::Sender<Job> {
    let (sender, waiting) = mpsc::channel(WAITING);
    let waiting = Arc::new(Mutex::new(waiting));
    for _ in 0..at_once {
        tasks.spawn(work(Arc::clone(&waiting)));
    }
    sender
}

async fn work(waiting: Arc<Mutex<mpsc::Receiver<Job>>>) {
    loop {
        let next = waiting.lock().await.recv().await;
        let Some(Job { work, to }) = next else { return };
        match tokio::task::spawn_blocking(work).await {
            Ok(event) => {
                // The worker ended meanwhile: nobody waits for it.
                let _ = to.send(event).await;
            }
            Err(error) => tracing::error!(%error, "a job panicked"),
        }
    }
}
