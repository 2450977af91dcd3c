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

impl State {
    /// Takes out what has expired below `newest`. It is dropped without the lock: the last one of a file closes that.
    fn expired(&mut self, now: Instant, newest: u64) -> Vec<Entry> {
        let numbers: Vec<u64> =
            self.entries.range(..newest).filter(|(_, e)| e.until <= now).map(|(number, _)| *number).collect();
        numbers.into_iter().filter_map(|number| self.entries.remove(&number)).collect()
    }
}

/// The snapshots of one slice.
pub(crate) struct HeldSlice {
    /// Tells its bucket from a later one of the same name.
    declared: u64,
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
    fn new(declared: u64, directions: Vec<bool>, age: Duration) -> Self {
        Self { declared, directions, age, state: Mutex::default(), newest: watch::Sender::new(0) }
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
        let expired = state.expired(now, number);
        drop(state);
        drop(expired);
        self.newest.send_modify(|n| *n = number.max(*n));
    }

    /// Drops what has expired, but for the newest.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        let newest = state.entries.keys().next_back().copied().unwrap_or(0);
        let expired = state.expired(now, newest);
        drop(state);
        drop(expired);
    }

    /// Lets go of every snapshot: who asks waits for the next offer, and what was older then has expired.
    pub(crate) fn pause(&self) {
        let mut state = self.lock();
        let entries = std::mem::take(&mut state.entries);
        drop(state);
        drop(entries);
    }

    /// Nothing can be read until the next offer.
    pub(crate) fn close(&self, code: ErrorCode, why: String) {
        let mut state = self.lock();
        let entries = std::mem::take(&mut state.entries);
        state.closed = Some((code, why));
        drop(state);
        drop(entries);
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

    /// The snapshot to use, if it is there, leased for so long.
    pub(crate) fn find(&self, choice: StChoice, lease: Duration) -> Result<Option<At>, (ErrorCode, String)> {
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

    /// The snapshots of a slice that the node hosts; scans wait for the first of them.
    pub(crate) fn open(&self, bucket: (&str, u64), slice: SliceName, directions: &[bool]) -> Arc<HeldSlice> {
        let (name, declared) = bucket;
        let mut slices = self.lock();
        let key = (name.to_owned(), slice);
        if let Some(held) = slices.get(&key).filter(|held| held.declared == declared) {
            return Arc::clone(held);
        }
        let held = Arc::new(HeldSlice::new(declared, directions.to_vec(), self.age));
        let before = slices.insert(key, Arc::clone(&held));
        drop(slices);
        drop(before);
        held
    }

    /// Forgets a slice of the bucket that was declared then.
    pub(crate) fn remove(&self, (name, declared): (&str, u64), slice: SliceName) {
        let mut slices = self.lock();
        let key = (name.to_owned(), slice);
        let own = slices.get(&key).is_some_and(|held| held.declared == declared);
        let held = if own { slices.remove(&key) } else { None };
        drop(slices);
        drop(held);
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

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: SliceName = SliceName { index: 1, partition: 0 };

    #[test]
    fn a_worker_that_ends_late_forgets_nothing_of_a_later_bucket_of_the_name() {
        let held = Held::new(Duration::from_secs(1));
        let old = held.open(("b", 3), SLICE, &[false]);
        assert!(Arc::ptr_eq(&old, &held.open(("b", 3), SLICE, &[false])));
        let new = held.open(("b", 7), SLICE, &[true]);
        held.remove(("b", 3), SLICE);
        assert!(held.get("b", SLICE).is_some_and(|found| Arc::ptr_eq(&found, &new)));
        held.remove(("b", 7), SLICE);
        assert!(held.get("b", SLICE).is_none());
    }
}
