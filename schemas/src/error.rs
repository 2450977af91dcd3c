//! Coded errors of the public face. `docs/errors.md` is generated from [`ErrorCode::ALL`].

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! codes {
    ($($variant:ident = $code:literal, $http:literal, $retry:literal, $meaning:literal;)*) => {
        /// A stable error code of the public face.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        pub enum ErrorCode { $(#[serde(rename = $code)] #[doc = $meaning] $variant),* }

        impl ErrorCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant),*];
            /// The code as users see it.
            pub fn as_str(self) -> &'static str { match self { $(ErrorCode::$variant => $code),* } }
            /// The number in `Nats-Service-Error-Code`, as in HTTP.
            pub fn number(self) -> u16 { match self { $(ErrorCode::$variant => $http),* } }
            /// Whether the same request may succeed later.
            pub fn retry(self) -> bool { match self { $(ErrorCode::$variant => $retry),* } }
            /// What it means, one sentence.
            pub fn meaning(self) -> &'static str { match self { $(ErrorCode::$variant => $meaning),* } }
        }
    };
}

codes! {
    MalformedRequest = "malformed_request", 400, false, "The request is not JSON of the documented shape; the message names the field.";
    UnknownField = "unknown_field", 400, false, "The request has a field that does not exist; the message names it.";
    BadName = "bad_name", 400, false, "A name is not 1 to 64 characters of A-Z a-z 0-9 _ -; a bucket's may have 252.";
    BadExpression = "bad_expression", 400, false, "An expression does not parse; the message gives the position.";
    BadDefinition = "bad_definition", 400, false, "The index or bucket definition cannot be used; the message says why.";
    SpanInverted = "span_inverted", 400, false, "A span's low bound is above its high bound.";
    SpanNotContiguous = "span_not_contiguous", 400, false, "A span's bounds do not make one contiguous range of the index (directions differ before the last component).";
    BadSpan = "bad_span", 400, false, "A span has more components than the index has keys, mixes equal with low or high, or has a component that no key can have.";
    BadConsistency = "bad_consistency", 400, false, "The consistency is unknown or does not fit the bucket.";
    BadPageToken = "bad_page_token", 400, false, "The page token is damaged or belongs to another request.";
    BucketNotFound = "bucket_not_found", 404, false, "There is no such bucket, neither declared nor as a NATS key-value bucket.";
    BucketExists = "bucket_exists", 409, false, "A bucket of this name is declared already, with another source.";
    BucketInUse = "bucket_in_use", 409, false, "The bucket still has indexes.";
    SourceNotFound = "source_not_found", 404, false, "A source stream of the bucket does not exist.";
    BadSource = "bad_source", 400, false, "A source stream cannot be followed; the message says why.";
    IndexNotFound = "index_not_found", 404, false, "There is no such index on the bucket.";
    IndexExists = "index_exists", 409, false, "An index of this name exists on the bucket.";
    IndexNotActive = "index_not_active", 409, true, "The index is not built yet; the message gives its progress.";
    IndexFailed = "index_failed", 500, false, "The index is in error; the message gives the reason.";
    TopicNotFound = "topic_not_found", 404, false, "There is no such topic or subscription on the bucket.";
    TopicExists = "topic_exists", 409, false, "A topic of this name exists on the bucket, or is built in.";
    NothingToRecover = "nothing_to_recover", 409, false, "Nothing waits for missing index managers, or force was not given.";
    NotSupported = "not_supported", 501, false, "This version does not do that.";
    SnapshotExpired = "snapshot_expired", 410, true, "The stability timestamp asked for is no longer held; start again without it.";
    Timeout = "timeout", 504, true, "The answer was not ready in time.";
    CoverTimeout = "cover_timeout", 504, true, "The source was overwritten faster than it could be followed until the deadline, so freshness could not be proven; a history above 1 on hot buckets helps.";
    BranchLost = "branch_lost", 410, false, "The timestamp belongs to a branch of history that the source has taken back.";
    SourceMissing = "source_missing", 503, true, "A source stream of the bucket does not exist at present, so nothing shows what is new.";
    InRollback = "in_rollback", 503, true, "The source took history back and the indexes are being corrected.";
    NoCoordinator = "no_coordinator", 503, true, "No coordinator answers.";
    NoIndexer = "no_indexer", 503, true, "No indexer is alive to host the index.";
    NodeUnavailable = "node_unavailable", 503, true, "The node that hosts a needed partition does not answer.";
    TopologyStale = "topology_stale", 503, true, "The index moved or was dropped meanwhile.";
    RowTooLarge = "row_too_large", 413, false, "A single row does not fit into one NATS message; the message names the document.";
    ReplyTooLarge = "reply_too_large", 413, false, "The reply does not fit into one NATS message; ask for less.";
    TooManyRequests = "too_many_requests", 429, true, "A queue is full.";
    StorageFailed = "storage_failed", 500, true, "The indexer could not write or read its disk.";
    Internal = "internal", 500, true, "Highwater got something wrong; the message is for a bug report.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a refused or failed request answers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, schemars::JsonSchema)]
#[error("{code}: {message}")]
pub struct ApiError {
    pub code: ErrorCode,
    pub message: String,
    /// Whether the same request may succeed later.
    pub retry: bool,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry: code.retry() }
    }
}
