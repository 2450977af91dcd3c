//! The stability snapshots that scans may use: per slice the STs of the last seconds, leased ones longer.

use crate::store::Snapshot;
use highwater_schemas::{ErrorCode, StabilityTimestamp, state::SliceName, wire::StChoice};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The longest lease.
const MOST_LEASE: Duration = Duration::from_secs(300);

struct Entry {
    st: Arc<StabilityTimestamp>,
    snapshot: Snapshot,
    until: Instant,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    /// Why there is nothing to read.
    closed: Option<(ErrorCode, String)>,
}

/// The snapshots of one slice.
pub(crate) struct HeldSlice {
    /// For each key of the index whether it is descending.
    directions: Vec<bool>,
    /// How long an ST stays readable after a newer one.
    age: Duration,
    state: Mutex<State>,
    newest: watch::Sender<u64>,
}

/// A snapshot and the ST that it shows.
pub(crate) type At = (Arc<StabilityTimestamp>, Snapshot);

impl HeldSlice {
    fn new(directions: Vec<bool>, age: Duration) -> Self {
        Self { directions, age, state: Mutex::default(), newest: watch::Sender::new(0) }
    }

    pub(crate) fn directions(&self) -> &[bool] {
        &self.directions
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slice shows `st` now.
    pub(crate) fn offer(&self, st: Arc<StabilityTimestamp>, snapshot: Snapshot) {
        let now = Instant::now();
        let number = st.number;
        let mut state = self.lock();
        state.closed = None;
        state.entries.insert(number, Entry { st, snapshot, until: now + self.age });
        state.entries.retain(|n, e| *n >= number || e.until > now);
        drop(state);
        self.newest.send_modify(|n| *n = number.max(*n));
    }

    /// Drops what has expired, but for the newest.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        let newest = state.entries.keys().next_back().copied();
        state.entries.retain(|n, e| Some(*n) == newest || e.until > now);
    }

    /// Lets go of every snapshot: who asks waits for the next offer, and what was older then has expired.
    pub(crate) fn pause(&self) {
        self.lock().entries.clear();
    }

    /// Nothing can be read until the next offer.
    pub(crate) fn close(&self, code: ErrorCode, why: String) {
        let mut state = self.lock();
        state.entries.clear();
        state.closed = Some((code, why));
        drop(state);
        self.newest.send_modify(|_| ());
    }

    /// Oldest and newest ST held.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let state = self.lock();
        Some((*state.entries.keys().next()?, *state.entries.keys().next_back()?))
    }

    pub(crate) fn newest(&self) -> Option<At> {
        self.lock().entries.values().next_back().map(|e| (Arc::clone(&e.st), e.snapshot.clone()))
    }

    fn find(&self, choice: StChoice, lease: Duration) -> Result<Option<At>, (ErrorCode, String)> {
        let mut state = self.lock();
        if let Some(closed) = &state.closed {
            return Err(closed.clone());
        }
        let newest = state.entries.keys().next_back().copied();
        let number = match choice {
            StChoice::AtLeast(n) => newest.filter(|newest| *newest >= n),
            StChoice::Exactly(n) if state.entries.contains_key(&n) => Some(n),
            StChoice::Exactly(n) if newest.is_some_and(|newest| newest > n) => {
                return Err((ErrorCode::SnapshotExpired, format!("ST {n} is no longer held")));
            }
            StChoice::Exactly(_) => None,
        };
        Ok(number.and_then(|n| state.entries.get_mut(&n)).map(|e| {
            e.until = e.until.max(Instant::now() + lease.min(MOST_LEASE));
            (Arc::clone(&e.st), e.snapshot.clone())
        }))
    }

    /// The snapshot to use, waiting for it until `deadline`.
    pub(crate) async fn wait(
        &self,
        choice: StChoice,
        lease: Duration,
        deadline: Instant,
    ) -> Result<At, (ErrorCode, String)> {
        let mut newest = self.newest.subscribe();
        loop {
            newest.borrow_and_update();
            if let Some(found) = self.find(choice, lease)? {
                return Ok(found);
            }
            match tokio::time::timeout_at(deadline.into(), newest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err((ErrorCode::TopologyStale, "the slice is gone".into())),
                Err(_) => {
                    let (StChoice::AtLeast(n) | StChoice::Exactly(n)) = choice;
                    return Err((ErrorCode::Timeout, format!("stability timestamp {n} was not reached in time")));
                }
            }
        }
    }
}

type Slices = BTreeMap<(String, SliceName), Arc<HeldSlice>>;

/// All slices of the node, by bucket and name.
#[derive(Clone)]
pub(crate) struct Held {
    age: Duration,
    slices: Arc<Mutex<Slices>>,
}

impl Held {
    pub(crate) fn new(age: Duration) -> Self {
        Self { age, slices: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Slices> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self, bucket: &str, slice: SliceName, directions: Vec<bool>) -> Arc<HeldSlice> {
        let held = Arc::new(HeldSlice::new(directions, self.age));
        self.lock().insert((bucket.to_owned(), slice), Arc::clone(&held));
        held
    }

    pub(crate) fn remove(&self, bucket: &str, slice: SliceName) {
        self.lock().remove(&(bucket.to_owned(), slice));
    }

    /// Closes what a bucket has; see [`HeldSlice::close`].
    pub(crate) fn close_all(&self, bucket: &str, code: ErrorCode, why: &str) {
        let of_bucket: Vec<Arc<HeldSlice>> =
            self.lock().iter().filter(|((b, _), _)| b == bucket).map(|(_, held)| Arc::clone(held)).collect();
        for held in of_bucket {
            held.close(code, why.to_owned());
        }
    }

    /// Takes back what a bucket has.
    pub(crate) fn forget(&self, bucket: &str) {
        self.lock().retain(|(of, _), _| of != bucket);
    }

    pub(crate) fn get(&self, bucket: &str, slice: SliceName) -> Option<Arc<HeldSlice>> {
        self.lock().get(&(bucket.to_owned(), slice)).cloned()
    }
}
