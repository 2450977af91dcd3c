//! Messages of a source looked up: bookmarks, and what became of them.

use super::source::{KEYS, Message, Source};
use highwater_projector::verify::{Found, Judged, Known, Suspected};
use highwater_schemas::timestamp::Bookmark;

/// Bookmarks looked at before the source counts as unproven.
const MOST_LOOKED_AT: usize = 128;

pub fn bookmark(seqno: u64, message: &Message, source: u64) -> Bookmark {
    let subject = Source::docid(message.key);
    Bookmark { seqno, subject, time: message.time, hash: message.uid, source }
}

/// Compares a source with what is known of it.
pub fn check(source: &Source, known: &Known) -> Result<(), Suspected> {
    let mut judged = Judged::default();
    for mark in known.bookmarks.iter().rev().take(MOST_LOOKED_AT) {
        if judged.take(mark.seqno, look(source, mark)) {
            break;
        }
    }
    known.decide(&source.state(), judged, source.identity()).map_or(Ok(()), Err)
}

fn look(source: &Source, mark: &Bookmark) -> Found {
    if let Some(there) = source.messages.get(&mark.seqno) {
        let same = there.time == mark.time && there.uid == mark.hash;
        return if same { Found::Same } else { Found::Other };
    }
    let key = (0..KEYS).find(|key| Source::docid(*key) == mark.subject).unwrap_or_default();
    match source.last_of(key) {
        Some(last) if last > mark.seqno => Found::Overwritten,
        Some(_) => Found::Lost,
        None => Found::Gone,
    }
}
