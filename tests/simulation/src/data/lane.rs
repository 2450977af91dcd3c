//! A stand-in for a router's lane around the real packer and window: it publishes, is refused, and says how far everything is.

use super::{
    env::{Env, Letter},
    task::Chunk,
};
use highwater_router::{
    packer::{Limits, Message, Packed, Packer, Step},
    window::{Offered, Part, Resend, Window},
};
use highwater_schemas::{
    Position, StVb,
    lane::{LaneTarget, Offer},
    timestamp::{Asked, Bookmark, Dropped},
    wire::{self, Batch, KeyVersions, Removal, Sync, SyncVb},
};
use std::collections::VecDeque;

const LINGER: u64 = 2;
const SYNC_SPACING: u64 = 5;
const SYNC_REPEAT: u64 = 500;
const RETRY: u64 = 50;
const CLAIMS: usize = 64;

/// Whose lane it is.
#[derive(Debug, Clone)]
pub struct LaneInfo {
    pub vb: u16,
    pub vbuuid: u64,
    pub generation: u64,
    pub target: LaneTarget,
    pub from: Position,
    pub dropped: Dropped,
    pub created: i64,
}

/// One lane.
pub struct Lane {
    info: LaneInfo,
    packer: Packer,
    pub window: Window,
    /// Due, in the order in which they were planned: publishes, and what became of them.
    sending: VecDeque<(u64, Part)>,
    acks: VecDeque<(u64, Part, bool)>,
    sync: StVb,
    published: Position,
    dropped: Dropped,
    covered: u64,
    source_last: u64,
    claims: VecDeque<(Position, u64, Vec<Asked>, Option<Offer>)>,
    bookmark: Option<Bookmark>,
    offered: bool,
    changed: bool,
    urgent: bool,
    synced_at: u64,
    due: Option<u64>,
}

impl Lane {
    pub fn new(info: LaneInfo) -> Self {
        Self {
            packer: Packer::new(info.from, info.dropped, Limits::new(1 << 20)),
            window: Window::default(),
            sending: VecDeque::new(),
            acks: VecDeque::new(),
            sync: StVb {
                vbuuid: info.vbuuid,
                generation: info.generation,
                position: info.from,
                covered: info.from.seqno,
                created: info.created,
                floor: info.dropped.floor,
                reconciled: info.dropped.reconciled,
                ..StVb::default()
            },
            published: info.from,
            dropped: info.dropped,
            covered: info.from.seqno,
            info,
            source_last: 0,
            claims: VecDeque::new(),
            bookmark: None,
            offered: false,
            changed: false,
            urgent: false,
            synced_at: 0,
            due: None,
        }
    }

    pub fn chunk(&mut self, env: &mut Env, chunk: Chunk) {
        match chunk {
            Chunk::Versions { step, idle } => {
                let anchor = step.anchor;
                if let Some(closed) = self.packer.add(step) {
                    self.send(env, closed);
                }
                if anchor || idle && env.rng.chance(600) {
                    self.flush(env);
                } else if self.due.is_none() {
                    self.due = Some(env.now + LINGER);
                }
            }
            Chunk::Listed { to } => {
                let LaneTarget::Catchup { session } = self.info.target else { return };
                let removal = Some(Removal::Listed { session, upto: to.seqno });
                let step = self.anchor(to, 0, removal);
                self.alone(env, step);
            }
            Chunk::Removed { round, removal, versions, offer } => {
                self.flush(env);
                let step = self.packer.removal(round, removal, versions, offer);
                self.alone(env, step);
            }
            Chunk::Covered { to, covered, asked, source_last, offer } => {
                self.flush(env);
                self.source_last = source_last;
                if self.info.target != LaneTarget::Mutation {
                    if covered > self.covered {
                        self.covered = covered;
                        let step = self.anchor(to, covered, None);
                        self.alone(env, step);
                    }
                    return;
                }
                self.claims.push_back((to, covered, asked, offer));
                if self.claims.len() > CLAIMS {
                    self.claims.pop_front();
                }
                self.claim();
            }
        }
    }

    fn anchor(&self, to: Position, covered: u64, removal: Option<Removal>) -> Step {
        Step {
            routes: self.packer.routes(),
            versions: KeyVersions::default(),
            to,
            covered,
            server_time: 0,
            hash: 0,
            bookmark: None,
            offer: None,
            removal,
            anchor: true,
        }
    }

    fn alone(&mut self, env: &mut Env, step: Step) {
        if let Some(closed) = self.packer.add(step) {
            self.send(env, closed);
        }
        self.flush(env);
    }

    fn flush(&mut self, env: &mut Env) {
        self.due = None;
        if let Some(packed) = self.packer.flush() {
            self.send(env, packed);
        }
    }

    fn send(&mut self, env: &mut Env, packed: Packed) {
        for part in self.window.push(packed) {
            self.sending.push_back((env.now, part));
        }
        self.advance();
    }

    /// What is due: publishes reach the server, or do not; their outcomes come back.
    pub fn step(&mut self, env: &mut Env) {
        if self.due.is_some_and(|due| due <= env.now) {
            self.flush(env);
        }
        while self.sending.front().is_some_and(|(at, _)| *at <= env.now) && (!env.faulty || env.rng.chance(850)) {
            let Some((_, part)) = self.sending.pop_front() else { break };
            // Refused, stored without an answer, or stored.
            let refused = env.faulty && env.rng.chance(60);
            let unanswered = env.faulty && env.rng.chance(40);
            if !refused {
                self.store(env, part);
            }
            let at = env.now + if env.faulty { env.rng.below(15) } else { 0 };
            self.acks.push_back((at, part, !refused && !unanswered));
        }
        let due: Vec<(u64, Part, bool)> = self.acks.iter().filter(|(at, ..)| *at <= env.now).copied().collect();
        self.acks.retain(|(at, ..)| *at > env.now);
        for (_, part, good) in due {
            if good {
                self.window.acked(part);
                self.advance();
                continue;
            }
            let again = match self.window.failed(part) {
                Resend::Nothing => Vec::new(),
                Resend::One(part) => vec![part],
                Resend::All(parts) => parts,
            };
            self.sending.extend(again.into_iter().map(|part| (env.now + RETRY, part)));
        }
        self.speak(env);
    }

    fn store(&mut self, env: &mut Env, part: Part) {
        let Some(packed) = self.window.get_mut(part) else { return };
        let Some(message) = packed.messages.get(part.message) else { return };
        let Message { subscriber: node, only, versions } = message;
        let session = match self.info.target {
            LaneTarget::Mutation => 0,
            LaneTarget::Catchup { session } => session,
        };
        let batch = Batch {
            bucket: super::env::BUCKET.into(),
            vb: self.info.vb,
            vbuuid: self.info.vbuuid,
            generation: self.info.generation,
            topology: packed.topology,
            session,
            from: packed.from,
            to: packed.to,
            covered: packed.covered,
            server_time: packed.server_time,
            hash: packed.hash,
            attempt: part.attempt,
            floor: packed.dropped_before.floor,
            reconciled: packed.dropped_before.reconciled,
            removal: packed.removal.clone(),
            only: only.clone(),
            versions: versions.clone(),
        };
        let node = node.clone();
        env.say(|| {
            let Batch { vb, generation: g, topology: t, from, to, covered, reconciled, floor, removal, .. } = &batch;
            format!("stores for {node} vb {vb} g {g} t {t} session {session}: {from:?} to {to:?} covered {covered} {removal:?} after {floor} {reconciled}")
        });
        env.publish(session, node, wire::encode(&batch));
    }

    fn advance(&mut self) {
        if let Some(published) = self.window.published() {
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
        self.changed |= self.sync.position != offered.position || !self.offered;
        self.offered = true;
        self.sync.position = offered.position;
        (self.sync.server_time, self.sync.hash) = (offered.server_time, offered.hash);
        (self.sync.floor, self.sync.reconciled) = (offered.dropped.floor, offered.dropped.reconciled);
    }

    fn claim(&mut self) {
        while self.claims.front().is_some_and(|(to, ..)| to.le(self.published)) {
            let Some((to, covered, asked, offer)) = self.claims.pop_front() else { return };
            if let Some(Offer { seqno, server_time, hash }) = offer.filter(|_| to.round == self.published.round) {
                let position = Position::new(seqno, to.round);
                self.offer(Offered { position, server_time, hash, dropped: self.dropped });
            }
            self.covered = self.covered.max(covered);
            let before = self.sync.covered;
            self.cover();
            self.urgent |= asked != self.sync.asked || self.sync.covered > before;
            self.sync.asked = asked;
        }
    }

    fn cover(&mut self) {
        if self.covered <= self.sync.position.seqno {
            self.sync.covered = self.sync.covered.max(self.covered);
        }
    }

    fn speak(&mut self, env: &mut Env) {
        let elapsed = env.now - self.synced_at;
        let due = self.urgent || self.changed && elapsed >= SYNC_SPACING || elapsed >= SYNC_REPEAT;
        if self.info.target != LaneTarget::Mutation || !self.offered || !due {
            return;
        }
        (self.urgent, self.changed) = (false, false);
        self.synced_at = env.now;
        let state = self.sync.clone();
        let (vb, source_last, bookmark) = (self.info.vb, self.source_last, self.bookmark.clone());
        let sync = Sync { bucket: super::env::BUCKET.into(), vbs: vec![SyncVb { vb, state, source_last, bookmark }] };
        env.mail(Letter::Sync(sync));
    }
}
