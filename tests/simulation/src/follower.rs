//! How a process follows the log: a task beside its loop that hands records over, and begins anew when the stream is not what
//! it was.

use crate::{
    message::Message,
    node::Node,
    world::{Event, World},
};
use std::rc::Rc;

/// One process's reader.
#[derive(Debug, Default, Clone)]
pub struct Follower {
    /// Which reader it is: an old one's wake-ups count for nothing.
    pub id: u64,
    /// The stream that is open; 0: none yet.
    created: u64,
    after: u64,
    wake_at: Option<u64>,
}

impl World {
    /// Reads from the beginning.
    pub(crate) fn follow(&mut self, node: Node) {
        let follower = self.followers.entry(node).or_default();
        *follower = Follower { id: follower.id + 1, ..Follower::default() };
        if let Some(inbox) = self.inbox(node) {
            inbox.forget_log();
        }
        let delay = self.rng.range(1, 20);
        self.wake_follower(node, self.now + delay);
    }

    fn wake_follower(&mut self, node: Node, at: u64) {
        let Some(follower) = self.followers.get_mut(&node) else { return };
        if follower.wake_at.is_none_or(|due| at < due) {
            follower.wake_at = Some(at);
            let id = follower.id;
            self.queue.push(at, Event::Follow { node, id });
        }
    }

    /// Something was appended.
    pub(crate) fn wake_followers(&mut self) {
        let nodes: Vec<Node> = self.followers.keys().copied().collect();
        for node in nodes {
            let slow = self.slow.get(&node).copied().unwrap_or(0);
            let delay = self.rng.range(0, 4) + slow;
            self.wake_follower(node, self.now + delay);
        }
    }

    pub(crate) fn follower_woken(&mut self, node: Node, id: u64) {
        let now = self.now;
        let Some(process) = self.process(node).filter(|p| p.up).cloned() else { return };
        let cut = self.network.cut_until(node, now);
        let Some(follower) = self.followers.get_mut(&node).filter(|f| f.id == id && f.wake_at == Some(now)) else {
            return;
        };
        follower.wake_at = None;
        if process.paused_until > now {
            self.wake_follower(node, process.paused_until);
            return;
        }
        if let Some(until) = cut {
            let at = until + self.rng.range(1, 100);
            self.wake_follower(node, at);
            return;
        }
        let log = &self.log;
        if follower.created != 0 && (log.created != follower.created || log.last_seq < follower.after) {
            follower.created = 0;
        }
        if log.created == 0 {
            self.wake_follower(node, now + 100);
            return;
        }
        let mut messages = Vec::new();
        if follower.created == 0 {
            (follower.created, follower.after) = (log.created, 0);
            messages.push(Message::Opened);
        }
        for (seq, record) in log.records.range(follower.after + 1..) {
            messages.push(Message::Record(Rc::clone(record)));
            follower.after = *seq;
        }
        for message in messages {
            self.arrive(node, message);
        }
    }
}
