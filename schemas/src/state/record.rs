//! One change of the replicated state.

use super::context::StateContext;
use crate::{
    api::NodeKind,
    definition::{BucketDefinition, CompiledIndex, IndexDefinition},
    error::ApiError,
    language::Language,
    timestamp::{Bookmark, Dropped, Position, StabilityTimestamp},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// A slice by the names that the coordinator gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SliceName {
    /// The index's number.
    pub index: u32,
    pub partition: u32,
}

/// A new index and where its partitions live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedIndex {
    /// Rises over all indexes, never reused.
    pub number: u32,
    /// What users see.
    pub id: String,
    pub definition: IndexDefinition,
    /// Partition → host.
    pub hosts: Vec<String>,
    /// The number of the [`crate::language::Language`] that it was made with; records from before there was one have none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub language: u32,
}

// A record that is written again must be the same as before.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl PlacedIndex {
    /// Parses the definition, by the rules that the index was made with.
    pub fn compile(&self) -> Result<CompiledIndex, ApiError> {
        self.definition.compile(Language::from_number(self.language)?)
    }
}

/// Where a session reads one vbucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionVb {
    pub generation: u64,
    /// Exclusive.
    pub from: u64,
    /// The newest reconcile that had been applied before it was opened.
    #[serde(default)]
    pub reconciled: u64,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionKind {
    /// Fills empty slices from the beginning.
    #[default]
    Build,
    /// Brings slices up from what they have covered.
    Recovery,
    /// Compares slices that are not in step with every present document, then brings them up.
    Comparison,
    /// Compares slices in step with every present document; what differs is staged until the chain says when to apply it.
    Reconcile,
}

impl SessionKind {
    /// It begins with every present document, once.
    pub fn lists(self) -> bool {
        matches!(self, Self::Comparison | Self::Reconcile)
    }
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Recovery => "recovery",
            Self::Comparison => "comparison",
            Self::Reconcile => "reconcile",
        }
    }
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Change {
    /// A coordinator took office; the first record of its term.
    TermStarted {
        coordinator: String,
    },
    /// A node is there, or there again under a new incarnation.
    NodeJoined {
        node: String,
        kind: NodeKind,
        incarnation: u64,
    },
    NodeLeft {
        node: String,
        kind: NodeKind,
    },
    BucketAdded {
        definition: BucketDefinition,
        vbuuids: Vec<u64>,
        /// Each source's last sequence then: the live chain begins there, sessions bring what is older.
        starts: Vec<u64>,
    },
    BucketRemoved {
        bucket: String,
    },
    /// A new generation of a vbucket's chain begins at `x`, read from `restart` on.
    VbucketAssigned {
        bucket: String,
        vb: u16,
        generation: u64,
        projector: String,
        incarnation: u64,
        /// The highest position of any ST issued before.
        x: Position,
        /// X's covered seqno.
        restart: u64,
        /// The highest seqno that anybody may hold.
        #[serde(default)]
        held: u64,
        /// What the rounds up to X have dropped.
        #[serde(default)]
        dropped: Dropped,
    },
    /// The source's history is not, or not certainly, the one that was indexed: a new branch, and the bucket's rollback begins.
    BranchStarted {
        bucket: String,
        vb: u16,
        vbuuid: u64,
        /// The rollback timestamp: up to here the history is proven to be the same; 0: nothing of it is.
        start: u64,
        /// The source's last sequence then: the live chain goes on there, sessions bring what is older.
        #[serde(default)]
        last: u64,
        /// The source lost or replaced what was indexed. Else that could not be ruled out, and what the indexes hold stays
        /// until it has been compared.
        #[serde(default)]
        broken: bool,
        /// What proves the start, oldest first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        bookmarks: Vec<Bookmark>,
        reason: String,
    },
    /// Every live indexer has gone back: the vbuckets can be read again.
    RollbackPrepared {
        bucket: String,
    },
    /// Every slice of a live indexer is in step again.
    RollbackDone {
        bucket: String,
    },
    /// Every slice in step is to be compared with the present documents, for what vanished without a message.
    ReconcileStarted {
        bucket: String,
        /// Of the numbers of the sessions.
        id: u64,
        /// Only of the documents that the projectors name in the chain: nothing is staged.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        named: bool,
    },
    /// Every slice in step on a live indexer has staged what differs: the projectors put it into the chain.
    ReconcileStaged {
        bucket: String,
    },
    /// It is in an issued ST in every vbucket.
    ReconcileDone {
        bucket: String,
        /// The one of named documents.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        named: bool,
    },
    IndexCreated {
        index: PlacedIndex,
    },
    /// Its hosts can take it; it waits for `index build`.
    IndexPrepared {
        bucket: String,
        index: u32,
    },
    IndexBuilding {
        bucket: String,
        indexes: Vec<u32>,
    },
    IndexActive {
        bucket: String,
        index: u32,
    },
    IndexFailed {
        bucket: String,
        index: u32,
        reason: String,
    },
    IndexDropped {
        bucket: String,
        index: u32,
        /// Empty: someone asked for it. Else why it could not be created.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// A catchup session: the projectors that own the vbuckets read the source again for these slices of one node.
    SessionOpened {
        bucket: String,
        session: u64,
        node: String,
        incarnation: u64,
        slices: Vec<SliceName>,
        vbs: Vec<SessionVb>,
        #[serde(default)]
        kind: SessionKind,
    },
    SessionClosed {
        bucket: String,
        session: u64,
    },
    TopicCreated {
        bucket: String,
        topic: String,
    },
    TopicDeleted {
        bucket: String,
        topic: String,
    },
    /// From the next batch on a subscriber gets what its predicate wants.
    Subscribed {
        bucket: String,
        topic: String,
        subscriber: String,
        predicate: String,
    },
    Unsubscribed {
        bucket: String,
        topic: String,
        subscriber: String,
    },
    /// ST numbers below this one may be used.
    NumbersReserved {
        bucket: String,
        below: u64,
    },
    /// Everything that came before, so that the log can begin here.
    Snapshot {
        context: Box<StateContext>,
        /// Empty: compaction. Else why the log was published anew.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// Messages of the sources as they were read, with each persistence timestamp that is marked.
    Bookmarked {
        bucket: String,
        /// By vbucket, the oldest first.
        bookmarks: Vec<Vec<Bookmark>>,
    },
    /// A persistence timestamp that every live indexer has made durable.
    Persisted {
        bucket: String,
        st: StabilityTimestamp,
    },
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Records without one are of the first format.
    #[serde(default = "first")]
    pub format: u32,
    /// One per life of the log, rising.
    pub incarnation: u64,
    pub term: u64,
    /// Ours, not the stream's; rises by one.
    pub version: u64,
    /// Hash of the record before, hexadecimal; empty in the first.
    pub prev: String,
    /// Milliseconds since the epoch, for people.
    pub at: u64,
    pub change: Change,
}

fn first() -> u32 {
    1
}

/// The fields that every version's records have, of a change no more than its name.
#[derive(Debug, Clone, Deserialize)]
pub struct Head {
    pub incarnation: u64,
    pub term: u64,
    pub version: u64,
    pub prev: String,
    pub change: ChangeName,
}

/// The name of a change, which this version may not know.
#[derive(Debug, Clone, Deserialize)]
pub struct ChangeName {
    pub what: String,
}

impl Head {
    /// Reads a record's JSON; None: it is no record, of whatever version.
    pub fn read(json: &[u8]) -> Option<Self> {
        let head: Self = serde_json::from_slice(json).ok()?;
        let named = !head.change.what.is_empty();
        (named && may_be_record(head.incarnation, head.term, head.version, &head.prev)).then_some(head)
    }
}

/// Whether a message of the log is a record, of this version or a later one. Any other message was written by somebody else and is
/// passed over: the hash in the next record tells that no record is missing.
pub fn is_record(payload: &[u8]) -> bool {
    super::unpack(payload).is_ok_and(|json| Head::read(&json).is_some())
}

/// Whether these fields may be those of a record.
pub(super) fn may_be_record(incarnation: u64, term: u64, version: u64, prev: &str) -> bool {
    let is_hash = prev.is_empty() || prev.len() == 32 && prev.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash && version > 0 && incarnation < u64::MAX && term < u64::MAX
}

impl Change {
    /// The bucket that it concerns; None: all of them, or none.
    pub fn bucket(&self) -> Option<&str> {
        match self {
            Self::TermStarted { .. } | Self::NodeJoined { .. } | Self::NodeLeft { .. } | Self::Snapshot { .. } => None,
            Self::BucketAdded { definition, .. } => Some(&definition.name),
            Self::IndexCreated { index } => Some(&index.definition.bucket),
            Self::BucketRemoved { bucket }
            | Self::VbucketAssigned { bucket, .. }
            | Self::BranchStarted { bucket, .. }
            | Self::RollbackPrepared { bucket }
            | Self::RollbackDone { bucket }
            | Self::ReconcileStarted { bucket, .. }
            | Self::ReconcileStaged { bucket }
            | Self::ReconcileDone { bucket, .. }
            | Self::IndexPrepared { bucket, .. }
            | Self::IndexBuilding { bucket, .. }
            | Self::IndexActive { bucket, .. }
            | Self::IndexFailed { bucket, .. }
            | Self::IndexDropped { bucket, .. }
            | Self::SessionOpened { bucket, .. }
            | Self::SessionClosed { bucket, .. }
            | Self::TopicCreated { bucket, .. }
            | Self::TopicDeleted { bucket, .. }
            | Self::Subscribed { bucket, .. }
            | Self::Unsubscribed { bucket, .. }
            | Self::NumbersReserved { bucket, .. }
            | Self::Bookmarked { bucket, .. }
            | Self::Persisted { bucket, .. } => Some(bucket),
        }
    }
}

impl Record {
    pub fn to_json(&self) -> Vec<u8> {
        // Records hold nothing that JSON cannot.
        serde_json::to_vec(self).expect("records are JSON")
    }
    /// The hash that the next record carries.
    pub fn hash(json: &[u8]) -> String {
        format!("{:032x}", xxh3_128(json))
    }
}

/// A vbuuid as users see it.
pub fn vbuuid_text(vbuuid: u64) -> String {
    format!("{vbuuid:016x}")
}
