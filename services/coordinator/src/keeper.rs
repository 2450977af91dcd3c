//! Makes records durable beside the loop, as many at once as have come meanwhile, and holds back what must not leave before.
//!
//! Others act on a record as soon as the log has it; so does who coordinates. What waits until it is durable here too is what a
//! loss of the log must not take back: answers, deletions, and the stability timestamps of numbers that were just reserved.
//! Records are written in their order, one write at a time; where [`MOST`] of them wait, or [`MOST_BYTES`], or [`MOST_HELD`]
//! actions wait for them, the loop waits too.

use crate::{
    copy::{Copy, CopyError},
    core::Action,
    manager::chain::{Linked, What},
};
use highwater_bus::{
    Incidents, fault,
    supervise::{self, Job},
};
use std::sync::Arc;

/// Records that may wait.
const MOST: u64 = 1_024;
/// Bytes of records that may wait; a single one may be larger.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// Actions that may wait: on a disk that stands still, timestamps go on being issued.
const MOST_HELD: usize = 1_024;

/// A write under way: how many records are durable after it.
type Writing = (u64, Job<Result<(), CopyError>>);

pub(crate) struct Keeper {
    copy: Arc<Copy>,
    waiting: Vec<Linked>,
    waiting_bytes: usize,
    /// Records taken, and those of them that are durable.
    taken: u64,
    durable: u64,
    /// The last one that reserved numbers.
    reserved: u64,
    writing: Option<Writing>,
    /// What waits, each with how many records must be durable before.
    held: Vec<(u64, Action)>,
    incidents: Incidents,
}

impl Keeper {
    pub(crate) fn new(copy: Copy, incidents: Incidents) -> Self {
        Self {
            copy: Arc::new(copy),
            waiting: Vec::new(),
            waiting_bytes: 0,
            taken: 0,
            durable: 0,
            reserved: 0,
            writing: None,
            held: Vec::new(),
            incidents,
        }
    }

    /// The copy itself, for when nothing waits.
    pub(crate) fn copy(&self) -> &Copy {
        &self.copy
    }

    /// Takes records behind those that are there; true when too many wait.
    pub(crate) fn keep(&mut self, records: Vec<Linked>) -> bool {
        for record in records {
            self.taken += 1;
            if record.link.what == What::NumbersReserved {
                self.reserved = self.taken;
            }
            self.waiting_bytes += record.json.len();
            self.waiting.push(record);
        }
        self.begin();
        self.taken - self.durable > MOST || self.waiting_bytes > MOST_BYTES
    }

    /// So many actions wait that the loop has to.
    pub(crate) fn is_crowded(&self) -> bool {
        self.held.len() >= MOST_HELD
    }

    fn begin(&mut self) {
        if self.writing.is_some() || self.waiting.is_empty() {
            return;
        }
        let (copy, records) = (Arc::clone(&self.copy), std::mem::take(&mut self.waiting));
        self.waiting_bytes = 0;
        let write = move || {
            fault("keep", "");
            copy.keep(&records, false)
        };
        self.writing = Some((self.taken, supervise::job(&self.incidents, "writing the copy of the log", write)));
    }

    /// Waits for the write under way; for ever when there is none. Cancel safe.
    pub(crate) async fn written(&mut self) -> Result<(), CopyError> {
        let Some((upto, task)) = &mut self.writing else { return std::future::pending().await };
        let (upto, outcome) = (*upto, task.await);
        self.writing = None;
        // A panic of the write is one of ours.
        outcome.done().map_err(std::io::Error::other)??;
        self.durable = upto;
        self.begin();
        Ok(())
    }

    /// Waits until everything that was taken is durable.
    pub(crate) async fn settle(&mut self) -> Result<(), CopyError> {
        while self.writing.is_some() {
            self.written().await?;
        }
        Ok(())
    }

    /// Hands back what can be done now; the rest comes from [`Self::released`].
    pub(crate) fn hold(&mut self, action: Action) -> Option<Action> {
        let after = match &action {
            Action::Publish(_) => self.reserved,
            // What makes streams must not overtake what deletes them.
            Action::Reply { .. }
            | Action::DeleteStreams { .. }
            | Action::EnsureStreams { .. }
            | Action::PurgeSession { .. } => self.taken,
            // What is only asked, or looked at.
            Action::Append(_) | Action::AskReport { .. } | Action::Assign { .. } | Action::CheckTopics { .. } => 0,
        };
        if after <= self.durable {
            return Some(action);
        }
        self.held.push((after, action));
        None
    }

    /// What need not wait any more, in its order.
    pub(crate) fn released(&mut self) -> Vec<Action> {
        let (free, held) = std::mem::take(&mut self.held).into_iter().partition(|(after, _)| *after <= self.durable);
        self.held = held;
        let free: Vec<(u64, Action)> = free;
        free.into_iter().map(|(_, action)| action).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{
        StabilityTimestamp,
        api::NodeKind,
        definition::BucketDefinition,
        state::{Change, StateContext},
        wire::Stability,
    };
    use serde_json::Value;

    fn append(context: &mut StateContext, change: Change) -> Linked {
        let record = Linked::from(&context.record(change, 1, 0));
        context.offer(&record.json).unwrap();
        record
    }

    fn published(number: u64) -> Action {
        let st = StabilityTimestamp { number, term: 1, wanted: false, persist: false, vbs: Vec::new() };
        Action::Publish(Stability { bucket: "b".into(), st, wanted: Vec::new() })
    }

    #[tokio::test]
    async fn the_loop_waits_where_too_much_waits_for_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(Copy::open(dir.path()).unwrap().0, Incidents::default());
        let mut context = StateContext::default();
        let join = |n: u64, of: usize| {
            let node = format!("{n}{}", "x".repeat(of));
            Change::NodeJoined { node, kind: NodeKind::Indexer, incarnation: n }
        };
        // The first one is being written from here on: nothing is taken back before somebody waits for it.
        assert!(!keeper.keep(vec![append(&mut context, join(0, 0))]));
        let large = append(&mut context, join(1, MOST_BYTES / 2));
        assert!(!keeper.keep(vec![large]), "half of what may wait");
        let large = append(&mut context, join(2, MOST_BYTES / 2));
        assert!(keeper.keep(vec![large]), "more than may wait");
        for token in 1..=MOST_HELD as u64 {
            assert!(!keeper.is_crowded());
            assert_eq!(keeper.hold(Action::Reply { token, answer: Ok(Value::Null) }), None);
        }
        assert!(keeper.is_crowded());
        keeper.settle().await.unwrap();
        assert_eq!(keeper.released().len(), MOST_HELD);
        assert!(!keeper.is_crowded() && !keeper.keep(Vec::new()));
    }

    #[tokio::test]
    async fn answers_wait_for_every_record_and_timestamps_for_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(Copy::open(dir.path()).unwrap().0, Incidents::default());
        let mut context = StateContext::default();
        let reply = |token| Action::Reply { token, answer: Ok(Value::Null) };
        assert_eq!(keeper.hold(reply(1)), Some(reply(1)), "nothing waits to be durable");

        let definition = BucketDefinition::kv("b");
        let added = Change::BucketAdded { definition, vbuuids: vec![7], starts: vec![0] };
        keeper.keep(vec![append(&mut context, added)]);
        assert_eq!(keeper.hold(reply(2)), None);
        assert_eq!(keeper.hold(published(1)), Some(published(1)), "no numbers were reserved");
        let reserved = Change::NumbersReserved { bucket: "b".into(), below: 10 };
        keeper.keep(vec![append(&mut context, reserved)]);
        assert_eq!(keeper.hold(published(2)), None);
        let joined = Change::NodeJoined { node: "n".into(), kind: NodeKind::Indexer, incarnation: 1 };
        keeper.keep(vec![append(&mut context, joined)]);
        assert_eq!(keeper.hold(reply(3)), None);
        let (deletes, makes) = (
            || Action::DeleteStreams { job: 1, streams: vec!["HW_MUTATION_b".into()] },
            || Action::EnsureStreams { job: 2, bucket: "b".into(), topic: None },
        );
        assert_eq!((keeper.hold(deletes()), keeper.hold(makes())), (None, None));
        assert_eq!(keeper.released(), []);

        keeper.written().await.unwrap();
        assert_eq!(keeper.released(), [reply(2)]);
        assert_eq!(keeper.hold(published(3)), None, "behind the one before");
        keeper.settle().await.unwrap();
        assert_eq!(keeper.released(), [published(2), reply(3), deletes(), makes(), published(3)]);
        assert_eq!(keeper.copy().newest(9, 1 << 20).unwrap().len(), 3);
        drop(keeper);
        assert_eq!(Copy::open(dir.path()).unwrap().1.context, context);
    }
}
