//! From the bytes of a NATS connection to frames.
//!
//! A control line ends with CR LF and its words are separated by blanks; `MSG` and `HMSG` carry as many bytes as their last word
//! says. What a subject, a header block or a payload holds does not matter here.
//!
//! A message is one slice of the buffer that it was read into, with the places of its parts: reading one copies nothing. The
//! payload of one that is very large is thrown away as it comes: nobody here has a use for it, and it must not end a connection.

use bytes::{Buf, Bytes, BytesMut};
use std::ops::Range;

/// The longest control line, bytes: an `INFO` that names a thousand servers has some ten thousand, a subject four thousand
/// unless the server is told otherwise.
pub const MOST_LINE: usize = 1024 * 1024;
/// A payload of so many bytes or more is thrown away. A nats-server can be told to take up to 2 GiB.
pub const MOST_PAYLOAD: usize = 64 * 1024 * 1024;
/// A header block of so many bytes or more is thrown away, with the payload behind it.
pub(crate) const MOST_HEADERS: usize = 1024 * 1024;

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// JSON.
    Info(Bytes),
    Message(Message),
    Ping,
    Pong,
    Ok,
    /// The server's words, without quotes.
    Error(String),
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The subscription that it came for.
    pub sid: u64,
    bytes: Bytes,
    subject: Range<u32>,
    reply: Range<u32>,
    headers: Range<u32>,
    payload: Range<u32>,
    /// Bytes of it that were thrown away.
    cut: usize,
}

impl Message {
    /// Never holds a blank, a tab or an LF; anything else is possible.
    pub fn subject(&self) -> &[u8] {
        self.part(&self.subject)
    }

    /// Empty: there is none.
    pub fn reply(&self) -> &[u8] {
        self.part(&self.reply)
    }

    /// The header block from its version line on; empty: there is none.
    pub fn headers(&self) -> &[u8] {
        self.part(&self.headers)
    }

    pub fn payload(&self) -> &[u8] {
        self.part(&self.payload)
    }

    /// The payload, sharing the buffer that the message was read into.
    pub fn payload_bytes(&self) -> Bytes {
        self.bytes.slice(self.payload.start as usize..self.payload.end as usize)
    }

    /// Bytes that it holds.
    pub(crate) fn held(&self) -> usize {
        self.bytes.len()
    }

    /// What nats-server counts when a pull is limited in bytes: subject, reply subject, headers and payload.
    pub fn size(&self) -> usize {
        self.subject.len() + self.reply.len() + self.headers.len() + self.payload.len() + self.cut
    }

    /// True if the message is so large that its payload was thrown away.
    pub fn is_oversized(&self) -> bool {
        self.cut > 0
    }

    fn part(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }
}

/// Whether readers throw away the payload of a message with so many bytes of headers and of payload.
pub fn is_oversized(headers: usize, payload: usize) -> bool {
    headers >= MOST_HEADERS || payload >= MOST_PAYLOAD
}

/// What no nats-server sends: the connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a control line has more than {MOST_LINE} bytes")]
    LongLine,
    #[error("a message is not followed by the end of a line")]
    Unterminated,
    #[error("not a line of the NATS protocol: {0:?}")]
    Unknown(String),
}

/// Takes the next frame off the front of what was read; None: more must be read first.
///
/// `skip`: bytes to throw away before it, which is 0 at the beginning of a connection and kept from call to call.
///
/// # Errors
/// See [`FrameError`]; nothing of the buffer was taken but what was to be thrown away.
pub fn decode(buffer: &mut BytesMut, skip: &mut usize) -> Result<Option<Frame>, FrameError> {
    let skipped = buffer.len().min(*skip);
    buffer.advance(skipped);
    *skip -= skipped;
    let Some(line) = line_end(buffer)? else { return Ok(None) };
    let words = &buffer[..line];
    match words.first() {
        Some(b'M' | b'm' | b'H' | b'h') => message(buffer, line, skip),
        Some(b'P' | b'p') if is(words, "PING") => Ok(Some(taken(buffer, line, Frame::Ping))),
        Some(b'P' | b'p') if is(words, "PONG") => Ok(Some(taken(buffer, line, Frame::Pong))),
        Some(b'+') if is(words, "+OK") => Ok(Some(taken(buffer, line, Frame::Ok))),
        Some(b'I' | b'i') if starts(words, "INFO") => {
            let mut whole = buffer.split_to(line + 2).freeze();
            whole.truncate(line);
            whole.advance("INFO".len());
            Ok(Some(Frame::Info(whole)))
        }
        Some(b'-') if starts(words, "-ERR") => {
            let text = String::from_utf8_lossy(&words["-ERR".len()..]);
            let error = text.trim().trim_matches('\'').to_owned();
            Ok(Some(taken(buffer, line, Frame::Error(error))))
        }
        _ => Err(unknown(words)),
    }
}

/// How many bytes before the end of the first line; None: it is not whole.
fn line_end(buffer: &[u8]) -> Result<Option<usize>, FrameError> {
    let looked = &buffer[..buffer.len().min(MOST_LINE + 2)];
    // A subject may hold a CR; an LF only ends a line.
    match memchr::memchr(b'\n', looked) {
        Some(0) => Err(unknown(b"")),
        Some(at) if looked[at - 1] == b'\r' => Ok(Some(at - 1)),
        Some(at) => Err(unknown(&looked[..at])),
        None if looked.len() > MOST_LINE => Err(FrameError::LongLine),
        None => Ok(None),
    }
}

fn taken(buffer: &mut BytesMut, line: usize, frame: Frame) -> Frame {
    buffer.advance(line + 2);
    frame
}

fn is(words: &[u8], what: &str) -> bool {
    words.trim_ascii_end().eq_ignore_ascii_case(what.as_bytes())
}

fn starts(words: &[u8], what: &str) -> bool {
    words.get(..what.len()).is_some_and(|head| head.eq_ignore_ascii_case(what.as_bytes()))
        && words.get(what.len()).is_none_or(|next| matches!(next, b' ' | b'\t'))
}

fn unknown(words: &[u8]) -> FrameError {
    FrameError::Unknown(String::from_utf8_lossy(&words[..words.len().min(80)]).into_owned())
}

/// `MSG <subject> <sid> [reply] <bytes>` or `HMSG <subject> <sid> [reply] <bytes of headers> <bytes of all>`.
fn message(buffer: &mut BytesMut, line: usize, skip: &mut usize) -> Result<Option<Frame>, FrameError> {
    let words = &buffer[..line];
    let refused = || unknown(words);
    let with_headers = starts(words, "HMSG");
    if !with_headers && !starts(words, "MSG") {
        return Err(refused());
    }
    // The name, and at most five words.
    let mut parts: [Range<usize>; 6] = std::array::from_fn(|_| 0..0);
    let mut found = 0;
    for part in split(words) {
        *parts.get_mut(found).ok_or_else(refused)? = part;
        found += 1;
    }
    let numbers = if with_headers { 2 } else { 1 };
    let reply = match found.checked_sub(3 + numbers) {
        Some(0) => 0..0,
        Some(1) => parts[3].clone(),
        _ => return Err(refused()),
    };
    let number = |part: &Range<usize>| number(&words[part.clone()]).ok_or_else(refused);
    let sid = number(&parts[2])?;
    let size = number(&parts[found - 1])?;
    let head = if with_headers { number(&parts[found - 2])? } else { 0 };
    // The server keeps it in 32 bits.
    let size = i32::try_from(size).ok().and_then(|size| usize::try_from(size).ok()).ok_or_else(refused)?;
    let head = usize::try_from(head).ok().filter(|head| *head <= size).ok_or_else(refused)?;
    let subject = parts[1].clone();
    let begin = line + 2;
    let (head, kept) = match (head, size - head) {
        (MOST_HEADERS.., _) => (0, 0),
        (head, payload) if is_oversized(head, payload) => (head, head),
        (head, _) => (head, size),
    };
    let (end, cut) = (begin + kept, size - kept);
    // What is thrown away ends with the line, too.
    let taken = if cut > 0 { end } else { end + 2 };
    if buffer.len() < taken {
        // Whole messages are read into one buffer.
        buffer.reserve(taken - buffer.len());
        return Ok(None);
    }
    if cut == 0 && &buffer[end..taken] != b"\r\n" {
        return Err(FrameError::Unterminated);
    }
    let small = |range: Range<usize>| range.start as u32..range.end as u32;
    let bytes = buffer.split_to(taken).freeze();
    if cut > 0 {
        *skip = cut + 2;
    }
    Ok(Some(Frame::Message(Message {
        sid,
        bytes,
        subject: small(subject),
        reply: small(reply),
        headers: small(begin..begin + head),
        payload: small(begin + head..end),
        cut,
    })))
}

/// The words of a line, with their places.
fn split(line: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + line[at..].iter().position(|b| !matches!(b, b' ' | b'\t'))?;
        let end = memchr::memchr2(b' ', b'\t', &line[start..]).map_or(line.len(), |n| start + n);
        at = end;
        Some(start..end)
    })
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0u64, |n, digit| {
        digit.is_ascii_digit().then(|| n.checked_mul(10)?.checked_add(u64::from(digit - b'0'))).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let (mut buffer, mut skip) = (BytesMut::from(bytes), 0);
        let mut frames = Vec::new();
        while let Some(frame) = decode(&mut buffer, &mut skip)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn one(bytes: &[u8]) -> Message {
        match all(bytes).unwrap().pop() {
            Some(Frame::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_are_read_by_their_lengths_whatever_they_hold() {
        let plain = one(b"MSG a.b 7 5\r\nhe\r\no\r\n");
        assert_eq!(
            (plain.subject(), plain.sid, plain.reply(), plain.payload()),
            (&b"a.b"[..], 7, &b""[..], &b"he\r\no"[..])
        );
        let headers = b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n";
        let mut bytes =
            format!("HMSG orders.\u{2003}b 12 _INBOX.x {} {}\r\n", headers.len(), headers.len() + 2).into_bytes();
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(b"{}\r\n");
        let message = one(&bytes);
        assert_eq!((message.subject(), message.reply()), ("orders.\u{2003}b".as_bytes(), &b"_INBOX.x"[..]));
        assert_eq!((message.headers(), message.payload()), (&headers[..], &b"{}"[..]));
        assert_eq!(message.size(), message.subject().len() + 8 + headers.len() + 2);
        assert_eq!(message.payload_bytes(), "{}");
        assert_eq!(one(b"MSG orders.\xff\x00 1 0\r\n\r\n").subject(), b"orders.\xff\x00");
        let rubbish = one(b"HMSG a 1 4 4\r\n\xff\r\n\x00\r\n");
        assert_eq!((rubbish.headers(), rubbish.payload()), (&b"\xff\r\n\x00"[..], &b""[..]));
    }

    #[test]
    fn every_kind_of_line_is_known() {
        let frames = all(b"INFO {\"a\":1}\r\nPING\r\nPONG\r\n+OK\r\n-ERR 'Slow Consumer'\r\n").unwrap();
        let info = Frame::Info(Bytes::from_static(b" {\"a\":1}"));
        assert_eq!(frames, [info, Frame::Ping, Frame::Pong, Frame::Ok, Frame::Error("Slow Consumer".into())]);
    }

    #[test]
    fn a_frame_that_is_not_whole_waits_for_the_rest() {
        let whole = b"HMSG a 1 r 12 14\r\nNATS/1.0\r\n\r\n{}\r\nPING\r\n";
        for cut in 0..whole.len() {
            let (mut buffer, mut skip) = (BytesMut::from(&whole[..cut]), 0);
            let mut frames = Vec::new();
            while let Some(frame) = decode(&mut buffer, &mut skip).unwrap() {
                frames.push(frame);
            }
            buffer.extend_from_slice(&whole[cut..]);
            while let Some(frame) = decode(&mut buffer, &mut skip).unwrap() {
                frames.push(frame);
            }
            assert_eq!((frames.len(), buffer.len()), (2, 0), "cut at {cut}");
        }
    }

    #[test]
    fn of_a_message_that_is_too_large_all_but_the_payload_is_read() {
        let head = b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n";
        for (payload, cut) in [(MOST_PAYLOAD - 1, false), (MOST_PAYLOAD, true), (MOST_PAYLOAD + 70_000, true)] {
            let size = head.len() + payload;
            let mut bytes = format!("HMSG a.b 7 r {} {size}\r\n", head.len()).into_bytes();
            bytes.extend_from_slice(head);
            bytes.resize(bytes.len() + payload, b'\n');
            bytes.extend_from_slice(b"\r\nPONG\r\n");
            let (mut buffer, mut skip, mut frames) = (BytesMut::new(), 0, Vec::new());
            for piece in bytes.chunks(1024 * 1024 - 7) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer, &mut skip).unwrap() {
                    frames.push(frame);
                }
                assert!(!cut || buffer.len() < 2 * 1024 * 1024, "it is not kept");
            }
            let [Frame::Message(message), Frame::Pong] = frames.as_slice() else { panic!("{} frames", frames.len()) };
            assert_eq!((message.is_oversized(), message.headers()), (cut, &head[..]));
            assert_eq!(message.payload().len(), if cut { 0 } else { payload });
            assert_eq!(message.size(), "a.br".len() + size);
        }
        let block = format!("HMSG a 1 {MOST_HEADERS} {MOST_HEADERS}\r\n");
        let Some(Frame::Message(message)) = all(block.as_bytes()).unwrap().pop() else { panic!("no message") };
        assert!(message.is_oversized() && message.headers().is_empty() && message.payload().is_empty());
    }

    #[test]
    fn what_no_server_sends_is_refused() {
        let refused: &[&[u8]] = &[
            b"\r\n",
            b"\n",
            b"GET / HTTP/1.1\r\n",
            b"MSG\r\n",
            b"MSG a 1\r\n",
            b"MSG a 1 r s 5\r\n",
            b"MSG a x 5\r\n",
            b"MSG a 1 -5\r\n",
            b"MSG a 1 18446744073709551616\r\n",
            b"MSGa 1 2\r\n",
            b"HMSG a 1 5 4\r\n",
            b"HMSG a 1 4\r\n",
            b"MSG a 1 1\r\nabc",
            b"PINGS\r\n",
            b"PING\n",
            b"MSG a 1 2147483648\r\n",
            b"MSG a 1 99999999999\r\n",
            b"INFORM {}\r\n",
        ];
        for bytes in refused {
            assert!(all(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(all(&vec![b'x'; MOST_LINE + 1]), Err(FrameError::LongLine));
        assert_eq!(all(&vec![b'x'; MOST_LINE]), Ok(vec![]), "the end may follow");
    }
}
