//! Names of processes, and what is common to all of them.

use highwater_schemas::api::NodeKind;
use std::fmt;

/// A process by its place; it keeps it when it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    pub kind: NodeKind,
    pub at: usize,
}

impl Node {
    pub fn manager(at: usize) -> Self {
        Self { kind: NodeKind::Coordinator, at }
    }
    pub fn cluster_manager(at: usize) -> Self {
        Self { kind: NodeKind::ClusterManager, at }
    }
    pub fn projector(at: usize) -> Self {
        Self { kind: NodeKind::Projector, at }
    }
    pub fn indexer(at: usize) -> Self {
        Self { kind: NodeKind::Indexer, at }
    }
    pub fn catalog(at: usize) -> Self {
        Self { kind: NodeKind::Catalog, at }
    }
    pub fn name(self) -> String {
        self.to_string()
    }
    /// The node of a name.
    pub fn named(name: &str) -> Option<Self> {
        let at = name.get(1..)?.parse().ok()?;
        match name.as_bytes()[0] {
            b'm' => Some(Self::manager(at)),
            b'c' => Some(Self::cluster_manager(at)),
            b'p' => Some(Self::projector(at)),
            b'i' => Some(Self::indexer(at)),
            _ => None,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.kind {
            NodeKind::Coordinator => 'm',
            NodeKind::ClusterManager => 'c',
            NodeKind::Projector => 'p',
            NodeKind::Indexer => 'i',
            NodeKind::Catalog => 'q',
        };
        write!(f, "{letter}{}", self.at)
    }
}

/// One process.
#[derive(Debug, Clone)]
pub struct Process {
    pub node: Node,
    pub up: bool,
    /// Counts its starts.
    pub life: u64,
    /// It does nothing until then, and then everything at once.
    pub paused_until: u64,
    /// When its loop runs next.
    pub wake_at: u64,
}

impl Process {
    pub fn new(node: Node) -> Self {
        Self { node, up: false, life: 0, paused_until: 0, wake_at: u64::MAX }
    }
}
