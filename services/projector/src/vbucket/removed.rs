//! Removals without a message: what the task puts into its chain, and when it asks for a reconcile.

use super::{End, Task, vanished::expires_silently};
use crate::expiries::Expiries;
use highwater_bus::{Bus, BusError, StreamState};
use highwater_schemas::{
    lane::{Chunk, LaneTarget},
    wire::{KeyVersions, Removal},
};
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Delete markers live this long where clients purge them; the stream may let them go sooner.
const MARKER_LIFE: Duration = Duration::from_secs(30 * 60);

/// Revisions may be hidden that a restarted server had acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frozen {
    /// Nothing above counts as covered.
    pub(super) at: u64,
    /// Until a reconcile with a higher number is in the chain.
    after: u64,
}

/// How long a delete marker is there to be read at least; `shortest`: of those that say so themselves.
pub(super) fn marker_life(state: Option<&StreamState>, shortest: Duration) -> Duration {
    state.and_then(|state| state.marker_life).unwrap_or(MARKER_LIFE).min(shortest).min(MARKER_LIFE)
}

/// The reason for which a session that brings what was missed is replaced by one that compares.
pub(super) const UNREAD_MARKERS: &str = "delete markers may have gone unread";

/// Whether every delete marker above `seqno` is still in a stream whose state this is, as far as can be told before it is read:
/// where the stream lets markers go early, the message at `seqno` must be there and younger than they become. Judged by the
/// server's clock alone.
pub(super) async fn has_markers_above(
    bus: &Bus,
    stream: &str,
    seqno: u64,
    state: &StreamState,
    shortest: Duration,
) -> Result<bool, BusError> {
    let life = marker_life(Some(state), shortest);
    if keeps_markers_above(seqno, state, life) {
        return Ok(true);
    }
    let written = bus.message_at(stream, seqno).await?.map(|message| message.time);
    Ok(written.is_some_and(|written| !ServerClock::of(state).is_past(written, life)))
}

/// Whether no marker above can be gone, whenever it was written: they live long, or there are none.
fn keeps_markers_above(seqno: u64, state: &StreamState, life: Duration) -> bool {
    life >= MARKER_LIFE || seqno == 0 || state.last_seq <= seqno
}

/// The server's clock: our own may differ from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerClock {
    /// Nanoseconds since the epoch, and when it was that.
    at: (i64, Instant),
}

impl ServerClock {
    /// As it was when the stream's state was asked for. A server that does not say was at its last message or later.
    pub(super) fn of(state: &StreamState) -> Self {
        Self { at: (state.now.max(state.last_time), Instant::now()) }
    }

    pub(super) fn now(self) -> i64 {
        self.at.0.saturating_add(nanos(self.at.1.elapsed()))
    }

    /// Whether a delete marker that was written then, and lives so long, may be gone.
    fn is_past(self, written: i64, life: Duration) -> bool {
        self.now().saturating_sub(written) >= nanos(life)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// What the tasks of a vbucket know together.
#[derive(Debug, Default)]
pub(crate) struct KnownToAll {
    /// The highest seqno that this process has read.
    pub(crate) held: AtomicU64,
    /// A reconcile is asked for with this number, or a higher one; 0: none is.
    pub(crate) reconcile_after: AtomicU64,
    /// What is covered stands still until then.
    pub(crate) frozen: AtomicBool,
    /// Documents wait to be named in a reconcile with this number, or a higher one; 0: none do.
    names_after: AtomicU64,
    /// Requests to remove messages came faster than they were looked into.
    pub(crate) missed_hints: AtomicBool,
    expiries: Mutex<Expiries>,
    /// Seconds that the delete marker lives which lives shortest, of those that were read and say so; 0: none did.
    marker_seconds: AtomicU32,
}

impl KnownToAll {
    /// Remembers so many bytes of when documents expire.
    pub(crate) fn new(expiries: usize) -> Self {
        Self { expiries: Mutex::new(Expiries::new(expiries)), ..Self::default() }
    }

    pub(super) fn expiries(&self) -> MutexGuard<'_, Expiries> {
        self.expiries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A delete marker was read that lives so many seconds; 0: it does not say.
    pub(super) fn marker_lives(&self, seconds: u32) {
        if seconds > 0 {
            let less = |known| (known == 0 || seconds < known).then_some(seconds);
            // It stays where it lives as long, or longer.
            let _ = self.marker_seconds.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// How long the delete markers live at least that say so themselves.
    pub(super) fn shortest_marker(&self) -> Duration {
        match self.marker_seconds.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            seconds => Duration::from_secs(seconds.into()),
        }
    }

    /// The newest reconcile that is not enough for the documents that wait to be named, if any do.
    pub(crate) fn named_after(&self) -> Option<u64> {
        self.names_after.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Documents wait to be named in a reconcile above this one, or none do. While one is `under_way`, those that waited before it are
    /// named in it.
    pub(super) fn names_wait(&self, after: Option<u64>, under_way: bool) {
        match after {
            None => self.names_after.store(0, Ordering::Relaxed),
            Some(_) if under_way && self.named_after().is_some() => {}
            // One more than the number: 0 says that none waits.
            Some(after) => self.names_after.store(after + 1, Ordering::Relaxed),
        }
    }
}

impl Task {
    pub(super) fn live(&self) -> bool {
        self.assignment.target == LaneTarget::Mutation
    }

    /// The stream's state was read, after this question was taken.
    pub(super) fn look_for_removals(&mut self, state: &StreamState, question: Option<u64>) {
        if !self.live() {
            return;
        }
        self.removals.answer(question, state.last_seq);
        self.marker_life = marker_life(Some(state), self.assignment.known_to_all.shortest_marker());
        self.expires_silently = expires_silently(state);
        self.max_per_subject = state.max_messages_per_subject;
        self.removals.state(state);
    }

    /// A message was read, written at that time by the server's clock: by now the delete markers of its time may be gone.
    pub(super) fn look_for_lateness(&mut self, written: i64) -> Result<(), End> {
        let late = self.clock.is_some_and(|clock| clock.is_past(written, self.marker_life));
        let first = late && !std::mem::replace(&mut self.late, late);
        if first && self.assignment.recovers {
            return Err(End::Broken(UNREAD_MARKERS.into()));
        }
        if first && self.live() {
            self.ask_to_reconcile(UNREAD_MARKERS);
        }
        Ok(())
    }

    /// Has the slices compared with the source, after now.
    pub(super) fn ask_to_reconcile(&mut self, why: &str) {
        let after = self.plan.borrow().newest_reconcile;
        let known = &self.assignment.known_to_all;
        // One more than the number: 0 says that nothing is asked for.
        if known.reconcile_after.fetch_max(after + 1, Ordering::Relaxed) <= after {
            let (bucket, vb) = (&self.assignment.bucket, self.assignment.vb);
            tracing::info!(bucket, vb, why, "asking for a reconcile");
        }
    }

    /// What is hidden or overwritten now may have been lost by the server: what follows counts as covered once a reconcile that
    /// begins after now is in the chain.
    pub(super) fn freeze(&mut self) {
        let at = self.covered();
        self.frozen = Some(Frozen { at, after: self.plan.borrow().newest_reconcile });
        self.assignment.known_to_all.frozen.store(true, Ordering::Relaxed);
        self.ask_to_reconcile("the server restarted while revisions were hidden or overwritten");
    }

    /// Puts into the chain what is due.
    pub(super) async fn put_removals(&mut self) -> Result<(), End> {
        while let Some(removal) = self.removals.due(self.cover.covered()) {
            // The round begins where the reader is.
            self.send(KeyVersions::default(), true, true).await?;
            self.round += 1;
            if let Removal::Listed { session, .. } = removal
                && self.frozen.is_some_and(|frozen| session > frozen.after)
            {
                self.frozen = None;
                self.assignment.known_to_all.frozen.store(false, Ordering::Relaxed);
            }
            let (bucket, vb, round) = (&self.assignment.bucket, self.assignment.vb, self.round);
            tracing::debug!(bucket, vb, round, ?removal, "documents vanished without a message");
            self.round_begins();
            let versions = match removal {
                Removal::Named { .. } => self.name_vanished(),
                _ => KeyVersions::default(),
            };
            let offer = self.offer();
            self.put(Chunk::Removed { round, removal, versions, offer }).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One nanosecond less than [`MARKER_LIFE`].
    const JUST_BELOW: Duration = Duration::from_nanos(30 * 60 * 1_000_000_000 - 1);
    const NANO: Duration = Duration::from_nanos(1);
    const SECOND: Duration = Duration::from_secs(1);
    /// Nanoseconds.
    const YEAR: i64 = 365 * 24 * 3_600 * 1_000_000_000;

    fn state(last_seq: u64, life: Option<Duration>) -> StreamState {
        StreamState { last_seq, marker_life: life, ..StreamState::default() }
    }

    /// A clock that shows this time for the next hour.
    fn standing(now: i64) -> ServerClock {
        ServerClock { at: (now, Instant::now() + Duration::from_secs(3_600)) }
    }

    #[test]
    fn markers_live_as_long_as_the_bucket_says_but_for_the_limit() {
        for (set, life) in [
            (None, MARKER_LIFE),
            (Some(NANO), NANO),
            (Some(SECOND), SECOND),
            (Some(JUST_BELOW), JUST_BELOW),
            (Some(MARKER_LIFE), MARKER_LIFE),
            (Some(MARKER_LIFE + NANO), MARKER_LIFE),
            (Some(Duration::MAX), MARKER_LIFE),
        ] {
            assert_eq!(marker_life(Some(&state(9, set)), Duration::MAX), life, "{set:?}");
            assert_eq!(marker_life(Some(&state(9, set)), SECOND), life.min(SECOND), "{set:?}");
        }
        assert_eq!(marker_life(None, Duration::MAX), MARKER_LIFE, "the stream's state is not known");
    }

    #[test]
    fn a_marker_that_says_how_long_it_lives_counts_for_all_that_were_not_read() {
        let known = KnownToAll::default();
        for (read, shortest) in [(0, Duration::MAX), (9, SECOND * 9), (20, SECOND * 9), (0, SECOND * 9), (1, SECOND)] {
            known.marker_lives(read);
            assert_eq!(known.shortest_marker(), shortest, "{read}");
        }
    }

    #[test]
    fn a_marker_may_be_gone_once_it_has_lived_as_long() {
        let written = 55 * YEAR;
        for life in [Duration::from_millis(1), SECOND, JUST_BELOW, MARKER_LIFE] {
            let milli = 1_000_000;
            for (beyond, gone) in [(-milli, false), (-1, false), (0, true), (1, true), (milli, true)] {
                let clock = standing(written + nanos(life) + beyond);
                assert_eq!(clock.is_past(written, life), gone, "{life:?} and {beyond} ns");
            }
        }
        assert!(!standing(written).is_past(written + YEAR, NANO), "another leader's clock was ahead");
        assert!(standing(i64::MAX).is_past(i64::MIN, MARKER_LIFE) && !standing(i64::MIN).is_past(i64::MAX, NANO));
    }

    #[test]
    fn the_lifetime_of_this_bucket_decides_and_not_that_of_others() {
        let (written, age) = (55 * YEAR, nanos(SECOND * 60));
        for (set, gone) in [(Some(SECOND), true), (Some(SECOND * 61), false), (None, false)] {
            let life = marker_life(Some(&state(9, set)), Duration::MAX);
            assert_eq!(standing(written + age).is_past(written, life), gone, "{set:?}");
        }
    }

    #[test]
    fn the_servers_time_is_compared_with_the_servers_time() {
        // Its clock shows another century than ours.
        for now in [YEAR, 200 * YEAR] {
            let said = StreamState { now, last_time: now - nanos(SECOND), ..StreamState::default() };
            let clock = ServerClock::of(&said);
            assert!(clock.is_past(now - nanos(MARKER_LIFE), MARKER_LIFE), "{now}");
            assert!(!clock.is_past(now - nanos(SECOND), MARKER_LIFE), "{now}");
        }
        // It does not say what time it is: not before its last message.
        let silent = StreamState { now: 0, last_time: 55 * YEAR, ..StreamState::default() };
        assert!(ServerClock::of(&silent).is_past(55 * YEAR - nanos(SECOND), SECOND));
    }

    #[test]
    fn the_servers_clock_goes_on_between_its_answers() {
        let since = Instant::now();
        let clock = ServerClock { at: (7, since) };
        let shown = clock.now();
        assert!((7..=7 + nanos(since.elapsed())).contains(&shown), "{shown}");
        let answered = Instant::now().checked_sub(SECOND * 2);
        let clock = answered.map(|answered| ServerClock { at: (7, answered) });
        assert!(clock.is_none_or(|clock| clock.is_past(7, SECOND * 2) && !clock.is_past(7, MARKER_LIFE)));
    }

    #[test]
    fn without_early_ends_of_markers_or_messages_above_nothing_can_be_missing() {
        for (seqno, last_seq, set, keeps) in [
            (4, 9, None, true),
            (4, 9, Some(MARKER_LIFE), true),
            (4, 9, Some(JUST_BELOW), false),
            (4, 9, Some(SECOND), false),
            (0, 9, Some(SECOND), true),
            (9, 9, Some(SECOND), true),
            (8, 9, Some(SECOND), false),
        ] {
            let life = marker_life(Some(&state(last_seq, set)), Duration::MAX);
            assert_eq!(
                keeps_markers_above(seqno, &state(last_seq, set), life),
                keeps,
                "{seqno} of {last_seq}, {set:?}"
            );
        }
    }
}
