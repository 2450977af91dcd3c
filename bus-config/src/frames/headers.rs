//! What we look up in the header block of a message that any client may have sent.
//!
//! A header block is a version line, perhaps with a status, and lines `name: value`. nats-server stores and delivers what it was
//! given, so a block may hold anything. Only headers that are asked for are looked at; what else is there does not matter.

/// A header block as it came, from its version line on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Headers<'a>(&'a [u8]);

const VERSION: &[u8] = b"NATS/1.0";

impl<'a> Headers<'a> {
    pub fn new(block: &'a [u8]) -> Self {
        Self(block)
    }

    /// True when there is none, as with most messages.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of the first header of this name, as the server compares names: byte by byte, and the value without the blanks
    /// around it.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.lines().find_map(|line| {
            let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
            Some(value.trim_ascii())
        })
    }

    /// The same as a number; None: it is not there, or is none.
    pub fn number(&self, name: &str) -> Option<u64> {
        std::str::from_utf8(self.get(name)?).ok()?.parse().ok()
    }

    /// The status of the version line with the text behind it. A stored message may carry one too: who sent it decides what it
    /// means.
    pub fn status(&self) -> Option<(u16, String)> {
        let first = self.0.split(|b| *b == b'\n').next()?;
        let rest = first.strip_prefix(VERSION)?.trim_ascii();
        let digits = rest.get(..3)?;
        let code = std::str::from_utf8(digits).ok()?.parse().ok()?;
        Some((code, String::from_utf8_lossy(rest[3..].trim_ascii()).into_owned()))
    }

    /// The lines after the version line. Values may hold a CR or an LF alone: only both together end a line.
    fn lines(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = match memchr::memmem::find(self.0, b"\r\n") {
            Some(end) => &self.0[end + 2..],
            None => &[][..],
        };
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let line;
            (line, rest) = match memchr::memmem::find(rest, b"\r\n") {
                Some(end) => (&rest[..end], &rest[end + 2..]),
                None => (rest, &[][..]),
            };
            Some(line)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_among_anything() {
        let block = b"NATS/1.0\r\nX-Note: a\rb\r\nFilename: r\xe9sum\xe9.pdf\r\nno colon\r\nna me: x\r\nKV-Operation:  DEL \r\nKV-Operation: PUT\r\nN: 17\r\n\r\n";
        let headers = Headers::new(block);
        assert_eq!(headers.get("KV-Operation"), Some(&b"DEL"[..]), "the first one, as the server takes it");
        assert_eq!(headers.get("X-Note"), Some(&b"a\rb"[..]));
        assert_eq!(headers.get("Filename"), Some(&b"r\xe9sum\xe9.pdf"[..]));
        assert_eq!((headers.number("N"), headers.number("X-Note"), headers.number("M")), (Some(17), None, None));
        assert_eq!(headers.get("kv-operation"), None);
        assert_eq!(headers.status(), None);
    }

    #[test]
    fn a_status_is_read_with_its_text() {
        assert_eq!(Headers::new(b"NATS/1.0 503\r\n\r\n").status(), Some((503, String::new())));
        let block = b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 7\r\n\r\n";
        assert_eq!(Headers::new(block).status(), Some((409, "Message Size Exceeds MaxBytes".into())));
        assert_eq!(Headers::new(block).number("Nats-Pending-Messages"), Some(7));
        for other in
            [&b"NATS/1.0\r\n\r\n"[..], b"NATS/1.0 x\r\n", b"", b"\r\n", b"NATS/1.0 4\xff9\r\n", b"HTTP/1.0 503\r\n"]
        {
            assert_eq!(Headers::new(other).status(), None, "{other:?}");
            assert_eq!(Headers::new(other).get("A"), None);
        }
    }
}
