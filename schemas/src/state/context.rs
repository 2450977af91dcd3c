//! The StateContext: what the log of changes adds up to.

use super::{
    FORMAT,
    bucket::{Bucket, Failover, Index, IndexState, RangeStart, Session, Vbucket},
    image,
    limits::{in_short, most_history, most_reasons, most_starts, thin},
    offered::{Offered, StateError},
    packing,
    record::{Change, Record, is_record, may_be_record},
    rollback::RollbackPhase,
    topic::Subscription,
};
use crate::api::NodeKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A registered node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    pub incarnation: u64,
    /// It has left, or missed its heartbeats.
    pub gone: bool,
    /// The version of the record that said so; 0 while it is there, and where that was not written down.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Everything that the log says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StateContext {
    /// The log's life: rises when it was lost and published anew.
    pub incarnation: u64,
    pub term: u64,
    pub version: u64,
    /// Hash of the last record.
    pub hash: String,
    pub coordinator: String,
    #[serde(with = "image::nodes")]
    pub nodes: BTreeMap<(NodeKind, String), NodeEntry>,
    pub buckets: BTreeMap<String, Bucket>,
    /// The next index number.
    pub next_index: u32,
    pub next_session: u64,
}

impl StateContext {
    /// Takes a record as the log brings it, whatever it brings: the next one, one that is known, a snapshot, or what somebody else
    /// wrote, which changes nothing.
    ///
    /// # Errors
    /// The record cannot be read by this version, or is of another log; nothing has changed then.
    pub fn offer(&mut self, payload: &[u8]) -> Result<Offered, StateError> {
        let Ok(json) = packing::unpack(payload) else { return Ok(Offered::Known) };
        let mut record = match serde_json::from_slice::<Record>(&json) {
            Ok(r) if !may_be_record(r.incarnation, r.term, r.version, &r.prev) => return Ok(Offered::Known),
            Ok(record) => record,
            Err(_) if !is_record(payload) => return Ok(Offered::Known),
            Err(error) => {
                let version = self.version.saturating_add(1);
                return Err(StateError::Garbage { version, why: error.to_string() });
            }
        };
        let (version, hash) = (record.version, Record::hash(&json));
        if record.format != FORMAT {
            return Err(StateError::Format { version, found: record.format });
        }
        let fresh = self.version == 0;
        if !fresh && record.incarnation == self.incarnation && version <= self.version {
            // Read again. Only the newest hash is kept to compare.
            return if version < self.version || hash == self.hash {
                Ok(Offered::Known)
            } else {
                Err(StateError::Chain { version })
            };
        }
        if !fresh && record.incarnation < self.incarnation && record.term < self.term {
            // Of a life that was over before this one began, and came back: the log is published anew.
            return Ok(Offered::Known);
        }
        if record.term < self.term {
            return Err(StateError::Term { version, found: record.term, current: self.term });
        }
        let next = version == self.version + 1 && record.prev == self.hash;
        if let Change::Snapshot { context, .. } = &mut record.change {
            // One of this life is ahead of us or next; a later life takes the place of whatever this one was.
            let ahead = record.incarnation == self.incarnation && version > self.version + 1;
            if !(fresh || next || ahead || record.incarnation > self.incarnation) {
                return Err(StateError::Chain { version });
            }
            // Nothing is copied: it may be large. Which version it is of says the record, not the context in it.
            let mut image = std::mem::take(&mut **context);
            image.term = record.term;
            (image.incarnation, image.version) = (self.incarnation, self.version);
            image.hash.clone_from(&self.hash);
            let same = next && image == *self;
            let before = std::mem::replace(self, Self { incarnation: record.incarnation, version, hash, ..image });
            if !same {
                return Ok(Offered::Replaced);
            }
            **context = before;
            return Ok(Offered::Applied(Box::new(record)));
        }
        if version != self.version + 1 {
            return Err(StateError::Order { expected: self.version + 1, found: version });
        }
        if !next || !(fresh || record.incarnation == self.incarnation) {
            return Err(StateError::Chain { version });
        }
        self.apply(&record)?;
        self.incarnation = record.incarnation;
        self.term = record.term;
        self.version = version;
        self.hash = hash;
        Ok(Offered::Applied(Box::new(record)))
    }

    /// The record that would carry `change` as the next of the log.
    pub fn record(&self, change: Change, term: u64, at: u64) -> Record {
        Record {
            format: FORMAT,
            incarnation: self.incarnation.max(1),
            term,
            version: self.version + 1,
            prev: self.hash.clone(),
            at,
            change,
        }
    }

    /// The index managers that ever were; gone ones last.
    pub fn registered(&self) -> impl Iterator<Item = &str> {
        let managers = self.nodes.iter().filter(|((kind, _), _)| *kind == NodeKind::Coordinator);
        let (gone, there) = (managers.clone().filter(|(_, e)| e.gone), managers.filter(|(_, e)| !e.gone));
        there.chain(gone).map(|((_, node), _)| node.as_str())
    }

    /// Whether a change speaks of what exists: what passes can be applied as the next record.
    pub fn check(&self, change: &Change) -> Result<(), StateError> {
        let version = self.version + 1;
        if let Change::IndexCreated { index } = change
            && let Err(error) = index.compile()
        {
            let why = format!("index {}: {error}", index.definition.name);
            return Err(StateError::Garbage { version, why });
        }
        let Some(name) = change.bucket().filter(|_| !matches!(change, Change::BucketAdded { .. })) else {
            return Ok(());
        };
        // Removing what is gone changes nothing.
        if matches!(change, Change::BucketRemoved { .. }) {
            return Ok(());
        }
        let bucket = known(self.buckets.get(name), version, What::Bucket(name))?;
        match change {
            Change::VbucketAssigned { vb, .. } | Change::BranchStarted { vb, .. } => {
                known(bucket.vbuckets.get(usize::from(*vb)), version, What::Vbucket(name, *vb)).map(|_| ())
            }
            Change::IndexPrepared { index, .. }
            | Change::IndexActive { index, .. }
            | Change::IndexFailed { index, .. } => {
                known(bucket.indexes.get(index), version, What::Index(name, *index)).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Changes nothing when it fails: what a change speaks of is looked up before anything is touched.
    fn apply(&mut self, record: &Record) -> Result<(), StateError> {
        let version = record.version;
        match &record.change {
            Change::TermStarted { coordinator } => self.coordinator.clone_from(coordinator),
            Change::NodeJoined { node, kind, incarnation } => {
                let entry = NodeEntry { incarnation: *incarnation, gone: false, left: 0 };
                self.nodes.insert((*kind, node.clone()), entry);
            }
            Change::NodeLeft { node, kind } => {
                if let Some(entry) = self.nodes.get_mut(&(*kind, node.clone())) {
                    (entry.gone, entry.left) = (true, version);
                }
                self.forget_nodes();
            }
            Change::BucketAdded { definition, vbuuids, starts } => {
                let starts = starts.iter().copied().chain(std::iter::repeat(0));
                let vbuckets = vbuuids.iter().zip(starts);
                let vbuckets =
                    vbuckets.map(|(vbuuid, start)| Vbucket::new(vec![Failover::first(*vbuuid, record.at)], start));
                let bucket = Bucket::new(definition.clone(), vbuckets.collect(), version);
                self.buckets.insert(definition.name.clone(), bucket);
            }
            Change::BucketRemoved { bucket } => {
                self.buckets.remove(bucket);
            }
            Change::VbucketAssigned { bucket, vb, generation, projector, incarnation, x, restart, held, dropped } => {
                let most = most_starts(self.bucket(version, bucket)?.vbuckets.len());
                let entry = self.vbucket(version, bucket, *vb)?;
                entry.generation = *generation;
                entry.projector.clone_from(projector);
                entry.incarnation = *incarnation;
                entry.restart = *restart;
                entry.held = *held;
                entry.dropped = *dropped;
                let start = RangeStart { vbuuid: entry.vbuuid(), x: *x, term: record.term, merged: false };
                entry.begin(*generation, start, most);
            }
            Change::BranchStarted { bucket, vb, vbuuid, start, last, broken, bookmarks, reason } => {
                let (vbuuid, start, broken) = (*vbuuid, *start, *broken);
                let branch = Failover { vbuuid, start, broken, at: record.at, reason: in_short(reason) };
                let vbuckets = self.bucket(version, bucket)?.vbuckets.len();
                let vbucket = self.vbucket(version, bucket, *vb)?;
                vbucket.branch(branch, *last, most_reasons(vbuckets));
                vbucket.bookmark(bookmarks.iter().filter(|b| b.seqno <= start), vbuckets);
                self.bucket(version, bucket)?.begin_rollback(version, *vb);
            }
            Change::RollbackPrepared { bucket } => {
                if let Some(rollback) = &mut self.bucket(version, bucket)?.rollback {
                    rollback.phase = RollbackPhase::Restart;
                }
            }
            Change::RollbackDone { bucket } => self.bucket(version, bucket)?.end_rollback(record.at),
            Change::ReconcileStarted { bucket, id, named } => {
                self.bucket(version, bucket)?.begin_reconcile(*id, record.at, *named);
                self.next_session = self.next_session.max(*id);
            }
            Change::ReconcileStaged { bucket } => self.bucket(version, bucket)?.reconcile_staged(),
            Change::ReconcileDone { bucket, named } => self.bucket(version, bucket)?.end_reconcile(record.at, *named),
            Change::IndexCreated { index } => {
                let compiled = index.compile().map_err(|e| StateError::Garbage {
                    version,
                    why: format!("index {}: {e}", index.definition.name),
                })?;
                let entry = self.bucket(version, &index.definition.bucket)?;
                entry.indexes.insert(
                    index.number,
                    Index { placed: index.clone(), compiled, state: IndexState::Preparing, topology: 0 },
                );
                self.next_index = self.next_index.max(index.number);
            }
            Change::IndexPrepared { bucket, index } => {
                self.index(version, bucket, *index)?.state = IndexState::Created;
            }
            Change::IndexBuilding { bucket, indexes } => {
                let entry = self.bucket(version, bucket)?;
                entry.topology = version;
                for number in indexes {
                    if let Some(index) = entry.indexes.get_mut(number) {
                        index.state = IndexState::Building;
                        index.topology = version;
                    }
                }
            }
            Change::IndexActive { bucket, index } => self.index(version, bucket, *index)?.state = IndexState::Active,
            Change::IndexFailed { bucket, index, reason } => {
                self.index(version, bucket, *index)?.state = IndexState::Failed(in_short(reason));
            }
            Change::IndexDropped { bucket, index, reason: _ } => {
                let entry = self.bucket(version, bucket)?;
                entry.topology = version;
                entry.indexes.remove(index);
                for session in entry.sessions.values_mut() {
                    session.slices.retain(|s| s.index != *index);
                }
                entry.sessions.retain(|_, s| !s.slices.is_empty());
            }
            Change::SessionOpened { bucket, session, node, incarnation, slices, vbs, kind } => {
                let entry = self.bucket(version, bucket)?;
                let opened = Session {
                    id: *session,
                    node: node.clone(),
                    incarnation: *incarnation,
                    slices: slices.clone(),
                    vbs: vbs.clone(),
                    topology: entry.topology,
                    kind: *kind,
                };
                entry.sessions.insert(*session, opened);
                self.next_session = self.next_session.max(*session);
            }
            Change::SessionClosed { bucket, session } => {
                self.bucket(version, bucket)?.sessions.remove(session);
            }
            Change::TopicCreated { bucket, topic } => {
                self.bucket(version, bucket)?.topics.entry(topic.clone()).or_default();
            }
            Change::TopicDeleted { bucket, topic } => {
                let entry = self.bucket(version, bucket)?;
                entry.topics.remove(topic);
                entry.topology = version;
            }
            Change::Subscribed { bucket, topic, subscriber, predicate } => {
                let entry = self.bucket(version, bucket)?;
                entry.topology = version;
                let subscription = Subscription { predicate: predicate.clone() };
                entry.topics.entry(topic.clone()).or_default().subscriptions.insert(subscriber.clone(), subscription);
            }
            Change::Unsubscribed { bucket, topic, subscriber } => {
                let entry = self.bucket(version, bucket)?;
                entry.topology = version;
                if let Some(topic) = entry.topics.get_mut(topic) {
                    topic.subscriptions.remove(subscriber);
                }
            }
            // Taken whole before.
            Change::Snapshot { .. } => {}
            Change::NumbersReserved { bucket, below } => self.bucket(version, bucket)?.numbers_below = *below,
            Change::Bookmarked { bucket, bookmarks } => {
                let vbuckets = &mut self.bucket(version, bucket)?.vbuckets;
                let many = vbuckets.len();
                for (vbucket, new) in vbuckets.iter_mut().zip(bookmarks) {
                    vbucket.bookmark(new.iter(), many);
                }
            }
            Change::Persisted { bucket, st } => {
                let entry = self.bucket(version, bucket)?;
                entry.history.push(st.clone());
                thin(&mut entry.history, most_history(entry.vbuckets.len()));
            }
        }
        Ok(())
    }

    fn bucket(&mut self, version: u64, name: &str) -> Result<&mut Bucket, StateError> {
        known(self.buckets.get_mut(name), version, What::Bucket(name))
    }

    fn vbucket(&mut self, version: u64, bucket: &str, vb: u16) -> Result<&mut Vbucket, StateError> {
        let vbuckets = &mut self.bucket(version, bucket)?.vbuckets;
        known(vbuckets.get_mut(usize::from(vb)), version, What::Vbucket(bucket, vb))
    }

    fn index(&mut self, version: u64, bucket: &str, number: u32) -> Result<&mut Index, StateError> {
        let indexes = &mut self.bucket(version, bucket)?.indexes;
        known(indexes.get_mut(&number), version, What::Index(bucket, number))
    }

    /// The nodes of a kind that are there.
    pub fn alive(&self, kind: NodeKind) -> impl Iterator<Item = (&str, &NodeEntry)> {
        self.nodes.iter().filter(move |((k, _), e)| *k == kind && !e.gone).map(|((_, n), e)| (n.as_str(), e))
    }
}

/// What a change speaks of.
#[derive(Clone, Copy)]
enum What<'a> {
    Bucket(&'a str),
    Vbucket(&'a str, u16),
    Index(&'a str, u32),
}

fn known<T>(found: Option<T>, version: u64, what: What<'_>) -> Result<T, StateError> {
    found.ok_or_else(|| {
        let what = match what {
            What::Bucket(bucket) => format!("bucket {bucket}"),
            What::Vbucket(bucket, vb) => format!("vbucket {vb} of {bucket}"),
            What::Index(bucket, number) => format!("index {number} of {bucket}"),
        };
        StateError::Unknown { version, what }
    })
}
