//! The state machine of the index manager that coordinates.
//!
//! # Layout
//! - `ddl`: requests are checked; `jobs`: those that take several steps
//! - `members`: who is there, and what they report; `owners`: who reads which vbucket; `sessions`: catchups and builds
//! - `stability`: stability and persistence timestamps
//! - `topics`: topics that people make and subscribe to
//! - `bootstrap`: the steps from nomination to service
//! - `status`: what people see

mod bootstrap;
mod ddl;
mod jobs;
mod members;
mod owners;
mod sessions;
mod stability;
mod status;
#[cfg(test)]
mod tests;
mod topics;

pub use bootstrap::Bootstrapping;
pub use ddl::{Ddl, Probe};
pub use jobs::Job;

use crate::config::Config;
use highwater_schemas::{
    ApiError,
    api::{ClusterEvent, Join},
    state::{Change, MUTATION, Offered, StateContext, StateError},
    wire::{HighWatermark, Stability, Sync},
};
use jobs::Jobs;
use members::Members;
use serde_json::Value;
use stability::BucketStability;
use std::collections::BTreeMap;

/// Members, owners, sessions and idle buckets are looked at this often, milliseconds.
const HOUSEKEEPING: u64 = 50;

/// Identifies a request whose reply is owed.
pub type Token = u64;

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    Ddl {
        token: Token,
        ddl: Ddl,
        probe: Probe,
        random: u64,
    },
    Join(Join),
    /// The membership as the cluster manager sees it.
    Cluster(ClusterEvent),
    Sync(Sync),
    HighWatermark(HighWatermark),
    /// What [`Action::EnsureStreams`] came to.
    StreamsEnsured {
        job: Job,
        outcome: Result<(), String>,
        random: u64,
    },
    /// What [`Action::Assign`] came to.
    Assigned {
        job: Job,
        node: String,
        outcome: Result<(), ApiError>,
    },
    /// What [`Action::CheckTopics`] came to.
    TopicsChecked(Result<(), String>),
    /// Time has passed.
    Tick {
        random: u64,
    },
}

impl Event {
    /// A request, or the next step of one.
    pub fn is_of_a_request(&self) -> bool {
        matches!(self, Self::Ddl { .. } | Self::StreamsEnsured { .. } | Self::Assigned { .. })
    }
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Append to the log, then apply; nothing after it happens unless that succeeds.
    Append(Change),
    Reply {
        token: Token,
        answer: Result<Value, ApiError>,
    },
    Publish(Stability),
    /// The streams of a new bucket must exist before it is used.
    EnsureStreams {
        job: Job,
        bucket: String,
        /// Only that of this topic; none: those of a new bucket.
        topic: Option<String>,
    },
    /// Ask a host whether it can take partitions of an index.
    Assign {
        job: Job,
        node: String,
        bucket: String,
        index: u32,
        partitions: u32,
    },
    /// The topics of these buckets must exist, and nothing else of them.
    CheckTopics {
        buckets: Vec<Wanted>,
    },
    DeleteStream {
        stream: String,
    },
    /// A session is over: its messages can go.
    PurgeSession {
        bucket: String,
        session: u64,
    },
}

/// What there must be of a bucket's topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub bucket: String,
    /// Open sessions.
    pub sessions: Vec<u64>,
    /// Topics that people made.
    pub topics: Vec<String>,
}

/// The state machine.
pub struct Core {
    config: Config,
    context: StateContext,
    members: Members,
    stability: BTreeMap<String, BucketStability>,
    jobs: Jobs,
    boot: Bootstrapping,
    started: u64,
    /// When the last tick was.
    ticked: u64,
    /// Something was reported that should not wait for housekeeping.
    urgent: bool,
    /// When the topics are looked at next; `None`: it is under way.
    topics_due: Option<u64>,
    topics_checked: bool,
}

impl Core {
    /// `now` is in milliseconds of a clock that never goes back; the term of `context` has been opened.
    pub fn new(config: Config, context: StateContext, boot: Bootstrapping, now: u64) -> Self {
        Self {
            config,
            context,
            members: Members::default(),
            stability: BTreeMap::new(),
            jobs: Jobs::default(),
            boot,
            started: now,
            ticked: now,
            urgent: true,
            topics_due: Some(now),
            topics_checked: false,
        }
    }

    pub fn context(&self) -> &StateContext {
        &self.context
    }

    pub fn boot(&mut self) -> &mut Bootstrapping {
        &mut self.boot
    }

    /// Its time is over.
    pub fn into_parts(self) -> (StateContext, Bootstrapping) {
        (self.context, self.boot)
    }

    /// Takes a record that the log has acknowledged.
    pub fn applied(&mut self, json: &[u8]) -> Result<(), StateError> {
        let Offered::Applied(record) = self.context.offer(json)? else { return Ok(()) };
        match record.change {
            Change::VbucketAssigned { bucket, vb, .. } | Change::BranchStarted { bucket, vb, .. } => {
                if let Some(entry) = self.stability.get_mut(&bucket) {
                    entry.forget_sync(vb);
                }
            }
            Change::BucketRemoved { bucket } => {
                self.stability.remove(&bucket);
            }
            _ => {}
        }
        Ok(())
    }

    /// One step. Actions that follow from appended records come with the next tick or event.
    pub fn handle(&mut self, now: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Ddl { token, ddl, probe, random } => self.ddl(token, ddl, &probe, random, &mut out),
            Event::Join(join) => self.join(now, join),
            Event::Cluster(event) => self.members.see(event),
            Event::Sync(sync) => self.sync(now, &sync, &mut out),
            Event::HighWatermark(hwt) => self.high_watermark(&hwt, &mut out),
            Event::StreamsEnsured { job, outcome, random } => self.streams_ensured(job, outcome, random, &mut out),
            Event::Assigned { job, node, outcome } => self.assigned(job, &node, outcome, &mut out),
            Event::TopicsChecked(outcome) => self.topics_checked(now, &outcome),
            Event::Tick { random } => self.tick(now, random, &mut out),
        }
        out
    }

    fn tick(&mut self, now: u64, random: u64, out: &mut Vec<Action>) {
        self.ticked = now;
        self.urgent = false;
        self.check_members(now, out);
        self.check_topics(now, out);
        if self.ready(now) {
            self.recover_stability();
            if self.topics_checked {
                self.assign_vbuckets(out);
            }
            self.start_branches(random, out);
            self.check_sessions(out);
            self.check_indexes(out);
            self.resume_jobs(out);
        }
        self.step_bootstrap(now);
        self.issue_all(now, out);
    }

    /// Every live indexer follows this term, and has said what it has applied.
    fn ready(&self, now: u64) -> bool {
        self.members.waited_for(&self.context, now, self.started, &self.config).next().is_none()
    }

    fn check_topics(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.topics_due.is_some_and(|due| due <= now) {
            self.topics_due = None;
            let wanted = self.context.buckets.iter().map(|(name, b)| Wanted {
                bucket: name.clone(),
                sessions: b.sessions.keys().copied().collect(),
                topics: b.topics.keys().filter(|t| *t != MUTATION).cloned().collect(),
            });
            out.push(Action::CheckTopics { buckets: wanted.collect() });
        }
    }

    fn topics_checked(&mut self, now: u64, outcome: &Result<(), String>) {
        let wait = if outcome.is_ok() { self.config.topic_check.as_millis() as u64 } else { HOUSEKEEPING * 4 };
        self.topics_due = Some(now + wait);
        self.topics_checked |= outcome.is_ok();
    }

    /// When [`Event::Tick`] is due next, if nothing else happens before.
    pub fn next_tick(&self, now: u64) -> u64 {
        if self.urgent {
            return now;
        }
        let due = self.stability.values().filter_map(|s| s.next_issue(&self.config)).min().unwrap_or(u64::MAX);
        // From the last tick on, not from now: a busy bus must not push it away.
        due.clamp(self.ticked + 1, self.ticked + HOUSEKEEPING).max(now)
    }
}
