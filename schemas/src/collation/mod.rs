//! The key encoding: JSON values as bytes that sort like the values and can be turned back into them.
//!
//! # Purpose
//! The index store compares keys as plain bytes. So that its order is the collation order, missing < null < false < true <
//! numbers < strings < arrays < objects, every component of a key is written in the form below. Rows are read out of the key
//! itself, so the form is decodable.
//!
//! # Constraints
//! - No component is a byte prefix of another one, so components are simply put one behind the other, and the encoding of
//!   leading components is a byte prefix of every key that begins with them: a scan on leading keys is a range of bytes.
//! - Equal values have equal bytes: `1`, `1.0` and `1e0` are one number, −0 is 0, fields are sorted, of equal names the last wins.
//! - Numbers compare by exact value across i64, u64 and f64, also above 2^53. What a text means as a number, and which texts
//!   mean none, depends on the version of the [language](crate::language::Language).
//! - A descending component is its ascending form with every byte inverted.
//! - An object whose only field begins with `$` is shown with one `$` more, in bounds too: so `{"$missing":true}` in a row's key
//!   or a bound is missing, and nothing that a document holds.
//! - Decoding takes any bytes: it answers garbage with an error and never recurses as deep as [`MAX_DEPTH`].
//!
//! # Format, version 1
//! | value | bytes |
//! |---|---|
//! | missing | `02` |
//! | null | `03` |
//! | false, true | `04`, `05` |
//! | number | `06`, 8 bytes of the number cut to 53 bits, and 2 bytes of what was cut off if it is 2^53 ≤ \|n\| < 2^64 |
//! | string | `08`, text |
//! | array | `0a`, the elements, `00` |
//! | object | `0c`, number of fields as u32 big-endian, all names in order as texts, the values in that order |
//! | text | UTF-8 with `00` as `01 01` and `01` as `01 02`, then `00` |
//!
//! The 8 bytes are the big-endian bits of the f64, sign bit flipped if it is positive, all bits inverted if negative; the 2
//! bytes are a big-endian u16, inverted if negative. `00` and `01` never begin a value, so a shorter array or text sorts first.
//!
//! An entry key is the components, then the docid as text, then the vbucket as u16 big-endian ([`encode_entry_suffix`]).
//!
//! # Example
//! `[33, "Oslo"]` of document `u17` in vbucket 0:
//! `06 c040800000000000` `08 4f736c6f 00` `753137 00` `0000`
//!
//! # Layout
//! - `encode`: values as bytes; `text` and `number`: JSON texts as bytes, by language; `fields`, `plain`: how objects are read
//! - `decode`: bytes as JSON; `entry`: the end of an entry key; `range`: spans as ranges of bytes; `compare`: the order on values

mod compare;
mod decode;
mod encode;
mod entry;
mod fields;
mod number;
mod plain;
mod range;
#[cfg(test)]
mod tests;
mod text;

pub use compare::compare_values;
pub use decode::{DecodeError, decode_component, decode_key};
pub use encode::encode_value;
pub use entry::{encode_entry_suffix, entry_suffix_len, split_entry_suffix};
pub use plain::Plain;
pub use range::{Component, Inclusion, Span, spans_to_ranges};
pub use text::{EncodeError, MAX_SHOWN_DEPTH, encode_bound, encode_raw};

pub(crate) use number::{ExactNumber, nearest, read_number};
pub(crate) use text::encode_operand;

/// The longest entry key, docid and vbucket included, that the index store takes, bytes.
pub const MAX_ENTRY_KEY: usize = 1_982;

/// Arrays and objects nest less deep than this in any component, as in whatever serde_json parses.
pub const MAX_DEPTH: usize = 128;

/// What a missing component is inside a key or a bound, as JSON.
const MISSING_JSON: &str = r#"{"$missing":true}"#;

/// First byte of each value. All are above the terminator and the escape of texts.
mod tag {
    pub const MISSING: u8 = 2;
    pub const NULL: u8 = 3;
    pub const FALSE: u8 = 4;
    pub const TRUE: u8 = 5;
    pub const NUMBER: u8 = 6;
    pub const STRING: u8 = 8;
    pub const ARRAY: u8 = 10;
    pub const OBJECT: u8 = 12;
}

/// The type of an encoded value that is neither missing nor null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JsonType {
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl JsonType {
    /// The type of the ascending component that `bytes` begins with.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        Some(match *bytes.first()? {
            tag::FALSE | tag::TRUE => Self::Boolean,
            tag::NUMBER => Self::Number,
            tag::STRING => Self::String,
            tag::ARRAY => Self::Array,
            tag::OBJECT => Self::Object,
            _ => return None,
        })
    }
}

/// Ends a text or an array.
const END: u8 = 0;
/// Begins an escape in a text: the next byte is the meant byte plus one.
const ESCAPE: u8 = 1;
/// From here on integers do not all fit an f64.
const TWO_POW_53: u64 = 1 << 53;
/// From here on no integer type is exact any more.
const TWO_POW_64: f64 = 18_446_744_073_709_551_616.0;
