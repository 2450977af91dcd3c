//! Whether a source's history is still the one that was read (design section 4).
//!
//! A stream may lose messages that it had acknowledged, be restored from a backup or be made anew, and neither its last
//! sequence nor the time of its creation proves the contrary. What does are *bookmarks*: messages as they were read. One that is
//! still there, equal in time and hash, proves everything up to it. One that is missing proves a loss if the newest message of
//! its subject is older, and nothing if that is newer or there is none. Where nothing proves what was read last, it may be
//! accounted for document by document ([`crate::recent`]).

use crate::recent::{Recent, Walk};
use highwater_bus::{Bus, BusError, Looked, StreamState, is_literal};
use highwater_schemas::timestamp::Bookmark;
use xxhash_rust::xxh3::Xxh3;

/// Bookmarks looked at before the source counts as unproven.
const MOST_LOOKED_AT: usize = 128;
/// Bookmarks that a new branch begins with at most.
const PROOF: usize = 16;

/// What became of a bookmark's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Same,
    /// Another message is there.
    Other,
    /// It is gone, and its subject has a newer message.
    Overwritten,
    /// It is gone, and its subject has only an older one.
    Lost,
    /// It is gone, and its subject has none.
    Gone,
}

/// What the bookmarks prove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judged {
    /// Up to here the history is the same.
    pub intact: Option<u64>,
    /// Something was lost or replaced.
    pub broken: bool,
}

impl Judged {
    /// The next older bookmark; true: it decides.
    pub fn take(&mut self, seqno: u64, found: Found) -> bool {
        match found {
            Found::Same => self.intact = Some(seqno),
            Found::Other | Found::Lost => self.broken = true,
            Found::Overwritten | Found::Gone => {}
        }
        self.intact.is_some()
    }
}

/// What is known of a source.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub created: i64,
    pub first_seq: u64,
    /// Sequences up to here were passed.
    pub position: u64,
    /// The highest seqno that anybody holds.
    pub held: u64,
    /// Oldest first.
    pub bookmarks: Vec<Bookmark>,
    /// What was read above this had been overwritten when the source was compared last, and the end that it had then is not reached:
    /// what is there above proves nothing of what was before it.
    pub doubt: Option<u64>,
}

/// That nothing of what was read is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proven {
    /// What it was read from.
    pub source: u64,
    /// What was read last is overwritten since, and only this much is the same: that holds once the stream's present end is reached.
    pub overwritten: Option<u64>,
}

/// A history that is not, or not certainly, what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspected {
    pub reason: String,
    pub intact: u64,
    pub last: u64,
    pub broken: bool,
    /// What proves that, oldest first.
    pub bookmarks: Vec<Bookmark>,
}

impl Known {
    /// The newest bookmarks up to a seqno.
    pub fn proof(&self, intact: u64) -> Vec<Bookmark> {
        let proof: Vec<Bookmark> = self.bookmarks.iter().filter(|b| b.seqno <= intact).cloned().collect();
        proof[proof.len().saturating_sub(PROOF)..].to_vec()
    }

    /// What contradicts by the stream's state alone.
    fn contradicted(&self, state: &StreamState) -> Option<String> {
        if self.created != 0 && state.created != self.created {
            return Some("the source was created anew, or restored".into());
        }
        if state.last_seq < self.position.max(self.held) {
            let last = self.position.max(self.held);
            return Some(format!("the source's last sequence fell from {last} to {}", state.last_seq));
        }
        (state.first_seq < self.first_seq)
            .then(|| format!("the source's first sequence fell from {} to {}", self.first_seq, state.first_seq))
    }

    /// The verdict; `source` is what it is read from now.
    pub fn decide(&self, state: &StreamState, judged: Judged, source: u64) -> Option<Suspected> {
        let intact = judged.intact.unwrap_or(0).min(self.doubt.unwrap_or(u64::MAX));
        let suspected = |reason: String, broken: bool| {
            let intact = intact.min(state.last_seq);
            Some(Suspected { reason, intact, last: state.last_seq, broken, bookmarks: self.proof(intact) })
        };
        if let Some(why) = self.contradicted(state) {
            return suspected(why, true);
        }
        if judged.broken {
            return suspected("messages that were read are gone or replaced".into(), true);
        }
        // The same run of the same server: nothing of what it acknowledged is lost.
        let same_run = self.bookmarks.last().is_some_and(|b| b.source == source && source != 0);
        if intact < self.held && !same_run {
            return suspected(format!("nothing proves the source's history above {intact}"), false);
        }
        None
    }
}

/// Compares a source with what is known of it. What contradicts comes with the stream's state after all of that was looked up.
pub(crate) async fn check(
    bus: &Bus,
    stream: &str,
    known: &Known,
    recent: Option<&mut Recent>,
) -> Result<Result<Proven, (Suspected, StreamState)>, BusError> {
    let mut judged = Judged::default();
    for mark in known.bookmarks.iter().rev().take(MOST_LOOKED_AT) {
        if judged.take(mark.seqno, look(bus, stream, mark).await?) {
            break;
        }
    }
    // Asked after the bookmarks: what is written meanwhile makes it no smaller.
    let state = bus.stream_state(stream).await?;
    let source = source(bus, &state);
    // Of a server that we are not connected to nobody tells whether it went.
    let run = if bus.leads(&state) { source } else { 0 };
    let Some(suspected) = known.decide(&state, judged, run) else {
        return Ok(Ok(Proven { source, overwritten: None }));
    };
    let Some(recent) = recent.filter(|_| !suspected.broken) else { return Ok(Err((suspected, state))) };
    let accounted = match recent.walk(suspected.intact, known.held, state.first_seq) {
        Some(walk) => account(bus, stream, recent, walk).await?,
        None => Err("not all of that was read by this projector".into()),
    };
    let why = match accounted {
        Ok(overwritten) => return Ok(Ok(Proven { source, overwritten })),
        Err(why) => why,
    };
    let suspected = Suspected { reason: format!("{}: {why}", suspected.reason), ..suspected };
    Ok(Err((suspected, bus.stream_state(stream).await?)))
}

/// Accounts for what nothing proves: above where some of it is overwritten, or why it cannot be accounted for.
async fn account(
    bus: &Bus,
    stream: &str,
    recent: &mut Recent,
    mut walk: Walk,
) -> Result<Result<Option<u64>, String>, BusError> {
    while let Some(at) = walk.next() {
        let first = bus.next_message(stream, at + 1).await?;
        let seq = first.as_ref().map_or(0, |m| m.seq);
        if !walk.found(recent, first.map(|m| (m.seq, m.time, fingerprint(&m.subject, &m.payload)))) {
            return Ok(Err(format!("message {seq} was not read")));
        }
    }
    let Some(intact) = walk.intact() else { return Ok(Err("nothing of what is remembered is left".into())) };
    let subjects = recent.subjects_above(intact);
    if let Some(subject) = subjects.iter().find(|subject| !is_literal(subject)) {
        return Ok(Err(format!("the last message of {subject} cannot be asked for")));
    }
    let last = bus.last_seqs_of(stream, &subjects).await?;
    let missing = subjects.iter().zip(&last).find(|(_, last)| !walk.is_newer(**last));
    Ok(match missing {
        Some((subject, Some(last))) => Err(format!("the last message of {subject} is {last}")),
        Some((subject, None)) => Err(format!("{subject} has no message any more")),
        None => Ok(walk.is_overwritten().then_some(intact)),
    })
}

async fn look(bus: &Bus, stream: &str, mark: &Bookmark) -> Result<Found, BusError> {
    if let Some(there) = bus.message_at(stream, mark.seqno).await? {
        let same = there.time == mark.time && fingerprint(&there.subject, &there.payload) == mark.hash;
        return Ok(if same { Found::Same } else { Found::Other });
    }
    if !is_literal(&mark.subject) {
        return Ok(Found::Gone);
    }
    Ok(match bus.last_of(stream, &mark.subject).await? {
        Some(last) if last.seq > mark.seqno => Found::Overwritten,
        Some(_) => Found::Lost,
        None => Found::Gone,
    })
}

/// A message that was looked up, as a bookmark.
pub(crate) fn bookmark(message: &Looked, source: u64) -> Bookmark {
    Bookmark {
        seqno: message.seq,
        subject: message.subject.clone(),
        time: message.time,
        hash: fingerprint(&message.subject, &message.payload),
        source,
    }
}

/// Tells the server that leads a stream from others, and its run where it is the one that we are connected to.
pub(crate) fn source(bus: &Bus, state: &StreamState) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(bus.server_id().as_bytes());
    hash.update(&[0]);
    hash.update(state.leader.as_bytes());
    hash.update(&state.created.to_le_bytes());
    hash.digest().max(1)
}

/// Tells a message from another one at the same sequence. Of one that is oversized, only the subject counts.
pub(crate) fn fingerprint(subject: &str, payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(subject.as_bytes());
    hash.update(&[0]);
    hash.update(payload);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 7;

    fn mark(seqno: u64, source: u64) -> Bookmark {
        Bookmark { seqno, source, ..Bookmark::default() }
    }

    fn state(created: i64, first_seq: u64, last_seq: u64) -> StreamState {
        StreamState { created, first_seq, last_seq, ..StreamState::default() }
    }

    fn known(held: u64, bookmarks: Vec<Bookmark>) -> Known {
        Known { created: 1, first_seq: 1, position: held, held, bookmarks, doubt: None }
    }

    fn judged(found: &[(u64, Found)]) -> Judged {
        let mut judged = Judged::default();
        let _ = found.iter().any(|(seqno, found)| judged.take(*seqno, *found));
        judged
    }

    #[test]
    fn the_newest_message_that_is_still_there_proves_what_came_before() {
        let proof = judged(&[(10, Found::Same), (5, Found::Lost)]);
        assert_eq!(proof, Judged { intact: Some(10), broken: false });
        assert_eq!(known(10, vec![mark(10, 1)]).decide(&state(1, 1, 12), proof, RUN), None);
    }

    #[test]
    fn a_lost_message_is_a_loss_though_the_last_sequence_stayed() {
        let proof = judged(&[(10, Found::Lost), (5, Found::Same)]);
        let verdict = known(10, vec![mark(5, 1), mark(10, 1)]).decide(&state(1, 1, 12), proof, RUN).unwrap();
        assert_eq!((verdict.intact, verdict.broken), (5, true));
    }

    #[test]
    fn what_was_overwritten_proves_nothing_unless_the_server_never_went() {
        let proof = judged(&[(10, Found::Overwritten), (5, Found::Same)]);
        let verdict = known(10, vec![mark(5, 1), mark(10, 1)]).decide(&state(1, 1, 12), proof, RUN).unwrap();
        assert_eq!((verdict.intact, verdict.broken), (5, false));
        assert_eq!(known(10, vec![mark(5, 1), mark(10, RUN)]).decide(&state(1, 1, 12), proof, RUN), None);
    }

    #[test]
    fn in_doubt_what_was_read_since_proves_nothing_of_what_was_before() {
        let proof = judged(&[(10, Found::Same)]);
        let known = Known { doubt: Some(4), ..known(10, vec![mark(10, 0)]) };
        let verdict = known.decide(&state(1, 1, 12), proof, RUN).unwrap();
        assert_eq!((verdict.intact, verdict.broken), (4, false));
    }

    #[test]
    fn a_state_that_fell_contradicts_whatever_the_bookmarks_say() {
        let proof = judged(&[(8, Found::Same)]);
        for (created, first, last) in [(2, 1, 12), (1, 1, 9), (1, 0, 12)] {
            let verdict = known(10, vec![mark(8, RUN)]).decide(&state(created, first, last), proof, RUN).unwrap();
            assert!(verdict.broken && verdict.intact == 8, "{verdict:?}");
        }
    }

    #[test]
    fn who_holds_nothing_has_nothing_to_lose() {
        assert_eq!(Known { created: 1, ..Known::default() }.decide(&state(1, 1, 0), Judged::default(), RUN), None);
    }
}
