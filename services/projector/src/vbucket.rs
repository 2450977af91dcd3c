//! One vbucket of one generation, or of one session: reads the source, evaluates, hands the key versions to its lane.
//!
//! The task knows the source's last sequence only by asking (`STREAM.INFO`, one request under way at a time). An answer serves
//! three ends at once: it closes holes ([`Cover`]), it answers the wants that came before it was asked, and it shows a source
//! that went back. With nothing to read and a last sequence ahead, the store is asked for the next message: if there is none,
//! the last ones were removed and the position rises over them. (A consumer's own count of pending messages may lag behind an
//! acknowledged write: it proves nothing.)

mod asking;
mod assignment;
mod listing;
mod offering;
mod removed;
mod trust;
mod vanished;

use crate::{
    cover::Cover,
    docid::Docid,
    evaluate::Evaluator,
    pump::{self, Pumped},
    recent::{self, Recent},
    removals::Removals,
    vanished::Vanished,
    verify,
};
use asking::{Asking, answered};
pub(crate) use assignment::{Assignment, Durable, End, Inbox, Plan, WANTS};
use highwater_bus::{Bus, Meaning, Operation, ReadFrom, StreamMessage, fault};
use highwater_schemas::{
    Position,
    api::UnknownOperation,
    lane::{self, Chunk, LaneTarget, OpenLane, Routes},
    timestamp::{Asked, Bookmark, Wants},
    wire::{DocOp, KeyVersions, Unindexable},
};
use offering::Offering;
pub(crate) use removed::KnownToAll;
use removed::{Frozen, ServerClock};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
pub(crate) use vanished::{HINTS, Hint, purge};
use vanished::{Looking, looked_up};

/// While reading far behind the source's end, holes are asked about this often at most.
const ASK_FAR: Duration = Duration::from_millis(20);
/// This close to the end, messages, holes are asked about at once.
const NEAR: u64 = 4_096;
/// The source is looked at this often when nothing happens.
const POLL: Duration = Duration::from_secs(1);
/// An answer that shows the source ahead is checked against the consumer after this silence.
const SILENCE: Duration = Duration::from_millis(5);
/// Key versions of one chunk, bytes: the last document may go beyond it.
const CHUNK_BYTES: usize = 128 * 1024;
/// Slices in step have taken up a session after this time, mostly; those that have not give it up.
const LIST_AFTER: Duration = Duration::from_millis(250);
/// How soon another server is noticed.
const LOOK: Duration = Duration::from_millis(50);

/// Runs until aborted, or until the source or its lane ends it.
pub(crate) async fn run(bus: Bus, assignment: Assignment, inbox: Inbox, lanes: mpsc::Sender<OpenLane>) -> End {
    let Inbox { plan, wants, hints } = inbox;
    let live = assignment.target == LaneTarget::Mutation;
    let proven = if live { Some(trust::verified(&bus, &assignment, &assignment.known, None).await) } else { None };
    let proven = match proven.transpose() {
        Ok(proven) => proven.map(|proven| proven.source),
        Err(suspected) => return End::Suspected(suspected),
    };
    if assignment.ends_listed {
        // The slices must have taken up the session before anything is written that the list does not know.
        tokio::time::sleep(LIST_AFTER).await;
    }
    let before = if live { recent::BEFORE } else { 0 };
    let after = assignment.from.seqno.saturating_sub(before);
    let from =
        ReadFrom { after, lists: assignment.lists, apart: !live, paced: assignment.ends_listed, ..ReadFrom::default() };
    let mut pump = pump::Running::start(&bus, &assignment.stream, from);
    let created = match pump.pumped.recv().await {
        Some(Pumped::Opened { created }) => created,
        Some(Pumped::Changed(why)) if !live => return End::Broken(why),
        // Looked at again from the beginning.
        _ => return End::Again,
    };
    let server = bus.server_id();
    let state = bus.stream_state(&assignment.stream).await.ok();
    let source = state.as_ref().map_or(0, |state| verify::source(&bus, state));
    if proven.is_some_and(|proven| proven != source) {
        // The server restarted meanwhile: what was compared may be lost.
        return End::Again;
    }
    if assignment.recovers {
        let Some(state) = &state else { return End::Again };
        let shortest = assignment.known_to_all.shortest_marker();
        match removed::has_markers_above(&bus, &assignment.stream, assignment.from.seqno, state, shortest).await {
            Ok(true) => {}
            Ok(false) => return End::Broken(removed::UNREAD_MARKERS.into()),
            Err(_) => return End::Again,
        }
    }
    let (lane, taken) = mpsc::channel(lane::capacity(bus.readers()));
    let input = lane.clone();
    let open = OpenLane {
        bucket: assignment.bucket.clone(),
        vb: assignment.vb,
        vbuuid: assignment.vbuuid,
        generation: assignment.generation,
        target: assignment.target.clone(),
        from: assignment.from,
        dropped: assignment.dropped,
        created,
        input: taken,
    };
    if lanes.send(open).await.is_err() {
        return End::Again;
    }
    let mut marks = assignment.known.bookmarks.clone();
    let mut bookmark = None;
    if live && assignment.from.seqno > marks.last().map_or(0, |last| last.seqno) {
        // What sessions read below the live chain is proven by what stands where that begins.
        bookmark = match bus.message_at(&assignment.stream, assignment.from.seqno).await {
            Ok(Some(message)) => Some(verify::bookmark(&message, source)),
            Ok(None) => None,
            Err(_) => return End::Again,
        };
        marks.extend(bookmark.clone());
    }
    let mut cover = Cover::new(assignment.from.seqno);
    if live {
        // Another task may have begun to read what made up for a loss.
        cover.doubt(u64::MAX);
    }
    // Where documents vanish by themselves, what is left of what was read before says little.
    let expires = state.as_ref().is_none_or(|state| state.expires || state.marker_life.is_some());
    let remembered = if expires { assignment.from.seqno } else { after };
    let expires_silently = state.as_ref().is_some_and(vanished::expires_silently);
    // What vanished while nobody read, or was known to the task before, nothing tells this one.
    let missed = live && assignment.generation > 1;
    let routes = Arc::clone(&plan.borrow().routes);
    let evaluator = Evaluator::with_max_document(&plan.borrow().indexes, assignment.max_document);
    let mut task = Task {
        cover,
        offering: Offering::new(assignment.from.seqno),
        removals: Removals::new(assignment.dropped, assignment.generation == 1),
        vanished: Vanished::default(),
        looking: None,
        compare_at: None,
        compare_again: None,
        missing_since: None,
        explained_at: None,
        expires_silently,
        max_per_subject: state.as_ref().map_or(0, |state| state.max_messages_per_subject),
        plan,
        frozen: None,
        asked_for: 0,
        late: false,
        marker_life: removed::marker_life(state.as_ref(), assignment.known_to_all.shortest_marker()),
        clock: state.as_ref().map(ServerClock::of),
        round: assignment.from.round,
        created,
        routes,
        evaluator,
        lane,
        bus,
        source_last: 0,
        last_message: (0, 0),
        bookmark,
        unknown_operation: false,
        marks,
        recent: Recent::new(remembered, state.as_ref().map_or(u64::MAX, |state| state.last_seq), assignment.remembers),
        doubt: None,
        compared: None,
        took_older: false,
        doubted: Wants::default(),
        source,
        server,
        first_seq: 0,
        listing: assignment.lists,
        list_end: None,
        restarts: 0,
        asking: None,
        asked_at: None,
        lags_since: None,
        waiting: Wants::default(),
        answered: Wants::default(),
        pending: 0,
        read_at: Instant::now(),
        began: Instant::now(),
        assignment,
    };
    if missed {
        task.ask_to_reconcile("another projector, or another start of it, has read the source before");
    }
    let (end, pump) = task.run(pump, wants, hints).await;
    if end != End::Again {
        return end;
    }
    let crashed = pump.has_panicked().await;
    if input.is_closed() || crashed {
        End::Crashed
    } else if live {
        // What was sent of the chain must not be sent again with other content.
        End::Lost
    } else {
        End::Broken("its reader has ended".into())
    }
}

struct Task {
    assignment: Assignment,
    bus: Bus,
    lane: mpsc::Sender<Chunk>,
    cover: Cover,
    offering: Offering,
    plan: watch::Receiver<Arc<Plan>>,
    removals: Removals,
    vanished: Vanished,
    looking: Option<Looking>,
    /// All documents are to be compared then, and once more then: what is asked for may not be done yet.
    compare_at: Option<Instant>,
    compare_again: Option<Instant>,
    /// Since when messages are missing that nothing explains.
    missing_since: Option<Instant>,
    /// When something was known last that explains what is missing.
    explained_at: Option<Instant>,
    /// The stream removes what has lived long enough, and leaves nothing in its place.
    expires_silently: bool,
    max_per_subject: i64,
    frozen: Option<Frozen>,
    /// The run of the server for which a reconcile was asked last.
    asked_for: u64,
    /// It read messages whose delete markers may be gone.
    late: bool,
    marker_life: Duration,
    /// As it was told last.
    clock: Option<ServerClock>,
    round: u64,
    created: i64,
    routes: Arc<Routes>,
    evaluator: Evaluator,
    source_last: u64,
    /// Time and hash of the last message.
    last_message: (i64, u64),
    /// The last message, not yet handed on.
    bookmark: Option<Bookmark>,
    /// A message whose `KV-Operation` is not known has yet to be stated.
    unknown_operation: bool,
    /// Messages as they were read, oldest first, the fewer the older.
    marks: Vec<Bookmark>,
    /// The newest of all that was read; the live chain's only.
    recent: Recent,
    /// What was read above this was overwritten before it could be compared.
    doubt: Option<u64>,
    /// The server that the source is read from, and the one that we are connected to.
    source: u64,
    /// The source that it was compared with last, and how often the connection had been lost then.
    compared: Option<(u64, u64)>,
    /// Since then messages were taken up that the server may have sent before its restart.
    took_older: bool,
    server: String,
    first_seq: u64,
    /// The list that the session begins with is not complete.
    listing: bool,
    /// Where that list ended.
    list_end: Option<u64>,
    restarts: u64,
    asking: Option<Asking>,
    asked_at: Option<Instant>,
    /// Since when the source's leader has less than was read.
    lags_since: Option<Instant>,
    /// Wants that the next question will answer: catalog → seq.
    waiting: Wants,
    /// Wants that came in doubt.
    doubted: Wants,
    answered: Wants,
    pending: u64,
    read_at: Instant,
    began: Instant,
}

impl Task {
    /// Answers the pump that it ended with.
    async fn run(
        mut self,
        mut pump: pump::Running,
        mut wants: mpsc::Receiver<Asked>,
        mut hints: mpsc::Receiver<Hint>,
    ) -> (End, pump::Running) {
        let staged = self.plan.borrow().staged;
        self.removals.staged(staged);
        // A new chain begins with an anchor.
        if let Err(ended) = self.send(KeyVersions::default(), true, true).await {
            return (ended, pump);
        }
        let mut poll = tokio::time::interval_at((Instant::now() + POLL).into(), POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let live = self.live();
        loop {
            if live {
                fault("vbucket", &self.assignment.bucket);
            } else {
                fault("session", &self.assignment.bucket);
            }
            self.ask_if_needed();
            let ended: Result<(), End> = tokio::select! {
                biased;
                changed = self.plan.changed() => match changed {
                    Ok(()) => {
                        let plan = Arc::clone(&self.plan.borrow_and_update());
                        self.removals.staged(plan.staged);
                        self.evaluator = Evaluator::with_max_document(&plan.indexes, self.assignment.max_document);
                        self.routes = Arc::clone(&plan.routes);
                        self.send(KeyVersions::default(), true, true).await
                    }
                    Err(_) => Err(End::Again),
                },
                answer = answered(&mut self.asking) => self.answer(answer).await,
                Some(want) = wants.recv() => {
                    self.want(want);
                    Ok(())
                }
                looked = looked_up(&mut self.looking) => {
                    self.looked_up(looked);
                    Ok(())
                }
                Some(hint) = hints.recv() => {
                    self.hint(hint);
                    Ok(())
                }
                next = pump.pumped.recv() => match next {
                    Some(Pumped::Messages { messages, restarts, losses, room }) => {
                        drop(room);
                        self.look_for_older(&messages, losses);
                        self.messages(&messages, restarts, pump.pumped.is_empty()).await
                    }
                    Some(Pumped::Listed { upto }) => self.listed(upto).await,
                    Some(Pumped::Changed(why)) => self.changed(&why).await.map(|next| pump = next),
                    // Another reader is open: the source may have gone since it was compared.
                    Some(Pumped::Opened { .. }) => self.restarted().await,
                    None => Err(End::Again),
                },
                // A session has nothing to look at.
                _ = look.tick(), if live => {
                    self.look_for_vanished();
                    self.reconnected().await
                }
                _ = poll.tick() => {
                    self.ask();
                    self.say_where_it_is().await
                }
            };
            if let Err(ended) = ended {
                return (ended, pump);
            }
        }
    }

    async fn messages(&mut self, messages: &[StreamMessage], restarts: u64, idle: bool) -> Result<(), End> {
        if restarts != self.restarts {
            self.restarts = restarts;
            self.restarted().await?;
        }
        let messages = self.read_before(messages);
        let mut versions = KeyVersions::default();
        if let Some(first) = messages.first().filter(|m| m.seq <= self.cover.position()) {
            self.denied(first.seq).await?;
        }
        if let Some(last) = messages.last() {
            self.holds(last.seq);
            let reading = &self.assignment.reading;
            reading.messages.fetch_add(messages.len() as u64, Ordering::Relaxed);
            reading.pending.store(last.pending, Ordering::Relaxed);
        }
        for (i, message) in messages.iter().enumerate() {
            self.pending = message.pending;
            let before = self.last_message;
            self.remember(message);
            if self.listing {
                self.cover.listed(message.seq);
            } else {
                let begins = self.offering.message(message, before, self.last_message);
                self.cover.message(message.seq, begins, self.offering.batches.is_open());
            }
            self.evaluate(message, &mut versions);
            let last = i + 1 == messages.len();
            if last || versions.size() >= CHUNK_BYTES {
                self.mark(message);
                self.send(std::mem::take(&mut versions), last && idle, false).await?;
            }
        }
        self.read_at = Instant::now();
        self.state_unknown_operation();
        if let Some(last) = messages.last() {
            self.look_for_lateness(last.time)?;
        }
        self.put_removals().await
    }

    fn evaluate(&mut self, message: &StreamMessage, versions: &mut KeyVersions) {
        let Some(docid) = self.assignment.docids.of(message.subject()) else {
            self.pass_over(message.seq);
            return;
        };
        let Meaning { operation, schedule, .. } = message.meaning;
        if schedule {
            self.pass_over(message.seq);
        } else if self.assignment.kv && operation == Operation::Other {
            self.unknown_operation |= self.live();
            self.assignment.reading.unknown_operation(message.seq, docid.text());
        }
        if let Docid::Text(text) = &docid {
            self.vanished.read(text, message.seq);
            self.note_expiry(text, message.seq, message.time, message.meaning);
        }
        if message.meaning.rollup {
            self.explain(1);
        }
        let empty = message.payload().is_empty() && !message.is_oversized();
        if is_no_document(message.meaning, empty, self.assignment.kv) {
            self.evaluator.delete(message.seq, docid.text(), versions);
            if !schedule {
                self.assignment.known_to_all.marker_lives(message.meaning.lives);
            }
            return;
        }
        let mut unindexable = |docid: &str, reason| versions.push_doc(message.seq, docid, DocOp::Unindexable(reason));
        match docid {
            Docid::Unusable { listed, why } => unindexable(&listed, why),
            Docid::Text(text) if message.is_oversized() => unindexable(&text, Unindexable::TooLarge),
            Docid::Text(text) => self.evaluator.evaluate(message.seq, &text, message.payload(), versions),
        }
    }

    /// Counts a message that is no document.
    fn pass_over(&self, seqno: u64) {
        let counts = seqno <= self.assignment.counts_upto;
        self.assignment.reading.passed_over.fetch_add(u64::from(counts), Ordering::Relaxed);
    }

    fn state_unknown_operation(&mut self) {
        if std::mem::take(&mut self.unknown_operation)
            && let Some(newest) = self.assignment.reading.newest_unknown().pop()
        {
            let what = format!("an unknown KV-Operation in stream {}", self.assignment.stream);
            let UnknownOperation { id, seqno } = newest;
            let newest = format!("it counts as a put; the newest is that of docid {id:?}, seqno {seqno}");
            self.bus.happened(&what, &newest);
        }
    }

    /// Puts a chunk into the lane.
    async fn put(&self, chunk: Chunk) -> Result<(), End> {
        if lane::send(&self.lane, chunk).await { Ok(()) } else { Err(End::Again) }
    }

    async fn send(&mut self, versions: KeyVersions, idle: bool, anchor: bool) -> Result<(), End> {
        let chunk = Chunk::Versions {
            routes: Arc::clone(&self.routes),
            versions,
            to: Position::new(self.cover.position(), self.round),
            covered: self.covered(),
            server_time: self.last_message.0,
            hash: self.last_message.1,
            bookmark: self.bookmark.take(),
            offer: self.offer(),
            idle,
            anchor,
        };
        self.put(chunk).await
    }
}

/// Whether a message says that there is no document, or is none.
fn is_no_document(meaning: Meaning, empty: bool, kv: bool) -> bool {
    if meaning.marker || meaning.schedule {
        return true;
    }
    if kv { meaning.operation == Operation::Delete } else { empty }
}
