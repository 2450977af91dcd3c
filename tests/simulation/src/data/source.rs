//! One source stream: keyed messages of which few revisions are kept, and what a server can do to them.

use crate::rng::Rng;
use highwater_bus::StreamState;
use highwater_projector::batches::Part;
use std::collections::{BTreeMap, BTreeSet};

/// Documents of a stream.
pub const KEYS: usize = 5;
/// Delete markers may go after this, milliseconds.
pub const MARKER_LIFE: u64 = 1_500;
/// States that a crash or a restore can bring back.
const SAVED: usize = 6;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub key: usize,
    /// Else a delete.
    pub put: bool,
    /// Tells it from every other one.
    pub uid: u64,
    /// Server time, nanoseconds.
    pub time: i64,
    /// Of which atomic batch it is.
    pub part: Option<Part>,
}

/// What a message is replaced by in an index: its seqno and id.
pub type Value = Option<(u64, u64)>;

/// The truth of one line of history; known to nobody but the oracle.
#[derive(Debug, Clone, Default)]
struct Line {
    /// All that was ever written on it.
    written: BTreeMap<u64, Message>,
    /// Messages that were removed without a message.
    gone: BTreeSet<u64>,
    /// Those that newer ones of their document pushed out, with the seqno of that.
    evicted: BTreeMap<u64, u64>,
}

#[derive(Debug, Clone)]
struct Saved {
    messages: BTreeMap<u64, Message>,
    last_seq: u64,
    line: usize,
}

/// A stream.
#[derive(Debug)]
pub struct Source {
    pub created: i64,
    /// Tells the runs of the server.
    pub run: u64,
    /// Rises when consumers are gone.
    pub epoch: u64,
    pub last_seq: u64,
    last_time: i64,
    first_seq: u64,
    pub messages: BTreeMap<u64, Message>,
    history: usize,
    uid: u64,
    lines: Vec<Line>,
    /// When a document last changed without a message, in steps.
    touched: [u64; KEYS],
    saved: Vec<Saved>,
    /// The batch that is being stored: what its next message says, and how many there are.
    batch: Option<(Part, u64)>,
}

impl Source {
    pub fn new(history: usize) -> Self {
        Self {
            created: 1,
            run: 1,
            epoch: 1,
            last_seq: 0,
            last_time: 0,
            first_seq: 1,
            messages: BTreeMap::new(),
            history,
            uid: 0,
            lines: vec![Line::default()],
            touched: [0; KEYS],
            saved: vec![Saved { messages: BTreeMap::new(), last_seq: 0, line: 0 }],
            batch: None,
        }
    }

    pub fn state(&self) -> StreamState {
        StreamState {
            created: self.created,
            first_seq: self.first_seq,
            last_seq: self.last_seq,
            last_time: self.last_time,
            messages: self.messages.len() as u64,
            marker_life: Some(std::time::Duration::from_millis(MARKER_LIFE)),
            ..StreamState::default()
        }
    }

    /// Tells the server, its run and the stream from others.
    pub fn identity(&self) -> u64 {
        Self::identity_of(self.run, self.created as u64)
    }

    pub fn identity_of(run: u64, created: u64) -> u64 {
        run * 1_000 + created
    }

    pub fn docid(key: usize) -> String {
        format!("d{key}")
    }

    pub fn line(&self) -> usize {
        self.lines.len() - 1
    }

    /// The newest message of every document, by seqno.
    pub fn current(&self) -> BTreeMap<u64, Message> {
        let newest: BTreeMap<usize, u64> = self.messages.iter().map(|(seq, m)| (m.key, *seq)).collect();
        newest.into_values().map(|seq| (seq, self.messages[&seq])).collect()
    }

    pub fn last_of(&self, key: usize) -> Option<u64> {
        self.messages.iter().rev().find(|(_, m)| m.key == key).map(|(seq, _)| *seq)
    }

    /// An atomic batch begins: what is written next is of it.
    pub fn begin_batch(&mut self, messages: u64) {
        let part = Part { batch: self.uid, sequence: 1, commit: messages == 1 };
        self.batch = self.batch.or(Some((part, messages)));
    }

    pub fn is_taking_a_batch(&self) -> bool {
        self.batch.is_some()
    }

    /// Whether its newest message is of an atomic batch whose other messages will never come.
    pub fn ends_inside_a_batch(&self) -> bool {
        let newest = self.messages.last_key_value().and_then(|(_, message)| message.part);
        self.batch.is_none() && newest.is_some_and(|part| !part.commit)
    }

    pub fn write(&mut self, key: usize, put: bool, now: u64) {
        self.uid += 1;
        self.last_seq += 1;
        let part = self.batch.map(|(part, _)| part);
        self.batch = self.batch.filter(|(part, _)| !part.commit).map(|(part, messages)| {
            let sequence = part.sequence + 1;
            (Part { sequence, commit: sequence == messages, ..part }, messages)
        });
        // Never the same twice, as the clock of a server.
        let message = Message { key, put, uid: self.uid, time: (now * 1_000_000 + self.uid) as i64, part };
        self.last_time = message.time;
        self.messages.insert(self.last_seq, message);
        let line = self.lines.last_mut().expect("there is one");
        line.written.insert(self.last_seq, message);
        let mut of_key: Vec<u64> = self.messages.iter().filter(|(_, m)| m.key == key).map(|(s, _)| *s).collect();
        of_key.truncate(of_key.len().saturating_sub(self.history));
        for seq in of_key {
            if let Some(old) = self.messages.remove(&seq) {
                line.evicted.insert(old.uid, self.last_seq);
            }
        }
        self.rise();
    }

    /// The first sequence never falls by itself.
    fn rise(&mut self) {
        self.first_seq = self.first_seq.max(self.messages.keys().next().copied().unwrap_or(self.last_seq + 1));
    }

    fn vanish(&mut self, seqs: impl IntoIterator<Item = u64>, step: u64) -> Vec<(usize, u64)> {
        let mut vanished = Vec::new();
        for seq in seqs {
            if let Some(message) = self.messages.remove(&seq) {
                self.lines.last_mut().expect("there is one").gone.insert(message.uid);
                self.touched[message.key] = step;
                vanished.push((message.key, seq));
            }
            self.rise();
        }
        vanished
    }

    /// Something is removed, and no message says so: documents and the seqnos of what went.
    pub fn remove(&mut self, rng: &mut Rng, now: u64, step: u64) -> Vec<(usize, u64)> {
        let seqs: Vec<u64> = self.messages.keys().copied().collect();
        let gone: Vec<u64> = match rng.below(6) {
            // Delete markers expire.
            0 | 1 => {
                let old = |m: &Message| !m.put && m.time / 1_000_000 + MARKER_LIFE as i64 <= now as i64;
                self.messages.iter().filter(|(_, m)| old(m)).map(|(seq, _)| *seq).collect()
            }
            // A message.
            2 | 3 => rng.pick(&seqs).into_iter().collect(),
            // A document.
            4 => {
                let key = rng.below(KEYS as u64) as usize;
                self.messages.iter().filter(|(_, m)| m.key == key).map(|(s, _)| *s).collect()
            }
            // The oldest, maybe all.
            _ => {
                let keep = rng.below(4) as usize;
                seqs[..seqs.len().saturating_sub(keep)].to_vec()
            }
        };
        self.vanish(gone, step)
    }

    pub fn save(&mut self) {
        let line = self.line();
        self.saved.push(Saved { messages: self.messages.clone(), last_seq: self.last_seq, line });
        if self.saved.len() > SAVED {
            self.saved.remove(0);
        }
    }

    /// The server restarts, and nothing is lost.
    pub fn restart(&mut self) {
        self.batch = None;
        self.run += 1;
        self.epoch += 1;
    }

    /// The server comes back with an older state, or the stream is another one. What it is then, for people.
    pub fn fault(&mut self, rng: &mut Rng, step: u64) -> &'static str {
        let saved = rng.pick(&self.saved).expect("there is one");
        let (mut messages, last_seq) = (saved.messages.clone(), saved.last_seq);
        self.batch = None;
        let kind = rng.below(8);
        let what = match kind {
            0..3 => "lost its tail",
            3..6 => "lost its tail, and kept its last sequence",
            6 => "was restored",
            _ => "was made anew",
        };
        // Overwritten revisions may be there again, or be lost too.
        if kind < 6 && rng.chance(300) {
            messages.retain(|seq, _| self.messages.contains_key(seq));
        }
        let mut line = self.lines[saved.line].clone();
        match kind {
            7 => {
                messages.clear();
                line = Line::default();
                self.last_seq = 0;
                self.created += 1;
                self.saved.clear();
            }
            6 => {
                self.created += 1;
                self.last_seq = last_seq;
            }
            3..6 => {}
            _ => self.last_seq = last_seq,
        }
        line.written.retain(|seq, _| *seq <= last_seq);
        let there: BTreeSet<u64> = messages.values().map(|m| m.uid).collect();
        line.gone.retain(|uid| !there.contains(uid));
        line.evicted.retain(|uid, _| !there.contains(uid));
        // What no message that is there has taken the place of is gone.
        let newest: BTreeMap<usize, u64> = messages.iter().map(|(seq, m)| (m.key, *seq)).collect();
        for (seq, message) in line.written.iter().filter(|(_, m)| !there.contains(&m.uid)) {
            line.evicted.insert(message.uid, 0);
            if newest.get(&message.key).is_none_or(|newest| newest < seq) {
                line.gone.insert(message.uid);
            }
        }
        self.lines.push(line);
        self.messages = messages;
        self.first_seq = self.messages.keys().next().copied().unwrap_or(self.last_seq + 1);
        self.last_time = self.messages.values().next_back().map_or(0, |m| m.time);
        self.touched = [step; KEYS];
        self.saved.retain(|s| s.last_seq <= last_seq && kind != 7);
        self.save();
        self.epoch += 1;
        if kind != 7 || rng.chance(500) {
            self.run += 1;
        }
        what
    }

    /// What an index must hold of a document once everything up to `seqno` of a line is applied.
    pub fn truth(&self, line: usize, seqno: u64, key: usize) -> Value {
        let line = &self.lines[line];
        let of_key = line.written.range(..=seqno).rev().filter(|(_, m)| m.key == key);
        let there = |m: &Message| {
            !line.gone.contains(&m.uid) && line.evicted.get(&m.uid).is_none_or(|evictor| *evictor > seqno)
        };
        let (seq, message) = of_key.into_iter().find(|(_, m)| there(m))?;
        message.put.then_some((*seq, message.uid))
    }

    /// Whether an atomic batch has messages both at or below a seqno and above it.
    pub fn is_inside(&self, line: usize, seqno: u64) -> bool {
        let part = |seq: u64| self.lines[line].written.get(&seq).and_then(|m| m.part);
        let (before, after) = (part(seqno), seqno.checked_add(1).and_then(part));
        before.zip(after).is_some_and(|(b, a)| b.batch == a.batch && b.sequence + 1 == a.sequence)
    }

    /// Whether the message at a seqno is of a batch.
    pub fn is_of_a_batch(&self, line: usize, seqno: u64) -> bool {
        self.lines[line].written.get(&seqno).is_some_and(|m| m.part.is_some())
    }

    /// The newest message of a document up to `seqno`, and whether a later one of it deletes, or it or a later one is gone.
    pub fn since(&self, line: usize, seqno: u64, key: usize) -> (Option<(u64, Message)>, bool, bool) {
        let line = &self.lines[line];
        let newest = line.written.range(..=seqno).rev().find(|(_, m)| m.key == key).map(|(s, m)| (*s, *m));
        let from = newest.map_or(0, |(seq, _)| seq);
        let later: Vec<(u64, Message)> =
            line.written.range(from..).filter(|(_, m)| m.key == key).map(|(s, m)| (*s, *m)).collect();
        let deletes = later.iter().any(|(seq, m)| *seq > from && !m.put);
        (newest, deletes, later.iter().any(|(_, m)| line.gone.contains(&m.uid)))
    }

    /// The revisions of a document that are there.
    pub fn of_key(&self, key: usize) -> Vec<(u64, Message)> {
        self.messages.iter().filter(|(_, m)| m.key == key).map(|(seq, m)| (*seq, *m)).collect()
    }

    pub fn touched(&self, key: usize) -> u64 {
        self.touched[key]
    }
}
