//! Removals without a message: what the task puts into its chain, and when it asks for a reconcile.

use super::{End, Task};
use highwater_bus::{Bus, BusError, StreamState};
use highwater_schemas::{
    lane::{Chunk, LaneTarget},
    wire::{KeyVersions, Removal},
};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
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

/// How long a delete marker is there to be read at least.
pub(super) fn marker_life(state: Option<&StreamState>) -> Duration {
    state.and_then(|state| state.marker_life).map_or(MARKER_LIFE, |life| life.min(MARKER_LIFE))
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
) -> Result<bool, BusError> {
    if state.marker_life.is_none_or(|life| life >= MARKER_LIFE) || seqno == 0 || state.last_seq <= seqno {
        return Ok(true);
    }
    let written = bus.message_at(stream, seqno).await?.map(|message| message.time);
    Ok(written.is_some_and(|written| !is_gone(state.now.saturating_sub(written), marker_life(Some(state)))))
}

/// Whether a delete marker of this age, in nanoseconds, may be gone.
fn is_gone(age: i64, life: Duration) -> bool {
    age > i64::try_from(life.as_nanos()).unwrap_or(i64::MAX)
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

    fn now(self) -> i64 {
        self.at.0.saturating_add(i64::try_from(self.at.1.elapsed().as_nanos()).unwrap_or(i64::MAX))
    }
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
        self.marker_life = marker_life(Some(state));
        if self.removals.state(state) {
            self.ask_to_reconcile("messages vanished");
        }
    }

    /// A message was read, written at that time by the server's clock: by now the delete markers of its time may be gone.
    pub(super) fn look_for_lateness(&mut self, written: i64) -> Result<(), End> {
        let age = self.clock.map_or(0, |clock| clock.now().saturating_sub(written));
        let late = is_gone(age, self.marker_life);
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
            let offer = self.offer();
            self.put(Chunk::Removed { round, removal, offer }).await?;
        }
        Ok(())
    }
}
