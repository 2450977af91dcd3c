//! The coordinator's state machine.

mod ddl;
mod members;
mod stability;
#[cfg(test)]
mod tests;

pub(crate) use ddl::{Ddl, Probe};

use crate::config::Config;
use highwater_schemas::{
    ApiError, StabilityTimestamp,
    api::{BucketStatus, ClusterStatus, Join, MemberStatus, VbStatus},
    state::{Change, Record, StateContext, StateError, vbuuid_text},
    wire::{HighWatermark, Stability, Sync},
};
use members::Members;
use serde_json::Value;
use stability::BucketStability;
use std::collections::BTreeMap;

/// Members, owners, sessions and idle buckets are looked at this often, milliseconds.
const HOUSEKEEPING: u64 = 50;

/// Identifies a request whose reply is owed.
pub(crate) type Token = u64;

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    Ddl {
        token: Token,
        ddl: Ddl,
        probe: Probe,
        random: u64,
    },
    Join(Join),
    Sync(Sync),
    HighWatermark(HighWatermark),
    /// Time has passed.
    Tick {
        random: u64,
    },
}

/// What to do, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Append to the log, then apply; nothing after it happens unless that succeeds.
    Append(Change),
    Reply {
        token: Token,
        answer: Result<Value, ApiError>,
    },
    Publish(Stability),
    /// The streams of a new bucket must exist before it is used.
    EnsureStreams {
        bucket: String,
    },
    DeleteStreams {
        bucket: String,
    },
    /// A session is over: its messages can go.
    PurgeSession {
        bucket: String,
        session: u64,
    },
}

/// The state machine.
pub(crate) struct Core {
    config: Config,
    context: StateContext,
    members: Members,
    stability: BTreeMap<String, BucketStability>,
    started: u64,
    /// When the last tick was.
    ticked: u64,
}

impl Core {
    /// `now` is in milliseconds of a clock that never goes back.
    pub(crate) fn new(config: Config, context: StateContext, now: u64) -> Self {
        Self { config, context, members: Members::default(), stability: BTreeMap::new(), started: now, ticked: now }
    }

    pub(crate) fn context(&self) -> &StateContext {
        &self.context
    }

    pub(crate) fn heartbeat_ms(&self) -> u64 {
        self.config.heartbeat.as_millis() as u64
    }

    /// The record that would carry `change`, as the next of the log.
    pub(crate) fn record(&self, change: Change, at: u64) -> Record {
        Record {
            incarnation: self.context.incarnation.clone(),
            term: self.context.term,
            version: self.context.version + 1,
            prev: self.context.hash.clone(),
            at,
            change,
        }
    }

    /// Takes a record that the log has acknowledged.
    pub(crate) fn applied(&mut self, json: &[u8]) -> Result<(), StateError> {
        let record = self.context.apply_json(json)?;
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
    pub(crate) fn handle(&mut self, now: u64, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Ddl { token, ddl, probe, random } => self.ddl(now, token, ddl, &probe, random, &mut out),
            Event::Join(join) => self.join(now, join, &mut out),
            Event::Sync(sync) => self.sync(now, &sync, &mut out),
            Event::HighWatermark(hwt) => self.high_watermark(&hwt, &mut out),
            Event::Tick { random } => self.tick(now, random, &mut out),
        }
        out
    }

    fn tick(&mut self, now: u64, random: u64, out: &mut Vec<Action>) {
        self.ticked = now;
        self.check_members(now, out);
        if self.ready(now) {
            self.recover_stability();
            self.assign_vbuckets(out);
            self.start_branches(random, out);
            self.check_sessions(out);
            self.check_indexes(out);
        }
        self.issue_all(now, out);
    }

    /// Every indexer that the log knows has reported, or is gone.
    fn ready(&self, now: u64) -> bool {
        self.members.all_reported(&self.context, now, self.started, &self.config)
    }

    /// When [`Event::Tick`] is due next, if nothing else happens before.
    pub(crate) fn next_tick(&self, now: u64) -> u64 {
        let due = self.stability.values().filter_map(|s| s.next_issue(&self.config)).min().unwrap_or(u64::MAX);
        // From the last tick on, not from now: a busy bus must not push it away.
        due.clamp(self.ticked + 1, self.ticked + HOUSEKEEPING).max(now)
    }

    /// What `highwater status` shows.
    pub(crate) fn status(&self, now: u64) -> ClusterStatus {
        let members = self
            .members
            .iter()
            .map(|(kind, node, last)| MemberStatus {
                node: node.clone(),
                kind,
                alive: self.context.nodes.get(&(kind, node.clone())).is_some_and(|e| !e.gone),
                last_heartbeat_ms: now.saturating_sub(last),
                role: String::new(),
            })
            .collect();
        let buckets = self
            .context
            .buckets
            .iter()
            .map(|(name, bucket)| {
                let entry = self.stability.get(name);
                let last = entry.and_then(|e| e.last());
                let streams = bucket.definition.vbuckets();
                let vbuckets = bucket
                    .vbuckets
                    .iter()
                    .enumerate()
                    .map(|(vb, v)| VbStatus {
                        stream: streams.get(vb).map(|s| s.name.clone()).unwrap_or_default(),
                        vbuuid: vbuuid_text(v.vbuuid()),
                        generation: v.generation,
                        projector: v.projector.clone(),
                        seqno: last.and_then(|l| l.vbs.get(vb)).map_or(0, |l| l.position.seqno),
                        covered: last.and_then(|l| l.vbs.get(vb)).map_or(0, |l| l.covered),
                        source_last: entry.map_or(0, |e| e.source_last(vb)),
                    })
                    .collect();
                BucketStatus {
                    name: name.clone(),
                    st: last.map_or(0, |l| l.number),
                    exact: last.is_some_and(StabilityTimestamp::exact),
                    vbuckets,
                    durable: bucket.history.last().map_or(0, |h| h.number),
                    sessions: bucket.sessions.len(),
                }
            })
            .collect();
        ClusterStatus {
            cluster_manager: String::new(),
            bootstrap: Vec::new(),
            coordinator: self.config.node.clone(),
            term: self.context.term,
            version: self.context.version,
            members,
            buckets,
        }
    }
}
