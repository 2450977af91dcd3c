//! One lane: chunks in, batches and SYNC out.

use crate::{
    pace::Pace,
    packer::{Limits, Message, Packed, Packer, Step},
    window::{Lanes, Offered, Part, Resend, Window},
};
use highwater_bus::{Bus, Ending, Publisher, Retry, TaskSet, fault};
use highwater_schemas::{
    Position, StVb,
    lane::{Chunk, LaneTarget, Offer, OpenLane},
    subjects,
    timestamp::{Asked, Bookmark, Dropped},
    wire::{self, Batch, Removal, Sync, SyncVb},
};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

/// What is refused is sent again at least this often.
const LONGEST: Duration = Duration::from_secs(1);
/// A topic that people made holds up the indexes for so long at most: what it refuses then is left out of it.
const PATIENCE_WITH_TOPICS: Duration = Duration::from_secs(10);
/// Claims that may wait for their position to be published; catalogs repeat their wants.
const CLAIMS: usize = 64;

struct Lane {
    open: LaneInfo,
    bus: Bus,
    publisher: Publisher,
    packer: Packer,
    window: Window,
    /// Each with why it was not taken.
    acks: TaskSet<Sending, Option<String>>,
    sync: StVb,
    /// Everything up to here is published, with what the rounds up to there have dropped: SYNC may still name an earlier position.
    published: Position,
    dropped: Dropped,
    /// Up to here nothing is hidden, also above the position that SYNC names.
    covered: u64,
    source_last: u64,
    /// What was covered, asked or offered at positions that are not yet published, oldest first.
    claims: VecDeque<Claim>,
    /// The last message that is published.
    bookmark: Option<Bookmark>,
    pace: Pace,
    /// Nothing is taken any more.
    retry: Retry,
    /// Subscribers of topics that people made, since when each takes nothing, and whether it was said that it is left out.
    refuse: BTreeMap<String, (Instant, bool)>,
}

/// What holds once everything up to `to` is published.
struct Claim {
    to: Position,
    covered: u64,
    asked: Vec<Asked>,
    offer: Option<Offer>,
}

struct LaneInfo {
    bucket: Arc<str>,
    vb: u16,
    vbuuid: u64,
    generation: u64,
    target: LaneTarget,
}

/// A message that waits to be acknowledged.
#[derive(Debug, Clone)]
struct Sending {
    bucket: Arc<str>,
    part: Part,
}

impl fmt::Display for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "publishing key versions of bucket {}", self.bucket)
    }
}

/// Runs until its input ends.
pub(crate) async fn run(bus: Bus, open: OpenLane, lanes: Lanes) {
    let mut input = open.input;
    let retry = bus.retry(format!("publishing key versions of bucket {}", open.bucket)).within(LONGEST);
    let pace = Pace::new(open.target == LaneTarget::Mutation, Instant::now());
    let mut lane = Lane {
        publisher: Publisher::new(bus.clone()),
        packer: Packer::new(open.from, open.dropped, Limits::new(bus.max_payload())),
        acks: TaskSet::new(bus.incidents()),
        bus,
        window: Window::sharing(lanes),
        sync: StVb {
            vbuuid: open.vbuuid,
            generation: open.generation,
            position: open.from,
            covered: open.from.seqno,
            created: open.created,
            floor: open.dropped.floor,
            reconciled: open.dropped.reconciled,
            ..StVb::default()
        },
        published: open.from,
        dropped: open.dropped,
        covered: open.from.seqno,
        open: LaneInfo {
            bucket: open.bucket.into(),
            vb: open.vb,
            vbuuid: open.vbuuid,
            generation: open.generation,
            target: open.target,
        },
        source_last: 0,
        claims: VecDeque::new(),
        bookmark: None,
        pace,
        retry,
        refuse: BTreeMap::new(),
    };
    loop {
        fault("lane", &lane.open.bucket);
        let wake = lane.pace.wakes_at();
        tokio::select! {
            Some((sending, ending)) = lane.acks.join_next() => match ending {
                Ending::Done(refused) => lane.settled(sending.part, refused).await,
                // Whether it was taken is not known: the topic knows a second one by its id.
                Ending::Panicked(why) => lane.settled(sending.part, Some(why)).await,
                Ending::Aborted => {}
            },
            chunk = input.recv(), if !lane.window.full() => match chunk {
                Some(chunk) => lane.chunk(chunk, input.is_empty()).await,
                None => return,
            },
            () = sleep_until(wake) => {
                if lane.pace.is_due(Instant::now()) {
                    lane.flush().await;
                }
            }
        }
        lane.speak().await;
    }
}

/// Sleeps until this time; None sleeps for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Lane {
    async fn chunk(&mut self, chunk: Chunk, last: bool) {
        match chunk {
            Chunk::Versions { routes, versions, to, covered, server_time, hash, bookmark, offer, idle, anchor } => {
                let removal = None;
                let step = Step { routes, versions, to, covered, server_time, hash, bookmark, offer, removal, anchor };
                if let Some(closed) = self.packer.add(step) {
                    self.send(closed).await;
                }
                // A lone message goes at once; under load, messages wait for company.
                let lone = idle && last && self.pace.is_quiet(Instant::now());
                if lone || anchor || self.packer.full() {
                    self.flush().await;
                } else {
                    self.pace.lingers(Instant::now());
                }
            }
            Chunk::Listed { to } => self.listed(to).await,
            Chunk::Removed { round, removal, versions, offer } => {
                self.flush().await;
                self.alone(self.packer.removal(round, removal, versions, offer)).await;
            }
            Chunk::Covered { to, covered, asked, source_last, offer } => {
                self.flush().await;
                self.source_last = source_last;
                if self.open.target != LaneTarget::Mutation {
                    self.cover_session(to, covered).await;
                    return;
                }
                self.claims.push_back(Claim { to, covered, asked, offer });
                if self.claims.len() > CLAIMS {
                    self.claims.pop_front();
                }
                self.claim();
            }
        }
    }

    /// A session's receiver learns what is covered from the batches alone.
    async fn cover_session(&mut self, to: Position, covered: u64) {
        if covered > self.covered {
            self.covered = covered;
            let anchor = Step {
                routes: self.packer.routes(),
                versions: wire::KeyVersions::default(),
                to,
                covered,
                server_time: self.sync.server_time,
                hash: self.sync.hash,
                bookmark: None,
                offer: None,
                removal: None,
                anchor: true,
            };
            self.alone(anchor).await;
        }
    }

    /// Sends a step as a batch of its own.
    async fn alone(&mut self, step: Step) {
        if let Some(closed) = self.packer.add(step) {
            self.send(closed).await;
        }
        self.flush().await;
    }

    /// A session's list is complete. What was overwritten while it was read is yet to come.
    async fn listed(&mut self, to: Position) {
        let LaneTarget::Catchup { session } = self.open.target else { return };
        let step = Step {
            routes: self.packer.routes(),
            versions: wire::KeyVersions::default(),
            to,
            covered: 0,
            server_time: 0,
            hash: 0,
            bookmark: None,
            offer: None,
            removal: Some(Removal::Listed { session, upto: to.seqno }),
            anchor: true,
        };
        self.alone(step).await;
    }

    async fn flush(&mut self) {
        self.pace.flushed(Instant::now());
        if let Some(packed) = self.packer.flush() {
            self.send(packed).await;
        }
    }

    async fn send(&mut self, packed: Packed) {
        for part in self.window.push(packed) {
            self.publish(part, Duration::ZERO).await;
        }
        self.advance();
    }

    async fn publish(&mut self, part: Part, delay: Duration) {
        let Some(packed) = self.window.get_mut(part) else { return };
        let Some(message) = packed.messages.get_mut(part.message) else { return };
        let Message { subscriber: node, only, versions } = message;
        let session = match self.open.target {
            LaneTarget::Mutation => 0,
            LaneTarget::Catchup { session } => session,
        };
        let subject = match session {
            0 => match node.split_once('/') {
                None => subjects::mutation(&self.open.bucket, node),
                Some((topic, subscriber)) => subjects::topic(&self.open.bucket, topic, subscriber),
            },
            session => subjects::catchup(&self.open.bucket, session),
        };
        let (from, to) = (packed.from, packed.to);
        let id = format!(
            "{node}.{}.{:x}.{}.{session}.{}.{}-{}.{}-{}.{}.{}.{}{}",
            self.open.vb,
            self.open.vbuuid,
            self.open.generation,
            packed.topology,
            from.seqno,
            from.round,
            to.seqno,
            to.round,
            packed.covered,
            // Two anchors at one place are two messages.
            part.interval,
            part.attempt,
            only.first().map_or_else(String::new, |first| format!(".{first}"))
        );
        let mut batch = Batch {
            bucket: self.open.bucket.to_string(),
            vb: self.open.vb,
            vbuuid: self.open.vbuuid,
            generation: self.open.generation,
            topology: packed.topology,
            session,
            from,
            to,
            covered: packed.covered,
            server_time: packed.server_time,
            hash: packed.hash,
            attempt: part.attempt,
            floor: packed.dropped_before.floor,
            reconciled: packed.dropped_before.reconciled,
            removal: packed.removal.clone(),
            only: only.clone(),
            // Lent: the window keeps it, to be sent again if that must be.
            versions: std::mem::take(versions),
        };
        let payload: highwater_bus::Bytes = wire::encode(&batch).into();
        std::mem::swap(versions, &mut batch.versions);
        let bucket = Arc::clone(&self.open.bucket);
        let sending = Sending { bucket: Arc::clone(&bucket), part };
        if delay.is_zero() {
            // In order: the message is on its way before the next one is packed.
            let sent = self.publisher.send(&subject, &id, payload).await;
            self.acks.spawn(sending, acknowledged(bucket, subject, sent));
        } else {
            let publisher = self.publisher.clone();
            self.acks.spawn(sending, async move {
                tokio::time::sleep(delay).await;
                let sent = publisher.send(&subject, &id, payload).await;
                acknowledged(bucket, subject, sent).await
            });
        }
    }

    /// Whether a message that was refused is given up: who reads a topic that people made sees the hole in its chain.
    fn left_out(&mut self, part: Part, acked: bool) -> bool {
        let message = self.window.get_mut(part).and_then(|packed| packed.messages.get(part.message));
        let Some(node) = message.map(|message| &message.subscriber) else { return false };
        if !node.contains('/') {
            return false;
        }
        let gone = !self.packer.routes().nodes.contains_key(node);
        if acked || gone {
            self.refuse.remove(node);
            return !acked;
        }
        let (since, said) = self.refuse.entry(node.clone()).or_insert_with(|| (Instant::now(), false));
        let left_out = since.elapsed() >= PATIENCE_WITH_TOPICS;
        if left_out && !std::mem::replace(said, true) {
            tracing::warn!(
                topic = node,
                bucket = %self.open.bucket,
                "takes nothing: it is left out until it does again"
            );
        }
        left_out
    }

    async fn settled(&mut self, part: Part, refused: Option<String>) {
        let left_out = self.left_out(part, refused.is_none());
        let Some(why) = refused.filter(|_| !left_out) else {
            self.window.acked(part);
            self.advance();
            return;
        };
        let delay = self.retry.failed(&why);
        let again = match self.window.failed(part) {
            Resend::Nothing => Vec::new(),
            Resend::One(part) => vec![part],
            Resend::All(parts) => parts,
        };
        for part in again {
            self.publish(part, delay).await;
        }
    }

    /// What is published moves SYNC, to the newest position that timestamps may name.
    fn advance(&mut self) {
        if let Some(published) = self.window.published() {
            self.retry.over();
            (self.published, self.dropped) = (published.to, published.dropped);
            self.covered = self.covered.max(published.covered);
            self.bookmark = published.bookmark.or(self.bookmark.take());
            if let Some(offered) = published.offered {
                self.offer(offered);
            }
            self.cover();
        }
        self.claim();
    }

    fn offer(&mut self, offered: Offered) {
        if !self.sync.position.le(offered.position) {
            return;
        }
        self.pace.offers(self.sync.position != offered.position);
        self.sync.position = offered.position;
        (self.sync.server_time, self.sync.hash) = (offered.server_time, offered.hash);
        (self.sync.floor, self.sync.reconciled) = (offered.dropped.floor, offered.dropped.reconciled);
    }

    /// What was covered, asked or offered counts once everything before it is published.
    fn claim(&mut self) {
        while self.claims.front().is_some_and(|claim| claim.to.le(self.published)) {
            let Some(Claim { to, covered, asked, offer }) = self.claims.pop_front() else { return };
            // `dropped` belongs to the newest round; that of an earlier round is not kept.
            if let Some(Offer { seqno, server_time, hash }) = offer.filter(|_| to.round == self.published.round) {
                let position = Position::new(seqno, to.round);
                self.offer(Offered { position, server_time, hash, dropped: self.dropped });
            }
            self.covered = self.covered.max(covered);
            let before = self.sync.covered;
            self.cover();
            if asked != self.sync.asked || self.sync.covered > before {
                self.pace.hurries();
            }
            self.sync.asked = asked;
        }
    }

    /// That nothing is hidden at a later position says nothing of an earlier one, where what was hidden may have been replaced only
    /// behind it.
    fn cover(&mut self) {
        if self.covered <= self.sync.position.seqno {
            self.sync.covered = self.sync.covered.max(self.covered);
        }
    }

    async fn speak(&mut self) {
        if !self.pace.says_sync(Instant::now()) {
            return;
        }
        let sync = Sync {
            bucket: self.open.bucket.to_string(),
            vbs: vec![SyncVb {
                vb: self.open.vb,
                state: self.sync.clone(),
                source_last: self.source_last,
                bookmark: self.bookmark.clone(),
            }],
        };
        if let Err(error) = self.bus.publish(&subjects::sync(&self.open.bucket), wire::encode(&sync)).await {
            tracing::debug!(%error, "cannot publish SYNC");
        }
    }
}

type Sent = Result<
    Pin<Box<dyn Future<Output = Result<highwater_bus::Ack, highwater_bus::PublishFailure>> + Send>>,
    highwater_bus::BusError,
>;

/// Why a message was not taken, if it was not.
async fn acknowledged(bucket: Arc<str>, subject: String, sent: Sent) -> Option<String> {
    fault("acknowledgement", &bucket);
    let outcome = match sent {
        Ok(ack) => ack.await.map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    outcome.err().map(|why| format!("{subject}: {why}"))
}
