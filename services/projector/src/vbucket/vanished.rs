//! Documents that vanished without a message, and of which it is known: how the task hears of them, looks them up, and names them
//! in its chain.

use super::{Task, removed::ServerClock};
use crate::{
    docid::Docid,
    vanished::{Cause, Last},
};
use highwater_bus::{Bus, BusError, Looked, Meaning, StreamState, fault, is_literal, supervise};
use highwater_schemas::wire::{DocOp, KeyVersions, Unindexable};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// Requests to remove messages that may wait for a vbucket's task.
pub(crate) const HINTS: usize = 256;
/// Bytes of what one round names, about: it goes in one batch.
const ROUND_BYTES: usize = 128 * 1024;
/// Documents that have expired are taken so many at a time.
const EXPIRED: usize = 256;
/// A request is carried out within this time, as a rule.
const CARRIED_OUT: Duration = Duration::from_millis(500);
/// Who removes messages is heard within this time of it, if ever.
const HEARD_WITHIN: Duration = Duration::from_millis(500);
/// The stream's state is asked for more often.
const STATED_WITHIN: Duration = Duration::from_secs(3);
/// What is missing for so long is looked for in any case.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// Nanoseconds.
const SECOND: i64 = 1_000_000_000;

/// Somebody asked NATS to remove messages of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Those of this subject, which may have wildcards.
    Purge(String),
    /// All, or the oldest: the stream's state shows that.
    Beginning,
    /// One of which the subject is not said, or what was asked is not known.
    Message,
}

/// A question for the store that is under way.
pub(super) struct Looking {
    docids: Vec<(String, Cause)>,
    /// The highest seqno that was read, or told of, before.
    known: u64,
    answer: supervise::Task<Result<LookedUp, BusError>>,
}

pub(super) struct LookedUp {
    /// The stream's last sequence before.
    asked_at: u64,
    /// It was the same leader before and afterwards.
    consistent: bool,
    last: Vec<Last>,
}

/// A question, and its answer if there is one.
pub(super) struct Answered {
    docids: Vec<(String, Cause)>,
    looked: Option<LookedUp>,
}

/// Waits for the question under way; for ever when there is none.
pub(super) async fn looked_up(looking: &mut Option<Looking>) -> Answered {
    match looking {
        Some(under_way) => {
            let answer = (&mut under_way.answer).await.done().ok().and_then(Result::ok);
            // A leader that lacks what was read, or told of, may lack more.
            let looked = answer.filter(|looked| looked.consistent && looked.asked_at >= under_way.known);
            Answered { docids: looking.take().map(|looking| looking.docids).unwrap_or_default(), looked }
        }
        None => std::future::pending().await,
    }
}

/// Whether the stream removes what has lived long enough, and leaves nothing in its place.
pub(super) fn expires_silently(state: &StreamState) -> bool {
    state.message_ttl && state.marker_life.is_none()
}

impl Task {
    /// A message of a document, written at that time: the server may remove it by itself.
    pub(super) fn note_expiry(&self, docid: &str, seqno: u64, time: i64, meaning: Meaning) {
        if self.expires_silently {
            let second = (meaning.lives > 0).then(|| time / SECOND + i64::from(meaning.lives));
            self.assignment.known_to_all.expiries().note(docid, seqno, second);
        }
    }

    pub(super) fn hint(&mut self, hint: Hint) {
        let done = Instant::now() + CARRIED_OUT;
        match hint {
            Hint::Purge(subject) if is_literal(&subject) => {
                match self.assignment.docids.of(subject.as_bytes()) {
                    Some(Docid::Text(docid)) => self.vanished.suspect(&docid, Cause::Purged, Instant::now()),
                    // It is no document of the bucket.
                    _ => self.explain(1),
                }
            }
            Hint::Beginning => self.ask(),
            Hint::Purge(_) | Hint::Message => self.compare_soon(done),
        }
    }

    /// All documents are compared for the first and the last of requests that follow each other.
    fn compare_soon(&mut self, at: Instant) {
        self.compare_at.get_or_insert(at);
        self.compare_again = Some(at);
    }

    /// So many documents are known to have vanished.
    pub(super) fn explain(&mut self, documents: u64) {
        let each = u64::try_from(self.max_per_subject).ok().filter(|each| *each > 0).unwrap_or(u64::MAX);
        self.removals.explain(documents.saturating_mul(each));
        self.explained_at = Some(Instant::now());
    }

    /// Looks for what has vanished by now.
    pub(super) fn look_for_vanished(&mut self) {
        let now = Instant::now();
        let second = self.clock.map_or(0, ServerClock::now) / SECOND;
        if self.expires_silently {
            self.look_for_expired(second, now);
        }
        if self.vanished.overflowed() || self.assignment.known_to_all.missed_hints.swap(false, Ordering::Relaxed) {
            self.compare_soon(now + CARRIED_OUT);
        }
        if self.looking.is_none() {
            let docids = self.vanished.due(now);
            if !docids.is_empty() {
                self.look_up(docids);
            }
        }
        self.look_for_missing(second, now);
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        let (first, again) = (due(&mut self.compare_at), due(&mut self.compare_again));
        if first || again {
            self.ask_to_reconcile("messages were removed, and it is not known which");
        }
        self.say_that_names_wait();
    }

    /// Looks for documents that their writers let expire by then.
    fn look_for_expired(&mut self, second: i64, now: Instant) {
        let (due, incomplete) = {
            let mut expiries = self.assignment.known_to_all.expiries();
            (expiries.due(second, EXPIRED), expiries.is_incomplete(second))
        };
        for (docid, seqno) in due {
            if self.assignment.docids.subject(&docid).is_some_and(|subject| is_literal(&subject)) {
                self.vanished.suspect(&docid, Cause::Expired(seqno), now);
            } else {
                self.compare_soon(now + CARRIED_OUT);
            }
        }
        if incomplete {
            self.ask_to_reconcile("more documents expire than are remembered");
        }
    }

    /// Messages went that nothing explains. It may become known yet.
    fn look_for_missing(&mut self, second: i64, now: Instant) {
        if self.explained_at.is_some_and(|at| at + STATED_WITHIN <= now) {
            self.explained_at = None;
            self.removals.explained();
        }
        if !self.removals.is_missing() {
            self.missing_since = None;
            return;
        }
        let since = *self.missing_since.get_or_insert(now);
        let settled = self.vanished.is_settled() && !self.assignment.known_to_all.expiries().is_due(second + 1);
        if since + HEARD_WITHIN <= now && settled || since + KNOWN_WITHIN <= now {
            self.missing_since = None;
            self.removals.settle();
            self.ask_to_reconcile("messages vanished");
        }
    }

    fn look_up(&mut self, docids: Vec<(String, Cause)>) {
        let (bus, stream) = (self.bus.clone(), self.assignment.stream.clone());
        let subject = |(docid, _): &(String, Cause)| self.assignment.docids.subject(docid).unwrap_or_default();
        let subjects: Vec<String> = docids.iter().map(subject).collect();
        let causes: Vec<Cause> = docids.iter().map(|(_, cause)| *cause).collect();
        let what = format!("looking up documents in source stream {stream}");
        let answer = supervise::task(&self.bus.incidents(), what, async move {
            fault("vanished", &stream);
            last_of(&bus, &stream, &subjects, &causes).await
        });
        let known = self.cover.position().max(self.source_last);
        self.looking = Some(Looking { docids, known, answer });
    }

    /// The store has answered, or could not.
    pub(super) fn looked_up(&mut self, Answered { docids, looked }: Answered) {
        let now = Instant::now();
        let Some(LookedUp { asked_at, last, .. }) = looked else {
            for (docid, _) in &docids {
                self.vanished.failed(docid, now);
            }
            return;
        };
        for ((docid, cause), last) in docids.iter().zip(last) {
            if self.vanished.looked(docid, asked_at, last) {
                match cause {
                    Cause::Purged => self.explain(1),
                    Cause::Expired(_) => {
                        self.removals.explain(1);
                        self.explained_at = Some(now);
                    }
                }
            }
        }
        self.say_that_names_wait();
    }

    fn say_that_names_wait(&self) {
        let plan = self.plan.borrow();
        let under_way = plan.staged.is_some_and(|staged| staged.named);
        self.assignment.known_to_all.names_wait(self.vanished.waits().then_some(plan.newest_named), under_way);
    }

    /// What the chain is to say of the documents that vanished.
    pub(super) fn name_vanished(&mut self) -> KeyVersions {
        let (evaluator, kv) = (&mut self.evaluator, self.assignment.kv);
        let (mut versions, mut present_again) = (KeyVersions::default(), Vec::new());
        self.vanished.take(self.cover.covered(), |docid, present| {
            if versions.size() >= ROUND_BYTES {
                return false;
            }
            let Some(Looked { seq, time, meaning, oversized, payload, .. }) = present else {
                versions.push_doc(0, docid, DocOp::Delete);
                return true;
            };
            if super::is_no_document(*meaning, payload.is_empty() && !oversized, kv) {
                evaluator.delete(*seq, docid, &mut versions);
            } else if *oversized {
                versions.push_doc(*seq, docid, DocOp::Unindexable(Unindexable::TooLarge));
            } else {
                evaluator.evaluate(*seq, docid, payload, &mut versions);
            }
            present_again.push((docid.to_owned(), *seq, *time, *meaning));
            true
        });
        for (docid, seqno, time, meaning) in present_again {
            self.note_expiry(&docid, seqno, time, meaning);
        }
        self.assignment.reading.named.fetch_add(versions.len() as u64, Ordering::Relaxed);
        // Those that are left wait for another reconcile.
        self.assignment.known_to_all.names_wait(None, false);
        self.say_that_names_wait();
        versions
    }
}

/// The newest messages of these subjects.
async fn last_of(bus: &Bus, stream: &str, subjects: &[String], causes: &[Cause]) -> Result<LookedUp, BusError> {
    let before = bus.stream_state(stream).await?;
    let mut last = Vec::with_capacity(subjects.len());
    for (seq, cause) in bus.last_seqs_of(stream, subjects).await?.into_iter().zip(causes) {
        last.push(match (seq, cause) {
            (None, _) => Last::None,
            (Some(seq), Cause::Expired(expected)) if seq < *expected => match bus.message_at(stream, seq).await? {
                Some(older) => Last::Older(Box::new(older)),
                // It has gone, too, since.
                None => Last::There(*expected),
            },
            (Some(seq), _) => Last::There(seq),
        });
    }
    let after = bus.stream_state(stream).await?;
    let consistent = after.leader == before.leader && after.created == before.created;
    Ok(LookedUp { asked_at: before.last_seq, consistent, last })
}

/// What somebody asks NATS to purge.
pub(crate) fn purge(request: &[u8]) -> Hint {
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Purge {
        filter: Option<String>,
    }
    if request.trim_ascii().is_empty() {
        return Hint::Beginning;
    }
    // serde would take a list for an object's fields in order.
    let object = request.trim_ascii().first() == Some(&b'{');
    match serde_json::from_slice(request) {
        _ if !object => Hint::Message,
        Ok(Purge { filter: Some(filter) }) if !filter.is_empty() => Hint::Purge(filter),
        Ok(Purge { .. }) => Hint::Beginning,
        // The server refuses it, or reads more in it than we do.
        Err(_) => Hint::Message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_purge_says_what_goes() {
        for (request, hint) in [
            (&b""[..], Hint::Beginning),
            (b" {} ", Hint::Beginning),
            (br#"{"keep":3}"#, Hint::Beginning),
            (br#"{"seq":17}"#, Hint::Beginning),
            (br#"{"filter":""}"#, Hint::Beginning),
            (br#"{"filter":"orders.1","keep":1}"#, Hint::Purge("orders.1".into())),
            (br#"{"filter":"orders.*","more":[]}"#, Hint::Purge("orders.*".into())),
            (b"[]", Hint::Message),
            (b"\xff", Hint::Message),
            (br#"{"filter":7}"#, Hint::Message),
        ] {
            assert_eq!(purge(request), hint, "{}", String::from_utf8_lossy(request));
        }
    }
}
