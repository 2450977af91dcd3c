//! JSON as every reader takes it.
//!
//! # Purpose
//! Documents are checked for being JSON by its grammar only, and some of what the grammar allows is refused by one reader or the
//! other. One such value in a row would cost the client the whole reply, so rows are written through here.
//!
//! # What readers refuse
//! - Numbers beyond f64 (serde_json, Go), half a surrogate pair (serde_json), nesting deeper than [`MAX_SHOWN_DEPTH`] (.NET): such
//!   a value is *of no value*, with the whole array or object around it.
//! - Names that serde_json keeps for itself, [`RESERVED`]: its values are something else than the object that begins with one.
//! - Two fields of one name in an object (Go, strict modes elsewhere): only the last is written, as everywhere in Highwater.
//! - Numbers that are within f64, but in other readers' ways of reading them are not: very long ones (Python, Jackson), those
//!   next to the largest f64 (serde_json without `float_roundtrip`), and long exponents. The nearest f64 is written instead:
//!   above [`MAX_NUMBER`], from [`LARGE`] on, and above [`MAX_EXPONENT`].

use crate::collation::{MAX_SHOWN_DEPTH, nearest};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{collections::HashMap, fmt, ops::Range};

/// The longest text of a number that is written as it is, bytes.
pub const MAX_NUMBER: usize = 1_000;
/// The most digits of an exponent that is written as it is.
const MAX_EXPONENT: usize = 4;
/// A float from here on is written in its own shortest text, which stays finite when its digits are multiplied by a power of ten
/// that is rounded itself. Other texts of the largest floats do not.
const LARGE: f64 = 1e308;
/// Names that begin so mean something else to serde_json's values, under some of its features.
pub(crate) const RESERVED: &str = "$serde_json::private::";
/// A number without exponent of so many characters is within f64.
const SURELY_IN_RANGE: usize = 300;
/// So many names of open objects are compared without allocating.
const NAMES: usize = 64;

/// Of no value: some reader refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no value that every reader of JSON takes")]
pub struct Unreadable;

/// Appends a JSON value without white space outside of strings, so that every reader takes it.
///
/// `raw` is valid JSON without white space around it. After an error `out` is as before.
pub fn write_readable(raw: &str, out: &mut Vec<u8>) -> Result<(), Unreadable> {
    let start = out.len();
    let mut copier = Copier { raw, at: 0, out };
    let done = match raw.as_bytes().first() {
        Some(b'[' | b'{') => copier.containers().or_else(|Unclear| {
            out.truncate(start);
            rewrite(raw, MAX_SHOWN_DEPTH, out)
        }),
        Some(b'"') if raw.contains('\\') => copier.string(),
        Some(b'"') => {
            out.extend_from_slice(raw.as_bytes());
            Ok(())
        }
        _ => copier.word(),
    };
    if done.is_err() {
        out.truncate(start);
    }
    done
}

/// Whether [`write_readable`] takes a value; `scratch` is overwritten.
pub fn is_readable(raw: &str, scratch: &mut Vec<u8>) -> bool {
    scratch.clear();
    write_readable(raw, scratch).is_ok()
}

/// Appends an object without the fields that are of no value. What is not a JSON object counts as an empty one.
pub fn write_readable_fields(raw: &str, out: &mut Vec<u8>) {
    let start = out.len();
    out.push(b'{');
    for (name, value) in last_of_each_name(raw).unwrap_or_default() {
        let before = out.len();
        if before > start + 1 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        if write_readable(value, out).is_err() {
            out.truncate(before);
        }
    }
    out.push(b'}');
}

/// Names may be equal, or something is of no value unless another field of its name replaces it: [`rewrite`] can tell.
struct Unclear;

/// Passes over valid JSON and copies it.
struct Copier<'a> {
    raw: &'a str,
    at: usize,
    out: &'a mut Vec<u8>,
}

impl Copier<'_> {
    fn peek(&self) -> Option<u8> {
        self.raw.as_bytes().get(self.at).copied()
    }

    /// An array or object with all that is in it, if nothing in it needs a closer look.
    fn containers(&mut self) -> Result<(), Unclear> {
        let raw = self.raw.as_bytes();
        // Where the names of each open object begin.
        let mut open = [0usize; MAX_SHOWN_DEPTH];
        let mut depth = 0;
        let mut names: [Range<usize>; NAMES] = [const { 0..0 }; NAMES];
        let mut known = 0;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    let start = self.at;
                    self.string().map_err(|_| Unclear)?;
                    let name = start..self.at;
                    let behind = raw[self.at..].iter().find(|b| !b.is_ascii_whitespace());
                    if behind == Some(&b':') {
                        if known == NAMES
                            || raw[name.clone()].contains(&b'\\')
                            || raw[name.start + 1..].starts_with(RESERVED.as_bytes())
                        {
                            return Err(Unclear);
                        }
                        names[known] = name;
                        known += 1;
                    }
                }
                b'[' | b'{' => {
                    *open.get_mut(depth).ok_or(Unclear)? = known;
                    depth += 1;
                    self.copy();
                }
                b']' | b'}' => {
                    self.copy();
                    depth = depth.saturating_sub(1);
                    let own = &names[open[depth]..known];
                    if own.iter().enumerate().any(|(i, a)| own[..i].iter().any(|b| raw[a.clone()] == raw[b.clone()])) {
                        return Err(Unclear);
                    }
                    known = open[depth];
                }
                b',' | b':' => self.copy(),
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                _ => self.word().map_err(|_| Unclear)?,
            }
        }
        Ok(())
    }

    fn copy(&mut self) {
        self.out.extend(self.peek());
        self.at += 1;
    }

    /// A string, in which surrogates must stand in pairs.
    fn string(&mut self) -> Result<(), Unreadable> {
        let bytes = self.raw.as_bytes();
        let start = self.at;
        self.at += 1;
        loop {
            self.at += bytes[self.at..].iter().position(|b| matches!(b, b'"' | b'\\')).ok_or(Unreadable)?;
            if bytes[self.at] == b'"' {
                self.at += 1;
                self.out.extend_from_slice(&bytes[start..self.at]);
                return Ok(());
            }
            match self.unit(self.at) {
                Some(0xd800..=0xdbff) => match self.unit(self.at + UNIT) {
                    Some(0xdc00..=0xdfff) => self.at += 2 * UNIT,
                    _ => return Err(Unreadable),
                },
                Some(0xdc00..=0xdfff) => return Err(Unreadable),
                Some(_) => self.at += UNIT,
                None => self.at += 2,
            }
            if self.at > bytes.len() {
                return Err(Unreadable);
            }
        }
    }

    /// The UTF-16 unit that an escape at this place stands for.
    fn unit(&self, at: usize) -> Option<u16> {
        let digits = self.raw.get(at..at + UNIT)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    }

    /// A number, true, false or null.
    fn word(&mut self) -> Result<(), Unreadable> {
        let rest = &self.raw.as_bytes()[self.at..];
        let len = rest.iter().position(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'.' | b'+' | b'-' | b'E'));
        let word = &rest[..len.unwrap_or(rest.len())];
        self.at += word.len();
        write_word(word, self.out)
    }
}

/// Bytes of an escape such as `\u00e9`.
const UNIT: usize = 6;

fn write_word(word: &[u8], out: &mut Vec<u8>) -> Result<(), Unreadable> {
    if matches!(word.first(), Some(b'-' | b'0'..=b'9')) {
        let exponent = word.iter().position(|b| matches!(b, b'e' | b'E')).map(|at| &word[at + 1..]);
        if exponent.is_some() || word.len() > SURELY_IN_RANGE {
            let float = nearest(word).filter(|float| float.is_finite()).ok_or(Unreadable)?;
            let exponent_digits = exponent.map_or(0, |text| text.iter().filter(|b| b.is_ascii_digit()).count());
            if word.len() > MAX_NUMBER || exponent_digits > MAX_EXPONENT || float >= LARGE {
                let negative = word.first() == Some(&b'-');
                return serde_json::to_writer(out, &if negative { -float } else { float }).map_err(|_| Unreadable);
            }
        }
    }
    if word.is_empty() {
        return Err(Unreadable);
    }
    out.extend_from_slice(word);
    Ok(())
}

/// The same as [`Copier`] does, with of equal names only the last; reads what is inside once for each level.
fn rewrite(raw: &str, depth: usize, out: &mut Vec<u8>) -> Result<(), Unreadable> {
    match raw.as_bytes().first() {
        Some(b'[') => {
            let depth = depth.checked_sub(1).ok_or(Unreadable)?;
            let elements: Vec<&RawValue> = serde_json::from_str(raw).map_err(|_| Unreadable)?;
            out.push(b'[');
            for (i, element) in elements.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                rewrite(element.get(), depth, out)?;
            }
            out.push(b']');
            Ok(())
        }
        Some(b'{') => {
            let depth = depth.checked_sub(1).ok_or(Unreadable)?;
            out.push(b'{');
            for (i, (name, value)) in last_of_each_name(raw)?.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(name.as_bytes());
                out.push(b':');
                rewrite(value, depth, out)?;
            }
            out.push(b'}');
            Ok(())
        }
        _ => write_readable(raw, out),
    }
}

/// The fields of an object, each with its name as it is written; of equal names the last one's.
fn last_of_each_name(raw: &str) -> Result<Vec<(&str, &str)>, Unreadable> {
    let Pairs(pairs) = serde_json::from_str(raw).map_err(|_| Unreadable)?;
    let names: Vec<String> =
        pairs.iter().map(|(name, _)| serde_json::from_str(name)).collect::<Result<_, _>>().map_err(|_| Unreadable)?;
    if names.iter().any(|name| name.starts_with(RESERVED)) {
        return Err(Unreadable);
    }
    let last: HashMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let is_last = |i: usize| last.get(names[i].as_str()) == Some(&i);
    Ok(pairs.iter().enumerate().filter(|(i, _)| is_last(*i)).map(|(_, pair)| *pair).collect())
}

/// The fields of an object as they are written.
struct Pairs<'a>(Vec<(&'a str, &'a str)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    pairs.push((name.get(), value.get()));
                }
                Ok(Pairs(pairs))
            }
        }
        json.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests;
