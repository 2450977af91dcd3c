//! Subject and stream names. All subjects start with `hw.`.

use crate::names::MAX_STREAM_NAME;
use xxhash_rust::xxh3::xxh3_128;

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
/// The name of a stream of ours. NATS takes 255 bytes: of a longer one the end is a hash, behind a character that names of buckets
/// and topics have not.
fn stream(name: String) -> String {
    const HASH: usize = 33;
    if name.len() <= MAX_STREAM_NAME {
        return name;
    }
    let kept: String = name.chars().take(MAX_STREAM_NAME - HASH).collect();
    format!("{kept}~{:032x}", xxh3_128(name.as_bytes()))
}

pub fn mutation_stream(bucket: &str) -> String {
    stream(format!("HW_MUTATION_{bucket}"))
}
pub fn mutation(bucket: &str, node: &str) -> String {
    format!("hw.mutation.{bucket}.{node}")
}
/// The stream of a topic that people made.
pub fn topic_stream(bucket: &str, topic: &str) -> String {
    // Neither name has a dot, and a stream's name may not have one: the length tells where the bucket's ends.
    stream(format!("HW_TOPIC_{}_{bucket}_{topic}", bucket.len()))
}
pub fn topic(bucket: &str, topic: &str, subscriber: &str) -> String {
    format!("hw.topic.{bucket}.{topic}.{subscriber}")
}
pub fn catchup_stream(bucket: &str) -> String {
    stream(format!("HW_CATCHUP_{bucket}"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{MAX_BUCKET, MAX_NAME, is_stream};

    #[test]
    fn streams_of_long_buckets_have_names_that_nats_takes_and_no_two_the_same() {
        let buckets = ["b".repeat(MAX_BUCKET), format!("{}c", "b".repeat(MAX_BUCKET - 1)), "b".repeat(200), "b".into()];
        let topics = ["t".repeat(MAX_NAME), format!("{}u", "t".repeat(MAX_NAME - 1))];
        let mut all = Vec::new();
        for bucket in &buckets {
            all.extend([mutation_stream(bucket), catchup_stream(bucket), kv_stream(bucket)]);
            all.extend(topics.iter().map(|topic| topic_stream(bucket, topic)));
        }
        assert!(all.iter().all(|name| is_stream(name)), "{all:?}");
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(mutation_stream("people"), "HW_MUTATION_people");
        assert_eq!(mutation_stream(&"b".repeat(243)), format!("HW_MUTATION_{}", "b".repeat(243)));
    }
}
