//! What the StateContext knows of a bucket: its vbuckets, indexes, sessions and topics.

use super::{
    image::{self, IndexImage},
    record::{PlacedIndex, SessionKind, SessionVb, SliceName},
    rollback::Rollback,
    topic::Topic,
};
use crate::{
    definition::{BucketDefinition, CompiledIndex},
    timestamp::{Bookmark, Dropped, Position, StabilityTimestamp},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Life of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexState {
    /// Defined, and not yet known to be possible: its hosts are being asked.
    Preparing,
    /// Waits for `index build`.
    Created,
    Building,
    Active,
    Failed(String),
}

impl IndexState {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Preparing | Self::Created => "created",
            Self::Building => "building",
            Self::Active => "active",
            Self::Failed(_) => "error",
        }
    }
}

/// An index of a bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "IndexImage", into = "IndexImage")]
pub struct Index {
    pub placed: PlacedIndex,
    pub compiled: CompiledIndex,
    pub state: IndexState,
    /// The topology version in which its slices appeared; 0 before it is built.
    pub topology: u64,
}

/// A branch of a vbucket's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    pub vbuuid: u64,
    /// The seqno at which the branch starts.
    pub start: u64,
    /// What the one before it held above that is certainly gone.
    #[serde(default)]
    pub broken: bool,
    /// When it was found, milliseconds since the epoch.
    #[serde(default)]
    pub at: u64,
    /// Why it began; empty for the first, and for old ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Where a generation's share of a vbucket's chain begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeStart {
    /// The branch that it was begun on.
    pub vbuuid: u64,
    /// The highest position of any ST that was known when it began.
    pub x: Position,
    /// The term in which it began: an ST of an earlier term may lie beyond it unknown to who began it. 0: not known.
    #[serde(default)]
    pub term: u64,
    /// It stands for the generations before it too: what they made void stays so, and no batch of theirs counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merged: bool,
}

/// A vbucket: its branch and the generations of its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vbucket {
    /// Newest first.
    pub failover: Vec<Failover>,
    /// 0: not owned yet.
    pub generation: u64,
    pub projector: String,
    pub incarnation: u64,
    /// Where the present generation starts to read; before the first, where the live chain is to begin.
    pub restart: u64,
    /// The highest seqno that anybody may have held when that began.
    #[serde(default)]
    pub held: u64,
    /// What the rounds before it have dropped.
    #[serde(default)]
    pub dropped: Dropped,
    /// By generation: the chain of generation *g* counts from X of g to the lowest X of a later one.
    #[serde(with = "image::starts")]
    pub starts: BTreeMap<u64, RangeStart>,
    /// Messages of the present branch as they were read, oldest first, the fewer the older.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bookmarks: Vec<Bookmark>,
}

impl Vbucket {
    /// One that nobody owns yet.
    pub fn new(failover: Vec<Failover>, restart: u64) -> Self {
        Self {
            failover,
            generation: 0,
            projector: String::new(),
            incarnation: 0,
            restart,
            held: 0,
            dropped: Dropped::default(),
            starts: BTreeMap::new(),
            bookmarks: Vec::new(),
        }
    }
    pub fn vbuuid(&self) -> u64 {
        self.failover.first().map_or(0, |f| f.vbuuid)
    }
    /// Up to which seqno of the branch `vbuuid` the present history is the same; None: the branch is not known.
    pub fn common(&self, vbuuid: u64) -> Option<u64> {
        let later = self.failover.iter().take_while(|f| f.vbuuid != vbuuid);
        let starts: Vec<u64> = later.map(|f| f.start).collect();
        let known = starts.len() < self.failover.len();
        known.then(|| starts.into_iter().min().unwrap_or(u64::MAX))
    }
    /// Where generation `generation` starts.
    pub fn start_of(&self, generation: u64) -> Option<Position> {
        self.starts.get(&generation).map(|start| start.x)
    }
}

/// A catchup session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: u64,
    pub node: String,
    pub incarnation: u64,
    pub slices: Vec<SliceName>,
    pub vbs: Vec<SessionVb>,
    /// The topology version it evaluates under.
    pub topology: u64,
    #[serde(default)]
    pub kind: SessionKind,
}

/// A search for what vanished from a bucket's sources without a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconcile {
    pub id: u64,
    /// When it began and, if it is over, ended, milliseconds since the epoch.
    pub began: u64,
    #[serde(default)]
    pub ended: u64,
    /// The slices have compared: it can be put into the chains.
    #[serde(default)]
    pub staged: bool,
}

/// Numbers below that of a reconcile of all documents that are kept for those of named documents that begin while it is under way.
pub const NAMED_BESIDE: u64 = 4_096;

/// A declared bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    pub definition: BucketDefinition,
    pub vbuckets: Vec<Vbucket>,
    /// By number.
    #[serde(with = "image::listed")]
    pub indexes: BTreeMap<u32, Index>,
    /// The version of the last record that changed who hosts what.
    pub topology: u64,
    #[serde(with = "image::listed")]
    pub sessions: BTreeMap<u64, Session>,
    /// ST numbers below this one may have been used.
    pub numbers_below: u64,
    /// Topics that people made, and what they subscribed to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, Topic>,
    /// Oldest first.
    pub history: Vec<StabilityTimestamp>,
    /// The one under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// Past ones, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rollbacks: Vec<Rollback>,
    /// The reconcile of all documents under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<Reconcile>,
    /// The last one of all documents that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconciled: Option<Reconcile>,
    /// The one of named documents under way, also beside one of all: its number is the lower one then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub naming: Option<u64>,
    /// The newest one of named documents; 0: there was none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub newest_named: u64,
    /// The version of the record that declared it: tells a bucket from a later one of the same name.
    pub declared: u64,
}

impl Bucket {
    /// Declared by the record of this version.
    pub fn new(definition: BucketDefinition, vbuckets: Vec<Vbucket>, declared: u64) -> Self {
        Self {
            definition,
            vbuckets,
            indexes: BTreeMap::new(),
            topology: declared,
            sessions: BTreeMap::new(),
            numbers_below: 1,
            topics: BTreeMap::new(),
            history: Vec::new(),
            rollback: None,
            rollbacks: Vec::new(),
            reconcile: None,
            reconciled: None,
            naming: None,
            newest_named: 0,
            declared,
        }
    }
    pub fn index_by_name(&self, name: &str) -> Option<&Index> {
        self.indexes.values().find(|i| i.placed.definition.name == name)
    }
    /// Tells the present branches of its vbuckets from others; see [`crate::api::SliceReport::branch`].
    pub fn branch(&self) -> u64 {
        branch_of(self.vbuckets.iter().map(Vbucket::vbuuid))
    }
    pub(super) fn reconcile_staged(&mut self) {
        if let Some(reconcile) = &mut self.reconcile {
            reconcile.staged = true;
        }
        self.sessions.retain(|_, s| s.kind != SessionKind::Reconcile);
    }
    pub(super) fn begin_reconcile(&mut self, id: u64, began: u64, named: bool) {
        if named {
            (self.naming, self.newest_named) = (Some(id), id);
        } else {
            self.reconcile = Some(Reconcile { id, began, ended: 0, staged: false });
        }
    }
    pub(super) fn end_reconcile(&mut self, ended: u64, named: bool) {
        if named {
            self.naming = None;
        } else if let Some(done) = self.reconcile.take() {
            self.reconciled = Some(Reconcile { ended, ..done });
        }
    }
    /// The reconcile that the projectors put into the chains now, and whether it is of named documents.
    pub fn in_chains(&self) -> Option<(u64, bool)> {
        let staged = || self.reconcile.as_ref().filter(|r| r.staged).map(|r| (r.id, false));
        self.naming.map(|id| (id, true)).or_else(staged)
    }
    /// A number for a reconcile of named documents, given that of the newest session: above those of all that may be in the chains,
    /// and below that of the one under way. None: all that were kept for it are taken.
    pub fn next_named(&self, newest_session: u64) -> Option<u64> {
        let Some(under_way) = &self.reconcile else { return Some(newest_session + 1) };
        let done = self.reconciled.as_ref().map_or(0, |done| done.id);
        let id = 1 + self.newest_named.max(done).max(under_way.id.saturating_sub(1 + NAMED_BESIDE));
        (id < under_way.id).then_some(id)
    }
    /// The newest reconcile of all documents that was begun.
    pub fn newest_reconcile(&self) -> u64 {
        self.reconcile.as_ref().or(self.reconciled.as_ref()).map_or(0, |r| r.id)
    }
    /// The indexes whose slices exist, with their numbers.
    pub fn live_indexes(&self) -> impl Iterator<Item = (u32, &Index)> {
        self.indexes.iter().filter(|(_, i)| i.topology > 0).map(|(n, i)| (*n, i))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One number for the branches of all vbuckets.
pub fn branch_of(vbuuids: impl Iterator<Item = u64>) -> u64 {
    // Never 0, which says nothing.
    vbuuids.fold(1, |all: u64, one| all.rotate_left(7) ^ one).max(1)
}
