//! A stand-in for the reader of a source stream: what it has fetched may be old by the time it is handed on.

use super::source::{Message, Source};
use crate::rng::Rng;
use std::collections::VecDeque;

/// Messages on their way at most.
const FETCHED: usize = 6;

/// A message as it was read.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    pub seq: u64,
    pub message: Message,
}

/// What a pump yields.
pub enum Pumped {
    Nothing,
    Listed {
        upto: u64,
    },
    Messages {
        messages: Vec<Read>,
        restarts: u64,
        /// Nothing more was ready.
        idle: bool,
    },
    Changed(String),
}

/// A reader.
#[derive(Debug, Default)]
pub struct Pump {
    after: u64,
    created: i64,
    run: u64,
    epoch: u64,
    restarts: u64,
    /// The end of the list that it begins with, and what of it is to come.
    list: Option<(u64, VecDeque<u64>)>,
    fetched: VecDeque<Read>,
}

impl Pump {
    /// Opens the stream; answers when it was created.
    pub fn open(&mut self, source: &Source, after: u64, lists: bool) -> Result<i64, String> {
        let list = lists.then(|| (source.last_seq, source.current().into_keys().collect()));
        *self = Self {
            after,
            created: source.created,
            run: source.run,
            epoch: source.epoch,
            restarts: 0,
            list,
            fetched: VecDeque::new(),
        };
        self.check(source)?;
        Ok(self.created)
    }

    fn check(&self, source: &Source) -> Result<(), String> {
        if source.created != self.created {
            return Err("it was created anew".into());
        }
        if source.last_seq < self.after {
            return Err(format!("its last sequence is {}, but {} was read before", source.last_seq, self.after));
        }
        Ok(())
    }

    /// The run of the server that sent what was fetched.
    pub fn run(&self) -> u64 {
        self.run
    }

    fn fetch(&mut self, source: &Source, rng: &mut Rng) {
        let most = 1 + rng.below(FETCHED as u64) as usize;
        while self.fetched.len() < most {
            let last = self.fetched.back().map_or(self.after, |r| r.seq);
            let seq = match &mut self.list {
                Some((_, seqs)) => seqs.pop_front(),
                None => source.messages.range(last + 1..).next().map(|(seq, _)| *seq),
            };
            let Some(seq) = seq else { return };
            // What went meanwhile is not delivered.
            self.fetched.extend(source.messages.get(&seq).map(|message| Read { seq, message: *message }));
        }
    }

    pub fn next(&mut self, source: &Source, rng: &mut Rng) -> Pumped {
        if self.epoch == source.epoch {
            self.fetch(source, rng);
        } else if self.fetched.is_empty() {
            if self.list.is_some() {
                return Pumped::Changed("the list was interrupted".into());
            }
            if let Err(why) = self.check(source) {
                return Pumped::Changed(why);
            }
            self.restarts += u64::from(self.run != source.run);
            (self.run, self.epoch) = (source.run, source.epoch);
            return Pumped::Messages { messages: Vec::new(), restarts: self.restarts, idle: true };
        }
        let n = (self.fetched.len() as u64).min(1 + rng.below(FETCHED as u64)) as usize;
        let messages: Vec<Read> = self.fetched.drain(..n).collect();
        if let Some(last) = messages.last() {
            self.after = last.seq;
            let idle = self.fetched.is_empty();
            return Pumped::Messages { messages, restarts: self.restarts, idle };
        }
        match self.list.take_if(|(_, seqs)| seqs.is_empty()) {
            Some((upto, _)) => {
                self.after = self.after.max(upto);
                Pumped::Listed { upto }
            }
            None => Pumped::Nothing,
        }
    }
}
