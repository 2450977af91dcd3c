//! The frames of a NATS connection: any bytes are refused or read, the same however they arrive, and what a message holds is
//! what was sent.

use bytes::BytesMut;
use highwater_bus::frames::{
    codec::{Frame, FrameError, decode},
    headers::Headers,
};

/// Takes the bytes as what a server sent: at once, and in pieces as long as the first byte says.
pub fn frames(data: &[u8]) {
    let at_once = read([data].into_iter());
    let piece = usize::from(data.first().copied().unwrap_or(0) % 37) + 1;
    let in_pieces = read(data.chunks(piece));
    assert_eq!(at_once, in_pieces, "read in pieces of {piece} bytes");
    for frame in at_once.0 {
        let Frame::Message(message) = frame else { continue };
        for part in [message.subject(), message.reply(), message.headers(), message.payload()] {
            assert!(part.is_empty() || data.windows(part.len()).any(|sent| sent == part), "what was never sent");
        }
        assert_eq!(message.payload_bytes(), message.payload());
        let headers = Headers::new(message.headers());
        let _ = headers.status();
        for name in ["KV-Operation", "Nats-Marker-Reason", "Nats-Batch-Sequence", "", ":"] {
            if let Some(value) = headers.get(name) {
                assert_eq!(value, value.trim_ascii());
                let _ = headers.number(name);
            }
        }
    }
}

/// The frames up to the first that is refused.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, Option<FrameError>) {
    let (mut buffer, mut skip, mut frames) = (BytesMut::new(), 0, Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decode(&mut buffer, &mut skip) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
