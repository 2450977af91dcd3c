//! Whose turn it is at a stream: what makes and what deletes it is done beside the loop, and in the order in which it was asked.

use std::collections::HashMap;
use tokio::sync::watch;

/// The last place in the queue of each stream that has one.
#[derive(Default)]
pub(crate) struct Turns {
    last: HashMap<String, watch::Receiver<()>>,
}

/// A place in the queues of some streams; dropping it makes way for the next.
pub(crate) struct Turn {
    before: Vec<watch::Receiver<()>>,
    _until: watch::Sender<()>,
}

impl Turns {
    /// Queues up at these streams. There are no more places than work under way, which others bound.
    pub(crate) fn take(&mut self, streams: &[String]) -> Turn {
        self.last.retain(|_, last| last.has_changed().is_ok());
        let (until, over) = watch::channel(());
        let before = streams.iter().filter_map(|stream| self.last.insert(stream.clone(), over.clone()));
        Turn { before: before.filter(|before| !before.same_channel(&over)).collect(), _until: until }
    }
}

impl Turn {
    /// Waits until all who came before are through.
    pub(crate) async fn come(&mut self) {
        for before in &mut self.before {
            // Nothing is ever sent: it ends with the place.
            while before.changed().await.is_ok() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::Future, pin::pin, task::Poll};

    async fn has_come(turn: &mut Turn) -> bool {
        let mut come = pin!(turn.come());
        std::future::poll_fn(|cx| Poll::Ready(come.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn streams_are_made_and_deleted_in_turn() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let mut turns = Turns::default();
        let mut deletes = turns.take(&names(&["a", "b", "a"]));
        let mut makes = turns.take(&names(&["b", "c"]));
        let mut other = turns.take(&names(&["d"]));
        let mut last = turns.take(&names(&["c"]));
        assert!(has_come(&mut deletes).await && has_come(&mut other).await);
        assert!(!has_come(&mut makes).await && !has_come(&mut last).await);
        drop(deletes);
        assert!(has_come(&mut makes).await && !has_come(&mut last).await);
        drop(makes);
        assert!(has_come(&mut last).await);
        drop((last, other));
        turns.take(&names(&["e"]));
        assert_eq!(turns.last.len(), 1, "who is through is forgotten");
    }
}
