//! The JSON messages of people and foreign clients (design section 21).
//!
//! Every reply carries `"ok"`; a failure is `{"ok":false,"error":{"code","message","retry"}}`. A request with an unknown field
//! is refused, and the message names the field.

mod admin;
mod cluster;
mod diagnosis;
mod heartbeat;
mod pages;
mod query;
mod status;

pub use admin::{
    Assign, Branch, BucketAdd, BucketHistory, BucketHistoryReply, BucketList, BucketListRequest, BucketReconcile,
    BucketRemove, BucketSummary, Empty, IndexBuild, IndexDrop, IndexReply, IndexSummary, IndexesReply, ReconcileReply,
    ReconcileSummary, RollbackSummary, StateGet, StateHistory, StateHistoryReply, StateReply, StreamHistory, Subscribe,
    SubscribeReply, TopicList, TopicListRequest, TopicRequest, TopicSummary, Unsubscribe,
};
pub use cluster::{
    Bootstrap, BootstrapReply, BootstrapStep, ClusterEvent, ClusterStatus, ClusterStatusRequest, Join, JoinReply,
    Lease, LeaseWritten, Leave, MOST_MEMBERS, MOST_REGISTERED_TOLD, MOST_WORDS, ManagerReport, ManagerStatus,
    ManagerStatusRequest, Master, MasterReply, MemberStatus, MembersReply, MembersRequest, NodeKind, NodeStatus,
    NodeStatusRequest, Presence, Recover, SliceReport, SliceState, Suspicion, UnindexedDoc,
};
pub use diagnosis::{
    DocumentDump, EntryDump, IncludedFields, KeptDump, MOST_DUMPED, MOST_VERIFY_TIMEOUT_MS, MarkDump, MarkVbDump,
    NodeDump, NodeDumpRequest, NodeVerify, NodeVerifyRequest, RunDump, SliceCheck, SliceDump, VERIFY_TIMEOUT_MS,
};
pub use heartbeat::{HEARTBEAT_MS, MOST_HEARTBEAT, heartbeat, is_plausible_term, read_heartbeat};
pub use pages::{PAGE_BYTES, json_size, page};
pub use query::{
    AtPlus, Consistency, CountReply, Describe, DescribeReply, IndexStats, ListReply, ListRequest, ResultRow, ScanQuery,
    ScanResult, SnapshotChoice, VbPosition,
};
pub use status::{
    BucketStatus, MOST_ID_SHOWN, MOST_SESSIONS_SHOWN, MOST_SLICES_SHOWN, MOST_TROUBLES, MOST_UNKNOWN_SHOWN, Reads,
    SessionReading, SessionSlice, SessionStatus, Trouble, UnknownOperation, VbReads, VbStatus,
};

use crate::error::{ApiError, ErrorCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

/// The longest request that is looked at, bytes.
pub const MAX_REQUEST: usize = 256 * 1024;

/// Reads a request; an empty payload counts as `{}`.
pub fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, ApiError> {
    if payload.len() > MAX_REQUEST {
        return Err(too_long(payload.len()));
    }
    let text: &[u8] = if payload.is_empty() { b"{}" } else { payload };
    if text.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        // serde would take a list for an object's fields in order.
        return Err(ApiError::new(ErrorCode::MalformedRequest, "the request is not a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| refusal(&e))?;
    json.end().map_err(|e| ApiError::new(ErrorCode::MalformedRequest, format!("the request is not JSON: {e}")))?;
    Ok(value)
}

/// The refusal of a request that has so many bytes.
pub fn too_long(bytes: usize) -> ApiError {
    ApiError::new(
        ErrorCode::MalformedRequest,
        format!("the request has {bytes} bytes; at most {MAX_REQUEST} are taken"),
    )
}

/// Reads a part of a request that is called `name`; a refusal names the field below it.
pub fn parse_part<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, ApiError> {
    if !text.starts_with('{') {
        return Err(ApiError::new(ErrorCode::MalformedRequest, format!("{name} is not a JSON object")));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let error = refusal(&e);
        ApiError::new(error.code, format!("{name}: {}", error.message))
    })
}

/// Says which field, what is wrong with it, and nothing of how it is read.
fn refusal(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let (path, text) = (error.path().to_string(), error.inner().to_string());
    // Positions are within the whole request, and type names are ours.
    let what = text.split(" at line ").next().unwrap_or_default();
    if what.starts_with("unknown field") {
        return ApiError::new(ErrorCode::UnknownField, what);
    }
    if !error.inner().is_data() {
        return ApiError::new(ErrorCode::MalformedRequest, format!("the request is not JSON: {text}"));
    }
    let what = match what.split_once(", expected struct ") {
        Some((found, _)) => format!("{found}, expected an object"),
        None => what.to_owned(),
    };
    let message = if path == "." { what } else { format!("{path}: {what}") };
    ApiError::new(ErrorCode::MalformedRequest, message)
}

/// The reply of a request that went well: `value`'s fields beside `"ok":true`.
pub fn ok<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = br#"{"ok":true"#.to_vec();
    match serde_json::to_vec(value) {
        Ok(text) if text.len() > 2 && text[0] == b'{' => {
            out.push(b',');
            out.extend_from_slice(&text[1..]);
        }
        _ => out.push(b'}'),
    }
    out
}

/// The reply of a request that was refused or failed.
pub fn failure(error: &ApiError) -> Vec<u8> {
    serde_json::json!({"ok": false, "error": error}).to_string().into_bytes()
}

/// Reads a reply: the whole object, or the error it carries.
pub fn reply(payload: &[u8]) -> Result<Value, ApiError> {
    check_reply(payload)?;
    serde_json::from_slice(payload)
        .map_err(|e| ApiError::new(ErrorCode::Internal, format!("the reply is not JSON: {e}")))
}

/// The error that a reply carries, if it is a refusal; whatever else it holds is only passed over.
pub fn check_reply(payload: &[u8]) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        ok: bool,
        #[serde(default)]
        error: Option<Box<RawValue>>,
    }
    let head: Head = serde_json::from_slice(payload)
        .map_err(|e| ApiError::new(ErrorCode::Internal, format!("the reply is not JSON: {e}")))?;
    if head.ok {
        return Ok(());
    }
    Err(head.error.and_then(|e| serde_json::from_str(e.get()).ok()).unwrap_or_else(|| {
        let text = String::from_utf8_lossy(payload);
        ApiError::new(ErrorCode::Internal, format!("the reply has neither ok nor error: {text}"))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_named() {
        let error = parse::<BucketRemove>(br#"{"name":"a","nmae":1}"#).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnknownField);
        assert!(error.message.contains("nmae"), "{}", error.message);
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (text, word) in [
            (&br#"{"name":7}"#[..], "name: invalid type: integer `7`, expected a string"),
            (br#"{"name":"a","name":"b"}"#, "duplicate field `name`"),
            (br#"["a"]"#, "not a JSON object"),
            (b"null", "not a JSON object"),
            (br#"{"name":"a"} x"#, "not JSON"),
            (br#"{"name":"#, "not JSON"),
            (b"{}", "missing field `name`"),
        ] {
            let error = parse::<BucketRemove>(text).unwrap_err();
            assert_eq!(error.code, ErrorCode::MalformedRequest);
            assert!(error.message.contains(word), "{}", error.message);
        }
    }

    #[test]
    fn replies_carry_ok_or_the_error() {
        assert_eq!(ok(&Empty {}), br#"{"ok":true}"#);
        let error = ApiError::new(ErrorCode::Timeout, "late");
        assert_eq!(reply(&failure(&error)).unwrap_err(), error);
        assert_eq!(reply(&ok(&serde_json::json!({"a":1}))).unwrap()["a"], 1);
    }
}
