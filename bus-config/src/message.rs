//! A message of a source or a topic, with what we look up in it.

use crate::{
    frames::{codec::Message, headers::Headers},
    pulls::Told,
};
use bytes::Bytes;
use std::borrow::Cow;

/// What `KV-Operation` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Operation {
    /// It is not there, or `PUT`.
    #[default]
    Put,
    /// `DEL` or `PURGE`.
    Delete,
    /// Something else, which counts as a put.
    Other,
}

/// A message's place in an atomic batch (ADR-50).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtomicBatch {
    /// `Nats-Batch-Id`.
    pub id: Box<[u8]>,
    /// `Nats-Batch-Sequence`: from 1 on; 0: it is no number.
    pub sequence: u64,
    /// `Nats-Batch-Commit` is there: nothing follows.
    pub commit: bool,
}

/// The headers of a message, as far as they concern its document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meaning {
    pub operation: Operation,
    /// `Nats-Marker-Reason` is set: the server says that it removed what was there.
    pub marker: bool,
    /// `Nats-Schedule` is set (ADR-51): it asks the server to publish something later, and is no document itself.
    pub schedule: bool,
    /// `Nats-Rollup` is set: it took the place of older messages.
    pub rollup: bool,
    /// `Nats-TTL`: the server removes it so many seconds after it was written, rounded up; 0: it does not say.
    pub lives: u32,
}

impl Meaning {
    pub(crate) fn of(headers: Headers<'_>) -> Self {
        Self {
            operation: match headers.get("KV-Operation") {
                None | Some(b"PUT" | b"") => Operation::Put,
                Some(b"DEL" | b"PURGE") => Operation::Delete,
                Some(_) => Operation::Other,
            },
            marker: headers.get("Nats-Marker-Reason").is_some(),
            schedule: headers.get("Nats-Schedule").is_some(),
            rollup: headers.get("Nats-Rollup").is_some(),
            lives: headers.get("Nats-TTL").and_then(seconds).unwrap_or(0),
        }
    }
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct StreamMessage {
    pub seq: u64,
    /// Server time, nanoseconds since the epoch.
    pub time: i64,
    /// Messages that the server still held for this reader when it sent this one; a hint.
    pub pending: u64,
    pub meaning: Meaning,
    pub batch: Option<Box<AtomicBatch>>,
    message: Message,
}

impl StreamMessage {
    pub(crate) fn new(told: Told, message: Message) -> Self {
        let (mut meaning, mut batch) = (Meaning::default(), None);
        let headers = Headers::new(message.headers());
        // Most messages have none.
        if !headers.is_empty() {
            meaning = Meaning::of(headers);
            batch = headers.get("Nats-Batch-Id").map(|id| {
                let sequence = headers.number("Nats-Batch-Sequence").unwrap_or(0);
                Box::new(AtomicBatch { id: id.into(), sequence, commit: headers.get("Nats-Batch-Commit").is_some() })
            });
        }
        Self { seq: told.stream_seq, time: told.time, pending: told.pending, meaning, batch, message }
    }

    /// Any bytes but blanks, tabs and line ends.
    pub fn subject(&self) -> &[u8] {
        self.message.subject()
    }

    /// The subject as nats-server writes it in JSON: each byte that is not UTF-8 is U+FFFD. What is looked up has this form.
    pub fn subject_text(&self) -> Cow<'_, str> {
        text(self.subject())
    }

    /// Empty if [`Self::is_oversized`].
    pub fn payload(&self) -> &[u8] {
        self.message.payload()
    }

    /// True if the payload has 64 MiB or more, or the headers 1 MiB. The payload is not kept then, and headers of this size neither.
    pub fn is_oversized(&self) -> bool {
        self.message.is_oversized()
    }

    /// Its size in bytes as nats-server counts it: subject, reply subject, headers and payload.
    pub fn size(&self) -> usize {
        self.message.size()
    }

    /// The payload to keep: a large one shares what it was read into.
    pub fn payload_bytes(&self) -> Bytes {
        /// Below, a copy costs less than what it would keep in memory.
        const SHARED: usize = 64 * 1024;
        let payload = self.payload();
        if payload.len() < SHARED { Bytes::copy_from_slice(payload) } else { self.message.payload_bytes() }
    }
}

/// A time to live as the server reads it: seconds, or a duration such as `1h30m` or `1.5s`; None: for ever, or it is neither.
fn seconds(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let ends = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, left) = unit.split_at(ends);
        let unit = match unit {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * unit;
        rest = left;
    }
    (total > 0.0 && total < f64::from(u32::MAX)).then_some(total.ceil() as u32)
}

/// Bytes as text, with one U+FFFD for each byte that is not UTF-8.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::codec::{Frame, decode};
    use bytes::BytesMut;

    fn message(headers: &str) -> StreamMessage {
        let frame = format!("HMSG a 1 r {} {}\r\n{headers}{{}}\r\n", headers.len(), headers.len() + 2);
        let Ok(Some(Frame::Message(message))) = decode(&mut BytesMut::from(frame.as_bytes()), &mut 0) else {
            panic!("{frame}")
        };
        StreamMessage::new(Told { stream_seq: 1, consumer_seq: 1, time: 0, pending: 0 }, message)
    }

    #[test]
    fn no_header_matters_but_those_that_are_used() {
        let of = |lines: &str| message(&format!("NATS/1.0\r\n{lines}\r\n\r\n"));
        for (lines, operation) in [
            ("", Operation::Put),
            ("KV-Operation: PUT", Operation::Put),
            ("KV-Operation:DEL", Operation::Delete),
            ("X: a\rb\r\nKV-Operation: PURGE", Operation::Delete),
            ("KV-Operation: del", Operation::Other),
            ("KV-Operation", Operation::Put),
        ] {
            assert_eq!((of(lines).meaning.operation, of(lines).payload()), (operation, &b"{}"[..]), "{lines:?}");
        }
        let meaning = |lines: &str| of(lines).meaning;
        assert!(meaning("Nats-Marker-Reason: MaxAge").marker && !meaning("nats-marker-reason: MaxAge").marker);
        assert!(meaning("Nats-Schedule: @at 2030-01-01T00:00:00Z").schedule && !meaning("X: Nats-Schedule").schedule);
        for (ttl, lives) in [
            ("5", 5),
            ("1h30m", 5_400),
            ("1.5s", 2),
            ("10ms", 1),
            ("2m0.5s", 121),
            ("never", 0),
            ("-1", 0),
            ("5 s", 0),
            ("", 0),
            ("s", 0),
            ("1e9h", 0),
            ("99999999999h", 0),
            ("\u{b5}s", 0),
        ] {
            assert_eq!(meaning(&format!("Nats-TTL: {ttl}")).lives, lives, "{ttl:?}");
        }
        let batch = of("Nats-Batch-Id: b\r\nNats-Batch-Sequence: 3\r\nNats-Batch-Commit: eob").batch.unwrap();
        assert_eq!((&*batch.id, batch.sequence, batch.commit), (&b"b"[..], 3, true));
        assert_eq!(of("Nats-Batch-Id: b\r\nNats-Batch-Sequence: x").batch.unwrap().sequence, 0);
    }

    #[test]
    fn each_byte_that_is_not_text_is_written_as_the_server_does() {
        assert_eq!(text(b"a.\xff"), "a.\u{fffd}");
        assert_eq!(text(b"\xe2\x82.x"), "\u{fffd}\u{fffd}.x");
        assert_eq!(text("é".as_bytes()), "é");
    }
}
