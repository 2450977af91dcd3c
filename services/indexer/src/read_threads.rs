//! Threads that read slices. LMDB may have to wait for the disk at any row, and an async thread that waits holds up everything
//! else of the process.
//!
//! Jobs run in the order in which they came, [`Size::Large`] ones on three quarters of the threads at most, so that counts of
//! whole slices never hold up lookups. Threads are started when they are needed, and stay: waking one takes some microseconds.
//! A job needs a [`Place`], of which there are as many as the queue may hold.

use highwater_bus::{Incidents, supervise};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the threads are called.
const READS: &str = "reading slices";

type Job = Box<dyn FnOnce() + Send>;

/// What a job may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// Some hundred rows.
    Small,
    /// As long as its deadline lets it.
    Large,
}

/// Room for one job, from when it is asked for until it has run.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "given back when dropped")] OwnedSemaphorePermit);

/// The threads of one node; dropping it ends them once nothing waits.
pub(crate) struct ReadThreads {
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
}

struct Shared {
    incidents: Incidents,
    most: usize,
    most_large: usize,
    queue: Mutex<Queue>,
    come: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Each with its number in the order of arrival.
    small: VecDeque<(u64, Job)>,
    large: VecDeque<(u64, Job)>,
    taken: u64,
    threads: usize,
    idle: usize,
    large_running: usize,
    closed: bool,
}

impl ReadThreads {
    /// `most`: jobs that run at once; `places`: jobs that run, wait, or are about to.
    pub(crate) fn new(most: usize, places: usize, incidents: Incidents) -> Self {
        let most = most.max(1);
        let most_large = (most - most.div_ceil(4)).max(1);
        let (queue, come) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { incidents, most, most_large, queue, come });
        Self { shared, places: Arc::new(Semaphore::new(places)) }
    }

    /// A place, if one is free.
    pub(crate) fn place(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(Place)
    }

    /// Has a job run on one of the threads, and gives its place back. One that panics ends nothing but itself.
    pub(crate) fn run(&self, place: Place, size: Size, job: impl FnOnce() + Send + 'static) {
        let shared = &self.shared;
        let mut queue = shared.lock();
        let number = queue.taken;
        queue.taken += 1;
        let job = move || {
            job();
            drop(place);
        };
        queue.waiting(size).push_back((number, Box::new(job)));
        if queue.idle < queue.small.len() + queue.large.len() && queue.threads < shared.most {
            let working = Arc::clone(shared);
            match supervise::thread(&shared.incidents, READS, move || working.work()) {
                // Nothing that it runs can end it: see `work`.
                Ok(_) => queue.threads += 1,
                // Those that are there do it; if there is none, the next job tries again.
                Err(error) => shared.incidents.note(&READS, &error),
            }
        }
        drop(queue);
        shared.come.notify_one();
    }
}

impl Drop for ReadThreads {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.come.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // It is changed in whole steps only.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some((size, job)) = queue.next(self.most_large) {
                drop(queue);
                // A panic is noted, and ends nothing but the job.
                let _ = supervise::caught_now(&self.incidents, READS, job);
                queue = self.lock();
                if size == Size::Large {
                    queue.large_running -= 1;
                }
            } else if queue.closed {
                queue.threads -= 1;
                return;
            } else {
                queue.idle += 1;
                queue = self.come.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}

impl Queue {
    fn waiting(&mut self, size: Size) -> &mut VecDeque<(u64, Job)> {
        match size {
            Size::Small => &mut self.small,
            Size::Large => &mut self.large,
        }
    }

    /// The job that came first of those that may run.
    fn next(&mut self, most_large: usize) -> Option<(Size, Job)> {
        let small = self.small.front().map(|(number, _)| *number);
        let large = self.large.front().map(|(number, _)| *number).filter(|_| self.large_running < most_large);
        let size = match (small, large) {
            (None, None) => return None,
            (Some(small), Some(large)) if large < small => Size::Large,
            (None, Some(_)) => Size::Large,
            (Some(_), _) => Size::Small,
        };
        if size == Size::Large {
            self.large_running += 1;
        }
        self.waiting(size).pop_front().map(|(_, job)| (size, job))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// More than any test sends.
    const ANSWERS: usize = 64;

    fn run(threads: &ReadThreads, size: Size, job: impl FnOnce() + Send + 'static) {
        threads.run(threads.place().expect("is free"), size, job);
    }

    /// A job that runs until its sender is dropped; the receiver hears when it has begun.
    fn blocked(threads: &ReadThreads, size: Size) -> (SyncSender<()>, Receiver<()>) {
        let (release, released) = sync_channel::<()>(ANSWERS);
        let (begin, begun) = sync_channel(ANSWERS);
        let job = move || {
            begin.send(()).expect("somebody waits");
            let _ = released.recv();
        };
        run(threads, size, job);
        (release, begun)
    }

    #[test]
    fn large_jobs_leave_threads_to_small_ones() {
        let threads = ReadThreads::new(4, 64, Incidents::default());
        let large: Vec<_> = (0..5).map(|_| blocked(&threads, Size::Large)).collect();
        large.iter().take(3).for_each(|(_, begun)| begun.recv().expect("three of four run"));
        for _ in 0..20 {
            let (done, answer) = sync_channel(ANSWERS);
            run(&threads, Size::Small, move || done.send(7).expect("somebody waits"));
            assert_eq!(answer.recv(), Ok(7));
        }
        assert!(large[3].1.try_recv().is_err(), "the fourth thread is for small ones");
        drop(large);
    }

    #[test]
    fn jobs_of_both_sizes_run_in_the_order_in_which_they_came() {
        let threads = ReadThreads::new(1, 64, Incidents::default());
        let (first, begun) = blocked(&threads, Size::Small);
        begun.recv().expect("runs");
        let (seen, order) = sync_channel(ANSWERS);
        for (number, size) in [Size::Large, Size::Small, Size::Small, Size::Large].into_iter().enumerate() {
            let seen = seen.clone();
            run(&threads, size, move || seen.send(number).expect("somebody waits"));
        }
        drop((first, seen));
        assert_eq!(order.iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_panic_ends_one_job_and_no_thread() {
        let threads = ReadThreads::new(1, 64, Incidents::default());
        for _ in 0..3 {
            run(&threads, Size::Large, || panic!("on purpose"));
        }
        let (done, answer) = sync_channel(ANSWERS);
        run(&threads, Size::Large, move || done.send(()).expect("somebody waits"));
        answer.recv().expect("the thread is still there");
        assert_eq!(threads.shared.lock().threads, 1);
    }

    #[test]
    fn one_more_than_may_wait_gets_no_place() {
        let threads = ReadThreads::new(1, 4, Incidents::default());
        let (first, begun) = blocked(&threads, Size::Small);
        begun.recv().expect("runs");
        let places: Vec<Place> = (0..3).map(|_| threads.place().expect("is free")).collect();
        assert!(threads.place().is_none());
        let (done, answer) = sync_channel(ANSWERS);
        for place in places {
            let done = done.clone();
            threads.run(place, Size::Large, move || done.send(()).expect("somebody waits"));
        }
        assert!(threads.place().is_none(), "what waits keeps its place");
        drop((first, done));
        assert_eq!(answer.iter().count(), 3);
        // A place is given back right after its job.
        while threads.place().is_none() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_waits_is_done_before_the_threads_end() {
        let threads = ReadThreads::new(2, 64, Incidents::default());
        let (seen, order) = sync_channel(ANSWERS);
        for _ in 0..50 {
            let seen = seen.clone();
            run(&threads, Size::Small, move || seen.send(()).expect("somebody waits"));
        }
        drop((threads, seen));
        assert_eq!(order.iter().count(), 50);
    }
}
