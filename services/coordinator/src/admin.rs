//! What administrators ask of index managers.

use crate::core::Ddl;
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{self, StateHistory},
};

/// What administrators may ask.
pub(crate) const NOUN_VERBS: [&str; 15] = [
    "bucket.add",
    "bucket.remove",
    "bucket.list",
    "bucket.history",
    "bucket.reconcile",
    "index.create",
    "index.build",
    "index.drop",
    "topic.create",
    "topic.delete",
    "topic.subscribe",
    "topic.unsubscribe",
    "topic.list",
    "state.get",
    "state.history",
];
/// Records that a history shows unless asked for another number.
pub(crate) const HISTORY: usize = 50;

/// A request as its subject and payload say.
pub(crate) enum Admin {
    Ddl(Ddl),
    StateGet(api::StateGet),
    StateHistory(usize),
}

/// Reads `<noun>.<verb>` and its request.
pub(crate) fn parse(noun_verb: &str, payload: &[u8]) -> Result<Admin, ApiError> {
    Ok(Admin::Ddl(match noun_verb {
        "bucket.add" => Ddl::BucketAdd(api::parse(payload)?),
        "bucket.remove" => Ddl::BucketRemove(api::parse(payload)?),
        "bucket.list" => Ddl::BucketList(api::parse(payload)?),
        "bucket.history" => Ddl::BucketHistory(api::parse(payload)?),
        "bucket.reconcile" => Ddl::BucketReconcile(api::parse(payload)?),
        "index.create" => Ddl::IndexCreate(api::parse(payload)?),
        "index.build" => Ddl::IndexBuild(api::parse(payload)?),
        "index.drop" => Ddl::IndexDrop(api::parse(payload)?),
        "topic.create" => Ddl::TopicCreate(api::parse(payload)?),
        "topic.delete" => Ddl::TopicDelete(api::parse(payload)?),
        "topic.subscribe" => Ddl::TopicSubscribe(api::parse(payload)?),
        "topic.unsubscribe" => Ddl::TopicUnsubscribe(api::parse(payload)?),
        "topic.list" => Ddl::TopicList(api::parse(payload)?),
        "state.get" => return Ok(Admin::StateGet(api::parse(payload)?)),
        "state.history" => {
            let request: StateHistory = api::parse(payload)?;
            return Ok(Admin::StateHistory(request.limit.unwrap_or(HISTORY)));
        }
        other => {
            return Err(ApiError::new(
                ErrorCode::NotSupported,
                format!("there is no hw.admin.{other} in this version"),
            ));
        }
    }))
}

/// Records as a reply shows them.
pub(crate) fn history(records: &[Vec<u8>]) -> api::StateHistoryReply {
    let shown = |record: &Vec<u8>| serde_json::from_slice(record).unwrap_or_default();
    api::StateHistoryReply { records: records.iter().map(shown).collect() }
}
