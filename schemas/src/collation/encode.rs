//! From JSON to the key encoding.

use super::{END, ESCAPE, TWO_POW_53, TWO_POW_64, plain::Plain, tag};
use serde_json::{Number, Value};

/// Why a JSON text cannot be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("not a JSON value")]
    NotJson,
    #[error("a number beyond the range of a 64-bit float")]
    NumberRange,
}

/// Appends the encoding of one value, given as JSON text; `None` is missing.
///
/// Scalars without escapes are written without allocating. After an error `out` is as before.
pub fn encode_raw(raw: Option<&str>, descending: bool, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let done = if let Some(text) = raw { put_json(text.as_bytes(), text, out) } else { put_tag(tag::MISSING, out) };
    if done.is_err() {
        out.truncate(start);
    } else if descending {
        invert(&mut out[start..]);
    }
    done
}

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

fn invert(bytes: &mut [u8]) {
    for byte in bytes {
        *byte = !*byte;
    }
}

fn put_json(bytes: &[u8], text: &str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match bytes {
        [b'"', inner @ .., b'"'] if !has_escaped(inner) => {
            // Without control characters there is nothing to escape.
            out.reserve(inner.len() + 2);
            out.push(tag::STRING);
            out.extend_from_slice(inner);
            out.push(END);
            Ok(())
        }
        [b'-' | b'0'..=b'9', ..] => put_number_text(bytes, text, out),
        b"null" => put_tag(tag::NULL, out),
        b"false" => put_tag(tag::FALSE, out),
        b"true" => put_tag(tag::TRUE, out),
        // Escapes, arrays, objects and surrounding white space are rare in keys: the general way.
        _ => {
            let Plain(value) = serde_json::from_str(text).map_err(|e| range_or_garbage(&e))?;
            put_value(&value, out);
            Ok(())
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "beside calls that can fail")]
fn put_tag(tag: u8, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.push(tag);
    Ok(())
}

fn range_or_garbage(error: &serde_json::Error) -> EncodeError {
    // serde_json has no other way to tell the two apart.
    if error.to_string().starts_with("number out of range") { EncodeError::NumberRange } else { EncodeError::NotJson }
}

/// Whether any of the bytes must be escaped in a JSON string.
pub(super) fn has_escaped(text: &[u8]) -> bool {
    // No early exit: this form vectorizes.
    text.iter().fold(false, |any, &b| any | matches!(b, 0..=0x1f | b'"' | b'\\'))
}

/// The most digits that surely fit 53 bits.
const EXACT_DIGITS: usize = 15;

fn put_number_text(bytes: &[u8], text: &str, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let (negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let leading_zero = digits.len() > 1 && digits[0] == b'0';
    if !digits.is_empty() && digits.len() <= EXACT_DIGITS && !leading_zero {
        let mut magnitude = 0u64;
        let mut all_digits = true;
        for &b in digits {
            let digit = b.wrapping_sub(b'0');
            all_digits &= digit < 10;
            magnitude = magnitude.wrapping_mul(10).wrapping_add(u64::from(digit));
        }
        if all_digits {
            put_float(if negative { -(magnitude as f64) } else { magnitude as f64 }, None, out);
            return Ok(());
        }
    }
    if !is_json_number(digits) {
        // Perhaps white space follows.
        return match serde_json::from_str::<Number>(text) {
            Ok(number) => {
                put_number(&number, out);
                Ok(())
            }
            Err(e) => Err(range_or_garbage(&e)),
        };
    }
    if digits.iter().all(u8::is_ascii_digit)
        && let Ok(magnitude) = text.trim_start_matches('-').parse::<u64>()
        && (!negative || magnitude <= 1 << 63)
    {
        put_integer(negative, magnitude, out);
        return Ok(());
    }
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() => {
            put_any_float(float, out);
            Ok(())
        }
        _ => Err(EncodeError::NumberRange),
    }
}

/// Whether this is a JSON number after its sign: integer, fraction and exponent as the grammar has them.
fn is_json_number(digits: &[u8]) -> bool {
    let count = |bytes: &[u8]| bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    let whole = count(digits);
    if whole == 0 || (whole > 1 && digits[0] == b'0') {
        return false;
    }
    let mut rest = &digits[whole..];
    if let [b'.', fraction @ ..] = rest {
        let n = count(fraction);
        if n == 0 {
            return false;
        }
        rest = &fraction[n..];
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = if let [b'+' | b'-', unsigned @ ..] = exponent { unsigned } else { exponent };
        return !exponent.is_empty() && count(exponent) == exponent.len();
    }
    rest.is_empty()
}

fn put_value(value: &Value, out: &mut Vec<u8>) {
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
            out.push(tag::OBJECT);
            out.extend_from_slice(&(fields.len() as u32).to_be_bytes());
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

fn put_number(number: &Number, out: &mut Vec<u8>) {
    if let Some(n) = number.as_u64() {
        put_integer(false, n, out);
    } else if let Some(n) = number.as_i64() {
        put_integer(n < 0, n.unsigned_abs(), out);
    } else {
        // Without arbitrary precision every number is one of the three.
        put_any_float(number.as_f64().unwrap_or_default(), out);
    }
}

fn put_integer(negative: bool, magnitude: u64, out: &mut Vec<u8>) {
    let sign = if negative { -1.0 } else { 1.0 };
    if magnitude < TWO_POW_53 {
        put_float(sign * magnitude as f64, None, out);
    } else {
        let cut_bits = 11 - magnitude.leading_zeros();
        let cut = magnitude & ((1 << cut_bits) - 1);
        put_float(sign * (magnitude - cut) as f64, Some(cut as u16), out);
    }
}

fn put_any_float(float: f64, out: &mut Vec<u8>) {
    let has_cut = float.abs() >= TWO_POW_53 as f64 && float.abs() < TWO_POW_64;
    put_float(float, has_cut.then_some(0), out);
}

fn put_float(float: f64, cut: Option<u16>, out: &mut Vec<u8>) {
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
