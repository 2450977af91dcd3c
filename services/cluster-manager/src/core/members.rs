//! Who is there.
//!
//! Time is counted in our own heartbeats, as they come back to us over the bus: a node that was silent between more of them than
//! allowed is down. So neither a pause of ours nor a lost connection makes the others seem silent.

use crate::config::Config;
use highwater_schemas::api::{Join, Leave, MOST_MEMBERS, ManagerReport, MemberStatus, NodeKind, Presence, Trouble};
use std::collections::BTreeMap;

/// A gap between two events, milliseconds, that is taken for a pause of this process where heartbeats are more frequent.
const PAUSE: u64 = 250;

type Key = (NodeKind, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Alive,
    Down,
    Left,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) incarnation: u64,
    /// The incarnation before: its late heartbeats count for nothing while this one lives.
    before: Option<u64>,
    pub(super) state: State,
    /// When it was last heard.
    last: u64,
    /// Heartbeats of ours since then.
    missed: u32,
    pub(super) manager: Option<ManagerReport>,
    troubles: Vec<Trouble>,
}

impl Member {
    pub(super) fn alive(&self) -> bool {
        self.state == State::Alive
    }
}

/// The membership, as this instance hears it.
#[derive(Debug)]
pub(super) struct Members {
    own: Key,
    own_incarnation: u64,
    heartbeat: u64,
    misses: u32,
    nodes: BTreeMap<Key, Member>,
    /// When our own heartbeat last came back.
    echo: Option<u64>,
    /// The last event.
    last: u64,
    changed: bool,
}

impl Members {
    pub(super) fn new(config: &Config, now: u64) -> Self {
        Self {
            own: (NodeKind::ClusterManager, config.node.clone()),
            own_incarnation: config.incarnation,
            heartbeat: config.heartbeat_ms(),
            misses: config.misses,
            nodes: BTreeMap::new(),
            echo: None,
            last: now,
            changed: false,
        }
    }

    /// Time has come to `now`; call it with every event. After a pause of ours everyone is listened to anew.
    pub(super) fn wake(&mut self, now: u64) {
        if now.saturating_sub(self.last) > self.heartbeat.max(PAUSE) {
            self.listen();
        }
        self.last = now;
    }

    /// Nobody is down before it was silent for as long as allowed from here on.
    pub(super) fn listen(&mut self) {
        for member in self.nodes.values_mut() {
            member.missed = 0;
        }
    }

    /// Our own heartbeats do not come back: what we hear is nothing to go by, and what we send may arrive much later.
    pub(super) fn deaf(&self, now: u64) -> bool {
        self.echo.is_none_or(|echo| now.saturating_sub(echo) > (self.heartbeat * 2).max(PAUSE))
    }

    /// True once after somebody came, went or changed.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn join(&mut self, now: u64, join: Join) {
        let key = (join.kind, join.node);
        let own = key == self.own;
        if own && join.incarnation != self.own_incarnation {
            // A late one of an earlier life of ours: taken for a later life, it would hide our own from us.
            return;
        }
        match self.nodes.get_mut(&key) {
            Some(member) if member.incarnation == join.incarnation => {
                if member.state == State::Left {
                    return;
                }
                self.changed |= !member.alive();
                member.state = State::Alive;
                member.manager = join.manager;
                member.troubles = join.troubles;
                (member.last, member.missed) = (now, 0);
            }
            Some(member) if member.before == Some(join.incarnation) && member.alive() => return,
            Some(member) => {
                let before = Some(member.incarnation);
                let fresh = Member::new(now, join.incarnation, join.manager);
                *member = Member { before, troubles: join.troubles, ..fresh };
                self.changed = true;
            }
            None => {
                if !self.make_room() {
                    return;
                }
                let fresh = Member::new(now, join.incarnation, join.manager);
                self.nodes.insert(key, Member { troubles: join.troubles, ..fresh });
                self.changed = true;
            }
        }
        if own {
            self.echoed(now);
        }
    }

    /// Our own heartbeat came back.
    fn echoed(&mut self, now: u64) {
        if self.deaf(now) {
            self.listen();
        } else if self.echo.is_some_and(|echo| now < echo + self.heartbeat / 2) {
            // Some that were held up on the way come together: they measure no time.
            return;
        }
        self.echo = Some(now);
        for (key, member) in &mut self.nodes {
            if *key == self.own || !member.alive() {
                continue;
            }
            member.missed += 1;
            if member.missed > self.misses {
                member.state = State::Down;
                self.changed = true;
            }
        }
    }

    /// Beyond the limit one that is down is forgotten, or the new one is not taken.
    fn make_room(&mut self) -> bool {
        if self.nodes.len() < MOST_MEMBERS {
            return true;
        }
        let gone = self.nodes.iter().filter(|(_, m)| !m.alive()).min_by_key(|(_, m)| m.last);
        let Some(key) = gone.map(|(key, _)| key.clone()) else { return false };
        self.nodes.remove(&key);
        true
    }

    pub(super) fn leave(&mut self, leave: &Leave) {
        let key = (leave.kind, leave.node.clone());
        if let Some(member) = self.nodes.get_mut(&key).filter(|m| m.incarnation == leave.incarnation) {
            self.changed |= member.alive();
            member.state = State::Left;
        }
    }

    pub(super) fn manager(&self, node: &str) -> Option<&Member> {
        self.nodes.get(&(NodeKind::Coordinator, node.to_owned()))
    }

    /// The index managers that are alive, and what they last said.
    pub(super) fn live_managers(&self) -> impl Iterator<Item = (&str, &Member, &ManagerReport)> {
        let managers = self.nodes.iter().filter(|((kind, _), m)| *kind == NodeKind::Coordinator && m.alive());
        managers.filter_map(|((_, node), m)| Some((node.as_str(), m, m.manager.as_ref()?)))
    }

    pub(super) fn presences(&self) -> Vec<Presence> {
        let presence = |((kind, node), m): (&Key, &Member)| Presence {
            node: node.clone(),
            kind: *kind,
            incarnation: m.incarnation,
            alive: m.alive(),
        };
        self.nodes.iter().map(presence).collect()
    }

    /// All, with the roles of these two and of their like.
    pub(super) fn statuses(&self, now: u64, active: &str, master: &str) -> Vec<MemberStatus> {
        let status = |((kind, node), m): (&Key, &Member)| {
            let role = match kind {
                NodeKind::ClusterManager if node == active => "active",
                NodeKind::ClusterManager => "standby",
                NodeKind::Coordinator if node == master => "master",
                NodeKind::Coordinator => "replica",
                _ => "",
            };
            MemberStatus {
                node: node.clone(),
                kind: *kind,
                alive: m.alive(),
                last_heartbeat_ms: now.saturating_sub(m.last),
                role: role.into(),
                note: m.manager.as_ref().and_then(|m| m.waiting.clone()).unwrap_or_default(),
                // Of one that is down nothing is known.
                troubles: if m.alive() { m.troubles.clone() } else { Vec::new() },
            }
        };
        self.nodes.iter().map(status).collect()
    }
}

impl Member {
    fn new(now: u64, incarnation: u64, manager: Option<ManagerReport>) -> Self {
        Self { incarnation, before: None, state: State::Alive, last: now, missed: 0, manager, troubles: Vec::new() }
    }
}
