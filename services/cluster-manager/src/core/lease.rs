//! Who is active: one lease, renewed with the expected revision, judged by clocks that are never compared.
//!
//! The holder counts from before it sent a renewal, an observer from after it saw the revision; so the holder has given up
//! before an observer takes over, whatever the network does to the messages between them.

use super::Action;
use crate::config::{Config, allowed};
use highwater_schemas::api::{Lease, LeaseWritten};

/// What a look at the lease found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nobody holds it.
    Missing,
    /// What is written there cannot be read when there is no `lease`.
    Held { revision: u64, lease: Option<Lease> },
    /// There is no bucket: it is to be made.
    NoBucket,
    /// It could not be looked at.
    Failed,
}

/// The lease as this instance holds it, or watches it.
#[derive(Debug)]
pub(super) struct Leasehold {
    node: String,
    incarnation: u64,
    lease_ms: u64,
    holding: Option<Holding>,
    /// The revision that another holds, since when we see it, and how long it lasts.
    watched: Option<(u64, u64, u64)>,
    /// The earliest write whose outcome is unknown was sent then.
    unresolved: Option<u64>,
    /// The newest revision that we know to be ours: an unresolved write made none of these.
    known: u64,
    reading: bool,
    writing: bool,
    /// It is not to be taken again: the process ends.
    stopping: bool,
}

#[derive(Debug)]
struct Holding {
    revision: u64,
    /// The renewal that counts was sent then.
    from: u64,
    renew_at: u64,
}

impl Leasehold {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            node: config.node.clone(),
            incarnation: config.incarnation,
            lease_ms: config.lease_ms(),
            holding: None,
            watched: None,
            unresolved: None,
            known: 0,
            reading: false,
            writing: false,
            stopping: false,
        }
    }

    /// The revision, as long as the lease is held.
    pub(super) fn held(&self, now: u64) -> Option<u64> {
        self.holding.as_ref().filter(|h| now < h.from + self.lease_ms).map(|h| h.revision)
    }

    /// When the lease ends, unless it is renewed.
    pub(super) fn ends(&self) -> Option<u64> {
        self.holding.as_ref().map(|h| h.from + self.lease_ms)
    }

    /// Gives up what is too old. Call it before anything else.
    pub(super) fn expire(&mut self, now: u64) {
        if self.holding.is_some() && self.held(now).is_none() {
            self.lose();
        }
    }

    fn lose(&mut self) {
        self.holding = None;
        self.watched = None;
    }

    pub(super) fn tick(&mut self, now: u64, out: &mut Vec<Action>) {
        if let Some(holding) = self.holding.as_mut().filter(|h| now >= h.renew_at && !self.writing) {
            holding.renew_at = now + self.lease_ms / 3;
            let expected = holding.revision;
            self.write(expected, out);
        }
    }

    /// Looks at the lease, unless a look is under way.
    pub(super) fn look(&mut self, out: &mut Vec<Action>) {
        if !self.reading && !self.stopping {
            self.reading = true;
            out.push(Action::ReadLease);
        }
    }

    fn write(&mut self, expected: u64, out: &mut Vec<Action>) {
        if !self.writing && !self.stopping {
            self.writing = true;
            let lease = Lease { holder: self.node.clone(), incarnation: self.incarnation, lease_ms: self.lease_ms };
            out.push(Action::WriteLease { lease, expected });
        }
    }

    pub(super) fn seen(&mut self, now: u64, seen: Seen, out: &mut Vec<Action>) {
        self.reading = false;
        match seen {
            Seen::Failed => {}
            Seen::NoBucket => {
                self.watched = None;
                out.push(Action::MakeBucket);
            }
            // While it is held, the next renewal finds out.
            Seen::Missing if self.holding.is_some() => {}
            Seen::Missing => {
                self.watched = None;
                self.write(0, out);
            }
            Seen::Held { revision, lease } => {
                let own = lease.as_ref().is_some_and(|l| l.holder == self.node && l.incarnation == self.incarnation);
                if own { self.seen_own(now, revision) } else { self.seen_other(now, revision, lease, out) }
            }
        }
    }

    /// What we wrote is there: a write with an unknown outcome has succeeded, or nothing is new.
    fn seen_own(&mut self, now: u64, revision: u64) {
        match &mut self.holding {
            Some(holding) if revision > holding.revision => {
                (holding.revision, self.known) = (revision, revision);
                if let Some(sent_at) = self.unresolved.take() {
                    holding.from = sent_at;
                }
            }
            // The write did not get in, or not yet; then the next one conflicts with it.
            Some(holding) if self.unresolved.is_some() => holding.renew_at = now,
            Some(_) => {}
            None => match self.unresolved.take() {
                Some(sent_at) if revision > self.known => {
                    self.take(revision, sent_at);
                    self.expire(now);
                }
                // Lost before: it is watched as anybody's.
                _ => self.watch(now, revision, self.lease_ms),
            },
        }
    }

    fn seen_other(&mut self, now: u64, revision: u64, lease: Option<Lease>, out: &mut Vec<Action>) {
        if self.holding.as_ref().is_some_and(|h| revision < h.revision) {
            // What was there before ours, answered late.
            return;
        }
        self.holding = None;
        self.unresolved = None;
        let told = lease.map_or(self.lease_ms, |l| l.lease_ms);
        let lasts = told.clamp(self.lease_ms, (*allowed::LEASE_MS.end()).max(self.lease_ms));
        match self.watched {
            Some((watched, since, lasts)) if watched == revision => {
                if now >= since + lasts {
                    self.write(revision, out);
                }
            }
            _ => self.watch(now, revision, lasts),
        }
    }

    fn watch(&mut self, now: u64, revision: u64, lasts: u64) {
        match self.watched {
            Some((watched, ..)) if watched == revision => {}
            _ => self.watched = Some((revision, now, lasts)),
        }
    }

    fn take(&mut self, revision: u64, sent_at: u64) {
        self.holding = Some(Holding { revision, from: sent_at, renew_at: sent_at + self.lease_ms / 3 });
        self.known = revision;
        self.watched = None;
    }

    pub(super) fn written(&mut self, sent_at: u64, outcome: LeaseWritten, out: &mut Vec<Action>) {
        self.writing = false;
        match outcome {
            LeaseWritten::Done { revision } if self.stopping => {
                self.holding = None;
                out.push(Action::ReleaseLease { revision });
            }
            LeaseWritten::Done { revision } => {
                self.unresolved = None;
                self.take(revision, sent_at);
            }
            LeaseWritten::Unknown => {
                self.unresolved = Some(self.unresolved.unwrap_or(sent_at));
                self.look(out);
            }
            // The other revision may be our own, of a write with an unknown outcome.
            LeaseWritten::Conflict if self.unresolved.is_some() => self.look(out),
            LeaseWritten::Conflict => {
                self.lose();
                self.look(out);
            }
            LeaseWritten::NoBucket => {
                if let Some(holding) = &mut self.holding {
                    // Ours until it ends; in a new bucket nothing is there.
                    holding.revision = 0;
                    holding.renew_at = sent_at;
                }
                out.push(Action::MakeBucket);
            }
        }
    }

    /// Lets go of the lease for good.
    pub(super) fn stop(&mut self, out: &mut Vec<Action>) {
        self.stopping = true;
        if let Some(holding) = self.holding.take() {
            out.push(Action::ReleaseLease { revision: holding.revision });
        }
    }
}
