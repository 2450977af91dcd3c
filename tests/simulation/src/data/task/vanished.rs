//! Documents of which it is known that they vanished; as `services/projector/src/vbucket/vanished.rs`.

use super::{KnownToAll, Task, WriteKey};
use crate::data::{
    env::Env,
    source::{KEYS, Source},
};
use highwater_bus::{Looked, Meaning, Operation};
use highwater_projector::vanished::{Cause, Last};
use highwater_schemas::wire::{DocOp, KeyVersions};
use std::time::{Duration, Instant};

/// How much faster the clock goes here: time is scarcer.
const FASTER: u64 = 8;

/// A question for the store that is under way: the stream's last sequence and identity before, and what is asked of.
pub(super) struct Looking {
    asked_at: u64,
    identity: u64,
    /// The highest seqno that was read, or told of, before.
    known: u64,
    docids: Vec<(String, Cause)>,
}

impl Task {
    fn instant(&self, env: &Env) -> Instant {
        self.epoch + Duration::from_millis(env.now * FASTER)
    }

    pub(super) fn look_for_vanished(&mut self, env: &mut Env, all: &mut KnownToAll) {
        if !self.live() {
            return;
        }
        let (now, vb) = (self.instant(env), usize::from(self.assignment.lane.vb));
        for (key, seq) in std::mem::take(&mut env.hints[vb]) {
            self.vanished.suspect(&Source::docid(key), Cause::Expired(seq), now);
        }
        match self.looking.take() {
            Some(looking) if env.rng.chance(500) => self.looked_up(env, looking),
            Some(looking) => self.looking = Some(looking),
            None => {
                let docids = self.vanished.due(now);
                if !docids.is_empty() {
                    let source = self.stream(env);
                    let (asked_at, identity) = (source.last_seq, source.identity());
                    let known = self.cover.position().max(self.source_last);
                    self.looking = Some(Looking { asked_at, identity, known, docids });
                }
            }
        }
        self.say_that_names_wait(all);
    }

    fn looked_up(&mut self, env: &mut Env, Looking { asked_at, identity, known, docids }: Looking) {
        let now = self.instant(env);
        let source = &env.sources[usize::from(self.assignment.lane.vb)];
        if source.identity() != identity || asked_at < known {
            for (docid, _) in &docids {
                self.vanished.failed(docid, now);
            }
            return;
        }
        let mut vanished = 0;
        for (docid, cause) in docids {
            let key = (0..KEYS).find(|key| Source::docid(*key) == docid).unwrap_or_default();
            let last = match (source.last_of(key), cause) {
                (None, _) => Last::None,
                (Some(seq), Cause::Expired(expected)) if seq < expected => {
                    let message = &source.messages[&seq];
                    let operation = if message.put { Operation::Put } else { Operation::Delete };
                    Last::Older(Box::new(Looked {
                        seq,
                        subject: docid.clone(),
                        time: message.time,
                        meaning: Meaning { operation, ..Meaning::default() },
                        oversized: false,
                        payload: message.uid.to_be_bytes().to_vec().into(),
                    }))
                }
                (Some(seq), _) => Last::There(seq),
            };
            vanished += u64::from(self.vanished.looked(&docid, asked_at, last));
        }
        self.removals.explain(vanished);
    }

    fn say_that_names_wait(&self, all: &mut KnownToAll) {
        if !self.vanished.waits() {
            all.names_after = 0;
        } else if all.names_after == 0 || !self.plan.staged.is_some_and(|staged| staged.named) {
            all.names_after = self.plan.newest_named + 1;
        }
    }

    pub(super) fn name_vanished(&mut self, env: &mut Env, all: &mut KnownToAll) -> KeyVersions {
        let mut versions = KeyVersions::default();
        let indexes = &self.plan.indexes;
        self.vanished.take(self.cover.covered(), |docid, present| {
            let put = present.filter(|present| present.meaning.operation == Operation::Put);
            let op = if put.is_some() { DocOp::Put } else { DocOp::Delete };
            versions.push_doc(present.map_or(0, |present| present.seq), docid, op);
            for (index, present) in indexes.iter().filter_map(|index| Some((index, put?))) {
                versions.push_key(*index, |b| b.write_key(&present.payload), |_| ());
            }
            true
        });
        if !versions.is_empty() {
            env.count("documents named");
        }
        all.names_after = 0;
        self.say_that_names_wait(all);
        versions
    }
}
