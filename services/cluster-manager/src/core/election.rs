//! Which index manager coordinates.

use super::{Action, members::Members};
use crate::config::Config;
use highwater_schemas::{
    api::{Bootstrap, BootstrapReply, Master, is_plausible_term},
    names,
};
use std::collections::BTreeSet;

/// A nominated index manager that does not coordinate after this long is given up, milliseconds: it may have a long log to read.
pub const PATIENCE: u64 = 5_000;
/// How long an operator's word to go on without missing index managers holds, milliseconds.
pub const FORCED: u64 = 30_000;
/// Milliseconds after which the bucket is read again: another instance may have made it anew, or somebody restored it.
pub const LIST_AGAIN: u64 = 10_000;
/// Index managers that are remembered. Beyond it new ones are only heard.
pub const MOST_REGISTERED: usize = 256;

#[derive(Debug)]
pub(super) struct Election {
    node: String,
    heartbeat: u64,
    /// How long missing index managers are waited for.
    wait: u64,
    master: Option<Seat>,
    nominated: Option<Nomination>,
    /// The term of which the last bootstraps told, and when they were sent.
    sent_term: u64,
    sent: u64,
    /// The highest term heard of.
    term: u64,
    /// Nominations until then go on without index managers that are missing.
    forced_until: u64,
    /// Those that did not get to coordinate since somebody last did.
    failed: BTreeSet<String>,
    /// No nomination before.
    not_before: u64,
    /// Those that the bucket holds, as far as we know.
    written: BTreeSet<String>,
    registered: BTreeSet<String>,
    /// What the bucket holds was read since we became active.
    listed: bool,
    /// When it is read again.
    list_at: u64,
    /// The bucket was empty then, and no index manager knew another.
    fresh: bool,
    active_since: u64,
    first_heard: Option<u64>,
    waited: bool,
}

/// Who coordinates, and in which of its lives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seat {
    node: String,
    incarnation: u64,
    term: u64,
}

#[derive(Debug)]
struct Nomination {
    seat: Seat,
    since: u64,
}

impl Election {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            node: config.node.clone(),
            heartbeat: config.heartbeat_ms(),
            wait: config.heartbeat_ms() * u64::from(config.misses),
            master: None,
            nominated: None,
            sent_term: 0,
            sent: 0,
            term: 0,
            forced_until: 0,
            failed: BTreeSet::new(),
            not_before: 0,
            written: BTreeSet::new(),
            registered: BTreeSet::new(),
            listed: false,
            list_at: 0,
            fresh: true,
            active_since: 0,
            first_heard: None,
            waited: false,
        }
    }

    pub(super) fn master(&self) -> Option<Master> {
        self.master.as_ref().map(|s| Master { node: s.node.clone(), term: s.term })
    }

    pub(super) fn registered(&self) -> &BTreeSet<String> {
        &self.registered
    }

    /// This instance became active.
    pub(super) fn begin(&mut self, now: u64, members: &Members) {
        self.active_since = now;
        self.listed = false;
        self.fresh = true;
        self.waited = false;
        self.first_heard = members.live_managers().next().map(|_| now);
        self.failed.clear();
        self.nominated = None;
        self.master = None;
        self.not_before = now;
    }

    /// This instance is not active any more.
    pub(super) fn end(&mut self) {
        self.master = None;
        self.nominated = None;
    }

    pub(super) fn list(&mut self, nodes: Vec<String>) {
        if !std::mem::replace(&mut self.listed, true) {
            self.fresh &= nodes.is_empty();
        }
        self.written = nodes.iter().take(MOST_REGISTERED).cloned().collect();
        for node in nodes {
            self.remember(node);
        }
    }

    fn remember(&mut self, node: String) {
        if self.registered.len() < MOST_REGISTERED && names::check("node", &node).is_ok() {
            self.registered.insert(node);
        }
    }

    /// What was written is gone.
    pub(super) fn bucket_lost(&mut self) {
        self.written.clear();
    }

    pub(super) fn not_registered(&mut self, node: &str) {
        self.written.remove(node);
    }

    /// Hears what the heartbeat of an index manager said; also while another instance is active.
    pub(super) fn hear(&mut self, now: u64, node: &str, term: u64, registered: &[String]) {
        self.first_heard.get_or_insert(now);
        self.term = self.term.max(term);
        self.remember(node.to_owned());
        for other in registered {
            self.fresh &= other == node;
            self.remember(other.clone());
        }
    }

    /// Whether a term that another node speaks of is plausible.
    pub(super) fn believes(&self, term: u64) -> bool {
        is_plausible_term(self.term, term)
    }

    /// A term of which another instance's event speaks.
    pub(super) fn hear_term(&mut self, term: u64) {
        self.term = self.term.max(term);
    }

    pub(super) fn answered(&mut self, now: u64, node: &str, term: u64, reply: Option<&BootstrapReply>) {
        let Some(reply) = reply else { return };
        let heard = reply.report.term.max(reply.report.leading.unwrap_or(0));
        if !self.believes(heard) {
            return;
        }
        self.term = self.term.max(heard);
        for other in &reply.report.registered {
            self.remember(other.clone());
        }
        let Some(nomination) = self.nominated.as_ref().filter(|n| n.seat.term == term) else { return };
        if reply.accepted {
            return;
        }
        if reply.report.term > term {
            // A higher term would depose whoever we get into office now.
            self.give_up(now + self.heartbeat / 4);
        } else if nomination.seat.node == node {
            self.failed.insert(node.to_owned());
            self.give_up(now + self.heartbeat / 4);
        }
    }

    /// An operator gives up index managers that are missing: the next nomination begins at once, and says so.
    pub(super) fn force(&mut self, now: u64) {
        self.forced_until = now + FORCED;
        self.failed.clear();
        self.waited = true;
        self.give_up(now);
    }

    fn give_up(&mut self, not_before: u64) {
        self.nominated = None;
        self.not_before = not_before;
    }

    /// Looks who coordinates, and nominates when nobody does. True when the master changed.
    pub(super) fn step(&mut self, now: u64, members: &Members, out: &mut Vec<Action>) -> bool {
        let before = self.master.clone();
        for (_, _, report) in members.live_managers() {
            self.term = self.term.max(report.term).max(report.leading.unwrap_or(0));
        }
        self.master = self.leading(members);
        if self.master.is_some() {
            self.failed.clear();
            self.nominated = None;
            self.waited = true;
            self.not_before = now;
        } else {
            self.check_nomination(now, members);
            if self.nominated.is_none() && now >= self.not_before && self.may_elect(now, members) {
                self.nominate(now, members);
            }
        }
        self.send(now, members, out);
        before != self.master
    }

    /// Has the index managers remembered that are not; with every heartbeat.
    pub(super) fn register(&mut self, now: u64, out: &mut Vec<Action>) {
        if !self.listed || now >= self.list_at {
            self.list_at = now + LIST_AGAIN;
            out.push(Action::ListRegistered);
        }
        if !self.listed {
            return;
        }
        out.extend(self.registered.difference(&self.written).map(|node| Action::Register { node: node.clone() }));
        self.written.clone_from(&self.registered);
    }

    /// The live index manager that coordinates in the highest term that any live one has heard of.
    fn leading(&self, members: &Members) -> Option<Seat> {
        let highest = members.live_managers().map(|(_, _, r)| r.term.max(r.leading.unwrap_or(0))).max()?;
        // While one is nominated, the one before is on its way out.
        let least = highest.max(self.nominated.as_ref().map_or(0, |n| n.seat.term));
        let seat = |node: &str, incarnation, term| Seat { node: node.into(), incarnation, term };
        let mut leading = members.live_managers().filter(|(_, _, r)| r.leading.is_some_and(|t| t >= least));
        leading.next().map(|(node, member, r)| seat(node, member.incarnation, r.leading.unwrap_or(0)))
    }

    fn check_nomination(&mut self, now: u64, members: &Members) {
        let Some(nomination) = &self.nominated else { return };
        let seat = &nomination.seat;
        let member = members.manager(&seat.node).filter(|m| m.alive() && m.incarnation == seat.incarnation);
        let report = member.and_then(|m| m.manager.as_ref());
        let declined = report.is_some_and(|r| r.declined == Some(seat.term));
        // It says what it waits for: another one would wait for the same.
        let waits = report.is_some_and(|r| r.term == seat.term && r.waiting.is_some() && !declined);
        if member.is_none() {
            self.give_up(now);
        } else if declined {
            self.failed.insert(seat.node.clone());
            self.give_up(now + self.heartbeat / 4);
        } else if waits {
            // Until it goes on, somebody forces it, or a later copy shows up.
        } else if now >= nomination.since + PATIENCE {
            self.failed.insert(seat.node.clone());
            self.give_up(now);
        }
    }

    fn may_elect(&mut self, now: u64, members: &Members) -> bool {
        if self.waited {
            return true;
        }
        let in_time = if self.listed && self.fresh {
            // Others of a new deployment may be starting just now.
            self.first_heard.is_some_and(|first| now >= first + self.heartbeat)
        } else {
            let settled = self.listed && self.registered.iter().all(|node| members.manager(node).is_some());
            settled || now >= self.active_since + self.wait
        };
        self.waited = in_time;
        in_time
    }

    /// The live one with the highest version, but for those that just failed; of equals the first by name.
    fn nominate(&mut self, now: u64, members: &Members) {
        let candidate = |failed: &BTreeSet<String>| {
            let able = members.live_managers().filter(|(node, ..)| !failed.contains(*node));
            let best = able.min_by_key(|(node, _, r)| (std::cmp::Reverse(r.version), (*node).to_owned()));
            best.map(|(node, member, _)| (node.to_owned(), member.incarnation))
        };
        let Some((node, incarnation)) = candidate(&self.failed) else {
            if !self.failed.is_empty() {
                // All failed: again from the best, but not at once.
                self.failed.clear();
                self.not_before = now + self.heartbeat;
            }
            return;
        };
        self.term = self.term.saturating_add(1);
        let seat = Seat { node, incarnation, term: self.term };
        self.nominated = Some(Nomination { seat, since: now });
    }

    /// Tells every live index manager that does not show the term yet, the chosen one first; their heartbeats acknowledge it.
    fn send(&mut self, now: u64, members: &Members, out: &mut Vec<Action>) {
        let Some(seat) = self.nominated.as_ref().map(|n| &n.seat).or(self.master.as_ref()) else { return };
        if self.sent_term == seat.term && now < self.sent + self.heartbeat {
            return;
        }
        let mut to: Vec<&str> = members.live_managers().filter(|(_, _, r)| r.term < seat.term).map(|m| m.0).collect();
        if to.is_empty() {
            return;
        }
        to.sort_by_key(|node| (*node != seat.node, *node));
        let bootstrap = Bootstrap {
            cluster_manager: self.node.clone(),
            master: seat.node.clone(),
            term: seat.term,
            registered: self.registered.iter().cloned().collect(),
            force: now < self.forced_until,
        };
        out.extend(to.into_iter().map(|to| Action::Nominate { to: to.to_owned(), bootstrap: bootstrap.clone() }));
        (self.sent_term, self.sent) = (seat.term, now);
    }
}
