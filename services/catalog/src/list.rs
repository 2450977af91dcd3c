//! `hw.query.list`, `.describe` and `.nodes`.

use crate::{
    fields::Fields,
    request::find,
    service::Shared,
    stats::{Reports, by_slice, index_stats},
};
use futures_util::future::join_all;

use highwater_schemas::{
    ApiError, ErrorCode,
    api::{
        self, ClusterStatus, ClusterStatusRequest, DescribeReply, IndexStats, ListReply, NodeStatus, NodeStatusRequest,
        Trouble, UnindexedDoc, page,
    },
    names,
    state::{Index, IndexState},
    subjects,
};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

/// A healthy host answers in a millisecond.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(2);

/// Pages of members that are looked through for what fails.
const MOST_PAGES: usize = 16;

/// Maximum number of indexes in one reply: their hosts are asked for each.
const MOST_LISTED: usize = 1_000;

/// Indexes with their buckets' source streams.
type Known = Vec<(Index, Vec<String>)>;

pub async fn list(shared: &Shared, payload: &[u8]) -> Result<Vec<u8>, ApiError> {
    let mut fields = Fields::read(payload, &["bucket", "after"])?;
    let wanted: Option<String> = fields.take("bucket", "a bucket's name")?;
    let after: Option<(String, String)> = fields.take("after", "a bucket's name and an index's name")?;
    if let Some(bucket) = &wanted {
        names::check_bucket("bucket", bucket)?;
    }
    let mut known: Known = {
        let core = shared.core();
        let buckets = &core.context().buckets;
        if let Some(bucket) = wanted.as_ref().filter(|bucket| !buckets.contains_key(*bucket)) {
            return Err(ApiError::new(ErrorCode::BucketNotFound, format!("there is no bucket {bucket}")));
        }
        let wanted = buckets.values().filter(|b| wanted.as_ref().is_none_or(|name| *name == b.definition.name));
        wanted.flat_map(|bucket| bucket.indexes.values().map(|index| (index.clone(), streams(bucket)))).collect()
    };
    let rest = from(&mut known, after.as_ref());
    let (indexes, more) = page(gather(shared, wanted, known).await);
    Ok(api::ok(&ListReply { indexes, more: more || rest }))
}

/// Keeps the page of indexes that follows `after` in the order of bucket and name; answers whether more follow.
fn from(known: &mut Known, after: Option<&(String, String)>) -> bool {
    let name = |(index, _): &(Index, Vec<String>)| {
        let definition = &index.placed.definition;
        (definition.bucket.clone(), definition.name.clone())
    };
    known.retain(|index| after.is_none_or(|after| name(index) > *after));
    known.sort_by_cached_key(name);
    let rest = known.len() > MOST_LISTED;
    known.truncate(MOST_LISTED);
    rest
}

pub async fn describe(shared: &Shared, payload: &[u8]) -> Result<Vec<u8>, ApiError> {
    let mut fields = Fields::read(payload, &["bucket", "index"])?;
    let bucket: String = fields.need("bucket", "the bucket's name")?;
    let index: String = fields.need("index", "the index's name")?;
    names::check_bucket("bucket", &bucket)?;
    names::check("index", &index)?;
    let (found, streams) = {
        let core = shared.core();
        let (bucket, index) = find(core.context(), &bucket, &index)?;
        (index.clone(), streams(bucket))
    };
    let (number, hosts) = (found.placed.number, found.placed.hosts.clone());
    let (mut indexes, unindexed) = tokio::join!(
        gather(shared, Some(bucket.clone()), vec![(found, streams)]),
        unindexed(shared, &bucket, number, &hosts)
    );
    let Some(index) = indexes.pop() else { return Err(ApiError::new(ErrorCode::Internal, "an index without numbers")) };
    Ok(api::ok(&DescribeReply { index, hosts, unindexed: page(unindexed).0 }))
}

/// How far the build of an index is, as part of a message.
pub async fn progress(shared: &Shared, bucket: &str, index: &str) -> Option<String> {
    let known = {
        let core = shared.core();
        let (bucket, index) = find(core.context(), bucket, index).ok()?;
        vec![(index.clone(), streams(bucket))]
    };
    let stats = gather(shared, Some(bucket.to_owned()), known).await.pop()?;
    Some(format!("{:.0} % built", stats.progress * 100.0))
}

/// The cluster as the cluster manager sees it, in its own words.
pub async fn nodes(shared: &Shared, payload: &[u8]) -> Result<Vec<u8>, ApiError> {
    let asked: api::ClusterStatusRequest = api::parse(payload)?;
    let asked = serde_json::to_vec(&asked).unwrap_or_default();
    let reply = shared.bus.request(subjects::CLUSTER_MEMBERS, asked, MEMBERS_TIMEOUT).await;
    let reply = reply.map_err(|e| ApiError::new(ErrorCode::NoCoordinator, e.to_string()))?;
    api::reply(&reply.payload).map(|_| reply.payload.to_vec())
}

/// Nobody is there to issue stability timestamps.
pub async fn coordinator_is_silent(shared: &Shared) -> bool {
    let coordinator = shared.core().context().coordinator.clone();
    if coordinator.is_empty() {
        return true;
    }
    // One that stepped down still answers: it must say that it coordinates.
    let status = subjects::node(&coordinator, "status");
    let Ok(reply) = shared.bus.request(&status, b"{}".to_vec(), MEMBERS_TIMEOUT).await else { return true };
    api::reply(&reply.payload).is_ok_and(|status| status["leading"].is_null())
}

fn streams(bucket: &highwater_schemas::state::Bucket) -> Vec<String> {
    bucket.definition.vbuckets().into_iter().map(|stream| stream.name).collect()
}

/// Asks the hosts and, for what is not active, the sources. `bucket`: that of all the indexes, if they are of one.
async fn gather(shared: &Shared, bucket: Option<String>, known: Known) -> Vec<IndexStats> {
    let hosts: BTreeSet<&String> =
        known.iter().filter(|(index, _)| index.topology > 0).flat_map(|(index, _)| &index.placed.hosts).collect();
    let unread: BTreeSet<&String> =
        known.iter().filter(|(index, _)| index.state != IndexState::Active).flat_map(|(_, streams)| streams).collect();
    let request = NodeStatusRequest { bucket, ..NodeStatusRequest::default() };
    let status = |host: String| {
        let request = &request;
        async move {
            let status = node_status(shared, &host, request).await;
            (host, status)
        }
    };
    let messages = |stream: String| async move {
        let messages = shared.bus.stream_state(&stream).await.ok().map(|state| state.messages);
        (stream, messages)
    };
    let fails = async { if unread.is_empty() { Vec::new() } else { troubles(shared).await } };
    let (reports, messages, troubles) = tokio::join!(
        join_all(hosts.into_iter().cloned().map(status)),
        join_all(unread.iter().map(|stream| messages((*stream).clone()))),
        fails,
    );
    let reports: Reports = reports.into_iter().map(|(host, status)| (host, status.map(by_slice))).collect();
    let messages: HashMap<String, Option<u64>> = messages.into_iter().collect();
    let count = |streams: &[String]| streams.iter().map(|s| messages.get(s).copied().flatten()).sum::<Option<u64>>();
    let stats = |(index, streams): &(Index, Vec<String>)| {
        let mut stats = index_stats(index, &reports, count(streams));
        if stats.error.is_none() && index.state == IndexState::Building {
            stats.error = holding_up(&stats.bucket, streams, &troubles);
        }
        stats
    };
    let mut indexes: Vec<IndexStats> = known.iter().map(stats).collect();
    let mut highest = shared.highest();
    for stats in &mut indexes {
        highest.raise(stats);
    }
    indexes
}

/// What fails at the nodes, the oldest of each first; nothing where nobody tells.
async fn troubles(shared: &Shared) -> Vec<(String, Trouble)> {
    let (mut all, mut request) = (Vec::new(), ClusterStatusRequest::default());
    for _ in 0..MOST_PAGES {
        let asked = serde_json::to_vec(&request).unwrap_or_default();
        let reply = shared.bus.request(subjects::CLUSTER_MEMBERS, asked, STATUS_TIMEOUT).await;
        let Ok(Ok(page)) = reply.map(|reply| serde_json::from_slice::<ClusterStatus>(&reply.payload)) else { break };
        request.members_after = page.members.last().map(|member| (member.kind, member.node.clone()));
        let of = |member: api::MemberStatus| {
            let node = member.node;
            member.troubles.into_iter().map(move |trouble| (node.clone(), trouble))
        };
        let is_last = !page.more_members || page.members.is_empty();
        all.extend(page.members.into_iter().flat_map(of));
        if is_last {
            break;
        }
    }
    all
}

/// What keeps the indexes of a bucket from being built, if a node says so.
fn holding_up(bucket: &str, sources: &[String], troubles: &[(String, Trouble)]) -> Option<String> {
    let topics = [subjects::mutation_stream(bucket), subjects::catchup_stream(bucket)];
    let streams = [sources, &topics].concat();
    let (node, trouble) = troubles.iter().find(|(_, trouble)| trouble.is_of(bucket, &streams))?;
    Some(format!("{node}: {}: {}", trouble.what, trouble.error))
}

/// What the index's slices could not take, as far as their hosts answer.
async fn unindexed(shared: &Shared, bucket: &str, index: u32, hosts: &[String]) -> Vec<UnindexedDoc> {
    let ask = |(partition, host): (usize, String)| async move {
        let (index, partition) = (Some(index), Some(partition as u32));
        let bucket = Some(bucket.to_owned());
        node_status(shared, &host, &NodeStatusRequest { bucket, index, partition, after: None }).await
    };
    let answers = join_all(hosts.iter().cloned().enumerate().map(ask)).await;
    let mut unindexed: Vec<UnindexedDoc> = answers.into_iter().flatten().flat_map(|status| status.unindexed).collect();
    unindexed.sort_unstable_by(|a, b| (a.vb, a.seqno, &a.id).cmp(&(b.vb, b.seqno, &b.id)));
    unindexed
}

/// All slices, message by message.
async fn node_status(shared: &Shared, host: &str, request: &NodeStatusRequest) -> Option<NodeStatus> {
    let mut request = request.clone();
    let mut all: Option<NodeStatus> = None;
    loop {
        let payload = serde_json::to_vec(&request).ok()?;
        let reply = shared.bus.request(&subjects::node(host, "status"), payload, STATUS_TIMEOUT).await.ok()?;
        let status: NodeStatus = serde_json::from_slice(&reply.payload)
            .inspect_err(|error| tracing::debug!(host, %error, "a status cannot be read"))
            .ok()?;
        let last = status.slices.last().map(|slice| (slice.bucket.clone(), slice.index, slice.partition));
        let further = last.filter(|last| status.more && request.after.as_ref().is_none_or(|before| last > before));
        match &mut all {
            Some(all) => all.slices.extend(status.slices),
            None => all = Some(NodeStatus { more: false, ..status }),
        }
        if further.is_none() {
            return all;
        }
        request.after = further;
    }
}
