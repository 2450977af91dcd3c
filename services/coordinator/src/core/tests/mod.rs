//! The coordinator's core, event by event, with a log that acknowledges everything.

mod lists;
mod members;
mod owners;
mod reconcile;
mod reports;
mod rollback;
mod stability;
mod streams;

use super::*;
use highwater_schemas::{
    ErrorCode, Position, StVb, StabilityTimestamp,
    api::{NodeKind, SliceReport, SliceState, Suspicion},
    definition::IndexDefinition,
    report::{Item, ReportPart, Told},
    state::{Bucket, IndexState, SliceName},
    wire::SyncVb,
};
use std::collections::VecDeque;

struct Driver {
    core: Core,
    now: u64,
    published: Vec<Stability>,
    replies: Vec<Result<Value, ApiError>>,
    /// Of the report that was told last, by whichever node.
    edition: u64,
    /// Nodes whose report was asked for.
    asked: Vec<String>,
    /// A host without room.
    refuses: Option<String>,
}

impl Driver {
    fn new() -> Self {
        Self::over(StateContext::default(), 0)
    }

    fn over(context: StateContext, now: u64) -> Self {
        let mut context = context;
        let started = context.record(Change::TermStarted { coordinator: "c".into() }, context.term + 1, 0);
        context.offer(&started.to_json()).unwrap();
        let core = Core::new(Config::new("c", 1), context, Bootstrapping::begin(now, String::new()), now);
        Self { core, now, published: Vec::new(), replies: Vec::new(), edition: 0, asked: Vec::new(), refuses: None }
    }

    fn append(&mut self, change: Change) {
        let context = self.core.context();
        let json = context.record(change, context.term, 0).to_json();
        self.core.applied(&json).unwrap();
    }

    /// An event and all that follows, with streams that can be made and hosts that have room.
    fn event(&mut self, event: Event) {
        let mut next = VecDeque::from([event]);
        while let Some(event) = next.pop_front() {
            let mut appended = false;
            for action in self.core.handle(self.now, event) {
                match action {
                    Action::Append(change) => {
                        self.append(change);
                        appended = true;
                    }
                    Action::Publish(stability) => self.published.push(stability),
                    Action::AskReport { node } => self.asked.push(node),
                    Action::Reply { answer, .. } => self.replies.push(answer),
                    Action::EnsureStreams { job, .. } => {
                        next.push_back(Event::StreamsEnsured { job, outcome: Ok(()), random: 4 });
                    }
                    Action::Assign { job, node, .. } => {
                        let outcome = match &self.refuses {
                            Some(host) if *host == node => Err(ApiError::new(ErrorCode::StorageFailed, "full")),
                            _ => Ok(()),
                        };
                        next.push_back(Event::Assigned { job, node, outcome });
                    }
                    Action::CheckTopics { term, .. } => {
                        next.push_back(Event::TopicsChecked { term, made: Ok(()), found: None });
                    }
                    Action::DeleteStreams { job, .. } => next.push_back(Event::StreamsDeleted { job }),
                    Action::PurgeSession { .. } => {}
                }
            }
            if appended || self.core.urgent {
                next.push_back(Event::Tick { random: 5 });
            }
        }
    }

    fn tick(&mut self, ms: u64) {
        self.pass(ms, &[]);
    }

    /// Time passes in which our own heartbeats come back, and those of these nodes.
    fn pass(&mut self, ms: u64, alive: &[(NodeKind, &str)]) {
        let end = self.now + ms;
        while self.now < end {
            self.now = end.min(self.now + 400);
            for (kind, node) in alive {
                self.join(*kind, node, 1, Vec::new(), None);
            }
            self.echo();
            self.event(Event::Tick { random: 5 });
        }
    }

    /// Our own heartbeat comes back.
    fn echo(&mut self) {
        let term = self.core.context().term;
        self.event(Event::Join(Join { term, ..Join::new(NodeKind::Coordinator, "c", 1) }));
    }

    fn gone(&self, kind: NodeKind, node: &str) -> bool {
        self.core.context().nodes[&(kind, node.to_owned())].gone
    }

    fn join(
        &mut self,
        kind: NodeKind,
        node: &str,
        incarnation: u64,
        slices: Vec<SliceReport>,
        applied: Option<StabilityTimestamp>,
    ) {
        // On the present branches, unless something else is said.
        let branch = self.core.context().buckets.get("b").map_or(0, Bucket::branch);
        let on = |s: SliceReport| SliceReport { branch: if s.branch == 0 { branch } else { s.branch }, ..s };
        let slices = slices.into_iter().map(on).map(|slice| Item::slice(&slice));
        let applied = applied.into_iter().map(|st| Item::Applied { bucket: "b".into(), st });
        self.report(kind, node, incarnation, applied.chain(slices).collect());
    }

    /// A heartbeat and a whole report.
    fn report(&mut self, kind: NodeKind, node: &str, incarnation: u64, items: Vec<Item>) {
        for event in self.telling(kind, node, incarnation, items) {
            self.event(event);
        }
    }

    /// The same, and nothing follows yet.
    fn told(&mut self, kind: NodeKind, node: &str, incarnation: u64, items: Vec<Item>) {
        for event in self.telling(kind, node, incarnation, items) {
            self.core.handle(self.now, event);
        }
    }

    fn telling(&mut self, kind: NodeKind, node: &str, incarnation: u64, items: Vec<Item>) -> [Event; 2] {
        let term = self.core.context().term;
        self.edition += 1;
        let report = Told { edition: self.edition, parts: 0 };
        let part = ReportPart { items, ..self.part(kind, node, incarnation, 0) };
        [Event::Join(Join { term, report, ..Join::new(kind, node, incarnation) }), Event::Report(part)]
    }

    /// An empty part of the edition that was begun last.
    fn part(&self, kind: NodeKind, node: &str, incarnation: u64, part: u64) -> ReportPart {
        let (node, term, edition) = (node.to_owned(), self.core.context().term, self.edition);
        ReportPart { node, kind, incarnation, term, edition, part, whole: part == 0, items: vec![], gone: vec![] }
    }

    fn create(&mut self, definition: &str) -> Result<Value, ApiError> {
        let definition: IndexDefinition = serde_json::from_str(definition).unwrap();
        self.event(Event::Ddl { token: 1, ddl: Ddl::IndexCreate(definition), probe: Ok(vec![4].into()), random: 3 });
        self.replies.pop().unwrap()
    }

    fn sync(&mut self, generation: u64, seqno: u64, asked: u64) {
        let asked = (asked > 0).then_some(highwater_schemas::timestamp::Asked { catalog: 1, seq: asked });
        let vbuuid = self.core.context().buckets["b"].vbuckets[0].vbuuid();
        let state = StVb {
            vbuuid,
            generation,
            position: Position::new(seqno, 0),
            covered: seqno,
            asked: asked.into_iter().collect(),
            ..StVb::default()
        };
        self.event(Event::Sync(Sync {
            bucket: "b".into(),
            vbs: vec![SyncVb { vb: 0, state, source_last: seqno, bookmark: None }],
        }));
    }

    /// One projector, one indexer, one index under construction.
    fn with_index() -> Self {
        let mut driver = Self::new();
        driver.join(NodeKind::Projector, "p", 1, Vec::new(), None);
        driver.join(NodeKind::Indexer, "i", 1, Vec::new(), None);
        driver.create(r#"{"bucket":"b","name":"x","keys":["a"]}"#).unwrap();
        driver
    }

    fn last(&self) -> &StabilityTimestamp {
        &self.published.last().unwrap().st
    }
}

fn report(state: SliceState, done_with: u64) -> SliceReport {
    let name = SliceName { index: 1, partition: 0 };
    SliceReport { done_with, resume: vec![2], ..SliceReport::new("b", name, state) }
}

#[test]
fn creating_an_index_declares_assigns_and_builds() {
    let mut d = Driver::with_index();
    let bucket = &d.core.context().buckets["b"];
    assert_eq!(bucket.indexes[&1].state, IndexState::Building);
    assert_eq!(
        (bucket.vbuckets[0].generation, bucket.vbuckets[0].restart),
        (1, 4),
        "the live chain begins at the source's end"
    );
    d.join(NodeKind::Indexer, "i", 1, vec![report(SliceState::Building, 0)], None);
    d.tick(1);
    let sessions: Vec<u64> = d.core.context().buckets["b"].sessions.keys().copied().collect();
    assert_eq!(sessions, [1], "one session, from where the slice may resume");
    assert_eq!(d.core.context().buckets["b"].sessions[&1].vbs[0].from, 2);
    d.join(NodeKind::Indexer, "i", 1, vec![report(SliceState::Active, 1)], None);
    d.tick(1);
    let bucket = &d.core.context().buckets["b"];
    assert!(bucket.sessions.is_empty() && bucket.indexes[&1].state == IndexState::Active);
}

#[test]
fn a_session_that_nobody_takes_up_is_closed() {
    let mut d = Driver::with_index();
    d.join(NodeKind::Indexer, "i", 1, vec![report(SliceState::Building, 0)], None);
    d.tick(1);
    // The slice merges while a new generation takes its session away, and before it can say so.
    d.join(NodeKind::Projector, "p", 2, Vec::new(), None);
    d.tick(1);
    let sessions: Vec<u64> = d.core.context().buckets["b"].sessions.keys().copied().collect();
    assert_eq!(sessions, [2]);
    d.join(NodeKind::Indexer, "i", 1, vec![report(SliceState::Active, 1)], None);
    d.tick(1);
    assert!(d.core.context().buckets["b"].sessions.is_empty());
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut d = Driver::with_index();
    let before = d.core.context().clone();
    for (definition, code) in [
        (r#"{"bucket":"b","name":"x","keys":["a"]}"#, ErrorCode::IndexExists),
        (r#"{"bucket":"b","name":"bad name","keys":["a"]}"#, ErrorCode::BadName),
        (r#"{"bucket":"b","name":"y","keys":["a b c"]}"#, ErrorCode::BadExpression),
        (r#"{"bucket":"b","name":"y","keys":["a"],"num_replica":1}"#, ErrorCode::NotSupported),
        (r#"{"bucket":"b","name":"y","keys":["a"],"num_partition":0}"#, ErrorCode::BadDefinition),
    ] {
        assert_eq!(d.create(definition).unwrap_err().code, code, "{definition}");
    }
    assert_eq!(*d.core.context(), before);
}

#[test]
fn without_an_indexer_no_index_is_created() {
    let mut d = Driver::new();
    assert_eq!(d.create(r#"{"bucket":"b","name":"x"}"#).unwrap_err().code, ErrorCode::NoIndexer);
    assert!(d.core.context().buckets.is_empty());
}

#[test]
fn stability_follows_sync_no_faster_than_its_interval_and_at_once_for_a_want() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    d.sync(1, 5, 0);
    d.sync(1, 6, 0);
    assert_eq!(d.published.len(), 1, "the second waits for the interval");
    d.tick(10);
    assert_eq!((d.last().number, d.last().vbs[0].position.seqno), (2, 6));
    d.now += 3;
    d.sync(1, 7, 1);
    assert_eq!((d.last().vbs[0].position.seqno, d.last().wanted), (7, true));
}

#[test]
fn sync_of_another_generation_or_going_back_counts_for_nothing() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    d.sync(1, 5, 0);
    d.now += 100;
    d.sync(9, 8, 0);
    d.sync(1, 4, 0);
    d.tick(20);
    assert_eq!(d.last().vbs[0].position.seqno, 5);
}

#[test]
fn a_restarted_projector_gets_a_new_generation_from_the_last_timestamp() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    d.sync(1, 9, 0);
    d.join(NodeKind::Projector, "p", 2, Vec::new(), None);
    let vbucket = &d.core.context().buckets["b"].vbuckets[0];
    assert_eq!((vbucket.generation, vbucket.start_of(2), vbucket.restart), (2, Some(Position::new(9, 0)), 9));
    d.now += 100;
    d.sync(1, 12, 0);
    d.tick(20);
    assert_eq!(d.last().vbs[0].position.seqno, 9, "the old generation is void");
    d.sync(2, 12, 0);
    assert_eq!((d.last().vbs[0].position.seqno, d.last().vbs[0].generation), (12, 2));
}

#[test]
fn a_busy_bus_cannot_push_the_tick_away() {
    let mut d = Driver::with_index();
    d.tick(1);
    let due = d.core.next_tick(d.now);
    for _ in 0..20 {
        d.now += 5;
        d.sync(9, 1, d.now);
    }
    assert_eq!(d.core.next_tick(d.now), d.now, "due since {due}");
}

#[test]
fn a_new_coordinator_waits_for_the_indexers_and_never_reuses_a_number() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    d.sync(1, 9, 0);
    let old = d.last().clone();
    let mut next = Driver::over(d.core.context().clone(), 0);
    next.join(NodeKind::Projector, "p", 1, Vec::new(), None);
    next.tick(20);
    next.sync(1, 9, 0);
    assert!(next.published.is_empty(), "the indexer has not reported");
    next.join(NodeKind::Indexer, "i", 1, vec![report(SliceState::Active, 0)], Some(old.clone()));
    next.sync(1, 7, 1);
    next.tick(20);
    assert!(next.published.iter().all(|s| s.st.vbs[0].position.seqno >= 9), "never below a reported one");
    next.sync(1, 10, 2);
    next.tick(20);
    assert!(next.last().number > old.number && next.last().vbs[0].position.seqno == 10);
}

#[test]
fn a_generation_has_no_timestamp_below_its_start_whoever_has_heard_of_one() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    d.sync(1, 9, 0);
    d.join(NodeKind::Projector, "p", 2, Vec::new(), None);
    let mut next = Driver::over(d.core.context().clone(), 0);
    next.join(NodeKind::Projector, "p", 2, Vec::new(), None);
    next.join(NodeKind::Indexer, "i", 1, vec![report(SliceState::Building, 0)], None);
    next.tick(20);
    next.sync(2, 7, 1);
    next.tick(20);
    assert!(next.published.is_empty(), "the chain of generation 2 counts above 9");
    next.sync(2, 9, 1);
    next.tick(20);
    assert_eq!(next.last().vbs[0].position.seqno, 9);
}

#[test]
fn a_number_whose_reservation_was_lost_is_not_used_again() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    d.sync(1, 9, 0);
    let below = d.core.context().buckets["b"].numbers_below;
    let mut next = Driver::over(d.core.context().clone(), 0);
    let applied = StabilityTimestamp { number: below + 7, ..d.last().clone() };
    next.join(NodeKind::Indexer, "i", 1, vec![report(SliceState::Active, 0)], Some(applied));
    next.join(NodeKind::Projector, "p", 1, Vec::new(), None);
    next.tick(20);
    next.sync(1, 10, 2);
    next.tick(20);
    assert!(next.last().number >= below + 7 + crate::config::NUMBER_BLOCK, "{:?}", next.last());
}

#[test]
fn who_comes_back_before_the_first_timestamp_of_a_term_is_heard() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    d.sync(1, 9, 0);
    let old = d.last().clone();
    let mut next = Driver::over(d.core.context().clone(), 0);
    // Nobody is heard of for a while.
    next.tick(2_000);
    assert!(next.gone(NodeKind::Indexer, "i") && next.gone(NodeKind::Projector, "p"));
    next.tick(20);
    next.join(NodeKind::Indexer, "i", 1, vec![report(SliceState::Active, 0)], Some(old));
    next.join(NodeKind::Projector, "p", 2, Vec::new(), None);
    next.tick(20);
    let vbucket = &next.core.context().buckets["b"].vbuckets[0];
    assert_eq!((vbucket.generation, vbucket.start_of(2)), (2, Some(Position::new(9, 0))));
}

#[test]
fn a_persistence_timestamp_enters_the_history_when_every_live_indexer_confirms_it() {
    let mut d = Driver::with_index();
    d.now = 10_000;
    d.join(NodeKind::Indexer, "i", 1, Vec::new(), None);
    d.sync(1, 9, 0);
    d.tick(20);
    let marked = d.published.iter().find(|s| s.st.persist).map(|s| s.st.number).unwrap();
    let hwt = |durable| {
        Event::HighWatermark(HighWatermark {
            bucket: "b".into(),
            node: "i".into(),
            incarnation: 1,
            hwt: Vec::new(),
            held: (0, 0),
            durable,
            queued: 0,
        })
    };
    d.event(hwt(marked - 1));
    assert!(d.core.context().buckets["b"].history.is_empty());
    d.event(hwt(marked));
    assert_eq!(d.core.context().buckets["b"].history[0].number, marked);
}

#[test]
fn a_host_without_room_ends_the_creation_and_leaves_nothing() {
    let mut d = Driver::with_index();
    d.refuses = Some("i".into());
    let refused = d.create(r#"{"bucket":"b","name":"y","keys":["a"]}"#).unwrap_err();
    assert_eq!(refused.code, ErrorCode::StorageFailed, "{refused}");
    assert!(refused.message.contains("host i"), "{refused}");
    assert!(d.core.context().buckets["b"].index_by_name("y").is_none());
    d.refuses = None;
    d.create(r#"{"bucket":"b","name":"y","keys":["a"]}"#).unwrap();
}

#[test]
fn what_was_prepared_is_finished_by_the_next_coordinator() {
    for (refuses, state) in [(None, Some(IndexState::Building)), (Some("i".to_owned()), None)] {
        let mut d = Driver::with_index();
        // The coordinator dies between the two halves.
        let definition: IndexDefinition = serde_json::from_str(r#"{"bucket":"b","name":"y","keys":["a"]}"#).unwrap();
        let placed = d.core.placed(definition, 7).unwrap();
        d.append(Change::IndexCreated { index: placed });
        let mut next = Driver::over(d.core.context().clone(), 0);
        next.refuses = refuses;
        next.join(NodeKind::Projector, "p", 1, Vec::new(), None);
        next.join(NodeKind::Indexer, "i", 1, Vec::new(), None);
        next.tick(50);
        let found = next.core.context().buckets["b"].index_by_name("y").map(|i| i.state.clone());
        assert_eq!(found, state);
    }
}

#[test]
fn vbuckets_are_spread_over_the_projectors_that_join() {
    let mut d = Driver::with_index();
    let definition: highwater_schemas::definition::BucketDefinition = serde_json::from_str(
        r#"{"name":"m","source":{"streams":[{"name":"M0"},{"name":"M1"},{"name":"M2"},{"name":"M3"}]}}"#,
    )
    .unwrap();
    d.event(Event::Ddl { token: 9, ddl: Ddl::BucketAdd(definition), probe: Ok(vec![0; 4].into()), random: 3 });
    let owners = |d: &Driver| {
        let all = d.core.context().buckets.values().flat_map(|b| &b.vbuckets);
        all.filter(|v| v.projector == "q").count()
    };
    d.tick(50);
    assert_eq!(owners(&d), 0);
    d.join(NodeKind::Projector, "q", 1, Vec::new(), None);
    // Nothing moves before its owner has spoken: where the next one begins is not known.
    d.tick(50);
    assert_eq!(owners(&d), 0);
    for turn in 0..4 {
        for vb in 0..4u16 {
            let vbucket = &d.core.context().buckets["m"].vbuckets[usize::from(vb)];
            let state = StVb { vbuuid: vbucket.vbuuid(), generation: vbucket.generation, ..StVb::default() };
            let part = SyncVb { vb, state, source_last: turn, bookmark: None };
            d.event(Event::Sync(Sync { bucket: "m".into(), vbs: vec![part] }));
        }
        d.now += 50;
        d.tick(50);
    }
    assert_eq!(owners(&d), 2, "two of five");
}

#[test]
fn messages_are_remembered_with_each_mark() {
    let mut d = Driver::with_index();
    let vbuuid = d.core.context().buckets["b"].vbuckets[0].vbuuid();
    for seqno in 1..=40 {
        let bookmark = Some(highwater_schemas::timestamp::Bookmark { seqno, ..Default::default() });
        let state = StVb { vbuuid, generation: 1, position: Position::new(4 + seqno, 0), ..StVb::default() };
        let part = SyncVb { vb: 0, state, source_last: seqno, bookmark };
        d.event(Event::Sync(Sync { bucket: "b".into(), vbs: vec![part] }));
        d.now += 10;
    }
    d.now += 6_000;
    d.tick(20);
    let kept: Vec<u64> = d.core.context().buckets["b"].vbuckets[0].bookmarks.iter().map(|b| b.seqno).collect();
    assert!(kept.len() > 4 && kept.len() <= 2 * 8, "{kept:?}");
    assert!(kept.is_sorted() && kept.last() == Some(&40), "the newest always: {kept:?}");
}
