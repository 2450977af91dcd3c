//! The question for the source's state that is under way.

use super::{ASK_FAR, End, NEAR, SILENCE, Task, removed::ServerClock};
use crate::{cover::Question, verify};
use highwater_bus::{Bus, BusError, StreamState, fault, supervise};
use highwater_schemas::{
    Position,
    lane::Chunk,
    timestamp::{Asked, Wants},
    wire::KeyVersions,
};
use std::time::{Duration, Instant};

/// How long a leader may lag behind what was read before the source is compared.
const LAGS: Duration = Duration::from_millis(500);
/// A question that failed is asked again after this.
const AGAIN: Duration = Duration::from_millis(200);

pub(super) struct Asking {
    pub(super) question: Question,
    pub(super) staged: Option<u64>,
    pub(super) wants: Wants,
    pub(super) answer: supervise::Task<Answer>,
}

pub(super) struct Answer {
    pub(super) state: Result<StreamState, BusError>,
    /// Where the reader was when it was asked.
    pub(super) position: u64,
    /// Asked of the store after the state: no message is above the position.
    pub(super) nothing_above: bool,
}

/// Waits for the question under way; for ever when there is none.
pub(super) async fn answered(asking: &mut Option<Asking>) -> (Asking, Option<Answer>) {
    match asking {
        Some(under_way) => {
            let answer = (&mut under_way.answer).await.done().ok();
            match asking.take() {
                Some(done) => (done, answer),
                None => std::future::pending().await,
            }
        }
        None => std::future::pending().await,
    }
}

/// Whether the store has no message above a position, asked of it after `state`. Another leader may not have yet what that one had.
pub(super) async fn nothing_is_above(bus: &Bus, stream: &str, state: &StreamState, position: u64) -> bool {
    if !matches!(bus.next_message(stream, position + 1).await, Ok(None)) {
        return false;
    }
    if !state.replicated {
        return true;
    }
    let still = |now: StreamState| now.leader == state.leader && now.created == state.created;
    bus.stream_state(stream).await.is_ok_and(still)
}

impl Task {
    /// A catalog wants to know what the stream is after now.
    pub(super) fn want(&mut self, want: Asked) {
        self.waiting.note(want);
    }

    /// Asks at once near the end or for a want, now and then while far behind.
    pub(super) fn ask_if_needed(&mut self) {
        let open = self.cover.needs_answer()
            && (self.pending < NEAR || self.asked_at.is_none_or(|at| at.elapsed() >= ASK_FAR));
        if open || !self.waiting.is_empty() || self.removals.needs_answer() {
            self.ask();
        }
    }

    pub(super) fn ask(&mut self) {
        if self.asking.is_some() {
            return;
        }
        let (bus, stream) = (self.bus.clone(), self.assignment.stream.clone());
        let what = format!("asking about source stream {stream}");
        let (position, silent) = (self.cover.position(), self.read_at.elapsed() >= SILENCE);
        let open = self.offering.batches.is_open() || self.offering.is_unknown();
        let answer = supervise::task(&self.bus.incidents(), what, async move {
            fault("question", &stream);
            let state = bus.stream_state(&stream).await;
            let ahead = state.as_ref().is_ok_and(|s| s.last_seq > position || open && s.last_seq == position);
            let nothing_above = match &state {
                Ok(state) if ahead && silent => nothing_is_above(&bus, &stream, state, position).await,
                _ => false,
            };
            Answer { state, position, nothing_above }
        });
        self.asking = Some(Asking {
            question: self.cover.question(),
            staged: self.removals.question(),
            wants: std::mem::take(&mut self.waiting),
            answer,
        });
        self.asked_at = Some(Instant::now());
    }

    /// The leader has less than another replica has sent. It is asked again for up to [`LAGS`], then the source is compared.
    async fn lags(&mut self) -> Result<(), End> {
        let since = *self.lags_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= LAGS {
            return self.contradicted("the source's leader has less than was read").await;
        }
        tokio::time::sleep(LAGS / 2).await;
        self.ask();
        Ok(())
    }

    /// The stream's state after a question was taken: what it shows, and whom it answers.
    pub(super) async fn answer(&mut self, (asking, answer): (Asking, Option<Answer>)) -> Result<(), End> {
        let Some(Answer { state: Ok(state), position, nothing_above }) = answer else {
            // Asked again at the next occasion; the wants are kept. Another leader may answer then.
            self.lags_since = None;
            asking.wants.into_iter().for_each(|want| self.want(want));
            tokio::time::sleep(AGAIN).await;
            return Ok(());
        };
        let source = verify::source(&self.bus, &state);
        self.clock = Some(ServerClock::of(&state));
        let known_last = self.source_last.max(self.assignment.from.seqno);
        let begins_lower = state.first_seq < self.first_seq;
        let shorter = state.last_seq < known_last.max(position) || begins_lower;
        // A session has nothing that it could compare the source with: it gives a leader time to take in what others have.
        let waits = state.replicated && (!self.live() || state.last_seq >= known_last && !begins_lower);
        let contradicts = state.created != self.created || shorter && !waits;
        let another = source != self.source && self.source != 0;
        if contradicts || another || shorter {
            // What it says may be of a leader that has yet to take in what was read: it answers nobody, and is asked again.
            asking.wants.into_iter().for_each(|want| self.want(want));
            if contradicts {
                let why = format!("the source goes from {} to {} now", state.first_seq, state.last_seq);
                return self.contradicted(&why).await;
            }
            if another {
                self.lags_since = None;
                self.restarted().await?;
                // A live task has it from the comparison.
                if !self.live() {
                    self.source = source;
                }
                return Ok(());
            }
            return self.lags().await;
        }
        self.lags_since = None;
        self.source = source;
        self.first_seq = state.first_seq;
        if self.listing {
            return Ok(());
        }
        self.source_last = state.last_seq;
        self.look_for_removals(&state, asking.staged);
        self.cover.answer(asking.question, state.last_seq);
        self.look_at_doubt();
        let nothing_above = nothing_above && position == self.cover.position();
        let above = nothing_above && state.last_seq > position;
        if above && self.cover.nothing_more(asking.question, state.last_seq) {
            // What lay above was removed.
            self.recent.pass(self.cover.position());
            self.holds(self.cover.position());
            self.last_message = (state.last_time, 0);
            self.offering.passed(self.last_message);
            self.send(KeyVersions::default(), true, false).await?;
        }
        let position = self.cover.position();
        if nothing_above && state.last_seq == position {
            self.offering.nothing_follows();
        }
        if nothing_above
            && state.last_seq == position
            && self.offering.batches.nothing_follows(position, self.began.elapsed())
        {
            let (bucket, vb) = (&self.assignment.bucket, self.assignment.vb);
            tracing::info!(bucket, vb, position, "the end of an atomic batch is not in the source");
            self.cover.batch_is_over();
            self.offering.passed(self.last_message);
        }
        // What was sent before the server restarted may not be what is there.
        let answered = if self.doubt.is_some() || self.took_older { &mut self.doubted } else { &mut self.answered };
        asking.wants.into_iter().for_each(|want| answered.note(want));
        let chunk = Chunk::Covered {
            to: Position::new(self.cover.position(), self.round),
            covered: self.covered(),
            asked: self.answered.list().to_vec(),
            source_last: self.source_last,
            offer: self.offer(),
        };
        self.put(chunk).await?;
        self.put_removals().await
    }
}
