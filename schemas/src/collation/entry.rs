//! The end of an entry key: docid and vbucket.

use super::{
    END, ESCAPE,
    decode::{DecodeError, Reader, unescape},
    encode::put_text,
};
use std::borrow::Cow;

/// Appends docid and vbucket, which make the entry key unique and order equal keys by docid.
pub fn encode_entry_suffix(docid: &str, vb: u16, out: &mut Vec<u8>) {
    put_text(docid.as_bytes(), out);
    out.extend_from_slice(&vb.to_be_bytes());
}

/// How many bytes [`encode_entry_suffix`] appends for this docid.
pub fn entry_suffix_len(docid: &str) -> usize {
    let escapes = docid.bytes().filter(|&b| b == END || b == ESCAPE).count();
    docid.len() + escapes + size_of_val(&END) + size_of::<u16>()
}

/// Reads what [`encode_entry_suffix`] wrote: docid and vbucket. There must be nothing behind.
pub fn split_entry_suffix(bytes: &[u8]) -> Result<(Cow<'_, str>, u16), DecodeError> {
    let mut reader = Reader::new(bytes, false);
    let (text, escaped) = reader.take_text()?;
    let docid = if escaped {
        Cow::Owned(String::from_utf8(unescape(text)).map_err(|_| DecodeError::NotUtf8)?)
    } else {
        Cow::Borrowed(std::str::from_utf8(text).map_err(|_| DecodeError::NotUtf8)?)
    };
    match *reader.rest() {
        [high, low] => Ok((docid, u16::from_be_bytes([high, low]))),
        [] | [_] => Err(DecodeError::Short),
        _ => Err(DecodeError::Trailing),
    }
}
