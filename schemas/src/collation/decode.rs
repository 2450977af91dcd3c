//! From the key encoding to JSON text.
//!
//! Only what [`super::encode_value`] writes is accepted: equal values have one encoding, so anything else is damage. What is
//! written is read by [`super::encode_bound`]: an object whose only field begins with `$` gets one `$` more.

use super::{END, ESCAPE, MAX_DEPTH, MISSING_JSON, TWO_POW_53, TWO_POW_64, encode::has_escaped, tag};

/// Why bytes are not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the key ends too early")]
    Short,
    #[error("bytes behind the end of the key")]
    Trailing,
    #[error("unknown tag {0:#04x}")]
    Tag(u8),
    #[error("a number that no value is encoded as")]
    Number,
    #[error("an unknown escape in a text")]
    Escape,
    #[error("a text that is not UTF-8")]
    NotUtf8,
    #[error("names of an object that are not in order")]
    Names,
    #[error("nested {MAX_DEPTH} deep or deeper")]
    TooDeep,
}

/// Appends the JSON text of the component that `input` begins with, and moves `input` behind it.
///
/// Answers false and appends nothing for missing. After an error `out` is as before.
pub fn decode_component(input: &mut &[u8], descending: bool, out: &mut Vec<u8>) -> Result<bool, DecodeError> {
    let start = out.len();
    let mut reader = Reader::new(input, descending);
    if reader.peek()? == tag::MISSING {
        *input = &input[1..];
        return Ok(false);
    }
    if let Err(e) = reader.value(MAX_DEPTH - 1, out) {
        out.truncate(start);
        return Err(e);
    }
    *input = reader.rest;
    Ok(true)
}

/// Appends the JSON array of a key's components, one for each of `directions` (true is descending), and answers how many bytes
/// they took.
///
/// Missing components at the end are left out; others read `{"$missing":true}`. After an error `out` is as before.
pub fn decode_key(key: &[u8], directions: &[bool], out: &mut Vec<u8>) -> Result<usize, DecodeError> {
    let start = out.len();
    let mut rest = key;
    let mut missing = 0;
    out.push(b'[');
    for &descending in directions {
        // The comma comes first because whether one is needed shows only when a present component follows.
        let before = out.len();
        for _ in 0..missing {
            separate(start, out);
            out.extend_from_slice(MISSING_JSON.as_bytes());
        }
        separate(start, out);
        match decode_component(&mut rest, descending, out) {
            Ok(true) => missing = 0,
            Ok(false) => {
                missing += 1;
                out.truncate(before);
            }
            Err(e) => {
                out.truncate(start);
                return Err(e);
            }
        }
    }
    out.push(b']');
    Ok(key.len() - rest.len())
}

/// Appends a comma unless the array that begins at `start` is still empty.
fn separate(start: usize, out: &mut Vec<u8>) {
    if out.len() > start + 1 {
        out.push(b',');
    }
}

/// Reads encoded bytes, inverting each with `mask` when descending.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    mask: u8,
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8], descending: bool) -> Self {
        Self { rest, mask: if descending { 0xff } else { 0 } }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn peek(&self) -> Result<u8, DecodeError> {
        self.rest.first().map(|b| b ^ self.mask).ok_or(DecodeError::Short)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(head.map(|b| b ^ self.mask))
    }

    /// A text as it lies there, still masked and escaped, and whether it has escapes.
    pub(super) fn take_text(&mut self) -> Result<(&'a [u8], bool), DecodeError> {
        let bytes = self.rest;
        let (mut at, mut escaped) = (0, false);
        loop {
            // The first byte that is END or ESCAPE.
            at += bytes[at..].iter().position(|b| b ^ self.mask <= ESCAPE).ok_or(DecodeError::Short)?;
            if bytes[at] ^ self.mask == END {
                self.rest = &bytes[at + 1..];
                return Ok((&bytes[..at], escaped));
            }
            match bytes.get(at + 1).map(|b| b ^ self.mask) {
                Some(1 | 2) => at += 2,
                Some(_) => return Err(DecodeError::Escape),
                None => return Err(DecodeError::Short),
            }
            escaped = true;
        }
    }

    fn value(&mut self, depth: usize, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let [tag] = self.take()?;
        match tag {
            tag::NULL => out.extend_from_slice(b"null"),
            tag::FALSE => out.extend_from_slice(b"false"),
            tag::TRUE => out.extend_from_slice(b"true"),
            tag::NUMBER => self.number(out)?,
            tag::STRING => self.string(out)?,
            tag::ARRAY => self.array(depth.checked_sub(1).ok_or(DecodeError::TooDeep)?, out)?,
            tag::OBJECT => self.object(depth.checked_sub(1).ok_or(DecodeError::TooDeep)?, out)?,
            other => return Err(DecodeError::Tag(other)),
        }
        Ok(())
    }

    fn number(&mut self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let ordered = u64::from_be_bytes(self.take()?);
        let negative = ordered >> 63 == 0;
        let float = f64::from_bits(if negative { !ordered } else { ordered & !(1 << 63) });
        if !float.is_finite() || (negative && float == 0.0) {
            return Err(DecodeError::Number);
        }
        let size = float.abs();
        if size < TWO_POW_53 as f64 {
            let integer = float as i64;
            // By bits, which −0 has been refused for, this is equality.
            if (integer as f64).to_bits() == float.to_bits() {
                write_json(&integer, out);
            } else {
                write_json(&float, out);
            }
            return Ok(());
        }
        if size >= TWO_POW_64 {
            write_json(&float, out);
            return Ok(());
        }
        let cut = u16::from_be_bytes(self.take()?);
        let cut = u64::from(if negative { !cut } else { cut });
        let magnitude = size as u64;
        if cut >> (11 - magnitude.leading_zeros()) != 0 {
            return Err(DecodeError::Number);
        }
        let magnitude = magnitude + cut;
        if !negative {
            write_json(&magnitude, out);
        } else if let Some(integer) = 0i64.checked_sub_unsigned(magnitude) {
            write_json(&integer, out);
        } else if cut == 0 {
            write_json(&float, out);
        } else {
            return Err(DecodeError::Number);
        }
        Ok(())
    }

    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let (text, escaped) = self.take_text()?;
        let start = out.len();
        out.reserve(text.len() + 2);
        out.push(b'"');
        if self.mask == 0 {
            out.extend_from_slice(text);
        } else {
            out.extend(text.iter().map(|b| !b));
        }
        let written = &out[start + 1..];
        if escaped || has_escaped(written) {
            let text = String::from_utf8(unescape(written)).map_err(|_| DecodeError::NotUtf8)?;
            out.truncate(start);
            write_json(text.as_str(), out);
        } else {
            std::str::from_utf8(written).map_err(|_| DecodeError::NotUtf8)?;
            out.push(b'"');
        }
        Ok(())
    }

    fn array(&mut self, depth: usize, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let start = out.len();
        out.push(b'[');
        while self.peek()? != END {
            separate(start, out);
            self.value(depth, out)?;
        }
        self.rest = &self.rest[1..];
        out.push(b']');
        Ok(())
    }

    fn object(&mut self, depth: usize, out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let count = u32::from_be_bytes(self.take()?);
        let mut names = Reader { ..*self };
        // A wrong count ends with the bytes: each name takes one at least.
        let mut last = None;
        for _ in 0..count {
            let (name, _) = self.take_text()?;
            if last.is_some_and(|last| !self.rises(last, name)) {
                return Err(DecodeError::Names);
            }
            last = Some(name);
        }
        let start = out.len();
        out.push(b'{');
        let marked = count == 1 && names.rest.first().is_some_and(|first| first ^ self.mask == b'$');
        for _ in 0..count {
            separate(start, out);
            let name = out.len();
            names.string(out)?;
            if marked {
                out.insert(name + 1, b'$');
            }
            out.push(b':');
            self.value(depth, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    /// Whether two texts, masked and escaped, are in strictly rising order.
    fn rises(&self, a: &[u8], b: &[u8]) -> bool {
        a.iter().map(|x| x ^ self.mask).lt(b.iter().map(|x| x ^ self.mask))
    }
}

/// Takes the escapes out of a text that [`Reader::take_text`] has checked.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == ESCAPE { bytes.next().map_or(ESCAPE, |b| b - 1) } else { byte });
    }
    plain
}

fn write_json<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    // Writing a scalar into memory cannot fail.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok());
}
