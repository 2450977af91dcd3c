//! Whether a list of a stream's present documents is complete.
//!
//! What a list does not name is taken for removed, so the store must prove it. A consumer's count of what is pending proves nothing:
//! it may lag behind acknowledged writes. And of a replicated stream a consumer may live on a server that lags behind the
//! leader, whose store lacks what was written last, or what it has still to fetch.
//!
//! So a list is read from the stream's leader (a consumer that was placed elsewhere is made again), comes in the order of
//! sequences, and is complete when the leader has no message between the last one that came and the list's end which is the
//! last of its subject. A message that is not was overwritten after the list was begun, and what took its place comes after
//! the list. If another server leads when the list ends, it is begun again.

use crate::{connect::Bus, error::BusError, jetstream::Looked};

/// Messages behind the last one that came that are looked at for one answer, and messages behind the list in which a newer one of
/// a subject is looked for that cannot be asked for.
const MOST_LOOKED_AT: usize = 256;

/// Whether nothing of a list that goes up to `upto` is to come after the message `position`.
pub(crate) async fn is_complete(bus: &Bus, stream: &str, position: u64, upto: u64) -> Result<bool, BusError> {
    let mut after = position;
    for _ in 0..MOST_LOOKED_AT {
        if after >= upto {
            return Ok(true);
        }
        let Some(Looked { seq, subject, .. }) = bus.next_message(stream, after + 1).await? else { return Ok(true) };
        if seq > upto {
            return Ok(true);
        }
        if !is_overwritten(bus, stream, &subject, upto).await? {
            return Ok(false);
        }
        after = seq;
    }
    Ok(false)
}

/// Whether a subject of which there is a message has a newer one above `upto`, or has none any more. False also if that cannot be
/// told: the list is then not complete, and is begun again.
async fn is_overwritten(bus: &Bus, stream: &str, subject: &str, upto: u64) -> Result<bool, BusError> {
    if is_literal(subject) {
        return Ok(bus.last_of(stream, subject).await?.is_none_or(|last| last.seq > upto));
    }
    let (pattern, mut after) = (pattern(subject), upto);
    for _ in 0..MOST_LOOKED_AT {
        let Some(next) = bus.next_message_of(stream, &pattern, after.saturating_add(1)).await? else {
            return Ok(false);
        };
        if next.subject == subject {
            return Ok(true);
        }
        after = next.seq;
    }
    Ok(false)
}

/// Matches a subject that cannot be asked for, and others.
fn pattern(subject: &str) -> String {
    let tokens = subject.split('.').map(|token| if is_literal(token) { token } else { "*" });
    tokens.collect::<Vec<_>>().join(".")
}

/// Whether the last message of a subject can be asked for. Not of one with wildcards, or with U+FFFD: that may stand for bytes that
/// are not UTF-8, and a question takes it for itself.
pub fn is_literal(subject: &str) -> bool {
    !subject.contains(char::REPLACEMENT_CHARACTER) && !subject.split('.').any(|token| matches!(token, "*" | ">"))
}

#[cfg(test)]
mod tests {
    use super::{is_literal, pattern};

    #[test]
    fn subjects_with_wildcards_are_not_asked_for() {
        for (subject, literal) in [("a.b", true), ("a.*b", true), ("a.*", false), (">", false), ("a.\u{fffd}", false)] {
            assert_eq!(is_literal(subject), literal, "{subject}");
        }
        for (subject, matched_by) in [("a.>", "a.*"), ("x.*.y", "x.*.y"), ("a.b\u{fffd}.c", "a.*.c"), (">", "*")] {
            assert_eq!(pattern(subject), matched_by);
        }
    }
}
