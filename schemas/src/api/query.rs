//! `hw.query.*`.

use super::cluster::UnindexedDoc;
use crate::collation::Span;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One vbucket of a reply's timestamp; accepted back in `at_plus`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VbPosition {
    /// The branch of history, hexadecimal.
    pub vbuuid: String,
    pub seqno: u64,
}

/// The caller's own writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AtPlus {
    /// Buckets of one stream: the revision that the put returned.
    Revision(u64),
    /// By stream name.
    Revisions(BTreeMap<String, u64>),
    /// A reply's whole timestamp.
    Timestamp(BTreeMap<String, VbPosition>),
}

/// A consistency that carries a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SnapshotChoice {
    AtPlus(AtPlus),
    /// A stability timestamp that is still held.
    AtSnapshot(u64),
}

/// How new an answer must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Consistency {
    /// "any" or "request_plus".
    Named(String),
    With(SnapshotChoice),
}

/// `hw.query.scan` and `hw.query.count`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScanQuery {
    pub bucket: String,
    pub index: String,
    /// A union of ranges; none: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<Span>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reverse: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Rows wanted in all; none: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// The most rows in one reply; none: what fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u64>,
    /// "any" (default), "request_plus", {"at_plus":…} or {"at_snapshot":n}.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_token: Option<String>,
}

/// Reply of `hw.query.scan`, for typed clients; the catalog writes it without building this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScanResult {
    pub ok: bool,
    pub st: u64,
    pub exact: bool,
    pub unindexed: u64,
    pub timestamp: BTreeMap<String, VbPosition>,
    /// The fields that the index's keys are of, in the order of each row's `key`, named as included fields are. None of a primary
    /// index, nor from a catalog of an earlier version.
    #[serde(default)]
    pub key_names: Vec<String>,
    pub rows: Vec<ResultRow>,
    pub page_token: Option<String>,
}

/// One row of a scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResultRow {
    pub id: String,
    /// Only for buckets of several vbuckets: the stream's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vb: Option<String>,
    pub key: Vec<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Reply of `hw.query.count`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CountReply {
    pub st: u64,
    pub exact: bool,
    pub unindexed: u64,
    pub timestamp: BTreeMap<String, VbPosition>,
    pub count: u64,
}

/// `hw.query.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// None: the indexes of all buckets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Bucket and name of the index that the page follows; None: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<(String, String)>,
}

/// One index with what its nodes report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IndexStats {
    pub bucket: String,
    pub name: String,
    pub id: String,
    /// created, building, catchup, active or error.
    pub state: String,
    pub keys: Vec<String>,
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    pub num_partition: u32,
    /// The version of the rules of values that the index was made with; 0: made before versions were recorded.
    #[serde(default)]
    pub language: u32,
    /// Documents of the source that the build has not read yet.
    pub docs_pending: u64,
    pub docs_done: u64,
    pub items: u64,
    pub bytes: u64,
    pub unindexed: u64,
    /// 0 to 1.
    pub progress: f64,
    pub error: Option<String>,
}

/// Reply of `hw.query.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListReply {
    /// Indexes in the order of bucket and name, as many as fit the reply.
    pub indexes: Vec<IndexStats>,
    /// True when the list goes on: ask for what follows the last item.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl ListReply {
    /// The `after` of the request for the next page; None: this is the last page.
    pub fn next_after(&self) -> Option<(String, String)> {
        self.indexes.last().filter(|_| self.more).map(|index| (index.bucket.clone(), index.name.clone()))
    }
}

/// `hw.query.describe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Describe {
    pub bucket: String,
    pub index: String,
}

/// Reply of `hw.query.describe`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DescribeReply {
    pub index: IndexStats,
    /// Node of each partition.
    pub hosts: Vec<String>,
    /// Documents that the index could not take: at most 100 of each partition, and as many as fit the reply. `index.unindexed` is the
    /// number of all.
    pub unindexed: Vec<UnindexedDoc>,
}
