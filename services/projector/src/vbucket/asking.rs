//! The question for the source's state that is under way.

use super::Task;
use crate::cover::Question;
use highwater_bus::{BusError, StreamState};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

pub(super) struct Asking {
    pub(super) question: Question,
    pub(super) staged: Option<u64>,
    pub(super) wants: BTreeMap<u64, u64>,
    pub(super) answer: oneshot::Receiver<Answer>,
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
            let answer = (&mut under_way.answer).await.ok();
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
    pub(super) fn want(&mut self, catalog: u64, seq: u64) {
        let newest = self.waiting.entry(catalog).or_default();
        *newest = seq.max(*newest);
    }
}
