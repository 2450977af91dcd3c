//! Messages of a source looked up: bookmarks, and what became of them.

use super::source::{KEYS, Message, Source};
use highwater_projector::{
    recent::{Recent, Walk},
    verify::{Found, Judged, Known, Proven, Suspected},
};
use highwater_schemas::timestamp::Bookmark;

/// Bookmarks looked at before the source counts as unproven.
const MOST_LOOKED_AT: usize = 128;

pub fn bookmark(seqno: u64, message: &Message, source: u64) -> Bookmark {
    let subject = Source::docid(message.key);
    Bookmark { seqno, subject, time: message.time, hash: message.uid, source }
}

/// Compares a source with what is known of it.
pub fn check(source: &Source, known: &Known, recent: Option<&mut Recent>) -> Result<Proven, Suspected> {
    let mut judged = Judged::default();
    for mark in known.bookmarks.iter().rev().take(MOST_LOOKED_AT) {
        if judged.take(mark.seqno, look(source, mark)) {
            break;
        }
    }
    let Some(suspected) = known.decide(&source.state(), judged, source.identity()) else {
        return Ok(Proven { source: source.identity(), overwritten: None });
    };
    let accounted = || {
        let recent = recent.filter(|_| !suspected.broken)?;
        let walk = recent.walk(suspected.intact, known.held, source.state().first_seq)?;
        account(source, recent, walk)
    };
    accounted().ok_or(suspected)
}

/// Accounts for what nothing proves: above where some of it is overwritten.
fn account(source: &Source, recent: &mut Recent, mut walk: Walk) -> Option<Proven> {
    while let Some(at) = walk.next() {
        let first = source.messages.range(at + 1..).next().map(|(seq, m)| (*seq, m.time, m.uid));
        if !walk.found(recent, first) {
            return None;
        }
    }
    let intact = walk.intact()?;
    let subjects = recent.subjects_above(intact);
    let last = |subject: &String| (0..KEYS).find(|key| Source::docid(*key) == *subject).and_then(|k| source.last_of(k));
    let overwritten = walk.is_overwritten().then_some(intact);
    let all_newer = subjects.iter().all(|subject| walk.is_newer(last(subject)));
    all_newer.then(|| Proven { source: source.identity(), overwritten })
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
