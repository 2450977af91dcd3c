//! Where one slice stands.

use super::{staging::Staging, walks::Walks};
use crate::store::{SliceMark, SliceVb};
use highwater_schemas::{Position, api::SliceState, state::SliceName};

/// What a slice follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Needs a session and is in none.
    Waiting,
    Session,
    /// Its session is far enough: what it collected is being written before live batches may follow.
    Flushing,
    /// The mutation topic.
    InStep,
    Failed(String),
}

/// How far a slice is in its session, in one vbucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowedVb {
    pub read: u64,
    pub covered: u64,
    /// The list of present documents that the session begins with is not complete yet.
    pub listing: bool,
    /// What was overwritten while it was read is there once this is covered.
    pub listed: u64,
}

/// How far a slice is in its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    pub id: u64,
    pub vbs: Vec<FollowedVb>,
    /// Sequence in the catchup topic of the last batch taken.
    pub topic: u64,
}

/// One slice.
#[derive(Debug, Clone)]
pub struct Slice {
    pub name: SliceName,
    /// The topology version in which it appeared.
    pub topology: u64,
    pub vbs: Vec<SliceVb>,
    pub mode: Mode,
    /// Has never been readable since it was empty.
    pub building: bool,
    pub readable: bool,
    /// Per vbucket: readable from the first ST whose covered is at or above this.
    pub readable_from: Vec<u64>,
    /// Per vbucket: up to here a session has read the source, and nothing of it was hidden.
    pub read: Vec<u64>,
    /// The newest ST applied.
    pub applied: u64,
    pub term: u64,
    pub docs_done: u64,
    pub following: Option<Following>,
    pub done_with: u64,
    /// Newest durable ST; 0 when none is.
    pub durable: u64,
    pub persisting: bool,
    /// A persistence timestamp was applied meanwhile.
    pub owed: bool,
    /// What it holds must be compared with every present document before it can join the chain.
    pub compare: bool,
    /// Is empty: what sessions bring is collected without looking anything up.
    pub bulk: bool,
    /// A failed flush is tried again at this time; 0: as soon as the time is known.
    pub retry_flush: Option<u64>,
    /// The last step of its build is running: nothing more can be collected until it has ended, whatever becomes of the session.
    pub ending: bool,
    /// Sequence of the catchup topic up to which the session's batches are durable.
    pub session_durable: u64,
    /// The session of a reconcile that it is compared with.
    pub staging: Option<Staging>,
    /// The newest reconcile that it was compared for, the newest for which what differs is at hand, and the newest session that it
    /// could not be compared with.
    pub staged: u64,
    pub prepared: u64,
    pub unstaged: u64,
    /// What it missed may have left nothing to read: delete markers do not stay.
    pub late: bool,
    /// The topic was empty when it was opened.
    pub cut: bool,
    /// Walks over its documents that have not ended.
    pub walks: Walks,
    /// Since when an ST is out of reach, and where the chain ended then.
    pub stuck: Vec<Option<(u64, Position)>>,
}

impl Slice {
    /// What the chain must know of it to carry it on.
    pub fn chain(&self) -> (u32, u64) {
        (self.name.index, self.topology)
    }

    /// Whether it is on the branches in force.
    pub fn on_branch(&self, shares: &[super::Shares]) -> bool {
        self.vbs.len() == shares.len() && self.vbs.iter().zip(shares).all(|(vb, s)| vb.vbuuid == s.vbuuid)
    }

    /// A slice as its store was opened.
    pub fn opened(name: SliceName, topology: u64, mark: &SliceMark, bulk: bool, vbuuids: &[u64]) -> Self {
        let fresh = mark.vbs.len() != vbuuids.len();
        let vbs = if fresh {
            vbuuids.iter().map(|vbuuid| SliceVb { vbuuid: *vbuuid, ..SliceVb::default() }).collect()
        } else {
            mark.vbs.clone()
        };
        let building = fresh || mark.building || mark.compare;
        Self {
            name,
            topology,
            readable_from: vec![0; vbs.len()],
            read: vec![0; vbs.len()],
            vbs,
            mode: if building { Mode::Waiting } else { Mode::InStep },
            building,
            readable: !building,
            applied: if building { 0 } else { mark.st },
            term: mark.term,
            docs_done: if fresh { 0 } else { mark.docs_done },
            following: None,
            done_with: 0,
            durable: if building { 0 } else { mark.st },
            persisting: false,
            owed: false,
            compare: mark.compare,
            bulk: building && bulk,
            retry_flush: None,
            ending: false,
            session_durable: 0,
            staging: None,
            staged: 0,
            prepared: 0,
            unstaged: 0,
            late: false,
            cut: false,
            walks: Walks::default(),
            stuck: Vec::new(),
        }
    }

    pub fn in_step(&self) -> bool {
        self.mode == Mode::InStep
    }

    /// Per vbucket where a new session may start.
    pub fn resume(&self) -> Vec<u64> {
        self.vbs.iter().map(|vb| vb.covered.min(vb.position.seqno)).collect()
    }

    /// It needs live batches that it cannot apply yet.
    pub fn holds(&self) -> bool {
        matches!(self.mode, Mode::Waiting | Mode::Session | Mode::Flushing)
    }

    pub fn state(&self) -> SliceState {
        match self.mode {
            Mode::Failed(_) => SliceState::Error,
            Mode::InStep if self.readable => SliceState::Active,
            Mode::InStep => SliceState::Merged,
            _ if self.building => SliceState::Building,
            _ => SliceState::Catchup,
        }
    }

    /// It is what these branches have in common with what it was, or has yet to find out what of it is not.
    ///
    /// `common`: up to which seqno each branch has the messages of the slice's own.
    pub fn adopt(&mut self, vbuuids: &[u64], common: &[u64]) {
        for ((vb, vbuuid), common) in self.vbs.iter_mut().zip(vbuuids).zip(common) {
            vb.proven = if self.compare { vb.proven.min(*common) } else { *common };
            vb.vbuuid = *vbuuid;
            vb.position = Position::ZERO;
            vb.covered = 0;
        }
        self.fall_out();
        self.compare = true;
        self.applied = 0;
        self.durable = 0;
    }

    /// Its chain is broken: it needs a session, from what it has covered.
    pub fn fall_out(&mut self) {
        if let Some(following) = self.following.take() {
            self.done_with = self.done_with.max(following.id);
        }
        for vb in &mut self.vbs {
            vb.position.seqno = vb.position.seqno.min(vb.covered);
        }
        self.mode = Mode::Waiting;
        self.session_durable = 0;
        self.readable = false;
        self.walks.clear();
        self.stuck.clear();
        self.cut = false;
        self.unstage();
        if self.late {
            self.compare_all();
        }
    }

    /// It falls out, and is to be compared with every present document.
    pub fn fall_out_to_compare(&mut self) {
        self.fall_out();
        self.compare_all();
    }

    /// As far as it is not known to be of an abandoned branch, it is of the one in force.
    pub fn compare_all(&mut self) {
        if !std::mem::replace(&mut self.compare, true) {
            for vb in &mut self.vbs {
                vb.proven = u64::MAX;
            }
        }
    }

    /// What is stored with its data.
    pub fn mark(&self, topic: u64, topic_created: i64) -> SliceMark {
        SliceMark {
            st: self.applied,
            term: self.term,
            building: !(self.in_step() && self.readable),
            compare: self.compare,
            vbs: self.vbs.clone(),
            topic,
            topic_created,
            docs_done: self.docs_done,
            events: 0,
            at: 0,
        }
    }
}
