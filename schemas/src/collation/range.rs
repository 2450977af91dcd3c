//! From spans, as users write them, to ranges of encoded keys.

use super::{EncodeError, MAX_ENTRY_KEY, encode::put_text, encode_bound};
use crate::{
    error::{ApiError, ErrorCode},
    language::Language,
    wire::ByteRange,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, value::RawValue};
use std::borrow::Cow;

/// One component of a bound, as it is written: a number's digits count.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Component(Box<RawValue>);

impl Component {
    /// The JSON text.
    pub fn text(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for Component {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl<'de> Deserialize<'de> for Component {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(json).map(Self)
    }
}

impl From<&Value> for Component {
    fn from(value: &Value) -> Self {
        // What a value writes is JSON.
        let raw = RawValue::from_string(value.to_string());
        Self(raw.unwrap_or_else(|_| RawValue::NULL.to_owned()))
    }
}

impl JsonSchema for Component {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        Value::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Value::json_schema(generator)
    }
}

/// Which of a span's bounds belong to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Inclusion {
    #[default]
    Both,
    Low,
    High,
    Neither,
}

impl Inclusion {
    fn low(self) -> bool {
        matches!(self, Self::Both | Self::Low)
    }
    fn high(self) -> bool {
        matches!(self, Self::Both | Self::High)
    }
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    fn is_default(&self) -> bool {
        *self == Self::Both
    }
}

/// A range of keys.
///
/// Bounds are in value order whatever the direction of the keys. Each is a prefix of the index's keys and stands for every key
/// that begins with it; a bound left out, or without components, is open. `{"$missing":true}` in a bound is missing, and an
/// object whose only field begins with `$$` is read with one `$` less, as rows show it with one more.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Span {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<Vec<Component>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<Vec<Component>>,
    /// Both bounds at once; excludes `low`, `high` and any other `inclusion` than both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal: Option<Vec<Component>>,
    #[serde(default, skip_serializing_if = "Inclusion::is_default")]
    pub inclusion: Inclusion,
}

/// The union of the spans as byte ranges of entry keys: disjoint, ascending, none empty. No spans: everything.
///
/// `directions` says for each key of the index whether it is descending; without keys a bound is a docid. `language` is the
/// index's.
/// Refuses with `bad_span`, `span_inverted` or `span_not_contiguous`; the message names the span.
pub fn spans_to_ranges(directions: &[bool], language: Language, spans: &[Span]) -> Result<Vec<ByteRange>, ApiError> {
    if spans.is_empty() {
        return Ok(vec![ByteRange { low: Vec::new(), high: None }]);
    }
    let mut ranges = Vec::with_capacity(spans.len());
    for (i, span) in spans.iter().enumerate() {
        let range = span_to_range(directions, language, span)
            .map_err(|e| ApiError::new(e.code, format!("spans[{i}]: {}", e.message)))?;
        ranges.extend(range.filter(|r| r.high.as_ref().is_none_or(|high| r.low < *high)));
    }
    Ok(merge(ranges))
}

fn merge(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable_by(|a, b| a.low.cmp(&b.low));
    let mut merged: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.high.as_ref().is_none_or(|high| range.low <= *high) => {
                last.high = match (last.high.take(), range.high) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    _ => None,
                };
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// `None`: surely empty.
fn span_to_range(directions: &[bool], language: Language, span: &Span) -> Result<Option<ByteRange>, ApiError> {
    let bad = |message: String| Err(ApiError::new(ErrorCode::BadSpan, message));
    let (low, high, inclusion) = match (&span.equal, &span.low, &span.high) {
        (Some(equal), None, None) if span.inclusion == Inclusion::Both => (&equal[..], &equal[..], Inclusion::Both),
        (Some(_), None, None) => return bad("equal takes no inclusion".into()),
        (Some(_), _, _) => return bad("equal goes without low and high".into()),
        (None, low, high) => (low.as_deref().unwrap_or_default(), high.as_deref().unwrap_or_default(), span.inclusion),
    };
    let names: [&str; 2] = if span.equal.is_some() { ["equal", "equal"] } else { ["low", "high"] };
    let low = Bound::new(names[0], low, inclusion.low(), directions, language)?;
    let high = Bound::new(names[1], high, inclusion.high(), directions, language)?;

    // Of the leading components that are equal in both bounds the direction does not matter; the others decide.
    let common = low.components.iter().zip(&high.components).take_while(|(a, b)| a == b).count();
    let longest = low.components.len().max(high.components.len());
    if let (Some(a), Some(b)) = (low.components.get(common), high.components.get(common))
        && a > b
    {
        return Err(ApiError::new(ErrorCode::SpanInverted, "low is above high"));
    }
    let deciding = directions.get(common..longest).unwrap_or_default();
    let descending = deciding.first().copied().unwrap_or(false);
    if deciding.iter().any(|&d| d != descending) {
        return Err(ApiError::new(
            ErrorCode::SpanNotContiguous,
            format!(
                "the bounds do not make one contiguous range: keys {} to {longest} of the index, on which they differ, are not all \
                 ascending or all descending",
                common + 1
            ),
        ));
    }
    let (first, last) = if descending { (high, low) } else { (low, high) };
    let Some(low) = first.begin(directions) else { return Ok(None) };
    Ok(Some(ByteRange { low, high: last.end(directions) }))
}

/// One end of a span. Without components it is open.
struct Bound {
    /// Each component's ascending encoding, whose bytes compare like the values.
    components: Vec<Vec<u8>>,
    included: bool,
}

impl Bound {
    fn new(
        name: &str,
        values: &[Component],
        included: bool,
        directions: &[bool],
        language: Language,
    ) -> Result<Self, ApiError> {
        let bad = |message: String| ApiError::new(ErrorCode::BadSpan, message);
        // An index without keys is ordered by docid.
        let most = directions.len().max(1);
        if values.len() > most {
            return Err(bad(format!(
                "{name} has {} components; at most {most} can be given for this index",
                values.len()
            )));
        }
        let mut components = Vec::with_capacity(values.len());
        for (i, value) in values.iter().enumerate() {
            let mut bytes = Vec::new();
            let taken = if directions.is_empty() {
                put_docid(value.text(), &mut bytes)
            } else {
                encode_bound(value.text(), language, &mut bytes).map_err(|e| refused(e, value.text()))
            };
            taken.map_err(|why| bad(format!("{name}[{i}]: {why}")))?;
            components.push(bytes);
        }
        Ok(Self { components, included: included || values.is_empty() })
    }

    fn bytes(&self, directions: &[bool]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.components.iter().map(Vec::len).sum());
        for (i, component) in self.components.iter().enumerate() {
            let mask = if directions.get(i).is_some_and(|&d| d) { 0xff } else { 0 };
            bytes.extend(component.iter().map(|b| b ^ mask));
        }
        bytes
    }

    /// The first key of a range that begins with this bound; `None`: beyond every key.
    fn begin(&self, directions: &[bool]) -> Option<Vec<u8>> {
        let bytes = self.bytes(directions);
        if self.included { fit(bytes) } else { successor(bytes) }
    }

    /// The first key behind a range that ends with this bound; `None`: there is none.
    fn end(&self, directions: &[bool]) -> Option<Vec<u8>> {
        let bytes = self.bytes(directions);
        if self.included { successor(bytes) } else { fit(bytes) }
    }
}

/// The first entry key, of those that can exist, that is not below `bytes`: the store refuses longer ones even to seek.
fn fit(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if bytes.len() <= MAX_ENTRY_KEY {
        return Some(bytes);
    }
    bytes.truncate(MAX_ENTRY_KEY);
    successor(bytes)
}

/// The first bytes above everything that begins with `bytes`, as short as [`MAX_ENTRY_KEY`].
fn successor(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    bytes.truncate(MAX_ENTRY_KEY);
    while let Some(last) = bytes.pop() {
        if last < 0xff {
            bytes.push(last + 1);
            return Some(bytes);
        }
    }
    None
}

fn put_docid(text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    if !text.starts_with('"') {
        return Err("the key of a primary index is the docid, a string".into());
    }
    let docid: String = serde_json::from_str(text).map_err(|_| refused(EncodeError::HalfPair, text))?;
    put_text(docid.as_bytes(), out);
    Ok(())
}

/// Why a component is refused, with the beginning of its text.
fn refused(error: EncodeError, text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown} is no value that a key can have: {error}")
}
