//! Who hears whom: every node speaks to the others over one server.
//!
//! A node that is cut off hears nothing. What it sends meanwhile is lost, or is sent when it is connected again, as a client
//! does that keeps it.

use crate::{node::Node, rng::Rng};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy)]
struct Cut {
    until: u64,
    keeps: bool,
}

/// The state of all connections.
#[derive(Debug, Default)]
pub struct Network {
    cuts: BTreeMap<Node, Cut>,
    /// Core messages lost, in a thousand.
    pub loss: u64,
    /// Messages take up to so long, milliseconds.
    pub delay: u64,
}

impl Network {
    pub fn new() -> Self {
        Self { cuts: BTreeMap::new(), loss: 0, delay: 3 }
    }

    pub fn cut(&mut self, node: Node, until: u64, keeps: bool) {
        let until = until.max(self.cuts.get(&node).map_or(0, |c| c.until));
        self.cuts.insert(node, Cut { until, keeps });
    }

    /// Until when a node is cut off.
    pub fn cut_until(&self, node: Node, now: u64) -> Option<u64> {
        self.cuts.get(&node).map(|c| c.until).filter(|until| *until > now)
    }

    /// Nothing is lost but what is cut off, and nothing is late.
    pub fn calm(&self) -> bool {
        self.loss == 0 && self.delay <= Self::new().delay
    }

    pub fn heal(&mut self) {
        *self = Self::new();
    }

    /// When the server has what a node sends; None: never.
    pub fn leaves(&self, node: Node, now: u64, rng: &mut Rng) -> Option<u64> {
        let cut = self.cuts.get(&node).filter(|c| c.until > now);
        match cut {
            Some(cut) if cut.keeps => Some(cut.until + 1 + rng.below(5)),
            Some(_) => None,
            None => Some(now + rng.below(self.delay + 1)),
        }
    }

    /// When a node has what the server sends; None: never.
    pub fn arrives(&self, node: Node, now: u64, rng: &mut Rng) -> Option<u64> {
        let at = now + rng.below(self.delay + 1);
        // Whether it is connected then is looked at then.
        (self.cut_until(node, now).is_none() && !rng.chance(self.loss)).then_some(at)
    }
}
