//! Reads the fields of a JSON request one by one, so that every refusal names its field.

use highwater_schemas::{ApiError, ErrorCode, api::MAX_REQUEST};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{collections::BTreeMap, fmt};

/// The fields of a request that have not been taken yet.
#[derive(Debug)]
pub struct Fields {
    raw: BTreeMap<String, Box<RawValue>>,
}

/// The fields of an object as they stand, repeated ones too.
struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        json.deserialize_map(Object)
    }
}

impl Fields {
    /// Takes a JSON object apart; fields that are not `known` are refused. An empty payload counts as `{}`.
    pub fn read(payload: &[u8], known: &[&str]) -> Result<Self, ApiError> {
        if payload.len() > MAX_REQUEST {
            return Err(malformed(format!("the request has {} bytes; at most {MAX_REQUEST} are taken", payload.len())));
        }
        let text: &[u8] = if payload.is_empty() { b"{}" } else { payload };
        let Pairs(pairs) = serde_json::from_slice(text).map_err(|e| {
            malformed(if e.is_data() {
                "the request is not a JSON object".into()
            } else {
                format!("the request is not JSON: {e}")
            })
        })?;
        let mut raw = BTreeMap::new();
        for (name, value) in pairs {
            if !known.contains(&name.as_str()) {
                let expected = if known.is_empty() {
                    "it takes none".into()
                } else {
                    format!("expected one of {}", known.join(", "))
                };
                return Err(ApiError::new(ErrorCode::UnknownField, format!("unknown field {name:?}: {expected}")));
            }
            if raw.contains_key(&name) {
                return Err(malformed(format!("{name} is there twice")));
            }
            raw.insert(name, value);
        }
        Ok(Self { raw })
    }

    /// The text of a field that is there and not null.
    pub fn take_raw(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.raw.remove(name).filter(|raw| raw.get() != "null")
    }

    /// A field that may be left out. `expected` says what it must be.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.take_raw(name) else { return Ok(None) };
        serde_json::from_str(raw.get())
            .map(Some)
            .map_err(|_| malformed(format!("{name} must be {expected}, not {}", shown(raw.get()))))
    }

    /// A field that must be there.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<T, ApiError> {
        self.take(name, expected)?.ok_or_else(|| malformed(format!("{name} is missing: it must be {expected}")))
    }
}

/// A refusal of a request's shape.
pub fn malformed(message: String) -> ApiError {
    ApiError::new(ErrorCode::MalformedRequest, message)
}

/// The beginning of a value, for a message.
pub fn shown(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST {
        return text.into();
    }
    text.chars().take(MOST).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_an_object_of_known_fields_is_refused() {
        for (payload, code, word) in [
            (&b"{"[..], ErrorCode::MalformedRequest, "not JSON"),
            (b"\xff\xfe", ErrorCode::MalformedRequest, "not JSON"),
            (b"[1]", ErrorCode::MalformedRequest, "not a JSON object"),
            (b"7", ErrorCode::MalformedRequest, "not a JSON object"),
            (br#"{"a":1} x"#, ErrorCode::MalformedRequest, "not JSON"),
            (br#"{"b":1}"#, ErrorCode::UnknownField, "\"b\""),
            (br#"{"a":1,"a":2}"#, ErrorCode::MalformedRequest, "a is there twice"),
        ] {
            let error = Fields::read(payload, &["a"]).unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.contains(word), "{error}");
        }
        let long = vec![b' '; MAX_REQUEST + 1];
        assert!(Fields::read(&long, &[]).unwrap_err().message.contains("bytes"));
    }

    #[test]
    fn a_field_of_another_type_is_named() {
        let mut fields = Fields::read(br#"{"a":"x","b":null}"#, &["a", "b"]).unwrap();
        let error = fields.take::<u64>("a", "a number").unwrap_err();
        assert_eq!(error.message, "a must be a number, not \"x\"");
        assert_eq!(fields.take::<u64>("b", "a number").unwrap(), None);
        assert_eq!(fields.need::<u64>("b", "a number").unwrap_err().message, "b is missing: it must be a number");
        assert!(Fields::read(b"", &["a"]).unwrap().take_raw("a").is_none());
        assert_eq!(shown(&"é".repeat(90)).chars().count(), 61);
    }
}
