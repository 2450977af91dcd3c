//! `hw.admin.*`.

use crate::{
    definition::{BucketDefinition, Source},
    state::RollbackPhase,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A reply or request without fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// `hw.admin.bucket.add`.
pub type BucketAdd = BucketDefinition;

/// `hw.admin.bucket.remove`: only a bucket without indexes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketRemove {
    pub name: String,
}

/// `hw.admin.bucket.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketListRequest {
    /// Name of the bucket that the page follows; None: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// One declared bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BucketSummary {
    pub name: String,
    pub source: Source,
    /// Number of source streams.
    pub vbuckets: usize,
    pub indexes: usize,
}

/// Reply of `hw.admin.bucket.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BucketList {
    /// Buckets in the order of their names, as many as fit the reply.
    pub buckets: Vec<BucketSummary>,
    /// True when the list goes on: ask for what follows the last item.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl BucketList {
    /// The `after` of the request for the next page; None: this is the last page.
    pub fn next_after(&self) -> Option<String> {
        self.buckets.last().filter(|_| self.more).map(|bucket| bucket.name.clone())
    }
}

/// `hw.admin.bucket.history`: the branches of a bucket's sources, and what was rolled back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketHistory {
    pub name: String,
}

/// A branch of a source's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Branch {
    /// Hexadecimal.
    pub vbuuid: String,
    /// The sequence number up to which it is the branch before.
    pub start: u64,
    /// What that one held above is certainly gone; else it could not be proven to be the same.
    pub broken: bool,
    /// When it was found, milliseconds since the epoch.
    pub at: u64,
    /// Why it began; empty for the first.
    pub reason: String,
}

/// The failover log of one source stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamHistory {
    pub stream: String,
    /// Newest first.
    pub failover: Vec<Branch>,
}

/// A rollback of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RollbackSummary {
    pub phase: RollbackPhase,
    /// The streams with a new branch.
    pub streams: Vec<String>,
    pub broken: bool,
    /// Milliseconds since the epoch; `ended` is 0 while it goes on.
    pub began: u64,
    pub ended: u64,
    pub reason: String,
}

/// Reply of `hw.admin.bucket.history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BucketHistoryReply {
    pub streams: Vec<StreamHistory>,
    /// Oldest first; the one under way is the last.
    pub rollbacks: Vec<RollbackSummary>,
    /// The reconcile under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<ReconcileSummary>,
    /// The last one that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconciled: Option<ReconcileSummary>,
}

/// A comparison of a bucket's indexes with the present documents of its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReconcileSummary {
    pub id: u64,
    /// When it began and, if it is over, ended, milliseconds since the epoch; 0: it is not over.
    pub began: u64,
    pub ended: u64,
}

/// `hw.admin.bucket.reconcile`: compares the indexes with the source now, for what vanished from it without a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketReconcile {
    pub name: String,
}

/// Reply of `hw.admin.bucket.reconcile`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReconcileReply {
    /// Done when `hw.admin.bucket.history` shows one with a higher number than this that ended.
    pub after: u64,
}

/// `hw.admin.index.build`: builds deferred indexes of a bucket in one pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexBuild {
    pub bucket: String,
    pub names: Vec<String>,
}

/// `hw.admin.index.drop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexDrop {
    pub bucket: String,
    pub name: String,
}

/// An index as a DDL reply names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexSummary {
    pub bucket: String,
    pub name: String,
    pub id: String,
    /// created, building, active or error.
    pub state: String,
}

/// Reply of `hw.admin.index.create` and `.drop`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexReply {
    pub index: IndexSummary,
}

/// Reply of `hw.admin.index.build`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IndexesReply {
    pub indexes: Vec<IndexSummary>,
}

/// `hw.admin.state.history`: the newest records of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateHistory {
    /// How many; 50 unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Reply of `hw.admin.state.history`, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateHistoryReply {
    pub records: Vec<serde_json::Value>,
}

/// `hw.admin.state.get`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateGet {
    /// Only this bucket; none: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
}

/// Reply of `hw.admin.state.get`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateReply {
    /// The index manager that answered.
    pub node: String,
    /// The StateContext: what the log adds up to.
    pub state: serde_json::Value,
}

/// `hw.node.<indexer>.assign`: can it take so many partitions of an index?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assign {
    pub bucket: String,
    /// The index's number.
    pub index: u32,
    pub partitions: u32,
}

/// `hw.admin.topic.create` and `.delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicRequest {
    pub bucket: String,
    pub topic: String,
}

/// `hw.admin.topic.subscribe`: to a topic that was created, or to `mutation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    pub bucket: String,
    pub topic: String,
    pub subscriber: String,
    /// A condition over bucket, vbucket, index and partition; none: everything.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub predicate: String,
}

/// `hw.admin.topic.unsubscribe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unsubscribe {
    pub bucket: String,
    pub topic: String,
    pub subscriber: String,
}

/// `hw.admin.topic.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicListRequest {
    /// None: of all buckets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Bucket and name of the topic that the page follows; None: the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<(String, String)>,
}

/// One topic of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TopicSummary {
    pub bucket: String,
    pub topic: String,
    /// mutation, catchup or custom.
    pub kind: String,
    /// The stream that holds it.
    pub stream: String,
    /// Subscriptions of the topic, as many as fit the reply.
    pub subscriptions: Vec<crate::state::SubscriptionView>,
    /// Number of all subscriptions of the topic.
    #[serde(default)]
    pub subscription_count: u64,
}

/// Reply of `hw.admin.topic.list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TopicList {
    /// Topics in the order of bucket and name, as many as fit the reply.
    pub topics: Vec<TopicSummary>,
    /// True when the list goes on: ask for what follows the last item.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl TopicList {
    /// The `after` of the request for the next page; None: this is the last page.
    pub fn next_after(&self) -> Option<(String, String)> {
        self.topics.last().filter(|_| self.more).map(|topic| (topic.bucket.clone(), topic.topic.clone()))
    }
}

/// Reply of `hw.admin.topic.subscribe`: where the subscriber reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeReply {
    pub stream: String,
    pub subject: String,
}
