//! Stream definitions as data, applied idempotently, and the state of a stream.

use crate::{codes::no_stream, connect::Bus, error::BusError};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use futures_util::{StreamExt, stream::FuturesOrdered};
use highwater_schemas::subjects;
use std::time::Duration;

const MIB: i64 = 1024 * 1024;
/// A mutation topic holds this much for indexers that are behind; what is older is caught up from the source.
const MUTATION_MAX_BYTES: i64 = 1024 * MIB;
const MUTATION_MAX_AGE: Duration = Duration::from_secs(15 * 60);
/// A catchup topic is full at this size: the router waits until the indexer has made room.
const CATCHUP_MAX_BYTES: i64 = 256 * MIB;
/// Requests for messages that are under way together.
const LOOKED_UP_AT_ONCE: usize = 64;
/// Bytes of messages that their answers bring together, about.
const LOOKED_UP_BYTES: usize = 8 * 1024 * 1024;
/// Longer than any retry of a publish.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);

/// One of Highwater's own streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    pub name: String,
    pub subject: String,
    pub max_bytes: i64,
    pub max_age: Duration,
    pub discard_new: bool,
    pub rollup: bool,
    /// Of each subject; -1: no limit.
    pub max_messages_per_subject: i64,
    /// Messages may say how long they live.
    pub message_ttl: bool,
    pub duplicate_window: Duration,
    pub replicas: usize,
}

impl StreamSpec {
    /// Live key versions: bounded in age and bytes, the oldest go first.
    pub fn mutation(bucket: &str, replicas: usize) -> Self {
        Self {
            name: subjects::mutation_stream(bucket),
            subject: format!("hw.mutation.{bucket}.*"),
            max_bytes: MUTATION_MAX_BYTES,
            max_age: MUTATION_MAX_AGE,
            discard_new: false,
            rollup: false,
            max_messages_per_subject: -1,
            message_ttl: false,
            duplicate_window: DUPLICATE_WINDOW,
            replicas,
        }
    }
    /// A topic that people made: as the mutation topic.
    pub fn topic(bucket: &str, topic: &str, replicas: usize) -> Self {
        Self {
            name: subjects::topic_stream(bucket, topic),
            subject: format!("hw.topic.{bucket}.{topic}.*"),
            ..Self::mutation(bucket, replicas)
        }
    }
    /// Catchup sessions: bounded in bytes, refuses when full.
    pub fn catchup(bucket: &str, replicas: usize) -> Self {
        Self {
            name: subjects::catchup_stream(bucket),
            subject: format!("hw.catchup.{bucket}.*"),
            max_bytes: CATCHUP_MAX_BYTES,
            max_age: Duration::ZERO,
            discard_new: true,
            ..Self::mutation(bucket, replicas)
        }
    }
    /// The replicated log: no limits, rollup allowed.
    pub fn state(replicas: usize) -> Self {
        Self {
            name: subjects::STATE_STREAM.into(),
            subject: subjects::STATE_SUBJECT.into(),
            max_bytes: -1,
            max_age: Duration::ZERO,
            discard_new: false,
            rollup: true,
            max_messages_per_subject: -1,
            message_ttl: false,
            duplicate_window: Duration::from_secs(120),
            replicas,
        }
    }
    /// The cluster managers' bucket, a key-value bucket by its layout: the newest value of each key, and keys that end.
    pub fn cluster(replicas: usize) -> Self {
        Self {
            name: subjects::CLUSTER_STREAM.into(),
            subject: subjects::kv_prefix("hw_cluster") + ">",
            discard_new: true,
            max_messages_per_subject: 1,
            message_ttl: true,
            ..Self::state(replicas)
        }
    }

    fn config(&self) -> Config {
        Config {
            name: self.name.clone(),
            subjects: vec![self.subject.clone()],
            max_messages: -1,
            max_bytes: self.max_bytes,
            max_age: self.max_age,
            retention: RetentionPolicy::Limits,
            discard: if self.discard_new { DiscardPolicy::New } else { DiscardPolicy::Old },
            storage: StorageType::File,
            allow_rollup: self.rollup,
            allow_direct: true,
            max_messages_per_subject: self.max_messages_per_subject,
            allow_message_ttl: self.message_ttl,
            num_replicas: self.replicas,
            duplicate_window: self.duplicate_window,
            ..Config::default()
        }
    }
}

impl Bus {
    /// Creates the stream, or brings it to the definition; true when it was created. A difference that cannot be updated is an
    /// error, and so is a stream of which nothing can be learned: it may be there.
    pub async fn ensure_stream(&self, spec: &StreamSpec) -> Result<bool, BusError> {
        let wanted = spec.config();
        match self.js().get_stream(&spec.name).await {
            Ok(stream) => {
                let found = &stream.cached_info().config;
                let same = found.subjects == wanted.subjects
                    && found.max_messages == wanted.max_messages
                    && found.max_bytes == wanted.max_bytes
                    && found.max_age == wanted.max_age
                    && found.max_messages_per_subject == wanted.max_messages_per_subject
                    && found.discard == wanted.discard
                    && found.allow_rollup == wanted.allow_rollup
                    && found.allow_message_ttl == wanted.allow_message_ttl
                    && found.num_replicas == wanted.num_replicas;
                if !same {
                    let differs = |why: String| BusError::StreamDiffers { stream: spec.name.clone(), why };
                    self.js().update_stream(wanted).await.map_err(|e| differs(e.to_string()))?;
                }
                Ok(false)
            }
            Err(e) if no_stream(&e) => {
                let made = self.js().create_stream(wanted).await;
                made.map(|_| true).map_err(|e| BusError::other("create stream", format!("{}: {e}", spec.name)))
            }
            Err(e) => Err(BusError::other("stream info", format!("{}: {e}", spec.name))),
        }
    }

    /// Deletes a stream; one that does not exist is fine.
    pub async fn delete_stream(&self, name: &str) -> Result<(), BusError> {
        match self.js().delete_stream(name).await {
            Ok(_) => Ok(()),
            Err(_) if matches!(self.stream_state(name).await, Err(BusError::NoStream(_))) => Ok(()),
            Err(e) => Err(BusError::other("delete stream", e)),
        }
    }

    /// Removes messages of a subject, up to and excluding `below` when given.
    pub async fn purge(&self, stream: &str, subject: &str, below: Option<u64>) -> Result<(), BusError> {
        let handle = self.js().get_stream_no_info(stream).await.map_err(|e| BusError::other("purge", e))?;
        let purge = handle.purge().filter(subject);
        let done = match below {
            Some(seq) => purge.sequence(seq).await,
            None => purge.await,
        };
        done.map(|_| ()).map_err(|e| BusError::other("purge", e))
    }

    /// The last sequences of these subjects, several asked for at once; of one that has no message None.
    pub async fn last_seqs_of(&self, name: &str, subjects: &[String]) -> Result<Vec<Option<u64>>, BusError> {
        let (mut asked, mut found) = (FuturesOrdered::new(), Vec::with_capacity(subjects.len()));
        // Each answer has the whole message: until the first one is there, they may be as large as the server takes.
        let (mut guessed, mut largest) = (self.max_payload(), 0);
        for subject in subjects {
            let at_once = (LOOKED_UP_BYTES / guessed.max(1)).clamp(1, LOOKED_UP_AT_ONCE);
            while asked.len() >= at_once
                && let Some(last) = asked.next().await
            {
                let (seq, size) = last?;
                found.push(seq);
                largest = largest.max(size);
                guessed = largest;
            }
            asked.push_back(async move {
                let last = self.last_of(name, subject).await?;
                let size = last.as_ref().map_or(0, |last| last.payload.len());
                Ok::<_, BusError>((last.map(|last| last.seq), size))
            });
        }
        while let Some(last) = asked.next().await {
            found.push(last?.0);
        }
        Ok(found)
    }

    /// The subjects that a stream holds messages of.
    pub async fn stream_subjects(&self, name: &str) -> Result<Vec<String>, BusError> {
        let other = |e: String| BusError::other("stream subjects", format!("{name}: {e}"));
        let stream = self.js().get_stream_no_info(name).await.map_err(|e| other(e.to_string()))?;
        let mut subjects = stream.info_with_subjects(">").await.map_err(|e| other(e.to_string()))?;
        let mut found = Vec::new();
        while let Some(subject) = subjects.next().await {
            found.push(subject.map_err(|e| other(e.to_string()))?.0);
        }
        Ok(found)
    }

    /// Every stream of the account.
    pub async fn stream_names(&self) -> Result<Vec<String>, BusError> {
        let mut names = self.js().stream_names();
        let mut found = Vec::new();
        while let Some(name) = names.next().await {
            found.push(name.map_err(|e| BusError::other("stream names", e))?);
        }
        Ok(found)
    }
}
