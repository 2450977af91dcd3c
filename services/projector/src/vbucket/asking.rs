//! The question for the source's state that is under way.

use super::{ASK_FAR, NEAR, SILENCE, Task};
use crate::cover::Question;
use highwater_bus::{BusError, StreamState, fault, supervise};
use highwater_schemas::timestamp::{Asked, Wants};
use std::time::Instant;

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
        let answer = supervise::task(&self.bus.incidents(), what, async move {
            fault("question", &stream);
            let state = bus.stream_state(&stream).await;
            let ahead = state.as_ref().is_ok_and(|s| s.last_seq > position);
            let nothing_above = ahead && silent && matches!(bus.next_message(&stream, position + 1).await, Ok(None));
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
}
