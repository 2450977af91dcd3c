//! DDL that takes several steps. Each step is in the log before the next one begins, so that whoever coordinates next can go on:
//! an index is *preparing* until every host has said that it can take it, and is given up when one cannot.

use super::{Action, Core, Probed, Token, ddl, streams_of};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{Empty, TopicRequest},
    definition::{BucketDefinition, IndexDefinition},
    state::{Change, IndexState, in_short},
    subjects,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Requests under way at most; further ones are refused.
const MOST: usize = 256;

/// Identifies DDL that is under way.
pub type Job = u64;

/// What a job waits for.
enum Stage {
    /// The topics of a bucket that is to be declared.
    Streams { definition: Box<BucketDefinition>, starts: Vec<u64>, then: Option<IndexDefinition> },
    /// The stream of a topic that is to be created.
    Topic(TopicRequest),
    /// Streams that are being deleted.
    Deletion,
    /// The hosts of an index.
    Hosts { bucket: String, index: u32, waiting: BTreeSet<String> },
}

struct Under {
    /// None: nobody waits for it, as an earlier coordinator was asked, or none.
    token: Option<Token>,
    stage: Stage,
}

/// The jobs under way.
pub(super) struct Jobs {
    next: Job,
    open: BTreeMap<Job, Under>,
}

impl Jobs {
    /// Numbers of another term's jobs are never met again: outcomes may come late.
    pub(super) fn new(term: u64) -> Self {
        Self { next: term << 32, open: BTreeMap::new() }
    }

    /// The streams that are being made.
    pub(super) fn makes(&self) -> impl Iterator<Item = String> {
        self.open.values().flat_map(|under| match &under.stage {
            Stage::Streams { definition, .. } => streams_of(&definition.name, [].iter()).collect::<Vec<_>>(),
            Stage::Topic(TopicRequest { bucket, topic }) => vec![subjects::topic_stream(bucket, topic)],
            Stage::Deletion | Stage::Hosts { .. } => Vec::new(),
        })
    }

    fn begin(&mut self, token: Option<Token>, stage: Stage) -> Job {
        self.next += 1;
        self.open.insert(self.next, Under { token, stage });
        self.next
    }

    pub(super) fn check_room(&self) -> Result<(), ApiError> {
        if self.open.len() < MOST {
            return Ok(());
        }
        Err(ApiError::new(ErrorCode::TooManyRequests, "too many admin requests are under way"))
    }

    /// Whether streams are being deleted for which nobody asked.
    fn sweeps(&self) -> bool {
        self.open.values().any(|u| u.token.is_none() && matches!(u.stage, Stage::Deletion))
    }

    fn prepares(&self, bucket: &str, number: u32) -> bool {
        self.open
            .values()
            .any(|u| matches!(&u.stage, Stage::Hosts { bucket: b, index, .. } if b == bucket && *index == number))
    }
}

impl Core {
    /// Declares a bucket, and then perhaps creates an index on it.
    pub(super) fn declare(
        &mut self,
        token: Token,
        mut definition: BucketDefinition,
        probed: Probed,
        then: Option<IndexDefinition>,
        out: &mut Vec<Action>,
    ) -> Result<(), ApiError> {
        let Probed { starts, kv_prefix } = probed;
        definition.source.kv_prefix = kv_prefix;
        if starts.len() != definition.vbuckets().len() {
            let message = format!("bucket {}: {} source streams were looked at", definition.name, starts.len());
            return Err(ApiError::new(ErrorCode::Internal, message));
        }
        let bucket = definition.name.clone();
        let job = self.jobs.begin(Some(token), Stage::Streams { definition: Box::new(definition), starts, then });
        out.push(Action::EnsureStreams { job, bucket, topic: None });
        Ok(())
    }

    /// Deletes streams that nobody needs; who asked for what made them superfluous is answered when they are gone.
    pub(super) fn delete_streams(&mut self, token: Option<Token>, streams: Vec<String>, out: &mut Vec<Action>) {
        if token.is_none() && self.jobs.sweeps() {
            // What is left then is found again.
            return;
        }
        let job = self.jobs.begin(token, Stage::Deletion);
        out.push(Action::DeleteStreams { job, streams });
    }

    /// A job ends without anything that follows.
    pub(super) fn end_job(&mut self, job: Job, outcome: Result<(), ApiError>, out: &mut Vec<Action>) {
        if let Some(Under { token: Some(token), .. }) = self.jobs.open.remove(&job) {
            out.push(Action::Reply { token, answer: outcome.map(|()| ddl::json(&Empty {})) });
        }
    }

    /// Creates a topic.
    pub(super) fn topic_create(
        &mut self,
        token: Token,
        request: TopicRequest,
        out: &mut Vec<Action>,
    ) -> Result<(), ApiError> {
        self.check_topic(&request)?;
        let (bucket, topic) = (request.bucket.clone(), Some(request.topic.clone()));
        let job = self.jobs.begin(Some(token), Stage::Topic(request));
        out.push(Action::EnsureStreams { job, bucket, topic });
        Ok(())
    }

    fn topic_made(
        &self,
        request: &TopicRequest,
        made: Result<(), String>,
        out: &mut Vec<Action>,
    ) -> Result<Value, ApiError> {
        let stream = || format!("stream of topic {} of bucket {}", request.topic, request.bucket);
        made.map_err(|why| ApiError::new(ErrorCode::Internal, format!("{}: {why}", stream())))?;
        // Someone else may have made it meanwhile.
        self.check_topic(request)?;
        let TopicRequest { bucket, topic } = request.clone();
        out.push(Action::Append(Change::TopicCreated { bucket, topic }));
        Ok(ddl::json(&Empty {}))
    }

    pub(super) fn streams_ensured(
        &mut self,
        job: Job,
        outcome: Result<(), String>,
        random: u64,
        out: &mut Vec<Action>,
    ) {
        let (token, definition, starts, then) = match self.jobs.open.remove(&job) {
            Some(Under { token: Some(token), stage: Stage::Streams { definition, starts, then } }) => {
                (token, *definition, starts, then)
            }
            Some(Under { token: Some(token), stage: Stage::Topic(request) }) => {
                let answer = self.topic_made(&request, outcome, out);
                out.push(Action::Reply { token, answer });
                return;
            }
            _ => return,
        };
        if let Err(why) = outcome {
            let message = format!("streams of bucket {}: {why}", definition.name);
            out.push(Action::Reply { token, answer: Err(ApiError::new(ErrorCode::Internal, message)) });
            return;
        }
        match self.context.buckets.get(&definition.name) {
            // Someone else declared it meanwhile.
            Some(known) if !known.definition.is_meant_by(&definition) => {
                let answer = Err(ddl::other_source(&definition.name));
                out.push(Action::Reply { token, answer });
                return;
            }
            Some(_) => {}
            None => {
                let vbuuids = (0..starts.len() as u64).map(|vb| ddl::mix(random, vb)).collect();
                out.push(Action::Append(Change::BucketAdded { definition, vbuuids, starts }));
            }
        }
        match then {
            Some(index) => self.prepare(token, index, random, out),
            None => out.push(Action::Reply { token, answer: Ok(Value::Object(serde_json::Map::new())) }),
        }
    }

    /// The first half of creating an index: it is defined, and its hosts are asked.
    pub(super) fn prepare(&mut self, token: Token, definition: IndexDefinition, random: u64, out: &mut Vec<Action>) {
        match self.placed(definition, random) {
            Ok(placed) => {
                out.push(Action::Append(Change::IndexCreated { index: placed.clone() }));
                self.ask_hosts(Some(token), &placed, out);
            }
            Err(error) => out.push(Action::Reply { token, answer: Err(error) }),
        }
    }

    fn ask_hosts(
        &mut self,
        token: Option<Token>,
        placed: &highwater_schemas::state::PlacedIndex,
        out: &mut Vec<Action>,
    ) {
        let waiting: BTreeSet<String> = placed.hosts.iter().cloned().collect();
        let (bucket, index) = (placed.definition.bucket.clone(), placed.number);
        let stage = Stage::Hosts { bucket: bucket.clone(), index, waiting: waiting.clone() };
        let job = self.jobs.begin(token, stage);
        for node in waiting {
            let partitions = placed.hosts.iter().filter(|h| **h == node).count() as u32;
            out.push(Action::Assign { job, node, bucket: bucket.clone(), index, partitions });
        }
    }

    /// A host has answered. The second half: the index is given to its builders, or is given up.
    pub(super) fn assigned(&mut self, job: Job, node: &str, outcome: Result<(), ApiError>, out: &mut Vec<Action>) {
        let Some(Under { token, stage: Stage::Hosts { bucket, index, waiting } }) = self.jobs.open.get_mut(&job) else {
            return;
        };
        waiting.remove(node);
        let (token, bucket, number, done) = (*token, bucket.clone(), *index, waiting.is_empty());
        if outcome.is_ok() && !done {
            return;
        }
        self.jobs.open.remove(&job);
        let Some(known) = self.context.buckets.get(&bucket).and_then(|b| b.indexes.get(&number)) else {
            let answer =
                Err(ApiError::new(ErrorCode::IndexNotFound, "the index was dropped while it was being created"));
            out.extend(token.map(|token| Action::Reply { token, answer }));
            return;
        };
        let mut summary = ddl::summary(known);
        let preparing = known.state == IndexState::Preparing;
        let answer = match outcome {
            Ok(()) if known.placed.definition.defer_build => {
                if preparing {
                    out.push(Action::Append(Change::IndexPrepared { bucket, index: number }));
                }
                Ok(())
            }
            Ok(()) => {
                if preparing {
                    out.push(Action::Append(Change::IndexBuilding { bucket, indexes: vec![number] }));
                    summary.state = "building".into();
                }
                Ok(())
            }
            Err(error) => {
                if preparing {
                    let reason = in_short(&format!("{node}: {}", error.message));
                    out.push(Action::Append(Change::IndexDropped { bucket, index: number, reason }));
                }
                Err(ApiError { message: format!("host {node} cannot take the index: {}", error.message), ..error })
            }
        };
        let answer = answer.map(|()| ddl::json(&highwater_schemas::api::IndexReply { index: summary }));
        out.extend(token.map(|token| Action::Reply { token, answer }));
    }

    /// What an earlier coordinator had prepared and not finished.
    pub(super) fn resume_jobs(&mut self, out: &mut Vec<Action>) {
        let left: Vec<_> = self
            .context
            .buckets
            .iter()
            .flat_map(|(name, bucket)| bucket.indexes.values().map(move |index| (name, index)))
            .filter(|(name, i)| i.state == IndexState::Preparing && !self.jobs.prepares(name, i.placed.number))
            .map(|(_, index)| index.placed.clone())
            .collect();
        for placed in left {
            if self.jobs.check_room().is_ok() {
                self.ask_hosts(None, &placed, out);
            }
        }
    }
}
