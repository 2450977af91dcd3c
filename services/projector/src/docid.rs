//! From a subject to the docid.

use std::{borrow::Cow, fmt::Write};

/// What a message is the document of.
#[derive(Debug, PartialEq, Eq)]
pub enum Docid<'a> {
    Text(&'a str),
    /// It cannot be a docid, for it is not UTF-8: what stands for it where it is listed, one text for each. A subject has no
    /// blanks, so none has this one.
    NotText(String),
}

/// The subject without the prefix; None: the message is no document of the bucket.
pub fn docid<'a>(subject: &'a [u8], prefix: &str) -> Option<Docid<'a>> {
    let bytes = subject.strip_prefix(prefix.as_bytes())?;
    Some(match std::str::from_utf8(bytes) {
        Ok(text) => Docid::Text(text),
        Err(_) => Docid::NotText(listed(bytes)),
    })
}

/// Each byte that is not text as a blank and its hexadecimal digits.
fn listed(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(out, " \\x{byte:02X}");
        }
    }
    out
}

impl Docid<'_> {
    /// What an index knows it by.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::NotText(text) => Cow::Borrowed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_text_is_listed_as_no_other_is() {
        assert_eq!(docid(b"orders.\xc3\xa9", "orders."), Some(Docid::Text("é")));
        assert_eq!(docid(b"other.a", "orders."), None);
        let listed = |bytes: &[u8]| docid(bytes, "").map(|id| id.text().into_owned());
        assert_eq!(listed(b"a.\xff"), Some("a. \\xFF".into()));
        assert_eq!(listed(b"\xe2\x82.x"), Some(" \\xE2 \\x82.x".into()));
        assert_ne!(listed(b"\\xFF\xfe"), listed(b"\xff\xfe"));
    }
}
