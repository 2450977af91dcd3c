//! From a subject to the docid.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use highwater_schemas::{
    definition::{DocidCodec, SourceStream},
    prefix::Prefix,
    wire::Unindexable,
};
use std::{borrow::Cow, fmt::Write};

/// What the path codec writes for the `/` at the beginning of a docid.
const ROOT: &str = "_root_";

/// The docids of a stream.
#[derive(Debug, Clone)]
pub struct Docids {
    prefix: Prefix,
    codec: Option<DocidCodec>,
}

/// What a message is the document of.
#[derive(Debug, PartialEq, Eq)]
pub enum Docid<'a> {
    Text(Cow<'a, str>),
    /// It cannot be a docid, and why: what stands for it where it is listed, a text for each that no docid has.
    Unusable {
        listed: String,
        why: Unindexable,
    },
}

impl Docids {
    pub fn new(stream: &SourceStream, codec: Option<DocidCodec>) -> Self {
        Self { prefix: stream.prefix(), codec }
    }

    /// That of a message; None: the message is no document of the bucket. No two subjects have the same.
    pub fn of<'a>(&self, subject: &'a [u8]) -> Option<Docid<'a>> {
        let rest = self.prefix.strip(subject)?;
        let Some(codec) = self.codec else { return Some(plain(rest)) };
        let decoded = std::str::from_utf8(&rest).ok().and_then(|encoded| match codec {
            DocidCodec::Base64 => from_base64(encoded),
            DocidCodec::Path => from_path(encoded),
        });
        Some(match decoded {
            Some(decoded) => Docid::Text(Cow::Owned(decoded)),
            // Neither codec makes a docid that begins with a dot: no subject has an empty token.
            None => Docid::Unusable { listed: format!(".{}", listed(&rest)), why: Unindexable::IdNotDecoded },
        })
    }

    /// The subject of the document with this docid; None: no subject has it.
    pub fn subject(&self, docid: &str) -> Option<String> {
        let encoded = match self.codec {
            None => Cow::Borrowed(docid),
            Some(DocidCodec::Base64) => Cow::Owned(to_base64(docid)),
            Some(DocidCodec::Path) => Cow::Owned(to_path(docid)),
        };
        let subject = self.prefix.restore(&encoded)?;
        self.of(subject.as_bytes()).is_some_and(|found| found == Docid::Text(docid.into())).then_some(subject)
    }
}

/// The docid as it stands in the subject, which has no blanks: so no docid has those of what stands for one that is not text.
fn plain(rest: Cow<'_, [u8]>) -> Docid<'_> {
    let text = match rest {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| listed(bytes)),
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|error| listed(error.as_bytes())),
    };
    match text {
        Ok(text) => Docid::Text(text),
        Err(listed) => Docid::Unusable { listed, why: Unindexable::IdNotText },
    }
}

/// Each token decoded. A token with a dot inside would be two of another docid.
fn from_base64(encoded: &str) -> Option<String> {
    let mut decoded = String::with_capacity(encoded.len());
    for token in encoded.split('.') {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let token = std::str::from_utf8(&bytes).ok().filter(|token| !token.is_empty() && !token.contains('.'))?;
        if !decoded.is_empty() {
            decoded.push('.');
        }
        decoded.push_str(token);
    }
    Some(decoded)
}

/// The codec writes no slash, and nothing empty.
fn from_path(encoded: &str) -> Option<String> {
    if encoded.contains('/') || encoded.split('.').any(str::is_empty) {
        return None;
    }
    if encoded == ROOT {
        return Some("/".into());
    }
    let rooted = encoded.strip_prefix(ROOT).and_then(|rest| rest.strip_prefix('.'));
    Some(match rooted {
        Some(rest) => format!("/{}", rest.replace('.', "/")),
        None => encoded.replace('.', "/"),
    })
}

/// Each token encoded.
fn to_base64(docid: &str) -> String {
    docid.split('.').map(|token| URL_SAFE_NO_PAD.encode(token)).collect::<Vec<_>>().join(".")
}

fn to_path(docid: &str) -> String {
    match docid.strip_prefix('/') {
        Some("") => ROOT.to_owned(),
        Some(rest) => format!("{ROOT}.{}", rest.replace('/', ".")),
        None => docid.replace('/', "."),
    }
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
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Unusable { listed, .. } => listed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn docids(prefix: &str, codec: Option<DocidCodec>) -> Docids {
        Docids::new(&SourceStream { name: "S".into(), strip_prefix: prefix.into() }, codec)
    }

    /// The text, and whether it is a docid.
    fn of(docids: &Docids, subject: &[u8]) -> Option<(String, bool)> {
        let docid = docids.of(subject)?;
        Some((docid.text().to_owned(), matches!(docid, Docid::Text(_))))
    }

    #[test]
    fn what_is_not_text_is_listed_as_no_other_is() {
        let orders = docids("orders.", None);
        assert_eq!(of(&orders, b"orders.\xc3\xa9"), Some(("é".into(), true)));
        assert_eq!(of(&orders, b"other.a"), None);
        let all = docids("", None);
        let listed = |bytes: &[u8]| of(&all, bytes);
        assert_eq!(listed(b"a.\xff"), Some(("a. \\xFF".into(), false)));
        assert_eq!(listed(b"\xe2\x82.x"), Some((" \\xE2 \\x82.x".into(), false)));
        assert_ne!(listed(b"\\xFF\xfe"), listed(b"\xff\xfe"));
        assert_eq!(of(&docids("o.*.items", None), b"o.7.items.a"), Some(("7.a".into(), true)));
    }

    #[test]
    fn docids_are_decoded_as_the_clients_encode_them() {
        let base64 = docids("$KV.b.", Some(DocidCodec::Base64));
        for (encoded, docid) in [
            ("dGVzdA.a2V5.d2l0aA.c3BlY2lhbA.Y2hhcnMhQCMkJV4mKigp", Some("test.key.with.special.chars!@#$%^&*()")),
            ("QWNtZSBJbmM.Y29udGFjdA", Some("Acme Inc.contact")),
            // Padding, bits that are left, a dot inside of a token, no UTF-8, another alphabet.
            ("dGVzdA==", None),
            ("dGVzdB", None),
            ("YS5i", None),
            ("_w", None),
            ("a+b/", None),
        ] {
            let expected = docid.map_or_else(|| (format!(".{encoded}"), false), |docid| (docid.into(), true));
            assert_eq!(of(&base64, format!("$KV.b.{encoded}").as_bytes()), Some(expected), "{encoded}");
        }
        let path = docids("", Some(DocidCodec::Path));
        for (encoded, docid) in [
            ("_root_.foo.bar", Some("/foo/bar")),
            ("foo.bar", Some("foo/bar")),
            ("_root_", Some("/")),
            ("_root_x.a", Some("_root_x/a")),
            ("foo/bar", None),
            ("_root_.", None),
        ] {
            let expected = docid.map_or_else(|| (format!(".{encoded}"), false), |docid| (docid.into(), true));
            assert_eq!(of(&path, encoded.as_bytes()), Some(expected), "{encoded}");
        }
        assert_eq!(of(&path, b"a.\xff"), Some((".a. \\xFF".into(), false)));
        for (docids, docid) in [(&path, "a.b"), (&path, ""), (&path, "a//b"), (&base64, "a..b"), (&base64, "")] {
            assert_eq!(docids.subject(docid), None, "{docid}");
        }
    }

    #[test]
    fn no_two_subjects_have_the_same_docid() {
        let tokens = ["a", "YQ", "YWE", "_root_", "a/b", "YS5h", "_w", "*", "Lw", "_root_a"];
        let mut subjects: Vec<String> = tokens.map(str::to_owned).to_vec();
        for first in tokens {
            subjects.extend(tokens.iter().map(|second| format!("{first}.{second}")));
            subjects.extend(tokens.iter().map(|second| format!("x.{first}.{second}")));
        }
        for codec in [None, Some(DocidCodec::Base64), Some(DocidCodec::Path)] {
            let docids = docids("", codec);
            let all: BTreeSet<String> =
                subjects.iter().filter_map(|subject| of(&docids, subject.as_bytes())).map(|(text, _)| text).collect();
            assert_eq!(all.len(), subjects.len(), "{codec:?}");
            for subject in &subjects {
                if let Some(Docid::Text(docid)) = docids.of(subject.as_bytes()) {
                    assert_eq!(docids.subject(&docid).as_ref(), Some(subject), "{codec:?}");
                }
            }
        }
    }
}
