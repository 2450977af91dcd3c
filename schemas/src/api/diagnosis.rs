//! Looking into slices: `hw.node.<id>.verify` and `hw.node.<id>.dump`, and the same of a directory whose node does not run.

use crate::error::ApiError;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use std::borrow::Cow;

/// The most documents in the reply of one dump; fewer come where they do not fit a message.
pub const MOST_DUMPED: u64 = 10_000;
/// How long a verification may take when it does not say, and at most, milliseconds.
pub const VERIFY_TIMEOUT_MS: u64 = 60_000;
pub const MOST_VERIFY_TIMEOUT_MS: u64 = 3_600_000;

/// `hw.node.<id>.verify`: reads slices of the node from end to end and says whether they agree with themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeVerifyRequest {
    pub bucket: String,
    /// None: every index of the bucket that has slices here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// None: every partition that is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Milliseconds for all of it, 60,000 unless given; what was not checked by then has the error `timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Reply of `hw.node.<id>.verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeVerify {
    pub slices: Vec<SliceCheck>,
}

/// What checking a slice found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SliceCheck {
    /// The node; of a directory, its path.
    pub at: String,
    pub bucket: String,
    /// The index's name; of a directory its id, since names are not in it.
    pub index: String,
    pub partition: u32,
    /// As in `hw.node.<id>.status`; of a directory: empty, building or active.
    pub state: String,
    /// Documents in the back index; of a build that lies in a directory, records of its runs.
    pub documents: u64,
    pub entries: u64,
    /// Documents that the index could not take.
    pub unindexed: u64,
    /// Snapshots to which the slice can be rolled back.
    pub snapshots: u64,
    /// Undo records, one per document and snapshot.
    pub undo: u64,
    /// Sorted runs of a build that lies in a directory.
    #[serde(default)]
    pub runs: u64,
    /// What is wrong, or why it could not be checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// `hw.node.<id>.dump`: what a slice of the node says of itself, and documents of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeDumpRequest {
    pub bucket: String,
    pub index: String,
    /// Needed where the node hosts several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Documents wanted, at most 10,000.
    #[serde(default)]
    pub rows: u64,
    /// From this docid on, of vbucket `vb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default)]
    pub vb: u16,
}

/// Reply of `hw.node.<id>.dump`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeDump {
    pub slices: Vec<SliceDump>,
}

/// A slice as its files, and on a running node its memory, have it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SliceDump {
    /// As in [`SliceCheck`].
    pub at: String,
    pub bucket: String,
    /// When the bucket was declared, as a number that tells it from another of the same name.
    pub declared: u64,
    pub index: String,
    pub index_id: String,
    /// The index's number.
    pub number: u32,
    pub partition: u32,
    pub format_version: u32,
    pub state: String,
    /// How far the data of the newest commit goes, or of the newest run of a build.
    pub mark: MarkDump,
    /// A newer mark in the node's records: nothing has changed since the slice's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_mark: Option<MarkDump>,
    /// Snapshots to which the slice can be rolled back, oldest first.
    pub kept: Vec<KeptDump>,
    pub entries: u64,
    pub unindexed: u64,
    /// Bytes of pages that hold data, and undo records; of the file; of what is in memory.
    pub live_bytes: u64,
    pub undo_bytes: u64,
    pub file_bytes: u64,
    pub memory_bytes: u64,
    /// Stability layers in memory.
    pub layers: usize,
    /// Sorted runs of a build.
    pub runs: Vec<RunDump>,
    /// Documents of the back index, as they are durable.
    pub rows: Vec<DocumentDump>,
    /// There are more documents behind the last one.
    pub more: bool,
    /// Why it cannot be read, or no longer becomes durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// How far data goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MarkDump {
    /// Number and term of the stability timestamp.
    pub st: u64,
    pub term: u64,
    pub building: bool,
    pub vbs: Vec<MarkVbDump>,
    /// Sequence of the mutation topic up to which everything is in, and when that topic was created, nanoseconds.
    pub topic: u64,
    pub topic_created: i64,
    /// Documents that the build has read.
    pub docs_done: u64,
}

/// How far data goes in one vbucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MarkVbDump {
    /// 16 hexadecimal digits, as elsewhere.
    pub vbuuid: String,
    pub seqno: u64,
    pub round: u64,
    pub covered: u64,
    /// The highest seqno that the data may contain.
    pub content: u64,
    /// Server time of the message at `seqno`, nanoseconds since the epoch; 0 if there was none.
    pub server_time: i64,
    /// Hash of that message, 16 hexadecimal digits.
    pub hash: String,
}

/// A kept snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptDump {
    /// When it was made, milliseconds since the epoch.
    pub at: u64,
    pub entries: u64,
    pub unindexed: u64,
    /// Bytes of the records that lead to the snapshot before it.
    pub undo_bytes: u64,
    pub mark: MarkDump,
}

/// A sorted run of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunDump {
    pub file: String,
    pub records: u64,
    pub bytes: u64,
    pub mark: MarkDump,
}

/// A document of the back index.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DocumentDump {
    pub vb: u16,
    pub id: String,
    pub seqno: u64,
    /// Why the index could not take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub entries: Vec<EntryDump>,
}

/// An entry of a document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EntryDump {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<Value>>,
    /// The key's bytes in hexadecimal, where they are no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
    /// As the rows of a scan have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include: Option<IncludedFields>,
}

/// An object in its own text: every digit of its numbers counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IncludedFields(pub Box<RawValue>);

impl PartialEq for IncludedFields {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl JsonSchema for IncludedFields {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        Map::<String, Value>::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Map::<String, Value>::json_schema(generator)
    }
}
