//! What a vbucket's task is told, and how it ends.

use super::{Hint, KnownToAll};
use crate::{
    docid::Docids,
    reads::Reading,
    removals::Staged,
    verify::{Known, Suspected},
};
use highwater_schemas::{
    Position,
    definition::CompiledIndex,
    lane::{LaneTarget, Routes},
    timestamp::{Asked, Bookmark, Dropped},
};
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};

/// Wants that may wait for a vbucket task.
pub(crate) const WANTS: usize = 256;

/// What comes for a task while it runs.
pub(crate) struct Inbox {
    pub(crate) plan: watch::Receiver<Arc<Plan>>,
    pub(crate) wants: mpsc::Receiver<Asked>,
    pub(crate) hints: mpsc::Receiver<Hint>,
}

/// What to evaluate and for whom; changes with the topology.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) routes: Arc<Routes>,
    pub(crate) indexes: Vec<(u32, CompiledIndex)>,
    /// Rises when a chain must get a place to start from though nothing changed.
    pub(crate) anchor: u64,
    /// The newest reconcile of all documents that was begun, and the newest of documents that are named.
    pub(crate) newest_reconcile: u64,
    pub(crate) newest_named: u64,
    /// The one that is to be put into the chain.
    pub(crate) staged: Option<Staged>,
}

/// What the task is told when it starts.
pub(crate) struct Assignment {
    pub(crate) bucket: String,
    pub(crate) stream: String,
    pub(crate) docids: Docids,
    pub(crate) kv: bool,
    pub(crate) vb: u16,
    pub(crate) vbuuid: u64,
    pub(crate) generation: u64,
    pub(crate) target: LaneTarget,
    /// Read from here on; the round is that of X.
    pub(crate) from: Position,
    /// What the rounds up to there have dropped.
    pub(crate) dropped: Dropped,
    /// Begin with a list of the present documents, or read nothing else. Sessions only.
    pub(crate) lists: bool,
    pub(crate) ends_listed: bool,
    /// It brings what was missed: messages that may be gone must not be.
    pub(crate) recovers: bool,
    /// What the source is compared with.
    pub(crate) known: Known,
    pub(crate) known_to_all: Arc<KnownToAll>,
    pub(crate) durable: Durable,
    pub(crate) reading: Arc<Reading>,
    /// Messages that are no documents count up to here: above it the live chain counts them.
    pub(crate) counts_upto: u64,
    pub(crate) max_document: usize,
    /// Number of the stream's newest messages that the task remembers.
    pub(crate) remembers: usize,
}

/// The bookmarks that the log has now: those of what indexers can go back to.
pub(crate) type Durable = Arc<Mutex<Vec<Bookmark>>>;

/// How a task ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The source is not, or not certainly, what was read.
    Suspected(Suspected),
    /// What the session has read does not join on: it is over.
    Broken(String),
    /// It could not begin: it is tried again.
    Again,
    /// Its lane or its reader is gone: the chain goes on under another generation.
    Lost,
    /// Its lane or its reader panicked: what it has sent is lost, or broken.
    Crashed,
}
