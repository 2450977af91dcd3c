//! Membership and status: nodes ↔ cluster manager ↔ index managers, and what `highwater status` shows.

use super::{BucketStatus, Trouble};
use crate::{report::Told, state::SliceName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nodes that are known at once.
pub const MOST_MEMBERS: usize = 2_048;
/// Index managers that a report of one names: it is part of its heartbeat.
pub const MOST_REGISTERED_TOLD: usize = 128;
/// Characters in which a node says what fails or what it waits for.
pub const MOST_WORDS: usize = 300;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    ClusterManager,
    /// An index manager; the elected one coordinates.
    Coordinator,
    Projector,
    Indexer,
    Catalog,
}

impl NodeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterManager => "cluster_manager",
            Self::Coordinator => "coordinator",
            Self::Projector => "projector",
            Self::Indexer => "indexer",
            Self::Catalog => "catalog",
        }
    }
}

/// Where a slice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SliceState {
    /// Follows a session from zero.
    Building,
    /// Follows a session from where it stood: its chain had a gap.
    Catchup,
    /// Follows the mutation topic; readable at a coming ST.
    Merged,
    /// Follows the mutation topic and is readable.
    Active,
    /// Cannot go on; `error` says why.
    Error,
}

impl SliceState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Catchup => "catchup",
            Self::Merged => "merged",
            Self::Active => "active",
            Self::Error => "error",
        }
    }
}

/// One slice of an indexer node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SliceReport {
    pub bucket: String,
    /// The index's number.
    pub index: u32,
    pub partition: u32,
    pub state: SliceState,
    /// The session it follows; 0: none, so one is needed when it is building or in catchup.
    pub session: u64,
    /// The newest session that it needs no more: merged, or given up.
    #[serde(default)]
    pub done_with: u64,
    /// Per vbucket the seqno that a new session may start from.
    pub resume: Vec<u64>,
    /// Documents that sessions have brought so far.
    pub docs_done: u64,
    /// Records that the second phase of its build has merged, of so many: 0 of 0 before it, all of them after it.
    #[serde(default)]
    pub built: u64,
    #[serde(default)]
    pub to_build: u64,
    /// Entries in the index.
    pub items: u64,
    /// Bytes on disk, live pages.
    pub bytes: u64,
    /// Documents that the slice could not take.
    pub unindexed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Every document must be compared before it can follow the chain again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compare: bool,
    /// Tells the branches that it is on from others; 0: not known.
    #[serde(default)]
    pub branch: u64,
    /// Per vbucket the highest seqno that it may hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content: Vec<u64>,
    /// The newest reconcile that it has compared for.
    #[serde(default)]
    pub staged: u64,
    /// The newest session of a reconcile that it could not compare with.
    #[serde(default)]
    pub unstaged: u64,
}

impl SliceReport {
    /// Of a slice that holds nothing and follows no session.
    pub fn new(bucket: &str, name: SliceName, state: SliceState) -> Self {
        Self {
            bucket: bucket.to_owned(),
            index: name.index,
            partition: name.partition,
            state,
            session: 0,
            done_with: 0,
            resume: Vec::new(),
            docs_done: 0,
            built: 0,
            to_build: 0,
            items: 0,
            bytes: 0,
            unindexed: 0,
            error: None,
            compare: false,
            branch: 0,
            content: Vec::new(),
            staged: 0,
            unstaged: 0,
        }
    }
}

/// What a projector found in a source that contradicts what was read from it before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Suspicion {
    pub bucket: String,
    pub vb: u16,
    /// The branch that it contradicts.
    pub vbuuid: u64,
    pub reason: String,
    /// Up to here the source's history is proven to be what was read.
    #[serde(default)]
    pub intact: u64,
    /// The source's last sequence.
    #[serde(default)]
    pub last: u64,
    /// Something that was read is certainly gone or replaced; else that cannot be ruled out.
    #[serde(default)]
    pub broken: bool,
    /// What proves that, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bookmarks: Vec<crate::timestamp::Bookmark>,
}

/// What an index manager says of its copy of the StateContext.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManagerReport {
    /// Version of the newest record in its copy.
    pub version: u64,
    /// Hash of that record.
    pub hash: String,
    /// The highest term it has heard of, durable.
    pub term: u64,
    /// It coordinates, in this term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leading: Option<u64>,
    /// The index managers that its copy knows, at most [`MOST_REGISTERED_TOLD`]: those that are there, then gone ones.
    #[serde(default)]
    pub registered: Vec<String>,
    /// It was nominated for this term and does not lead in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declined: Option<u64>,
    /// It declined this term because its copy does not tell whether the log lost its tail, and no term was opened since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undecided: Option<u64>,
    /// Why it cannot lead, or what it waits for, in at most [`MOST_WORDS`] characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
}

/// `hw.cluster.join`: a heartbeat. It is small whatever the node has: that is in its report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Join {
    pub node: String,
    pub kind: NodeKind,
    /// One per start of the process.
    pub incarnation: u64,
    /// The term that this node follows: it ignores stability timestamps of lower ones.
    #[serde(default)]
    pub term: u64,
    /// Index managers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<ManagerReport>,
    /// How much of its report was sent: whoever has less asks for it. Indexers and projectors only.
    #[serde(default)]
    pub report: Told,
    /// What fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Trouble>,
}

impl Join {
    /// A heartbeat that says no more than that the node is there.
    pub fn new(kind: NodeKind, node: &str, incarnation: u64) -> Self {
        Self {
            node: node.into(),
            kind,
            incarnation,
            term: 0,
            manager: None,
            report: Told::default(),
            troubles: Vec::new(),
        }
    }
}

/// Reply of `hw.cluster.join`, by the active cluster manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinReply {
    pub cluster_manager: String,
    /// How often to send the next one, milliseconds.
    pub heartbeat_ms: u64,
}

/// Value of the cluster managers' lease: who is the active one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    pub holder: String,
    pub incarnation: u64,
    /// How long it lasts without a renewal.
    pub lease_ms: u64,
}

/// How a write of the lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseWritten {
    Done {
        revision: u64,
    },
    /// The expected revision is not the last.
    Conflict,
    NoBucket,
    /// It may have been written, or be written yet.
    Unknown,
}

/// `hw.cluster.leave`: the node ends by itself; nobody need wait for missed heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    pub node: String,
    pub kind: NodeKind,
    pub incarnation: u64,
}

/// `hw.cluster.recover`: goes on without index managers that are missing, though they may have a later copy of a lost log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recover {
    #[serde(default)]
    pub force: bool,
}

/// Who coordinates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Master {
    pub node: String,
    pub term: u64,
}

/// One node as `hw.cluster.event` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Presence {
    pub node: String,
    pub kind: NodeKind,
    pub incarnation: u64,
    /// It missed no more heartbeats than allowed, and did not leave.
    pub alive: bool,
}

/// `hw.cluster.event`: the whole membership, at every heartbeat and at every change. Whoever misses one hears the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterEvent {
    /// The active cluster manager.
    pub cluster_manager: String,
    /// Revision of its lease; rises with each renewal.
    pub lease: u64,
    pub heartbeat_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<Master>,
    pub members: Vec<Presence>,
}

/// `hw.node.<index manager>.bootstrap`: the active cluster manager has chosen a master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    pub cluster_manager: String,
    pub master: String,
    /// Higher than any that an index manager has reported.
    pub term: u64,
    /// Every index manager that was ever registered.
    pub registered: Vec<String>,
    /// Go on without index managers that are missing.
    #[serde(default)]
    pub force: bool,
}

/// Reply of `hw.node.<index manager>.bootstrap`: its registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BootstrapReply {
    /// False: it has heard of a higher term, or cannot lead.
    pub accepted: bool,
    #[serde(flatten)]
    pub report: ManagerReport,
}

/// One step of the bootstrap sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BootstrapStep {
    /// 1 to 13.
    pub step: u32,
    pub name: String,
    /// Milliseconds from the nomination until it was done; none: not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_ms: Option<u64>,
    /// What was found, or what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// One node as the cluster manager sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberStatus {
    pub node: String,
    pub kind: NodeKind,
    pub alive: bool,
    /// Milliseconds since its last heartbeat.
    pub last_heartbeat_ms: u64,
    /// What it does among its like: active or standby, master or replica.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// What it waits for, or why it cannot lead.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What fails there, by its last heartbeat, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<Trouble>,
}

/// `hw.node.<index manager>.status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ManagerStatusRequest {
    /// Name of the bucket that the page follows; None: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets_after: Option<String>,
}

/// Reply of `hw.node.<index manager>.status`; buckets and bootstrap are the master's alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManagerStatus {
    pub node: String,
    #[serde(flatten)]
    pub report: ManagerReport,
    /// What it has done since it was nominated.
    #[serde(default)]
    pub bootstrap: Vec<BootstrapStep>,
    /// Buckets in the order of their names, as many as fit the reply.
    #[serde(default)]
    pub buckets: Vec<BucketStatus>,
    /// True when the list goes on: ask for what follows the last item.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_buckets: bool,
}

/// `hw.cluster.members`: of members and buckets as many as fit one message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterStatusRequest {
    /// Kind and name of the node that the page follows; None: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members_after: Option<(NodeKind, String)>,
    /// Name of the bucket that the page follows; None: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets_after: Option<String>,
}

/// Reply of `hw.cluster.members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterStatus {
    /// The active cluster manager; empty while there is none.
    pub cluster_manager: String,
    /// The index manager that coordinates; empty while there is none.
    pub coordinator: String,
    pub term: u64,
    /// Version of the replicated state.
    pub version: u64,
    /// Nodes in the order of kind and name, as many as fit the reply.
    pub members: Vec<MemberStatus>,
    /// True when the list goes on: ask for what follows the last item.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_members: bool,
    /// The master's bootstrap, step by step.
    pub bootstrap: Vec<BootstrapStep>,
    /// Buckets in the order of their names, as many as fit the reply.
    pub buckets: Vec<BucketStatus>,
    /// True when the list goes on: ask for what follows the last item.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_buckets: bool,
}

/// Reply of `hw.cluster.master`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MasterReply {
    /// None: nobody coordinates at the moment.
    pub master: Option<Master>,
}

/// `hw.cluster.replicas` and `hw.cluster.indexers`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MembersRequest {
    /// Name of the node that the page follows; None: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Reply of `hw.cluster.replicas` and `hw.cluster.indexers`: the nodes of that kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MembersReply {
    /// Nodes in the order of their names, as many as fit the reply.
    pub members: Vec<MemberStatus>,
    /// True when the list goes on: ask for what follows the last item.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// A document that an index could not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnindexedDoc {
    pub id: String,
    pub vb: u16,
    pub seqno: u64,
    /// not_json, too_deep, too_large, key_too_long or id_too_long.
    pub reason: String,
}

/// `hw.node.<id>.status`: of all slices, or of those of one bucket; naming one slice asks for what it could not take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeStatusRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Only the slices after this one: bucket, number of the index, partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<(String, u32, u32)>,
}

/// Reply of `hw.node.<id>.status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    pub node: String,
    pub kind: NodeKind,
    /// By bucket, number of the index and partition, as many as fit.
    pub slices: Vec<SliceReport>,
    /// True when the list goes on: ask for what follows the last item.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Data messages refused because they were damaged or of an unknown version.
    pub refused_messages: u64,
    /// Batches of key versions that counted for nothing: of an abandoned branch, or beyond their generation's share.
    #[serde(default)]
    pub void_batches: u64,
    /// Per slice, in order, a bounded list of what it could not take; only when asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unindexed: Vec<UnindexedDoc>,
}
