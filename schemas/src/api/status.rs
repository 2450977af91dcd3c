//! What `highwater status` shows of work under way, and of what fails.

use super::{RollbackSummary, SliceState};
use crate::state::SessionKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Troubles that a node states at once.
pub const MOST_TROUBLES: usize = 16;

/// Sessions of a bucket that a status names.
pub const MOST_SESSIONS_SHOWN: usize = 16;
/// Messages with an unknown `KV-Operation` that a status lists for each vbucket.
pub const MOST_UNKNOWN_SHOWN: usize = 8;
/// Characters of a docid in such a list.
pub const MOST_ID_SHOWN: usize = 64;
/// Slices of a session that a status names.
pub const MOST_SLICES_SHOWN: usize = 64;

/// Something that a node tries again and again, so far in vain, or that happened to it a short while ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trouble {
    /// What is tried, such as a stream to read from or to publish to.
    pub what: String,
    /// When it failed first, milliseconds since the epoch.
    pub since: u64,
    /// How often it failed since then.
    pub times: u64,
    /// What was said the last time: the server's words where they are known.
    pub error: String,
}

impl Trouble {
    /// Whether it is about a bucket with these streams, those of its source and of its topics: one of them is named, or the bucket.
    pub fn is_of(&self, bucket: &str, streams: &[String]) -> bool {
        let apart = |c: char| c.is_whitespace() || matches!(c, '.' | ':' | ';' | ',' | '"');
        [&self.what, &self.error].into_iter().any(|text| {
            let words: Vec<&str> = text.split(apart).filter(|word| !word.is_empty()).collect();
            words.iter().any(|word| streams.iter().any(|stream| stream == word))
                || words.windows(2).any(|pair| pair == ["bucket", bucket])
        })
    }
}

/// How far a projector has read a source stream for a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionReading {
    pub bucket: String,
    pub session: u64,
    pub vb: u16,
    /// Documents read.
    pub read: u64,
    /// Documents that the server held for it when it read the last of these.
    pub pending: u64,
}

/// Messages read from a source stream since its projector started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reads {
    /// For the live chain.
    pub live: u64,
    /// For builds and catchups.
    pub catchup: u64,
    /// For comparisons: of what indexes hold with the present documents, and of the source with what was read of it before.
    pub compared: u64,
    /// Messages that are no documents: their subject does not have the bucket's prefix, or they ask the server to publish another one
    /// later (`Nats-Schedule`). Those of the live chain, and of those before it as many as one build, catchup or comparison has met.
    #[serde(default)]
    pub passed_over: u64,
    /// Documents that vanished from the source without a message, and that the projector knew to have: they were removed without a
    /// comparison of all.
    #[serde(default)]
    pub named: u64,
    /// Messages of the live chain with a `KV-Operation` that is neither `PUT`, `DEL` nor `PURGE`: each counts as a
    /// put. The node's troubles name the newest for 30 seconds, and the vbucket's `unknown_operations` list the newest few.
    #[serde(default)]
    pub unknown_operations: u64,
    /// No messages: how often a leader of the replicated stream contradicted what was read, or could not prove it, and was asked
    /// again. One that has just been elected may not have everything yet.
    #[serde(default)]
    pub contradicted: u64,
}

/// What a projector has read of a vbucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VbReads {
    pub bucket: String,
    pub vb: u16,
    pub reads: Reads,
    /// As in [`VbStatus`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_operations: Vec<UnknownOperation>,
}

/// A message with a `KV-Operation` that is neither `PUT`, `DEL` nor `PURGE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnknownOperation {
    /// The docid, its first [`MOST_ID_SHOWN`] characters.
    pub id: String,
    pub seqno: u64,
}

/// A slice in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionSlice {
    /// The index's name.
    pub index: String,
    pub partition: u32,
    /// None: its node has not reported it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SliceState>,
    /// Records that the second phase of its build has merged, of so many: 0 of 0 before it.
    #[serde(default)]
    pub built: u64,
    #[serde(default)]
    pub to_build: u64,
}

/// A session: slices of one node that are built, brought up or compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStatus {
    pub session: u64,
    pub kind: SessionKind,
    pub node: String,
    /// At most [`MOST_SLICES_SHOWN`], those first that need it still.
    pub slices: Vec<SessionSlice>,
    /// Number of all slices of the session.
    #[serde(default)]
    pub slice_count: u64,
    /// Documents read from the source for it, of so many; 0 of 0 before a projector has begun.
    pub read: u64,
    pub documents: u64,
}

/// One vbucket of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VbStatus {
    pub stream: String,
    pub vbuuid: String,
    pub generation: u64,
    pub projector: String,
    pub seqno: u64,
    pub covered: u64,
    pub source_last: u64,
    #[serde(default)]
    pub reads: Reads,
    /// The newest messages of the live chain with an unknown `KV-Operation`, at most [`MOST_UNKNOWN_SHOWN`], oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_operations: Vec<UnknownOperation>,
}

/// One bucket as the coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BucketStatus {
    pub name: String,
    /// Newest stability timestamp, 0 when there is none yet.
    pub st: u64,
    pub exact: bool,
    /// Per vbucket: stream, seqno, covered, projector.
    pub vbuckets: Vec<VbStatus>,
    /// Newest durable ST.
    pub durable: u64,
    /// Open sessions, at most [`MOST_SESSIONS_SHOWN`], the oldest first.
    pub sessions: Vec<SessionStatus>,
    /// Number of all open sessions of the bucket.
    #[serde(default)]
    pub session_count: u64,
    /// The rollback under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackSummary>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_of_the_bucket_that_it_names() {
        let is_of = |what: &str, error: &str, bucket: &str| {
            let trouble = Trouble { what: what.into(), since: 0, times: 1, error: error.into() };
            trouble.is_of(bucket, &[format!("KV_{bucket}"), format!("HW_MUTATION_{bucket}")])
        };
        assert!(is_of("reading source stream KV_users", "no", "users"));
        assert!(is_of("publishing key versions of bucket users", "full", "users"));
        assert!(is_of("making the streams of topics", "bucket users: HW_CATCHUP_users: no room", "users"));
        assert!(is_of("answers of NATS", "denied: \"$JS.API.CONSUMER.CREATE.KV_users.x\"", "users"));
        assert!(!is_of("reading source stream KV_users2", "bucket users2: no", "users"));
        assert!(!is_of("connection to NATS", "users", "users"));
    }
}
