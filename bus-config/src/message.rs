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

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct StreamMessage {
    pub seq: u64,
    /// Server time, nanoseconds since the epoch.
    pub time: i64,
    /// Messages that the server still held for this reader when it sent this one; a hint.
    pub pending: u64,
    pub operation: Operation,
    /// `Nats-Marker-Reason` is set.
    pub marker: bool,
    pub batch: Option<Box<AtomicBatch>>,
    message: Message,
}

impl StreamMessage {
    pub(crate) fn new(told: Told, message: Message) -> Self {
        let (mut operation, mut marker, mut batch) = (Operation::Put, false, None);
        let headers = Headers::new(message.headers());
        // Most messages have none.
        if !headers.is_empty() {
            operation = match headers.get("KV-Operation") {
                None | Some(b"PUT" | b"") => Operation::Put,
                Some(b"DEL" | b"PURGE") => Operation::Delete,
                Some(_) => Operation::Other,
            };
            marker = headers.get("Nats-Marker-Reason").is_some();
            batch = headers.get("Nats-Batch-Id").map(|id| {
                let sequence = headers.number("Nats-Batch-Sequence").unwrap_or(0);
                Box::new(AtomicBatch { id: id.into(), sequence, commit: headers.get("Nats-Batch-Commit").is_some() })
            });
        }
        Self { seq: told.stream_seq, time: told.time, pending: told.pending, operation, marker, batch, message }
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

    /// Its payload has 64 MiB or more, or its headers 1 MiB: the payload was not kept, and such headers neither.
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
            assert_eq!((of(lines).operation, of(lines).payload()), (operation, &b"{}"[..]), "{lines:?}");
        }
        assert!(of("Nats-Marker-Reason: MaxAge").marker && !of("nats-marker-reason: MaxAge").marker);
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
