//! What everything in a run shares: time, chance, the sources, the topics, the log, what is on its way, what is true.

use super::source::Source;
use crate::rng::Rng;
use highwater_indexer::{Payload, core::Batch};
use highwater_schemas::{
    Position,
    api::Join,
    report::ReportPart,
    state::StateContext,
    wire::{HighWatermark, Missed, Stability, Sync},
};
use std::{collections::BTreeMap, rc::Rc, sync::Arc};

pub const BUCKET: &str = "b";

/// A message that may be lost or late.
#[derive(Debug, Clone)]
pub enum Letter {
    Sync(Sync),
    Join(Box<Join>),
    Report(Box<ReportPart>),
    /// To a node.
    AskReport(String),
    HighWatermark(HighWatermark),
    /// To an indexer.
    Stability(usize, Rc<Stability>),
    Missed(Missed),
    /// To a projector.
    Want(usize, u64),
}

/// A stream between services.
#[derive(Debug, Default)]
pub struct Topic {
    pub created: i64,
    pub last: u64,
    /// Rises when readers must open it again.
    pub epoch: u64,
    /// For whom: node, or nobody in the topic of a session.
    pub messages: BTreeMap<u64, (String, Arc<Batch>)>,
}

/// What the oracle knows of a place in a chain.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The line of the source's history that it was read from.
    pub line: usize,
}

/// A request that wants everything that was there before it.
#[derive(Debug, Clone)]
pub struct Request {
    pub since: u64,
    /// By vbucket: last sequence, line, branch, creation time, time of the last message, the first want of this run.
    pub vbs: Vec<(u64, usize, u64, i64, i64, u64)>,
}

/// Vbucket, branch, generation, position.
pub type PlaceKey = (u16, u64, u64, u64, u64);

/// Shared by all.
pub struct Env {
    pub now: u64,
    pub step: u64,
    pub rng: Rng,
    /// Things go wrong.
    pub faulty: bool,
    pub verbose: bool,
    /// How many of a thousand chunks are remembered by their last message.
    pub marked: u64,
    pub sources: Vec<Source>,
    /// By vbucket: documents of which a message went without another one, and its seqno.
    pub hints: Vec<Vec<(usize, u64)>>,
    pub topic: Topic,
    pub catchups: BTreeMap<u64, Topic>,
    pub log: Vec<Rc<Vec<u8>>>,
    mail: BTreeMap<(u64, u64), Letter>,
    mailed: u64,
    pub places: BTreeMap<PlaceKey, Place>,
    /// When branches and reconciles began, in steps.
    pub began: BTreeMap<u64, u64>,
    pub requests: Vec<Request>,
    /// (ST, vbucket, document) → what a slice showed, and which.
    pub seen: BTreeMap<(u64, u16, usize), (super::source::Value, String)>,
    pub stats: BTreeMap<&'static str, u64>,
    pub broken: Option<String>,
}

impl Env {
    pub fn new(mut rng: Rng, vbuckets: usize, verbose: bool) -> Self {
        let marked = rng.pick(&[1_000, 300, 100]).expect("there is one");
        let sources = (0..vbuckets).map(|_| Source::new(if rng.chance(700) { 1 } else { 3 })).collect();
        Self {
            now: 10,
            step: 1,
            rng,
            faulty: false,
            verbose,
            marked,
            sources,
            hints: vec![Vec::new(); vbuckets],
            topic: Topic { created: 1, ..Topic::default() },
            catchups: BTreeMap::new(),
            log: Vec::new(),
            mail: BTreeMap::new(),
            mailed: 0,
            places: BTreeMap::new(),
            began: BTreeMap::new(),
            requests: Vec::new(),
            seen: BTreeMap::new(),
            stats: BTreeMap::new(),
            broken: None,
        }
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>6} {:>6} {}", self.step, self.now, what());
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.stats.entry(what).or_default() += 1;
    }

    /// An invariant does not hold; the first one counts.
    pub fn violated(&mut self, why: String) {
        self.say(|| format!("VIOLATED {why}"));
        self.broken.get_or_insert(why);
    }

    pub fn mail(&mut self, letter: Letter) {
        if self.faulty && self.rng.chance(50) {
            self.count("messages lost");
            return;
        }
        let delay = if self.faulty { self.rng.below(25) } else { 0 };
        self.mailed += 1;
        self.mail.insert((self.now + delay, self.mailed), letter);
    }

    pub fn due(&mut self) -> Option<Letter> {
        let first = self.mail.first_entry()?;
        (first.key().0 <= self.now).then(|| first.remove())
    }

    /// A batch is stored.
    pub fn publish(&mut self, session: u64, node: String, bytes: Vec<u8>) {
        let batch = Batch::parse(BUCKET, Payload::new(bytes.into(), None)).expect("what was encoded can be read");
        let created = self.now as i64;
        let topic = match session {
            0 => &mut self.topic,
            session => self.catchups.entry(session).or_insert_with(|| Topic { created, ..Topic::default() }),
        };
        topic.last += 1;
        topic.messages.insert(topic.last, (node, Arc::new(batch)));
    }

    /// Reads on in the log: how many records at most.
    pub fn follow(&self, context: &mut StateContext, after: &mut usize, most: usize) -> bool {
        let end = self.log.len().min(after.saturating_add(most));
        for record in &self.log[*after..end] {
            context.offer(record).expect("the log can be read");
        }
        std::mem::replace(after, end) != end
    }

    pub fn place(&mut self, key: (u16, u64, u64), at: Position, line: usize) {
        self.places.entry((key.0, key.1, key.2, at.seqno, at.round)).or_insert(Place { line });
    }
}
