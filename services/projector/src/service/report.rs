//! What a projector tells the coordinator.

use super::{ANEW, Shell};
use highwater_schemas::{
    api::{Join, NodeKind, SessionReading},
    report::Item,
    state::Bucket,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Instant,
};

impl Shell {
    /// Buckets with a vbucket of which nothing more is covered before a reconcile.
    fn frozen(&self) -> Vec<String> {
        let live = self.running.iter().filter(|(key, _)| key.session == 0);
        let frozen = live.filter(|(_, running)| running.known_to_all.frozen.load(Ordering::Relaxed));
        frozen.map(|(key, _)| key.bucket.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Buckets of which a reconcile is asked for that the log does not show yet, with the newest that does not count.
    fn reconciles(&self) -> Vec<(String, u64)> {
        let mut asked: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, running) in self.running.iter().filter(|(key, _)| key.session == 0) {
            let wanted = running.known_to_all.reconcile_after.load(Ordering::Relaxed);
            let bucket = self.state.context().buckets.get(&key.bucket);
            if wanted > bucket.map_or(0, Bucket::newest_reconcile) {
                let after = asked.entry(&key.bucket).or_default();
                *after = (*after).max(wanted - 1);
            }
        }
        asked.into_iter().map(|(bucket, after)| (bucket.to_owned(), after)).collect()
    }

    /// Buckets of which documents wait to be named in a reconcile, with the newest one that does not count.
    fn names(&self) -> Vec<(String, u64)> {
        let mut waiting: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, running) in self.running.iter().filter(|(key, _)| key.session == 0) {
            if let Some(after) = running.known_to_all.named_after() {
                let newest = waiting.entry(&key.bucket).or_default();
                *newest = (*newest).max(after);
            }
        }
        waiting.into_iter().map(|(bucket, after)| (bucket.to_owned(), after)).collect()
    }

    /// What has changed is to be told; in a new term, and when it was asked for, everything.
    pub(super) fn report(&mut self) {
        // A suspicion is repeated until the log shows another branch.
        let context = self.state.context();
        self.suspicions.retain(|s| {
            context
                .buckets
                .get(&s.bucket)
                .and_then(|b| b.vbuckets.get(usize::from(s.vb)))
                .is_some_and(|v| v.vbuuid() == s.vbuuid)
        });
        self.broken.retain(|(bucket, id), _| context.buckets.get(bucket).is_some_and(|b| b.sessions.contains_key(id)));
        self.lost.retain(|(bucket, vb, generation), _| {
            let vbucket = context.buckets.get(bucket).and_then(|b| b.vbuckets.get(usize::from(*vb)));
            vbucket.is_some_and(|v| v.generation == *generation)
        });
        let sessions = self.running.iter().filter(|(key, _)| key.session != 0);
        let reading = sessions.map(|(key, running)| {
            Item::Reading(SessionReading {
                bucket: key.bucket.clone(),
                session: key.session,
                vb: key.vb,
                read: running.reading.messages.load(Ordering::Relaxed),
                pending: running.reading.pending.load(Ordering::Relaxed),
            })
        });
        self.reads.retain(|bucket| context.buckets.contains_key(bucket));
        let live = self.running.keys().filter(|key| key.session == 0);
        let mut reads = self.reads.clone();
        for (key, running) in &self.running {
            reads.add((&key.bucket, key.vb), running.purpose, &running.reading);
        }
        let now = Instant::now();
        let broken = self.broken.iter().filter(|(_, due)| **due <= now).map(|(of, _)| of.clone());
        let broken = broken.map(|(bucket, session)| Item::BrokenSession { bucket, session });
        let lost = self.lost.iter().filter(|(_, due)| **due <= now).map(|(of, _)| of.clone());
        let lost = lost.map(|(bucket, vb, generation)| Item::LostChain { bucket, vb, generation });
        let items = reading
            .chain(live.map(|key| Item::Reads(reads.of(&key.bucket, key.vb))))
            .chain(self.reconciles().into_iter().map(|(bucket, after)| Item::Reconcile { bucket, after }))
            .chain(self.names().into_iter().map(|(bucket, after)| Item::Named { bucket, after }))
            .chain(self.frozen().into_iter().map(|bucket| Item::Urgent { bucket }))
            .chain(self.suspicions.iter().map(Item::suspicion))
            .chain(broken)
            .chain(lost);
        let mut buckets: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        for item in items {
            match buckets.get_mut(item.bucket()) {
                Some(items) => items.push(item),
                None => _ = buckets.insert(item.bucket().to_owned(), vec![item]),
            }
        }
        let term = context.term;
        let asked = std::mem::take(&mut self.asked) && self.begun.is_none_or(|begun| begun.elapsed() >= ANEW);
        if asked || self.reporter.told().edition == 0 || self.reporter.term() != term {
            self.reporter.begin(term);
            self.begun = Some(Instant::now());
        }
        self.reporter.keep(|bucket| buckets.contains_key(bucket));
        for (bucket, items) in buckets {
            self.reporter.set(&bucket, items);
        }
    }

    /// A heartbeat.
    pub(super) fn heartbeat(&self) -> Join {
        let (term, report) = (self.state.context().term, self.reporter.told());
        Join { term, report, ..Join::new(NodeKind::Projector, &self.config.node, self.config.incarnation) }
    }
}
