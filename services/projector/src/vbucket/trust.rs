//! Whether what a task has read may still be trusted: after a restart of the server, or when the source contradicts.

use super::{Assignment, End, Task};
use crate::{
    contradiction::Contradiction,
    pump::Running,
    recent::Recent,
    verify::{self, Known, Proven, Suspected},
};
use highwater_bus::{Bus, ReadFrom, StreamMessage};
use highwater_schemas::{state::thin, timestamp::Bookmark};
use std::{
    sync::{PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

/// Messages of the source that a task remembers.
const MARKS: usize = 64;
/// What contradicts, and does not count yet, is looked at again after this time.
const AGAIN: Duration = Duration::from_millis(250);

impl Task {
    /// Notes the message that was read last. The live chain also remembers its hash, to compare the source with.
    pub(super) fn remember(&mut self, message: &StreamMessage) {
        if !self.live() {
            self.last_message = (message.time, 0);
            return;
        }
        let subject = message.subject_text();
        let hash = verify::fingerprint(&subject, message.payload());
        self.last_message = (message.time, hash);
        self.recent.push(message.seq, &subject, message.time, hash);
    }

    /// Remembers what comes from below where the chain begins; answers the others.
    pub(super) fn read_before<'a>(&mut self, messages: &'a [StreamMessage]) -> &'a [StreamMessage] {
        let (before, messages) = messages.split_at(messages.partition_point(|m| m.seq <= self.assignment.from.seqno));
        for message in before {
            let before = self.last_message;
            self.remember(message);
            self.offering.message(message, before, self.last_message);
        }
        self.assignment.reading.before.fetch_add(before.len() as u64, Ordering::Relaxed);
        messages
    }

    /// Marks the last message of a chunk.
    pub(super) fn mark(&mut self, message: &StreamMessage) {
        if !self.live() {
            return;
        }
        self.look_at_doubt();
        let mark = Bookmark {
            seqno: message.seq,
            subject: message.subject_text().into_owned(),
            time: message.time,
            hash: self.last_message.1,
            // Before the end is reached again, that it was read proves nothing of what came before it; nor does what an earlier run
            // of the server may have sent.
            source: if self.doubt.is_some() || self.took_older { 0 } else { self.source },
        };
        self.marks.push(mark.clone());
        thin(&mut self.marks, MARKS);
        self.bookmark = Some(mark);
    }

    /// The source seems not to be what was read: it is compared, as long as that takes. A leader that has yet to take in what was
    /// read looks like a loss for a moment.
    pub(super) async fn contradicted(&mut self, why: &str) -> Result<(), End> {
        if !self.live() {
            return Err(End::Broken(why.into()));
        }
        let Assignment { bucket, vb, .. } = &self.assignment;
        tracing::info!(bucket, vb, why, "the source is compared with what was read");
        // An answer that is on its way may be of the same moment.
        if let Some(asking) = self.asking.take() {
            asking.wants.into_iter().for_each(|want| self.want(want));
        }
        // The last comparison did not meet this.
        let before = self.compared.take();
        self.compare(before).await?;
        tokio::time::sleep(AGAIN).await;
        Ok(())
    }

    /// The reader cannot go on. If the source is what it was, another one reads on where this one ended: the task remembers what
    /// was read last, which proves more than a new task would find.
    pub(super) async fn changed(&mut self, why: &str) -> Result<Running, End> {
        self.contradicted(why).await?;
        self.restarts = 0;
        let from = ReadFrom { after: self.recent.last_read(), created: Some(self.created), ..ReadFrom::default() };
        Ok(Running::start(&self.bus, &self.assignment.stream, from))
    }

    /// Somebody has everything up to here.
    pub(super) fn holds(&self, seqno: u64) {
        self.assignment.known_to_all.held.fetch_max(seqno, Ordering::Relaxed);
    }

    /// What is known of the source now.
    fn known(&self) -> Known {
        let held = self.assignment.known_to_all.held.load(Ordering::Relaxed);
        Known {
            created: self.created,
            first_seq: self.first_seq,
            position: self.cover.position(),
            held: held.max(self.assignment.known.held),
            bookmarks: merged(&self.marks, &self.assignment.durable.lock().unwrap_or_else(PoisonError::into_inner)),
            doubt: self.doubt,
        }
    }

    /// Compares the source with what was read from it, as long as it takes. True: an end that an earlier leader told of is lost.
    pub(super) async fn verify(&mut self) -> Result<bool, End> {
        let (began, mut shortfall) = (Instant::now(), Contradiction::default());
        let (losses, ended_earlier, Proven { source, overwritten }) = loop {
            let (known, losses) = (self.known(), self.bus.losses());
            let proven = verified(&self.bus, &self.assignment, &known, Some(&mut self.recent)).await;
            let proven = proven.map_err(End::Suspected)?;
            let Some(ended_earlier) = self.ends_earlier(&mut shortfall, began.elapsed()).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            // Answers of two runs of the server prove nothing together.
            if self.bus.losses() == losses {
                break (losses, ended_earlier, proven);
            }
        };
        self.source = source;
        // What an earlier server had beyond what was read may be lost: the next answer tells where the source ends.
        self.source_last = 0;
        self.lags_since = None;
        self.compared = Some((source, losses));
        self.took_older = false;
        let Assignment { bucket, vb, .. } = &self.assignment;
        tracing::info!(bucket, vb, ?overwritten, "the source was compared with what was read, and is the same");
        // One that is open stays so, whatever was read since.
        self.doubt = overwritten.or(self.doubt.filter(|_| !self.cover.is_closed()));
        if overwritten.is_some() {
            self.cover.doubt(self.offering.batches.begins());
        } else if self.doubt.is_none() {
            self.trust();
        }
        Ok(ended_earlier)
    }

    /// Whether the source ends before an end that an earlier leader told of, though nothing that was read is missing. Its leader may
    /// have yet to apply what its log holds: what it says counts once it is current. None: that is not so yet, or it does not answer.
    async fn ends_earlier(&self, shortfall: &mut Contradiction, elapsed: Duration) -> Option<bool> {
        let state = self.bus.stream_state(&self.assignment.stream).await.ok()?;
        let less = state.last_seq < self.source_last;
        (!less || shortfall.counts(&state, elapsed)).then_some(less)
    }

    /// What was read before this run of the server is proven in it from now on.
    fn trust(&mut self) {
        self.doubt = None;
        if let Some(last) = self.marks.last_mut() {
            last.source = self.source;
        }
        // They are answered by what the stream is from now on.
        for want in std::mem::take(&mut self.doubted) {
            self.want(want);
        }
    }

    /// The end that the stream had when it was compared may be reached.
    pub(super) fn look_at_doubt(&mut self) {
        if self.doubt.is_some() && self.cover.is_closed() && !self.took_older {
            self.trust();
        }
    }

    /// Whether the source was compared with the server that leads it now, and since we were last connected to ours, and that cannot
    /// have gone since.
    async fn compared_here(&self) -> bool {
        let Some((source, losses)) = self.compared else { return false };
        let Ok(state) = self.bus.stream_state(&self.assignment.stream).await else { return false };
        verify::source(&self.bus, &state) == source && self.bus.losses() == losses && self.bus.leads(&state)
    }

    /// Messages are taken up that the server sent when the connection had been lost only so often. A comparison after a later loss
    /// knew nothing of them.
    pub(super) fn look_for_older(&mut self, messages: &[StreamMessage], losses: u64) {
        self.took_older |= !messages.is_empty() && self.compared.is_some_and(|(_, compared)| losses < compared);
    }

    /// Another server, or another run of it, is there: the source is compared before much is overwritten.
    pub(super) async fn reconnected(&mut self) -> Result<(), End> {
        let server = self.bus.server_id();
        // Messages from before the last loss that were taken after the source was compared need another comparison: until then
        // wants are not answered.
        if !self.live() || (server == self.server && !self.took_older) {
            return Ok(());
        }
        self.server = server;
        self.restarted().await
    }

    /// The server restarted, or another one serves: nothing that it brings counts before the source was compared.
    pub(super) async fn restarted(&mut self) -> Result<(), End> {
        let hidden = self.cover.covered() < self.cover.position();
        if !self.live() {
            let why = "the server restarted while revisions were hidden";
            return if hidden { Err(End::Broken(why.into())) } else { Ok(()) };
        }
        if self.compared_here().await && !self.took_older {
            return Ok(());
        }
        self.compare(self.compared).await
    }

    /// Compares the source, and takes into account that its server may have restarted since it was compared `before`.
    async fn compare(&mut self, before: Option<(u64, u64)>) -> Result<(), End> {
        let hidden = self.cover.covered() < self.cover.position();
        let older = self.took_older;
        // What would have made up for a loss may be lost in its turn: all of that is accounted for again.
        let lost = self.verify().await? || older;
        // A leader that was merely slow has lost nothing that it had acknowledged.
        if !lost && self.doubt.is_none() && self.compared == before && self.compared_here().await {
            return Ok(());
        }
        // Below what is overwritten, what was removed without a message may be there again.
        if hidden || self.doubt.is_some() {
            self.freeze();
        } else if self.asked_for != self.source {
            // Once for each run of the server.
            self.asked_for = self.source;
            self.ask_to_reconcile("the server restarted");
        }
        Ok(())
    }

    /// The source brought a message that its state had denied: it must never be packed behind a position that claims to hold it.
    pub(super) async fn denied(&mut self, seq: u64) -> Result<(), End> {
        let why = "the source brought a message that its state had denied";
        if !self.live() {
            return Err(End::Broken(why.into()));
        }
        self.verify().await?;
        Err(self.unproven(why, seq - 1))
    }

    /// Nothing contradicts, and above `intact` something may be missing.
    fn unproven(&self, reason: &str, intact: u64) -> End {
        End::Suspected(Suspected {
            reason: reason.into(),
            intact,
            last: self.source_last.max(self.cover.position()),
            broken: false,
            bookmarks: self.known().proof(intact),
        })
    }
}

/// What this task remembers, of which the older is thinned, and what the log does; where both have one it is this task's.
fn merged(own: &[Bookmark], durable: &[Bookmark]) -> Vec<Bookmark> {
    let mut all: Vec<Bookmark> = own.iter().chain(durable).cloned().collect();
    all.sort_by_key(|mark| mark.seqno);
    all.dedup_by_key(|mark| mark.seqno);
    all
}

/// Compares a source with what is known of it, as long as it takes to reach it.
pub(super) async fn verified(
    bus: &Bus,
    assignment: &Assignment,
    known: &Known,
    mut recent: Option<&mut Recent>,
) -> Result<Proven, Suspected> {
    let Assignment { stream, reading, .. } = assignment;
    let mut retry = bus.retry(format!("comparing source stream {stream}"));
    let (began, mut contradiction, mut told) = (Instant::now(), Contradiction::default(), None);
    loop {
        match verify::check(bus, stream, known, recent.as_deref_mut()).await {
            Ok(Ok(proven)) => return Ok(proven),
            Ok(Err((suspected, state))) => {
                if contradiction.counts(&state, began.elapsed()) {
                    return Err(suspected);
                }
                if told.as_ref() != Some(&state.leader) {
                    reading.contradicted.fetch_add(1, Ordering::Relaxed);
                    let (leader, Suspected { reason, intact, last, .. }) = (&state.leader, suspected);
                    tracing::info!(stream, leader, reason, intact, last, "the leader contradicts what was read");
                    told = Some(state.leader);
                }
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => retry.wait(&error).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_durable_is_remembered_though_the_task_has_thinned_it() {
        let mark = |seqno, source| Bookmark { seqno, source, ..Bookmark::default() };
        let own = [mark(1, 7), mark(90, 7), mark(100, 7)];
        let durable = [mark(50, 3), mark(90, 3)];
        let all: Vec<_> = merged(&own, &durable).iter().map(|m| (m.seqno, m.source)).collect();
        assert_eq!(all, [(1, 7), (50, 3), (90, 7), (100, 7)]);
    }
}
