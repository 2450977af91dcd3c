//! Subject and stream names. All subjects start with `hw.`.

pub const ADMIN_SERVICE: &str = "highwater-admin";
pub const QUERY_SERVICE: &str = "highwater-query";
/// The stream of the replicated log; its one subject is [`STATE_SUBJECT`].
pub const STATE_STREAM: &str = "HW_STATE";
pub const STATE_SUBJECT: &str = "hw.state.log";
pub const CLUSTER_SERVICE: &str = "highwater-cluster";
/// The stream of the key-value bucket `hw_cluster`: the cluster managers' lease and the registered index managers.
pub const CLUSTER_STREAM: &str = "KV_hw_cluster";
pub const CLUSTER_LEASE: &str = "$KV.hw_cluster.lease";
pub const CLUSTER_JOIN: &str = "hw.cluster.join";
pub const CLUSTER_REPORT: &str = "hw.cluster.report";
pub const CLUSTER_LEAVE: &str = "hw.cluster.leave";
pub const CLUSTER_RECOVER: &str = "hw.cluster.recover";
pub const CLUSTER_MASTER: &str = "hw.cluster.master";
pub const CLUSTER_REPLICAS: &str = "hw.cluster.replicas";
pub const CLUSTER_INDEXERS: &str = "hw.cluster.indexers";
pub const CLUSTER_MEMBERS: &str = "hw.cluster.members";
pub const CLUSTER_EVENT: &str = "hw.cluster.event";

/// `hw.admin.<noun>.<verb>`.
pub fn admin(noun_verb: &str) -> String {
    format!("hw.admin.{noun_verb}")
}
/// `hw.query.<verb>`.
pub fn query(verb: &str) -> String {
    format!("hw.query.{verb}")
}
/// What an indexer answers under `hw.node.<id>.<verb>`; `verify` and `dump` look into its slices.
pub const INDEXER_VERBS: [&str; 7] = ["scan", "status", "ping", "assign", "verify", "dump", "report"];

/// `hw.node.<id>.<verb>`.
pub fn node(id: &str, verb: &str) -> String {
    format!("hw.node.{id}.{verb}")
}
pub fn want(bucket: &str) -> String {
    format!("hw.want.{bucket}")
}
pub fn sync(bucket: &str) -> String {
    format!("hw.sync.{bucket}")
}
pub fn hwt(bucket: &str, node: &str) -> String {
    format!("hw.hwt.{bucket}.{node}")
}
pub fn stability(bucket: &str) -> String {
    format!("hw.stability.{bucket}")
}
/// Where stability timestamps are asked for that did not come.
pub fn missed(bucket: &str) -> String {
    format!("hw.missed.{bucket}")
}
pub fn mutation_stream(bucket: &str) -> String {
    format!("HW_MUTATION_{bucket}")
}
pub fn mutation(bucket: &str, node: &str) -> String {
    format!("hw.mutation.{bucket}.{node}")
}
/// The stream of a topic that people made.
pub fn topic_stream(bucket: &str, topic: &str) -> String {
    // Neither name has a dot, and a stream's name may not have one: the length tells where the bucket's ends.
    format!("HW_TOPIC_{}_{bucket}_{topic}", bucket.len())
}
pub fn topic(bucket: &str, topic: &str, subscriber: &str) -> String {
    format!("hw.topic.{bucket}.{topic}.{subscriber}")
}
pub fn catchup_stream(bucket: &str) -> String {
    format!("HW_CATCHUP_{bucket}")
}
pub fn catchup(bucket: &str, session: u64) -> String {
    format!("hw.catchup.{bucket}.{session}")
}
/// Where the cluster managers remember that an index manager exists.
pub fn cluster_registered(node: &str) -> String {
    format!("$KV.hw_cluster.registered.{node}")
}
/// The stream behind a NATS key-value bucket.
pub fn kv_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}
/// The subject prefix of a NATS key-value bucket's keys.
pub fn kv_prefix(bucket: &str) -> String {
    format!("$KV.{bucket}.")
}
