//! From JSON texts to the key encoding, by the rules of a version of the language.

mod v0;

use super::{
    END, ExactNumber, MISSING_JSON,
    encode::{has_escaped, invert, put_any_float, put_float, put_integer, put_object_head, put_text},
    fields::Fields,
    number::read_number,
    tag,
};
use crate::{language::Language, readable::RESERVED};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// Arrays and objects nest so deep at most in what rows show, so that a reply, which puts 4 levels around a component, stays
/// within 64: the least that readers of JSON take unless they are told otherwise.
pub const MAX_SHOWN_DEPTH: usize = 60;

/// Why a JSON text cannot be a component of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("not a JSON value")]
    NotJson,
    #[error("a number beyond the range of a 64-bit float")]
    NumberRange,
    #[error(
        "an inexact number: it has more than 17 significant digits, and neither a 64-bit integer nor a 64-bit float holds it"
    )]
    Inexact,
    #[error("half a surrogate pair")]
    HalfPair,
    #[error("an object with a name that readers keep for themselves")]
    ReservedName,
    #[error("nested deeper than {MAX_SHOWN_DEPTH}")]
    TooDeep,
}

/// Appends the encoding of one value of a document, given as JSON text; `None` is missing.
///
/// Scalars without escapes are written without allocating. After an error `out` is as before.
pub fn encode_raw(
    raw: Option<&str>,
    descending: bool,
    language: Language,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let start = out.len();
    let done = match (raw, language) {
        (None, _) => {
            out.push(tag::MISSING);
            Ok(())
        }
        (Some(text), Language::V1 | Language::V2) => {
            Writer { out, written_as: WrittenAs::Document }.value(trim(text), MAX_SHOWN_DEPTH)
        }
        (Some(text), Language::V0) => v0::put_json(trim(text), out),
    };
    if done.is_err() {
        out.truncate(start);
    } else if descending {
        invert(&mut out[start..]);
    }
    done
}

/// Appends the encoding, ascending, of what a condition compares: as [`encode_raw`], but whatever some reader refuses is refused.
///
/// After an error `out` is as before.
pub(crate) fn encode_operand(text: &str, language: Language, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if language < Language::V2 {
        return encode_raw(Some(text), false, language, out);
    }
    let start = out.len();
    let done = Writer { out, written_as: WrittenAs::Operand }.value(trim(text), MAX_SHOWN_DEPTH);
    if done.is_err() {
        out.truncate(start);
    }
    done
}

/// Appends the encoding, ascending, of one component of a bound, as clients write it and as [`super::decode_key`] writes keys:
/// `{"$missing":true}` is missing, and an object whose only field begins with `$$` has one `$` too many.
///
/// After an error `out` is as before.
pub fn encode_bound(text: &str, language: Language, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let done = if is_missing(text) {
        out.push(tag::MISSING);
        Ok(())
    } else {
        match language {
            Language::V1 | Language::V2 => {
                Writer { out, written_as: WrittenAs::Bound }.value(trim(text), MAX_SHOWN_DEPTH)
            }
            Language::V0 => v0::put_bound(trim(text), out),
        }
    };
    if done.is_err() {
        out.truncate(start);
    }
    done
}

fn is_missing(text: &str) -> bool {
    if text == MISSING_JSON {
        return true;
    }
    // Written otherwise: with white space, or escapes.
    text.trim_start().starts_with('{')
        && serde_json::from_str::<Fields<'_>>(text)
            .is_ok_and(|fields| fields.0.len() == 1 && fields.0.get("$missing").is_some_and(|v| v.get() == "true"))
}

/// Takes the `$` away that [`super::decode_key`] has put before the only name of an object.
fn unescaped(name: &str) -> &str {
    if name.starts_with("$$") { &name[1..] } else { name }
}

/// Whose words an object's names are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WrittenAs {
    Document,
    Bound,
    /// A document's, and never shown.
    Operand,
}

/// Writes by the rules of [`Language::V1`] and later ones.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    written_as: WrittenAs,
}

impl Writer<'_> {
    /// `text` has no white space around it; `depth`: how deep arrays and objects may still nest.
    fn value(&mut self, text: &str, depth: usize) -> Result<(), EncodeError> {
        let bytes = text.as_bytes();
        match bytes {
            [b'"', inner @ .., b'"'] if !has_escaped(inner) => {
                // Without control characters there is nothing to escape.
                self.out.reserve(inner.len() + 2);
                self.out.push(tag::STRING);
                self.out.extend_from_slice(inner);
                self.out.push(END);
                Ok(())
            }
            [b'-' | b'0'..=b'9', ..] => put_number_text(bytes, self.out),
            b"null" => self.tag(tag::NULL),
            b"false" => self.tag(tag::FALSE),
            b"true" => self.tag(tag::TRUE),
            [b'"', ..] => {
                let plain: String = serde_json::from_str(text).map_err(|_| refusal(text))?;
                self.out.push(tag::STRING);
                put_text(plain.as_bytes(), self.out);
                Ok(())
            }
            [b'[', ..] => self.array(text, depth),
            [b'{', ..] => self.object(text, depth),
            _ => Err(EncodeError::NotJson),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "beside calls that can fail")]
    fn tag(&mut self, tag: u8) -> Result<(), EncodeError> {
        self.out.push(tag);
        Ok(())
    }

    fn array(&mut self, text: &str, depth: usize) -> Result<(), EncodeError> {
        let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| EncodeError::NotJson)?;
        let depth = depth.checked_sub(1).ok_or(EncodeError::TooDeep)?;
        self.out.push(tag::ARRAY);
        for element in elements {
            self.value(element.get(), depth)?;
        }
        self.out.push(END);
        Ok(())
    }

    fn object(&mut self, text: &str, depth: usize) -> Result<(), EncodeError> {
        let Fields(fields) = serde_json::from_str(text).map_err(|_| refusal(text))?;
        let depth = depth.checked_sub(1).ok_or(EncodeError::TooDeep)?;
        // A field by itself is shown under another name, with one more `$`; what is not shown at all counts as it is.
        let renamed = fields.len() == 1 && self.written_as != WrittenAs::Operand;
        if !renamed && fields.keys().any(|name| name.starts_with(RESERVED)) {
            return Err(EncodeError::ReservedName);
        }
        put_object_head(fields.len(), self.out);
        let escaped = self.written_as == WrittenAs::Bound && fields.len() == 1;
        for name in fields.keys() {
            put_text(if escaped { unescaped(name) } else { name }.as_bytes(), self.out);
        }
        for value in fields.values() {
            self.value(value.get(), depth)?;
        }
        Ok(())
    }
}

/// Why a text was refused whose strings are read.
fn refusal(text: &str) -> EncodeError {
    // Whoever only passes over a string does not look at its surrogates.
    if serde_json::from_str::<IgnoredAny>(text).is_ok() { EncodeError::HalfPair } else { EncodeError::NotJson }
}

/// Without the white space that JSON allows around a value. Of what is cut out of a document there is none.
fn trim(text: &str) -> &str {
    match text.as_bytes() {
        [first, .., last] if *first > b' ' && *last > b' ' => text,
        _ => text.trim_matches([' ', '\t', '\n', '\r']),
    }
}

fn put_number_text(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if put_short_integer(bytes, out) {
        return Ok(());
    }
    match read_number(bytes)? {
        ExactNumber::Integer { negative, magnitude } => put_integer(negative, magnitude, out),
        ExactNumber::Float(float) => put_any_float(float, out),
    }
    Ok(())
}

/// The most digits that surely fit 53 bits.
const EXACT_DIGITS: usize = 15;

/// Appends the number if it is an integer of few digits, which most numbers are.
fn put_short_integer(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    let (negative, digits) = match bytes {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let leading_zero = digits.len() > 1 && digits[0] == b'0';
    if digits.is_empty() || digits.len() > EXACT_DIGITS || leading_zero {
        return false;
    }
    let mut magnitude = 0u64;
    let mut all_digits = true;
    for &b in digits {
        let digit = b.wrapping_sub(b'0');
        all_digits &= digit < 10;
        magnitude = magnitude.wrapping_mul(10).wrapping_add(u64::from(digit));
    }
    if all_digits {
        put_float(if negative { -(magnitude as f64) } else { magnitude as f64 }, None, out);
    }
    all_digits
}
