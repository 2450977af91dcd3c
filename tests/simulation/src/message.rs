//! What travels, and what waits to be taken up.

use crate::{log::Payload, node::Node, rng::Rng};
use highwater_cluster_manager::core::Seen;
use highwater_coordinator::{core::Ddl, core::Job, manager::Outcome};
use highwater_schemas::{
    ApiError,
    api::{Bootstrap, BootstrapReply, ClusterEvent, Join, Lease, LeaseWritten, Leave},
    report::ReportPart,
    wire::{HighWatermark, Stability, Sync},
};
use serde_json::Value;
use std::{collections::VecDeque, rc::Rc};

/// A request whose answer is waited for.
pub type Ask = u64;

/// What reaches a process.
#[derive(Debug, Clone)]
pub enum Message {
    Join(Rc<Join>),
    Report(Rc<ReportPart>),
    /// To a node.
    AskReport,
    Leave(Leave),
    Cluster(Rc<ClusterEvent>),
    Sync(Rc<Sync>),
    Hwt(Rc<HighWatermark>),
    Stability(Rc<Stability>),
    Nominate {
        ask: Ask,
        bootstrap: Bootstrap,
    },
    Admin {
        ask: Ask,
        ddl: Ddl,
    },
    Assign {
        ask: Ask,
    },
    /// What an own request came to; no answer: it took too long.
    Outcome(Purpose, Option<Answer>),
    /// The log is read from its beginning.
    Opened,
    Record(Payload),
}

/// What a request was for.
#[derive(Debug, Clone)]
pub enum Purpose {
    Append { id: u64 },
    ReadAt { id: u64 },
    ReadLog,
    Look,
    Write { sent_at: u64 },
    Release,
    MakeBucket,
    Register { node: String },
    List,
    Nominate { to: String, term: u64 },
    Assign { job: Job, node: String },
    Probe { token: u64, ddl: Ddl },
    Streams { job: Job },
    Deletion { job: Job },
    Topics { term: u64 },
    Ddl,
}

/// What the server is asked to do.
#[derive(Debug, Clone)]
pub enum Request {
    /// `losses`: of the log, when it was decided.
    Append {
        expected: u64,
        payload: Payload,
        rollup: bool,
        losses: u64,
    },
    ReadAt(u64),
    ReadLog,
    Look,
    Write {
        lease: Lease,
        expected: u64,
    },
    Release(u64),
    MakeBucket,
    Register(String),
    List,
    /// Something that the simulation does not model further: streams of a bucket.
    Streams,
}

/// What came back.
#[derive(Debug, Clone)]
pub enum Answer {
    Appended(Outcome),
    Found(Option<Payload>),
    Contents(u64, Vec<Payload>),
    Seen(Seen),
    Written(LeaseWritten),
    Made(bool),
    Registered(bool),
    Names(Option<Vec<String>>),
    Bootstrap(BootstrapReply),
    Assigned(Result<(), ApiError>),
    Ddl(Result<Value, ApiError>),
    Done,
}

impl Message {
    /// The subscription or channel that it waits in.
    fn class(&self) -> usize {
        match self {
            Self::Outcome(..) => 0,
            Self::Nominate { .. } | Self::Assign { .. } | Self::AskReport => 1,
            Self::Opened | Self::Record(_) => 2,
            Self::Cluster(_) | Self::Stability(_) => 3,
            Self::Leave(_) => 4,
            Self::Join(_) | Self::Report(_) => 5,
            Self::Sync(_) => 6,
            Self::Hwt(_) => 7,
            Self::Admin { .. } => 8,
        }
    }
}

/// The classes that wait while an append is not settled begin here; leaves are not for index managers.
const FOR_THE_COORDINATOR: usize = 5;
const CLASSES: usize = 9;

/// What waits, by subscription. The order within one is kept; between them chance decides, as in the services' loops.
#[derive(Debug, Default)]
pub struct Inbox([VecDeque<Message>; CLASSES]);

impl Inbox {
    pub fn push(&mut self, message: Message) {
        self.0[message.class()].push_back(message);
    }

    /// `free`: also what is for the coordinator.
    pub fn take(&mut self, free: bool, rng: &mut Rng) -> Option<Message> {
        let classes = if free { CLASSES } else { FOR_THE_COORDINATOR };
        let ready = self.0[..classes].iter().filter(|q| !q.is_empty()).count();
        if ready == 0 {
            return None;
        }
        let nth = rng.below(ready as u64) as usize;
        self.0[..classes].iter_mut().filter(|q| !q.is_empty()).nth(nth)?.pop_front()
    }

    /// The log is read anew: what was read before counts for nothing.
    pub fn forget_log(&mut self) {
        self.0[2].clear();
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A request that is under way.
#[derive(Debug, Clone)]
pub struct Open {
    pub node: Node,
    pub life: u64,
    pub purpose: Purpose,
}
