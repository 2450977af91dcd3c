//! The state machine of the index manager that coordinates.
//!
//! # Layout
//! - `ddl`: requests are checked; `jobs`: those that take several steps
//! - `rollback`: sources whose history changed; `reconcile`: documents that vanished without a message
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
mod reconcile;
mod rollback;
mod sessions;
mod stability;
mod status;
#[cfg(test)]
mod tests;
mod topics;

pub use bootstrap::Bootstrapping;
pub use ddl::{Ddl, Probe, Probed, no_bucket, unprobed};
pub use jobs::Job;

use crate::config::Config;
use highwater_schemas::{
    ApiError,
    api::{ClusterEvent, Join, NodeKind, heartbeat},
    report::ReportPart,
    state::{Change, MUTATION, Offered, SessionKind, SliceName, StateContext, StateError},
    subjects,
    wire::{HighWatermark, Missed, Stability, Sync},
};
use jobs::Jobs;
use members::Members;
use serde_json::Value;
use stability::BucketStability;
use std::collections::{BTreeMap, BTreeSet};

/// Members, owners, sessions and idle buckets are looked at this often, milliseconds.
const HOUSEKEEPING: u64 = 50;
/// Topics and sessions that nobody needs are looked for this often, milliseconds.
const SWEEP: u64 = 60_000;
/// No coordinator opens so many sessions that another one has not heard of.
const MOST_UNHEARD: u64 = 1 << 24;

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
    Report(ReportPart),
    /// The membership as the cluster manager sees it.
    Cluster(ClusterEvent),
    Sync(Sync),
    HighWatermark(HighWatermark),
    Missed(Missed),
    /// What [`Action::EnsureStreams`] came to.
    StreamsEnsured {
        job: Job,
        outcome: Result<(), String>,
        random: u64,
    },
    /// What [`Action::DeleteStreams`] came to.
    StreamsDeleted {
        job: Job,
    },
    /// A change before it could not be made, so what a job waits for is not done.
    GivenUp {
        job: Job,
        why: ApiError,
    },
    /// What [`Action::Assign`] came to.
    Assigned {
        job: Job,
        node: String,
        outcome: Result<(), ApiError>,
    },
    /// What [`Action::CheckTopics`] came to.
    TopicsChecked {
        /// Of the check: one of an earlier term says nothing.
        term: u64,
        made: Result<(), String>,
        /// What there was when it was asked for.
        found: Option<Found>,
    },
    /// Time has passed.
    Tick {
        random: u64,
    },
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
    /// Have a node report everything anew.
    AskReport {
        node: String,
    },
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
    /// The topics of these buckets must exist.
    CheckTopics {
        term: u64,
        buckets: Vec<Wanted>,
        /// Look for what nobody needs too.
        sweep: bool,
    },
    /// Nobody needs these streams any more; some may not be there.
    DeleteStreams {
        job: Job,
        streams: Vec<String>,
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
    /// Topics that people made.
    pub topics: Vec<String>,
    /// A topic that is full now is too small: sessions wait for room, or bring what the mutation topic has dropped.
    pub sessions: bool,
    pub recoveries: bool,
}

/// Topics and sessions that there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub streams: Vec<String>,
    /// Bucket and session.
    pub sessions: Vec<(String, u64)>,
}

/// Sessions of a bucket of which messages are left that are purged after one look.
const MOST_PURGED: usize = 64;

/// The state machine.
pub struct Core {
    config: Config,
    context: StateContext,
    members: Members,
    stability: BTreeMap<String, BucketStability>,
    /// By bucket.
    reconciles: BTreeMap<String, reconcile::Due>,
    /// Slices whose session could not go on: what they missed may be gone from the source.
    interrupted: BTreeSet<(String, String, SliceName)>,
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
    /// Buckets in which a recovery began since then.
    recovering: BTreeSet<String>,
    /// What could not be made.
    topics_failed: Option<String>,
    /// When what nobody needs is looked for next.
    sweep_due: u64,
}

impl Core {
    /// `now` is in milliseconds of a clock that never goes back; the term of `context` has been opened.
    pub fn new(config: Config, context: StateContext, boot: Bootstrapping, now: u64) -> Self {
        Self {
            config,
            members: Members::new(now),
            stability: BTreeMap::new(),
            reconciles: BTreeMap::new(),
            interrupted: BTreeSet::new(),
            jobs: Jobs::new(context.term),
            boot,
            context,
            started: now,
            ticked: now,
            urgent: true,
            topics_due: Some(now),
            topics_checked: false,
            recovering: BTreeSet::new(),
            topics_failed: None,
            sweep_due: now,
        }
    }

    pub fn context(&self) -> &StateContext {
        &self.context
    }

    pub fn boot(&mut self) -> &mut Bootstrapping {
        &mut self.boot
    }

    /// Whether an indexer has told its whole report in this term.
    pub fn has_report_of(&self, indexer: &str) -> bool {
        self.members.follows(NodeKind::Indexer, indexer, self.context.term)
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
            Event::Report(part) => self.report(now, part),
            Event::Cluster(event) => {
                self.config.heartbeat = heartbeat(event.heartbeat_ms);
                self.members.see(now, event);
            }
            Event::Sync(sync) => self.sync(now, &sync, &mut out),
            Event::HighWatermark(hwt) => self.high_watermark(&hwt, &mut out),
            Event::Missed(missed) => self.missed(now, &missed, &mut out),
            Event::StreamsEnsured { job, outcome, random } => self.streams_ensured(job, outcome, random, &mut out),
            Event::StreamsDeleted { job } => self.end_job(job, Ok(()), &mut out),
            Event::GivenUp { job, why } => self.end_job(job, Err(why), &mut out),
            Event::Assigned { job, node, outcome } => self.assigned(job, &node, outcome, &mut out),
            Event::TopicsChecked { term, made, found } => {
                if term == self.context.term {
                    self.topics_checked(now, made, found.as_ref(), &mut out);
                }
            }
            Event::Tick { random } => self.tick(now, random, &mut out),
        }
        out
    }

    fn tick(&mut self, now: u64, random: u64, out: &mut Vec<Action>) {
        self.ticked = now;
        self.urgent = false;
        self.check_members(now, out);
        self.ask_for_reports(now, out);
        self.check_topics(now, out);
        let ready = self.ready();
        if ready {
            self.recover_stability();
        }
        // Before generations and branches begin where the last timestamp is: one from beyond that would be void.
        self.issue_all(now, out);
        if ready {
            self.start_branches(random, out);
            self.check_rollbacks(out);
            if self.topics_checked {
                self.assign_vbuckets(out);
            }
            let mut next = self.newest_session();
            self.check_reconciles(now, &mut next, out);
            self.check_sessions(&mut next, out);
            self.check_indexes(out);
            self.resume_jobs(out);
        }
        self.step_bootstrap(now);
    }

    /// The newest number of a session or a reconcile. A log that lost its end may know less than the chains.
    fn newest_session(&self) -> u64 {
        let issued = self.stability.values().filter_map(BucketStability::last).flat_map(|st| &st.vbs);
        issued.map(|vb| vb.reconciled).max().unwrap_or(0).max(self.context.next_session)
    }

    /// Every live indexer follows this term, and has said what it has applied.
    fn ready(&self) -> bool {
        self.members.waited_for(&self.context, self.started, &self.config).next().is_none()
    }

    fn check_topics(&mut self, now: u64, out: &mut Vec<Action>) {
        if self.topics_due.is_some_and(|due| due <= now) {
            self.topics_due = None;
            let began = std::mem::take(&mut self.recovering);
            let wanted = self.context.buckets.iter().map(|(name, b)| Wanted {
                bucket: name.clone(),
                topics: b.topics.keys().filter(|t| *t != MUTATION).cloned().collect(),
                sessions: !b.sessions.is_empty(),
                recoveries: began.contains(name)
                    || b.sessions.values().any(|session| session.kind == SessionKind::Recovery),
            });
            let (term, buckets, sweep) = (self.context.term, wanted.collect(), now >= self.sweep_due);
            out.push(Action::CheckTopics { term, buckets, sweep });
        }
    }

    fn topics_checked(&mut self, now: u64, made: Result<(), String>, found: Option<&Found>, out: &mut Vec<Action>) {
        let wait = if made.is_ok() { self.config.topic_check.as_millis() as u64 } else { HOUSEKEEPING * 4 };
        self.topics_due = Some(now + wait);
        // One that cannot be made does not hold up the others: routers try again until it is there.
        self.topics_checked = true;
        self.topics_failed = made.err();
        let Some(found) = found else { return };
        self.sweep_due = now + SWEEP;
        // By what is known now: while it was looked for, others may have been made.
        let declared = self.context.buckets.iter().flat_map(|(name, bucket)| streams_of(name, bucket.topics.keys()));
        let needed: BTreeSet<String> = declared.chain(self.jobs.makes()).collect();
        let strays: Vec<String> = found.streams.iter().filter(|stream| !needed.contains(*stream)).cloned().collect();
        if !strays.is_empty() {
            self.delete_streams(None, strays, out);
        }
        let mut purged: BTreeMap<&str, usize> = BTreeMap::new();
        for (bucket, session) in &found.sessions {
            let open = self.context.buckets.get(bucket).is_some_and(|b| b.sessions.contains_key(session));
            // One that is a little higher may be of a coordinator that we have not heard of.
            let foreign = session.saturating_sub(self.context.next_session) > MOST_UNHEARD;
            if open || *session > self.context.next_session && !foreign {
                continue;
            }
            // The others are found again.
            let purged = purged.entry(bucket).or_default();
            if *purged < MOST_PURGED {
                *purged += 1;
                out.push(Action::PurgeSession { bucket: bucket.clone(), session: *session });
            }
        }
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

/// The streams behind the topics of a bucket: the built-in ones, and those that people made.
fn streams_of<'a>(bucket: &str, topics: impl Iterator<Item = &'a String>) -> impl Iterator<Item = String> {
    let made = topics.filter(|topic| *topic != MUTATION).map(move |topic| subjects::topic_stream(bucket, topic));
    [subjects::mutation_stream(bucket), subjects::catchup_stream(bucket)].into_iter().chain(made)
}
