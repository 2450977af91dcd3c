//! How tasks, threads and blocking jobs are started, so that none of them ends unheard.
//!
//! Whoever starts one keeps what this hands out, under the name of what it serves, and turns its [`Ending`] into an event of its
//! own. A panic is caught where it happens, logged, and stated in the node's heartbeats as an incident, also when nobody waits for
//! the ending any more. Nothing here starts anything again: that is for its owner to decide.
//!
//! - [`TaskSet`]: many tasks or jobs, each with a key; dropping the set aborts its tasks
//! - [`Errands`]: short tasks of which nobody waits for the end, as those that answer requests
//! - [`task`]: one task; dropping its [`Task`] aborts it
//! - [`job`], [`thread`]: blocking work, which cannot be aborted; who drops its [`Job`] does not wait for it
//! - [`caught`]: a future in place, for who owes somebody an answer; [`caught_now`]: the same without waiting

use crate::{connect::Bus, faults, troubles::Troubles};
use futures_util::FutureExt;
use highwater_schemas::{ApiError, ErrorCode};
use std::{
    any::Any,
    cell::RefCell,
    collections::HashMap,
    fmt::{self, Display},
    future::Future,
    io,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};
use tokio::{
    sync::oneshot,
    task::{AbortHandle, Id, JoinError, JoinHandle, JoinSet},
};

/// How something that was started came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending<T> {
    /// It ran to its end; whether it failed is in what it yields.
    Done(T),
    /// It panicked, with these words.
    Panicked(String),
    /// Its owner aborted it, or the process is ending.
    Aborted,
}

impl<T> Ending<T> {
    /// What it yielded.
    ///
    /// # Errors
    /// Why it did not run to its end.
    pub fn done(self) -> Result<T, Unfinished> {
        match self {
            Self::Done(value) => Ok(value),
            Self::Panicked(why) => Err(Unfinished(format!("it panicked: {why}"))),
            Self::Aborted => Err(Unfinished("it was aborted".into())),
        }
    }

    fn of(joined: Result<Self, JoinError>) -> Self {
        match joined {
            Ok(ending) => ending,
            Err(error) if error.is_cancelled() => Self::Aborted,
            // Panics are caught inside; one of a destructor is not.
            Err(error) => Self::Panicked(words(&*error.into_panic())),
        }
    }
}

/// Why something did not run to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfinished(String);

impl From<Unfinished> for ApiError {
    fn from(unfinished: Unfinished) -> Self {
        Self::new(ErrorCode::Internal, format!("the work for this request failed: {unfinished}"))
    }
}

impl<T> Ending<Result<T, ApiError>> {
    /// The reply to whoever asked for the work: a panic is answered with the error `internal`.
    pub fn answer(self) -> Result<T, ApiError> {
        self.done()?
    }
}

/// Where the incidents of a node are noted: its heartbeats state each for ten minutes after its last time.
#[derive(Debug, Clone, Default)]
pub struct Incidents(Troubles);

impl Incidents {
    /// Notes and logs that `what`, as a person would call it ("vbucket 3 of bucket orders"), ended as it should not.
    pub fn note(&self, what: &dyn Display, why: &dyn Display) {
        let what = what.to_string();
        tracing::error!(what, %why, "ended as it should not");
        self.0.incident(&what, why, Instant::now());
    }

    /// States something that is tried again, for 30 seconds after its last time.
    pub fn state(&self, what: &str, why: &dyn Display) {
        self.0.happened(what, why, Instant::now());
    }

    fn panicked<T>(&self, what: &dyn Display, payload: &(dyn Any + Send)) -> Ending<T> {
        let why = words(payload);
        self.note(what, &format_args!("it panicked: {why}"));
        Ending::Panicked(why)
    }
}

impl From<Troubles> for Incidents {
    fn from(troubles: Troubles) -> Self {
        Self(troubles)
    }
}

impl Bus {
    /// Where the incidents of this connection's node are noted.
    pub fn incidents(&self) -> Incidents {
        Incidents(self.troubles.clone())
    }
}

/// Many tasks, each under the key of what it serves. A key may be in use more than once.
pub struct TaskSet<K, T = ()> {
    running: JoinSet<Ending<T>>,
    keys: HashMap<Id, K>,
    incidents: Incidents,
}

impl<K: Clone + Display + Send + Sync + 'static, T: Send + 'static> TaskSet<K, T> {
    pub fn new(incidents: Incidents) -> Self {
        Self { running: JoinSet::new(), keys: HashMap::new(), incidents }
    }

    /// Starts a task.
    pub fn spawn(&mut self, key: K, future: impl Future<Output = T> + Send + 'static) -> AbortHandle {
        let (incidents, what) = (self.incidents.clone(), key.clone());
        let started = self.running.spawn(async move { caught(&incidents, &what, future).await });
        self.keys.insert(started.id(), key);
        started
    }

    /// Starts a blocking job; it cannot be aborted once it runs.
    pub fn spawn_job(&mut self, key: K, work: impl FnOnce() -> T + Send + 'static) -> AbortHandle {
        let (incidents, what) = (self.incidents.clone(), key.clone());
        let started = self.running.spawn_blocking(move || caught_now(&incidents, &what, work));
        self.keys.insert(started.id(), key);
        started
    }

    /// Waits for the next one that ends; None when none is left. Cancel safe.
    pub async fn join_next(&mut self) -> Option<(K, Ending<T>)> {
        loop {
            let (id, ending) = match self.running.join_next_with_id().await? {
                Ok((id, ending)) => (id, ending),
                Err(error) => (error.id(), Ending::of(Err(error))),
            };
            if let Some(key) = self.keys.remove(&id) {
                return Some((key, ending));
            }
        }
    }

    fn forget_ended(&mut self) {
        while let Some(ended) = self.running.try_join_next_with_id() {
            self.keys.remove(&ended.map_or_else(|error| error.id(), |(id, _)| id));
        }
    }

    pub fn len(&self) -> usize {
        self.running.len()
    }

    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

impl<K, T> fmt::Debug for TaskSet<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskSet").field("running", &self.keys.len()).finish_non_exhaustive()
    }
}

/// Short work that nobody waits for: who asked for it is answered within it, so that of its ends a panic alone matters, and that
/// is noted. Dropping this aborts what is under way.
#[derive(Debug)]
pub struct Errands(TaskSet<&'static str>);

impl Errands {
    pub fn new(incidents: Incidents) -> Self {
        Self(TaskSet::new(incidents))
    }

    pub fn spawn(&mut self, what: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.0.forget_ended();
        self.0.spawn(what, future);
    }

    pub fn spawn_job(&mut self, what: &'static str, work: impl FnOnce() + Send + 'static) {
        self.0.forget_ended();
        self.0.spawn_job(what, work);
    }

    /// How many are under way.
    pub fn under_way(&mut self) -> usize {
        self.0.forget_ended();
        self.0.len()
    }
}

/// A task that was started alone; a future of its ending, which may be polled once more after each wait that was given up.
/// Dropping it aborts the task.
#[derive(Debug)]
#[must_use = "dropping it aborts the task"]
pub struct Task<T = ()>(JoinHandle<Ending<T>>);

/// Starts a task.
pub fn task<T: Send + 'static>(
    incidents: &Incidents,
    what: impl Into<String>,
    future: impl Future<Output = T> + Send + 'static,
) -> Task<T> {
    let (incidents, what) = (incidents.clone(), what.into());
    Task(tokio::spawn(async move { caught(&incidents, &what, future).await }))
}

impl<T> Task<T> {
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Future for Task<T> {
    type Output = Ending<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ending<T>> {
        self.0.poll_unpin(context).map(Ending::of)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Blocking work that was started; a future of its ending. It goes on when this is dropped: its incident is noted all the same.
#[derive(Debug)]
#[must_use = "nobody else hears how it ends"]
pub struct Job<T = ()>(oneshot::Receiver<Ending<T>>);

/// Starts blocking work on a thread that is used again.
pub fn job<T: Send + 'static>(
    incidents: &Incidents,
    what: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Job<T> {
    let (incidents, what) = (incidents.clone(), what.into());
    let (ended, ending) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        // Nobody may wait any more.
        let _ = ended.send(caught_now(&incidents, &what, work));
    });
    Job(ending)
}

/// Starts blocking work on a thread of its own.
///
/// # Errors
/// The system has no thread left.
pub fn thread<T: Send + 'static>(
    incidents: &Incidents,
    what: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Job<T>> {
    let (incidents, what) = (incidents.clone(), what.into());
    let (ended, ending) = oneshot::channel();
    std::thread::Builder::new().name(what.clone()).spawn(move || {
        // Nobody may wait any more.
        let _ = ended.send(caught_now(&incidents, &what, work));
    })?;
    Ok(Job(ending))
}

impl<T> Future for Job<T> {
    type Output = Ending<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ending<T>> {
        // The runtime ended before the work began.
        self.0.poll_unpin(context).map(|ended| ended.unwrap_or(Ending::Aborted))
    }
}

/// Runs a future in place; a panic of it is its ending.
pub async fn caught<T>(
    incidents: &Incidents,
    what: &(impl Display + ?Sized),
    future: impl Future<Output = T>,
) -> Ending<T> {
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(value) => Ending::Done(value),
        Err(payload) => incidents.panicked(&what, &*payload),
    }
}

/// Runs a function in place; a panic of it is its ending.
pub fn caught_now<T>(incidents: &Incidents, what: &(impl Display + ?Sized), work: impl FnOnce() -> T) -> Ending<T> {
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(value) => Ending::Done(value),
        Err(payload) => incidents.panicked(&what, &*payload),
    }
}

thread_local! {
    /// Where the last panic of this thread was.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Has every panic of the process tell where it was. Once, at the start of a process.
///
/// # Errors
/// Panics are asked for by [`faults::ENVIRONMENT`], and this is not a build for tests.
pub fn prepare() -> Result<(), Unfinished> {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let place = info.location().map(|l| format!("{}:{}: ", l.file(), l.line())).unwrap_or_default();
        PLACE.with_borrow_mut(|last| *last = place);
        before(info);
    }));
    faults::check().map_err(Unfinished)
}

/// What a panic said, and where.
fn words(payload: &(dyn Any + Send)) -> String {
    let said = payload.downcast_ref::<&str>().copied();
    let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words");
    format!("{}{said}", PLACE.with_borrow(Clone::clone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(incidents: &Incidents) -> Vec<(String, String)> {
        incidents.0.list(Instant::now()).into_iter().map(|t| (t.what, t.error)).collect()
    }

    #[tokio::test]
    async fn every_ending_is_told_under_its_key() {
        let incidents = Incidents::default();
        let mut tasks: TaskSet<&str, u32> = TaskSet::new(incidents.clone());
        tasks.spawn("good", async { 1 });
        tasks.spawn("bad", async { panic!("no more of {}", "this") });
        tasks.spawn("endless", std::future::pending()).abort();
        tasks.spawn_job("a job", || panic!("on another thread"));
        let mut ended = HashMap::new();
        while let Some((key, ending)) = tasks.join_next().await {
            ended.insert(key, ending);
        }
        assert!(tasks.is_empty() && tasks.keys.is_empty());
        assert_eq!(ended["good"], Ending::Done(1));
        assert_eq!(ended["endless"], Ending::Aborted);
        assert_eq!(ended["bad"], Ending::Panicked("no more of this".into()));
        assert_eq!(ended["a job"], Ending::Panicked("on another thread".into()));
        let mut noted = noted(&incidents);
        noted.sort();
        let expected = [("a job", "it panicked: on another thread"), ("bad", "it panicked: no more of this")];
        assert_eq!(noted, expected.map(|(what, why)| (what.to_owned(), why.to_owned())));
    }

    #[tokio::test]
    async fn blocking_work_tells_its_ending_and_is_noted_even_if_nobody_waits() {
        let incidents = Incidents::default();
        assert_eq!(job(&incidents, "a job", || 7).await, Ending::Done(7));
        assert_eq!(thread(&incidents, "a thread", || 8).unwrap().await, Ending::Done(8));
        let ending = thread(&incidents, "a thread", || panic!("it broke")).unwrap().await;
        assert_eq!(ending, Ending::<()>::Panicked("it broke".into()));
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(1);
        let (over, is_over) = oneshot::channel::<()>();
        drop(job(&incidents, "nobody's job", move || {
            let _over = over;
            wait.recv().unwrap();
            panic!("unheard");
        }));
        go.send(()).unwrap();
        assert!(is_over.await.is_err());
        while noted(&incidents).len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(noted(&incidents)[1], ("nobody's job".into(), "it panicked: unheard".into()));
    }

    #[tokio::test]
    async fn a_task_ends_with_its_handle() {
        let incidents = Incidents::default();
        let (alive, gone) = oneshot::channel::<()>();
        let running = task(&incidents, "a task", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        assert!(!running.is_over());
        drop(running);
        assert!(gone.await.is_err());
        assert_eq!(noted(&incidents), []);
        let ended = caught(&incidents, "a request", async { panic!("where?") }).await;
        assert_eq!(ended, Ending::<()>::Panicked("where?".into()));
        assert_eq!(ended.done().unwrap_err().to_string(), "it panicked: where?");
    }
}
