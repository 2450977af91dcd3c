//! Values in the key encoding.

use super::{END, ESCAPE, TWO_POW_53, TWO_POW_64, tag};
use serde_json::{Number, Value};

/// Appends the encoding of one value; `None` is missing.
///
/// Recurses as deep as the value nests; values that serde_json has parsed nest less than [`super::MAX_DEPTH`].
pub fn encode_value(value: Option<&Value>, descending: bool, out: &mut Vec<u8>) {
    let start = out.len();
    match value {
        Some(value) => put_value(value, out),
        None => out.push(tag::MISSING),
    }
    if descending {
        invert(&mut out[start..]);
    }
}

pub(super) fn invert(bytes: &mut [u8]) {
    for byte in bytes {
        *byte = !*byte;
    }
}

/// Whether any of the bytes must be escaped in a JSON string.
pub(super) fn has_escaped(text: &[u8]) -> bool {
    // No early exit: this form vectorizes.
    text.iter().fold(false, |any, &b| any | matches!(b, 0..=0x1f | b'"' | b'\\'))
}

pub(super) fn put_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(tag::NULL),
        Value::Bool(false) => out.push(tag::FALSE),
        Value::Bool(true) => out.push(tag::TRUE),
        Value::Number(number) => put_number(number, out),
        Value::String(text) => {
            out.push(tag::STRING);
            put_text(text.as_bytes(), out);
        }
        Value::Array(elements) => {
            out.push(tag::ARRAY);
            for element in elements {
                put_value(element, out);
            }
            out.push(END);
        }
        Value::Object(fields) => {
            put_object_head(fields.len(), out);
            // The map's own order depends on a feature that any crate in the build may switch on.
            let mut sorted: Vec<(&String, &Value)> = fields.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            for (name, _) in &sorted {
                put_text(name.as_bytes(), out);
            }
            for (_, value) in sorted {
                put_value(value, out);
            }
        }
    }
}

/// Appends what an object begins with: all names follow in order, then the values.
pub(super) fn put_object_head(fields: usize, out: &mut Vec<u8>) {
    out.push(tag::OBJECT);
    out.extend_from_slice(&(fields as u32).to_be_bytes());
}

/// Appends a text: escaped and ended, without a tag.
pub(super) fn put_text(text: &[u8], out: &mut Vec<u8>) {
    out.reserve(text.len() + 1);
    if text.iter().all(|&b| b > ESCAPE) {
        out.extend_from_slice(text);
    } else {
        for &byte in text {
            if byte > ESCAPE {
                out.push(byte);
            } else {
                out.extend_from_slice(&[ESCAPE, byte + 1]);
            }
        }
    }
    out.push(END);
}

pub(super) fn put_number(number: &Number, out: &mut Vec<u8>) {
    if let Some(n) = number.as_u64() {
        put_integer(false, n, out);
    } else if let Some(n) = number.as_i64() {
        put_integer(n < 0, n.unsigned_abs(), out);
    } else {
        // Without arbitrary precision every number is one of the three.
        put_any_float(number.as_f64().unwrap_or_default(), out);
    }
}

pub(super) fn put_integer(negative: bool, magnitude: u64, out: &mut Vec<u8>) {
    let sign = if negative { -1.0 } else { 1.0 };
    if magnitude < TWO_POW_53 {
        put_float(sign * magnitude as f64, None, out);
    } else {
        let cut_bits = 11 - magnitude.leading_zeros();
        let cut = magnitude & ((1 << cut_bits) - 1);
        put_float(sign * (magnitude - cut) as f64, Some(cut as u16), out);
    }
}

pub(super) fn put_any_float(float: f64, out: &mut Vec<u8>) {
    let has_cut = float.abs() >= TWO_POW_53 as f64 && float.abs() < TWO_POW_64;
    put_float(float, has_cut.then_some(0), out);
}

pub(super) fn put_float(float: f64, cut: Option<u16>, out: &mut Vec<u8>) {
    // Adding zero turns −0 into 0.
    let bits = (float + 0.0).to_bits();
    let negative = bits >> 63 == 1;
    let ordered = if negative { !bits } else { bits | 1 << 63 };
    let mut bytes = [tag::NUMBER; 9];
    bytes[1..].copy_from_slice(&ordered.to_be_bytes());
    out.extend_from_slice(&bytes);
    if let Some(cut) = cut {
        out.extend_from_slice(&(if negative { !cut } else { cut }).to_be_bytes());
    }
}
