//! From the JSON of a scan or count to a checked query, and from a query to a plan for one index.

use crate::{
    config::Deadlines,
    fields::{Fields, malformed, shown},
    freshness::{Floor, branch_lost},
    token::PageToken,
};
use highwater_schemas::{
    ApiError, ErrorCode, api,
    collation::{Plain, Span, spans_to_ranges},
    language::Language,
    names,
    state::{Bucket, Index, IndexState, StateContext},
    wire::ByteRange,
};
use serde_json::value::RawValue;
use std::{collections::BTreeMap, fmt::Write as _, time::Duration};
use xxhash_rust::xxh3::xxh3_64;

/// The most spans in one request: each is a seek.
pub const MAX_SPANS: usize = 10_000;

const FIELDS: &[&str] =
    &["bucket", "index", "spans", "reverse", "offset", "limit", "page_size", "consistency", "timeout_ms", "page_token"];

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Scan,
    Count,
}

/// How new an answer must be, as the request says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consistency {
    Any,
    RequestPlus,
    /// The revision that a put returned; only for buckets of one stream.
    AtRevision(u64),
    /// By stream name: the branch, where given, and the seqno.
    AtStreams(BTreeMap<String, (Option<u64>, u64)>),
    AtSnapshot(u64),
}

/// A request whose fields are good, whatever the index.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    pub bucket: String,
    pub index: String,
    pub spans: Vec<Span>,
    pub reverse: bool,
    pub offset: u64,
    /// None: no limit.
    pub limit: Option<u64>,
    /// None: what fits.
    pub page_size: Option<u64>,
    pub consistency: Consistency,
    pub timeout: Duration,
    pub page_token: Option<String>,
}

/// A query made ready for one index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub bucket: String,
    /// The index's number.
    pub index: u32,
    /// Partition → host.
    pub hosts: Vec<String>,
    /// The field of each key of the index.
    pub key_names: Vec<String>,
    /// For each key of the index whether it is descending.
    pub directions: Vec<bool>,
    /// What the index was made with.
    pub language: Language,
    pub ranges: Vec<ByteRange>,
    pub reverse: bool,
    /// Rows to pass over before the first one.
    pub skip: u64,
    /// Rows still wanted, over all further pages.
    pub left: Option<u64>,
    /// The most rows in this reply.
    pub page_size: Option<u64>,
    pub consistency: Consistency,
    /// Per vbucket what `at_plus` asks for.
    pub floors: Vec<Floor>,
    /// The page before this one, if there was one.
    pub page: Option<PageToken>,
    /// Of the request and of the very index: a page token is good for no other.
    pub fingerprint: u64,
    /// The source streams, in the order of the vbuckets.
    pub streams: Vec<String>,
}

impl Query {
    pub fn parse(payload: &[u8], mode: Mode, deadlines: Deadlines) -> Result<Self, ApiError> {
        let mut fields = Fields::read(payload, FIELDS)?;
        let number = "a whole number that is not negative";
        let query = Self {
            bucket: fields.need("bucket", "the bucket's name")?,
            index: fields.need("index", "the index's name")?,
            spans: spans(&mut fields)?,
            reverse: fields.take("reverse", "true or false")?.unwrap_or(false),
            offset: fields.take("offset", number)?.unwrap_or(0),
            limit: fields.take("limit", number)?,
            page_size: fields.take("page_size", number)?,
            consistency: fields.take_raw("consistency").map_or(Ok(Consistency::Any), |raw| consistency(&raw))?,
            timeout: fields
                .take("timeout_ms", "a number of milliseconds")?
                .map_or(deadlines.unsaid, Duration::from_millis),
            page_token: fields.take("page_token", "the text that a reply had as page_token")?,
        };
        names::check_bucket("bucket", &query.bucket)?;
        names::check("index", &query.index)?;
        if query.page_size == Some(0) {
            return Err(malformed("page_size must be at least 1".into()));
        }
        if query.timeout.is_zero() || query.timeout > deadlines.most {
            return Err(malformed(format!(
                "timeout_ms must be 1 to {}, not {}",
                deadlines.most.as_millis(),
                query.timeout.as_millis()
            )));
        }
        if mode == Mode::Count {
            query.check_count()?;
        }
        Ok(query)
    }

    /// A count is of whole ranges: what would change its meaning is refused; `reverse` does not.
    fn check_count(&self) -> Result<(), ApiError> {
        let set = [
            ("offset", self.offset > 0),
            ("limit", self.limit.is_some()),
            ("page_size", self.page_size.is_some()),
            ("page_token", self.page_token.is_some()),
        ];
        match set.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(malformed(format!("count takes no {name}: it counts every row of the spans"))),
            None => Ok(()),
        }
    }

    /// `at_plus` names a branch that the log does not know: its record may not have arrived here yet.
    pub fn names_unknown_branch(&self, context: &StateContext) -> bool {
        let (Consistency::AtStreams(given), Some(bucket)) = (&self.consistency, context.buckets.get(&self.bucket))
        else {
            return false;
        };
        let known =
            |named: u64| bucket.vbuckets.iter().any(|vb| vb.failover.iter().any(|branch| branch.vbuuid == named));
        given.values().any(|(branch, _)| branch.is_some_and(|branch| !known(branch)))
    }

    /// Makes it ready for the index it names.
    pub fn plan(&self, context: &StateContext) -> Result<Plan, ApiError> {
        let (bucket, index) = find(context, &self.bucket, &self.index)?;
        match &index.state {
            IndexState::Active => {
                if let Some(rollback) = &bucket.rollback {
                    let why = format!(
                        "bucket {:?} is being compared with its source: {}",
                        bucket.definition.name, rollback.reason
                    );
                    return Err(ApiError::new(ErrorCode::InRollback, why));
                }
            }
            IndexState::Failed(reason) => {
                return Err(ApiError::new(ErrorCode::IndexFailed, format!("index {}: {reason}", self.index)));
            }
            state => {
                return Err(ApiError::new(
                    ErrorCode::IndexNotActive,
                    format!("index {} is not active but {}", self.index, state.as_str()),
                ));
            }
        }
        let directions = index.compiled.directions();
        let language = index.compiled.language;
        let ranges = spans_to_ranges(&directions, language, &self.spans)?;
        let streams: Vec<String> = bucket.definition.vbuckets().into_iter().map(|s| s.name).collect();
        let floors = floors(&self.consistency, bucket, &streams)?;
        let fingerprint = self.fingerprint(context, bucket, index, &ranges);
        let page = self.page_token.as_deref().map(|text| PageToken::read(text, fingerprint)).transpose()?;
        Ok(Plan {
            bucket: self.bucket.clone(),
            index: index.placed.number,
            hosts: index.placed.hosts.clone(),
            key_names: index.compiled.key_names(),
            directions,
            language,
            ranges,
            reverse: self.reverse,
            skip: if page.is_some() { 0 } else { self.offset },
            left: page.as_ref().map_or(self.limit, |page| page.left),
            page_size: self.page_size,
            consistency: self.consistency.clone(),
            floors,
            page,
            fingerprint,
            streams,
        })
    }

    /// `page_size` and `timeout_ms` are left out: they may change from page to page without harm.
    fn fingerprint(&self, context: &StateContext, bucket: &Bucket, index: &Index, ranges: &[ByteRange]) -> u64 {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "{:?}",
            (
                &context.incarnation,
                &self.bucket,
                bucket.declared,
                index.placed.number,
                ranges,
                self.reverse,
                self.offset,
                self.limit,
                &self.consistency,
            )
        );
        xxh3_64(text.as_bytes())
    }
}

/// The ranges of entry keys that a scan or count in JSON would read, were it sent to a catalog that knows this context.
///
/// For those who check requests without running them. Refuses as the catalog does.
pub fn byte_ranges(payload: &[u8], mode: Mode, context: &StateContext) -> Result<Vec<ByteRange>, ApiError> {
    Ok(Query::parse(payload, mode, Deadlines::default())?.plan(context)?.ranges)
}

/// The bucket and index of these names.
pub fn find<'a>(context: &'a StateContext, bucket: &str, index: &str) -> Result<(&'a Bucket, &'a Index), ApiError> {
    let found = context
        .buckets
        .get(bucket)
        .ok_or_else(|| ApiError::new(ErrorCode::BucketNotFound, format!("there is no bucket {bucket}")))?;
    let index = found
        .index_by_name(index)
        .ok_or_else(|| ApiError::new(ErrorCode::IndexNotFound, format!("bucket {bucket} has no index {index}")))?;
    Ok((found, index))
}

fn spans(fields: &mut Fields) -> Result<Vec<Span>, ApiError> {
    let raw: Vec<Box<RawValue>> = fields.take("spans", "a list of spans")?.unwrap_or_default();
    if raw.len() > MAX_SPANS {
        return Err(malformed(format!("spans: at most {MAX_SPANS}, not {}", raw.len())));
    }
    let read = |(i, raw): (usize, &RawValue)| api::parse_part(&format!("spans[{i}]"), raw.get());
    raw.iter().map(AsRef::as_ref).enumerate().map(read).collect()
}

fn consistency(raw: &RawValue) -> Result<Consistency, ApiError> {
    use serde_json::Value;
    let refuse = || {
        bad_consistency(format!(
            "consistency must be \"any\", \"request_plus\", {{\"at_plus\":…}} or {{\"at_snapshot\":number}}, not {}",
            shown(raw.get())
        ))
    };
    let Plain(value) = serde_json::from_str(raw.get()).map_err(|_| refuse())?;
    match &value {
        Value::String(name) if name == "any" => return Ok(Consistency::Any),
        Value::String(name) if name == "request_plus" => return Ok(Consistency::RequestPlus),
        _ => {}
    }
    let fields = value.as_object().filter(|fields| fields.len() == 1).ok_or_else(refuse)?;
    if let Some(number) = fields.get("at_snapshot") {
        return number
            .as_u64()
            .filter(|n| *n > 0)
            .map(Consistency::AtSnapshot)
            .ok_or_else(|| bad_consistency("at_snapshot must be the number that a reply had as st".into()));
    }
    match fields.get("at_plus").ok_or_else(refuse)? {
        Value::Object(streams) => {
            let floor = |(stream, value): (&String, &Value)| Ok((stream.clone(), position(stream, value)?));
            streams.iter().map(floor).collect::<Result<_, _>>().map(Consistency::AtStreams)
        }
        number => number.as_u64().map(Consistency::AtRevision).ok_or_else(|| {
            bad_consistency(
                "at_plus must be a revision, an object of revisions by stream name, or a reply's timestamp".into(),
            )
        }),
    }
}

/// `34006` or `{"vbuuid":"…","seqno":34006}`.
fn position(stream: &str, value: &serde_json::Value) -> Result<(Option<u64>, u64), ApiError> {
    let refuse = || bad_consistency(format!("at_plus.{stream} must be a revision or {{\"vbuuid\":\"…\",\"seqno\":…}}"));
    if let Some(seqno) = value.as_u64() {
        return Ok((None, seqno));
    }
    let fields = value.as_object().filter(|fields| fields.len() == 2).ok_or_else(refuse)?;
    let seqno = fields.get("seqno").and_then(serde_json::Value::as_u64).ok_or_else(refuse)?;
    let vbuuid = fields.get("vbuuid").and_then(serde_json::Value::as_str).ok_or_else(refuse)?;
    let vbuuid = u64::from_str_radix(vbuuid, 16).map_err(|_| refuse())?;
    Ok((Some(vbuuid), seqno))
}

/// Per vbucket what `at_plus` asks for, checked against the bucket's streams and their branches.
fn floors(consistency: &Consistency, bucket: &Bucket, streams: &[String]) -> Result<Vec<Floor>, ApiError> {
    let mut floors = vec![Floor::default(); streams.len()];
    match consistency {
        Consistency::AtRevision(seqno) => match &mut floors[..] {
            [only] => only.seqno = *seqno,
            _ => {
                return Err(bad_consistency(format!(
                    "the bucket has {} streams: at_plus must say of which one the revision is, as {{\"{}\":{seqno}}}",
                    streams.len(),
                    streams.first().map_or("STREAM", String::as_str),
                )));
            }
        },
        Consistency::AtStreams(given) => {
            for (stream, (vbuuid, seqno)) in given {
                let vb = streams.iter().position(|s| s == stream).ok_or_else(|| {
                    bad_consistency(format!("at_plus: the bucket has no stream {stream:?}, but {}", streams.join(", ")))
                })?;
                floors[vb] = Floor { vbuuid: *vbuuid, seqno: *seqno };
            }
        }
        Consistency::Any | Consistency::RequestPlus | Consistency::AtSnapshot(_) => {}
    }
    branch_lost(&floors, bucket).map_or(Ok(floors), Err)
}

fn bad_consistency(message: String) -> ApiError {
    ApiError::new(ErrorCode::BadConsistency, message)
}

#[cfg(test)]
mod tests;
