//! The rules of [`crate::language::Language::V0`], for indexes that were made with them.

use super::{EncodeError, put_short_integer, refusal, unescaped};
use crate::collation::{
    END,
    encode::{has_escaped, put_any_float, put_integer, put_value},
    number::is_number,
    plain::Plain,
    tag,
};
use serde_json::Value;

pub(super) fn put_json(text: &str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match text.as_bytes() {
        [b'"', inner @ .., b'"'] if !has_escaped(inner) => {
            out.reserve(inner.len() + 2);
            out.push(tag::STRING);
            out.extend_from_slice(inner);
            out.push(END);
        }
        [b'-' | b'0'..=b'9', ..] => put_number(text, out)?,
        b"null" => out.push(tag::NULL),
        b"false" => out.push(tag::FALSE),
        b"true" => out.push(tag::TRUE),
        _ => {
            let Plain(value) = serde_json::from_str(text).map_err(|e| reason(&e, text))?;
            put_value(&value, out);
        }
    }
    Ok(())
}

/// A component of a bound.
pub(super) fn put_bound(text: &str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if !text.starts_with(['[', '{']) {
        return put_json(text, out);
    }
    let Plain(mut value) = serde_json::from_str(text).map_err(|e| reason(&e, text))?;
    unescape(&mut value);
    put_value(&value, out);
    Ok(())
}

fn unescape(value: &mut Value) {
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(unescape),
        Value::Object(fields) => {
            fields.values_mut().for_each(unescape);
            if fields.len() == 1 {
                *fields = std::mem::take(fields).into_iter().map(|(n, v)| (unescaped(&n).to_owned(), v)).collect();
            }
        }
        _ => {}
    }
}

fn reason(error: &serde_json::Error, text: &str) -> EncodeError {
    // serde_json has no other way to tell them apart.
    let said = error.to_string();
    if said.starts_with("number out of range") {
        EncodeError::NumberRange
    } else if said.starts_with("recursion limit") {
        EncodeError::NotJson
    } else {
        refusal(text)
    }
}

/// An integer if it is written as one, else the nearest f64.
fn put_number(text: &str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if put_short_integer(text.as_bytes(), out) {
        return Ok(());
    }
    if !is_number(text.as_bytes()) {
        return Err(EncodeError::NotJson);
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    if let Ok(magnitude) = digits.parse::<u64>()
        && (!negative || magnitude <= 1 << 63)
    {
        put_integer(negative, magnitude, out);
        return Ok(());
    }
    let float: f64 = text.parse().map_err(|_| EncodeError::NotJson)?;
    if !float.is_finite() {
        return Err(EncodeError::NumberRange);
    }
    put_any_float(float, out);
    Ok(())
}
