//! What a node tries again and again, so far in vain: each attempt waits longer, up to a limit, and what lasts is stated in the
//! node's heartbeats, in the server's words, until it succeeds.

use crate::connect::Bus;
use highwater_schemas::api::{MOST_TROUBLES, MOST_WORDS, Trouble};
use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::time::{Sleep, sleep};

/// The first wait, and the longest: nothing that fails is tried more often than five times a second.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);
/// What ends sooner is nobody's trouble: a restart of NATS, a full topic.
const LASTING: Duration = Duration::from_secs(1);
/// A happening, which nothing ends, is stated for so long after its last time.
const STATED: Duration = Duration::from_secs(30);
/// An incident is stated for so long after its last time: somebody should look at it.
const INCIDENT: Duration = Duration::from_secs(600);
/// Happenings and incidents that are remembered at once; the one that is longest ago gives way.
const MOST_HAPPENED: usize = 64;

/// The troubles of one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Troubles(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    met: BTreeMap<u64, Met>,
    /// Each with how long it is stated after its last time.
    happened: BTreeMap<String, (Met, Duration)>,
}

#[derive(Debug)]
struct Met {
    trouble: Trouble,
    began: Instant,
    last: Instant,
}

impl Met {
    fn new(what: &str, now: Instant) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let trouble = Trouble { what: what.into(), since, times: 0, error: String::new() };
        Self { trouble, began: now, last: now }
    }

    fn again(&mut self, error: &dyn Display, now: Instant) {
        self.trouble.times += 1;
        self.trouble.error = error.to_string().chars().take(MOST_WORDS).collect();
        self.last = now;
    }
}

impl Troubles {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those to state, the oldest first.
    pub(crate) fn list(&self, now: Instant) -> Vec<Trouble> {
        let mut open = self.open();
        open.happened.retain(|_, (met, stated)| now.saturating_duration_since(met.last) < *stated);
        let lasting = open.met.values().filter(|met| met.last >= met.began + LASTING);
        let mut stated: Vec<Trouble> =
            lasting.chain(open.happened.values().map(|(met, _)| met)).map(|met| met.trouble.clone()).collect();
        stated.sort_by_key(|trouble| trouble.since);
        stated.truncate(MOST_TROUBLES);
        stated
    }

    /// Something that passes by itself.
    pub(crate) fn happened(&self, what: &str, error: &dyn Display, now: Instant) {
        self.enter(what, error, now, STATED);
    }

    /// Something that should not happen: a panic, an end that nobody asked for.
    pub(crate) fn incident(&self, what: &str, error: &dyn Display, now: Instant) {
        self.enter(what, error, now, INCIDENT);
    }

    fn enter(&self, what: &str, error: &dyn Display, now: Instant, stated: Duration) {
        let mut open = self.open();
        if open.happened.len() >= MOST_HAPPENED && !open.happened.contains_key(what) {
            // A panic is not pushed out by what happens all the time.
            let least = open.happened.iter().min_by_key(|(_, (met, stated))| (*stated == INCIDENT, met.last));
            let pushed_out = least.filter(|(_, (_, least))| *least != INCIDENT || stated == INCIDENT);
            let Some(pushed_out) = pushed_out.map(|(what, _)| what.clone()) else { return };
            open.happened.remove(&pushed_out);
        }
        let (met, until) = open.happened.entry(what.to_owned()).or_insert_with(|| (Met::new(what, now), stated));
        *until = stated;
        met.again(error, now);
    }
}

/// Something that is tried until it succeeds. What fails for long is logged once, and stated until it is over or this is dropped.
#[derive(Debug)]
pub struct Retry {
    what: String,
    troubles: Troubles,
    longest: Duration,
    /// Its number, when the first attempt failed, and whether it was logged.
    failing: Option<(u64, Instant, bool)>,
}

impl Bus {
    /// What fails, for a heartbeat; [`crate::Heart`] states it by itself.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.troubles.list(Instant::now())
    }

    /// States in the heartbeats, for 30 seconds after its last time, something that passes by itself.
    pub fn happened(&self, what: &str, how: &dyn Display) {
        self.troubles.happened(what, how, Instant::now());
    }

    /// `what` is tried, as a person would call it: "source stream KV_users".
    pub fn retry(&self, what: impl Into<String>) -> Retry {
        self.troubles.retry(what)
    }
}

impl Troubles {
    /// `what` is tried, as a person would call it.
    pub(crate) fn retry(&self, what: impl Into<String>) -> Retry {
        Retry { what: what.into(), troubles: self.clone(), longest: LONGEST, failing: None }
    }
}

impl Retry {
    /// It is tried at least this often.
    #[must_use]
    pub fn within(mut self, longest: Duration) -> Self {
        self.longest = longest;
        self
    }

    /// An attempt failed; answers how long to wait before the next one.
    pub fn failed(&mut self, error: &dyn Display) -> Duration {
        self.failed_at(error, Instant::now())
    }

    fn failed_at(&mut self, error: &dyn Display, now: Instant) -> Duration {
        let mut open = self.troubles.open();
        let (number, began, said) = self.failing.get_or_insert_with(|| {
            open.next += 1;
            (open.next, now, false)
        });
        open.met.entry(*number).or_insert_with(|| Met::new(&self.what, now)).again(error, now);
        let lasts = now.saturating_duration_since(*began);
        if lasts >= LASTING && !std::mem::replace(said, true) {
            tracing::warn!(what = self.what, %error, "fails: trying again until it succeeds");
        }
        (lasts / 2).clamp(FIRST, self.longest.max(FIRST))
    }

    /// The last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// An attempt failed; waits until the next one is due.
    pub fn wait(&mut self, error: &dyn Display) -> Sleep {
        sleep(self.failed(error))
    }

    /// It succeeded.
    pub fn over(&mut self) {
        let Some((number, began, said)) = self.failing.take() else { return };
        self.troubles.open().met.remove(&number);
        if said {
            tracing::info!(what = self.what, after_ms = began.elapsed().as_millis() as u64, "succeeds again");
        }
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        if let Some((number, ..)) = self.failing.take() {
            self.troubles.open().met.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_for_long_is_stated_until_it_succeeds() {
        let (troubles, start) = (Troubles::default(), Instant::now());
        let mut retry = troubles.retry("source stream KV_users");
        let at = |ms| start + Duration::from_millis(ms);
        let mut now = 0;
        let mut waits = Vec::new();
        while now < 60_000 {
            waits.push(retry.failed_at(&"no such stream", at(now)));
            let stated = troubles.list(at(now));
            assert_eq!(stated.len(), usize::from(now >= 1_000), "after {now} ms");
            now += waits.last().unwrap().as_millis() as u64;
        }
        assert!(waits.is_sorted() && waits[0] == FIRST && waits.last() == Some(&LONGEST), "{waits:?}");
        assert!(waits.len() < 50, "{waits:?}");
        let stated = troubles.list(at(now)).pop().unwrap();
        assert_eq!((stated.what.as_str(), stated.error.as_str()), ("source stream KV_users", "no such stream"));
        assert_eq!(stated.times, waits.len() as u64);
        retry.over();
        assert_eq!(troubles.list(at(now)), []);
        assert_eq!(retry.failed_at(&"again", at(now)), FIRST);
        retry.failed_at(&"again", at(now + 2_000));
        assert_eq!(troubles.list(at(now)).len(), 1);
        drop(retry);
        assert_eq!(troubles.list(at(now)), [], "nobody tries it any more");
    }

    #[test]
    fn what_happened_is_stated_for_a_while_and_the_list_has_a_limit() {
        let (troubles, start) = (Troubles::default(), Instant::now());
        let at = |secs| start + Duration::from_secs(secs);
        troubles.happened("subscription", &"messages were dropped", at(0));
        troubles.happened("subscription", &"messages were dropped again", at(10));
        let stated = troubles.list(at(39));
        assert_eq!((stated[0].times, stated[0].error.as_str()), (2, "messages were dropped again"));
        assert_eq!(troubles.list(at(40)), []);
        troubles.incident("lane", &"it panicked", at(0));
        assert_eq!(troubles.list(at(599)).len(), 1);
        assert_eq!(troubles.list(at(600)), []);
        for n in 0..=MOST_HAPPENED {
            troubles.incident(&format!("lane {n:02}"), &"it panicked", at(n as u64));
        }
        assert_eq!(troubles.open().happened.len(), MOST_HAPPENED);
        assert_eq!(troubles.list(at(70))[0].what, "lane 01", "the oldest gave way");
        assert_eq!(troubles.list(at(700)), []);
        let mut many: Vec<Retry> = (0..100).map(|n| troubles.retry(n.to_string())).collect();
        for retry in &mut many {
            retry.failed_at(&"x".repeat(1_000), at(50));
            retry.failed_at(&"x".repeat(1_000), at(52));
        }
        let stated = troubles.list(at(52));
        assert!(stated.len() == MOST_TROUBLES && stated[0].error.len() == MOST_WORDS);
    }
}
