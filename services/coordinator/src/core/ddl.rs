//! DDL: buckets and indexes come and go. Each request is checked whole before the first change is made.

use super::{Action, Core, Token, rollback::history, streams_of};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{
        BucketHistory, BucketList, BucketListRequest, BucketReconcile, BucketRemove, BucketSummary, Empty, IndexBuild,
        IndexDrop, IndexReply, IndexSummary, IndexesReply, NodeKind, Subscribe, TopicListRequest, TopicRequest,
        Unsubscribe, page,
    },
    definition::{BucketDefinition, IndexDefinition},
    language::Language,
    names,
    state::{Bucket, Change, Index, IndexState, PlacedIndex},
};
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};
use uuid::Builder;

/// Maximum number of indexes in a build request: the reply names all of them.
const MOST_BUILT: usize = 1_000;

/// A checked admin request.
#[derive(Debug, Clone)]
pub enum Ddl {
    BucketAdd(BucketDefinition),
    BucketRemove(BucketRemove),
    BucketList(BucketListRequest),
    BucketHistory(BucketHistory),
    BucketReconcile(BucketReconcile),
    IndexCreate(IndexDefinition),
    IndexBuild(IndexBuild),
    IndexDrop(IndexDrop),
    TopicCreate(TopicRequest),
    TopicDelete(TopicRequest),
    TopicSubscribe(Subscribe),
    TopicUnsubscribe(Unsubscribe),
    TopicList(TopicListRequest),
}

impl Ddl {
    /// The bucket whose source streams must be looked at first.
    pub fn probes(&self) -> Option<BucketDefinition> {
        match self {
            Self::BucketAdd(definition) => Some(definition.clone()),
            Self::IndexCreate(index) => Some(BucketDefinition::kv(&index.bucket)),
            _ => None,
        }
    }
}

/// What the shell found out about the source streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probed {
    /// The last sequence of each.
    pub starts: Vec<u64>,
    /// As in [`highwater_schemas::definition::Source`].
    pub kv_prefix: Option<String>,
}

impl From<Vec<u64>> for Probed {
    fn from(starts: Vec<u64>) -> Self {
        Self { starts, kv_prefix: None }
    }
}

/// The same, or why the bucket cannot be followed.
pub type Probe = Result<Probed, ApiError>;

/// The probe of a request that needed none when it came.
pub fn unprobed() -> Probe {
    let message = "the bucket is being removed: try again";
    Err(ApiError { retry: true, ..ApiError::new(ErrorCode::BucketNotFound, message) })
}

/// What a request names is not declared.
pub fn no_bucket(name: &str) -> ApiError {
    ApiError::new(ErrorCode::BucketNotFound, format!("there is no bucket {name}"))
}

impl Core {
    pub(super) fn ddl(&mut self, token: Token, ddl: Ddl, probe: &Probe, random: u64, out: &mut Vec<Action>) {
        if let Err(error) = self.begin(token, ddl, probe, random, out) {
            out.push(Action::Reply { token, answer: Err(error) });
        }
    }

    /// Nothing is done when it answers an error.
    fn begin(
        &mut self,
        token: Token,
        ddl: Ddl,
        probe: &Probe,
        random: u64,
        out: &mut Vec<Action>,
    ) -> Result<(), ApiError> {
        self.jobs.check_room()?;
        let answer = match ddl {
            Ddl::BucketAdd(definition) => return self.bucket_add(token, definition, probe, out),
            Ddl::IndexCreate(definition) => return self.index_create(token, definition, probe, random, out),
            Ddl::BucketRemove(request) => return self.bucket_remove(token, request, out),
            Ddl::BucketList(request) => json(&self.bucket_list(&request)),
            Ddl::BucketHistory(request) => json(&history(self.bucket(&request.name)?)),
            Ddl::BucketReconcile(request) => self.reconcile(&request, out)?,
            Ddl::IndexBuild(request) => self.index_build(&request, out)?,
            Ddl::IndexDrop(request) => self.index_drop(&request, out)?,
            Ddl::TopicCreate(request) => return self.topic_create(token, request, out),
            Ddl::TopicDelete(request) => return self.topic_delete(token, request, out),
            Ddl::TopicSubscribe(request) => self.subscribe(&request, out)?,
            Ddl::TopicUnsubscribe(request) => self.unsubscribe(&request, out)?,
            Ddl::TopicList(request) => self.topic_list(&request)?,
        };
        out.push(Action::Reply { token, answer: Ok(answer) });
        Ok(())
    }

    fn bucket_add(
        &mut self,
        token: Token,
        definition: BucketDefinition,
        probe: &Probe,
        out: &mut Vec<Action>,
    ) -> Result<(), ApiError> {
        definition.check()?;
        match self.context.buckets.get(&definition.name) {
            Some(known) if known.definition.is_meant_by(&definition) => {
                out.push(Action::Reply { token, answer: Ok(json(&Empty {})) });
            }
            Some(_) => return Err(other_source(&definition.name)),
            None => self.declare(token, definition, probe.clone()?, None, out)?,
        }
        Ok(())
    }

    fn bucket_remove(&mut self, token: Token, request: BucketRemove, out: &mut Vec<Action>) -> Result<(), ApiError> {
        let bucket = self.bucket(&request.name)?;
        if !bucket.indexes.is_empty() {
            return Err(ApiError::new(
                ErrorCode::BucketInUse,
                format!("bucket {} still has {} indexes: drop them first", request.name, bucket.indexes.len()),
            ));
        }
        let streams = streams_of(&request.name, bucket.topics.keys()).collect();
        out.push(Action::Append(Change::BucketRemoved { bucket: request.name }));
        self.delete_streams(Some(token), streams, out);
        Ok(())
    }

    fn bucket_list(&self, request: &BucketListRequest) -> BucketList {
        let after = request.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let further = self.context.buckets.range::<str, _>((after, Bound::Unbounded));
        let (buckets, more) = page(further.map(|(_, b)| BucketSummary {
            name: b.definition.name.clone(),
            source: b.definition.source.clone(),
            vbuckets: b.vbuckets.len(),
            indexes: b.indexes.len(),
        }));
        BucketList { buckets, more }
    }

    fn index_create(
        &mut self,
        token: Token,
        definition: IndexDefinition,
        probe: &Probe,
        random: u64,
        out: &mut Vec<Action>,
    ) -> Result<(), ApiError> {
        // Whatever can be refused is refused before a bucket is declared for it.
        self.check_new(&definition)?;
        self.place(definition.num_partition)?;
        if self.context.buckets.contains_key(&definition.bucket) {
            self.prepare(token, definition, random, out);
            return Ok(());
        }
        let probed = probe.clone().map_err(|e| match e.code {
            ErrorCode::SourceNotFound => ApiError::new(
                ErrorCode::BucketNotFound,
                format!("there is no bucket {0}: neither declared, nor a NATS key-value bucket", definition.bucket),
            ),
            _ => e,
        })?;
        self.declare(token, BucketDefinition::kv(&definition.bucket), probed, Some(definition), out)
    }

    fn check_new(&self, definition: &IndexDefinition) -> Result<(), ApiError> {
        definition.compile(Language::NEWEST)?;
        let bucket = self.context.buckets.get(&definition.bucket);
        if bucket.is_some_and(|b| b.index_by_name(&definition.name).is_some()) {
            return Err(ApiError::new(
                ErrorCode::IndexExists,
                format!("index {} exists already on bucket {}", definition.name, definition.bucket),
            ));
        }
        Ok(())
    }

    /// A new index with its number, id and hosts.
    pub(super) fn placed(&self, definition: IndexDefinition, random: u64) -> Result<PlacedIndex, ApiError> {
        // Another request may have come first.
        self.check_new(&definition)?;
        let hosts = self.place(definition.num_partition)?;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&mix(random, 1 << 32).to_be_bytes());
        bytes[8..].copy_from_slice(&mix(random, 2 << 32).to_be_bytes());
        let id = Builder::from_random_bytes(bytes).into_uuid().to_string();
        let language = Language::NEWEST.number();
        Ok(PlacedIndex { number: self.context.next_index + 1, id, definition, hosts, language })
    }

    /// Spreads partitions over the live indexers, the least loaded first.
    fn place(&self, partitions: u32) -> Result<Vec<String>, ApiError> {
        let mut load: BTreeMap<&str, usize> = self.context.alive(NodeKind::Indexer).map(|(n, _)| (n, 0)).collect();
        if load.is_empty() {
            return Err(ApiError::new(ErrorCode::NoIndexer, "no indexer is alive to host the index"));
        }
        for index in self.context.buckets.values().flat_map(|b| b.indexes.values()) {
            for host in &index.placed.hosts {
                if let Some(n) = load.get_mut(host.as_str()) {
                    *n += 1;
                }
            }
        }
        let mut hosts = Vec::new();
        for _ in 0..partitions {
            if let Some((node, n)) = load.iter_mut().min_by_key(|(_, n)| **n) {
                hosts.push((*node).to_owned());
                *n += 1;
            }
        }
        Ok(hosts)
    }

    fn index_build(&self, request: &IndexBuild, out: &mut Vec<Action>) -> Result<Value, ApiError> {
        let bucket = self.bucket(&request.bucket)?;
        if request.names.is_empty() {
            return Err(ApiError::new(ErrorCode::MalformedRequest, "names: at least one index"));
        }
        if request.names.len() > MOST_BUILT {
            let why = format!("names: at most {MOST_BUILT}, not {}", request.names.len());
            return Err(ApiError::new(ErrorCode::MalformedRequest, why));
        }
        let (mut numbers, mut indexes) = (Vec::new(), Vec::new());
        for name in request.names.iter().collect::<BTreeSet<_>>() {
            let index = find(bucket, name)?;
            let waits = matches!(index.state, IndexState::Created | IndexState::Preparing);
            if waits {
                numbers.push(index.placed.number);
            }
            let state = if waits { "building" } else { index.state.as_str() };
            indexes.push(IndexSummary { state: state.into(), ..summary(index) });
        }
        if !numbers.is_empty() {
            out.push(Action::Append(Change::IndexBuilding { bucket: request.bucket.clone(), indexes: numbers }));
        }
        Ok(json(&IndexesReply { indexes }))
    }

    fn index_drop(&self, request: &IndexDrop, out: &mut Vec<Action>) -> Result<Value, ApiError> {
        let bucket = self.bucket(&request.bucket)?;
        let index = find(bucket, &request.name)?;
        let number = index.placed.number;
        let bucket_name = request.bucket.clone();
        out.push(Action::Append(Change::IndexDropped { bucket: bucket_name, index: number, reason: String::new() }));
        for session in bucket.sessions.values().filter(|s| s.slices.iter().all(|x| x.index == number)) {
            out.push(Action::PurgeSession { bucket: request.bucket.clone(), session: session.id });
        }
        let index = IndexSummary { state: "dropped".into(), ..summary(index) };
        Ok(json(&IndexReply { index }))
    }

    pub(super) fn bucket(&self, name: &str) -> Result<&Bucket, ApiError> {
        names::check_bucket("bucket", name)?;
        self.context.buckets.get(name).ok_or_else(|| no_bucket(name))
    }
}

fn find<'a>(bucket: &'a Bucket, name: &str) -> Result<&'a Index, ApiError> {
    names::check("index", name)?;
    bucket.index_by_name(name).ok_or_else(|| {
        ApiError::new(
            ErrorCode::IndexNotFound,
            format!("there is no index {name} on bucket {}", bucket.definition.name),
        )
    })
}

pub(super) fn summary(index: &Index) -> IndexSummary {
    IndexSummary {
        bucket: index.placed.definition.bucket.clone(),
        name: index.placed.definition.name.clone(),
        id: index.placed.id.clone(),
        state: index.state.as_str().into(),
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

pub(super) fn other_source(bucket: &str) -> ApiError {
    let message = format!("bucket {bucket} is declared already, with another source");
    ApiError::new(ErrorCode::BucketExists, message)
}

/// Spreads one random number over several ids; never 0.
pub(super) fn mix(random: u64, salt: u64) -> u64 {
    let mut x = random ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)).max(1)
}
