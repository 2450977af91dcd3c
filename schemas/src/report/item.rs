//! What is told: one item for each thing, and a key for each item.

use crate::{
    api::{MOST_WORDS, SessionReading, SliceReport, SliceState, Suspicion, VbReads},
    state::SliceName,
    timestamp::StabilityTimestamp,
};
use serde::{Deserialize, Serialize};

/// Bytes of the subjects of the bookmarks that prove a suspicion; the oldest are left out.
const PROOF: usize = 4 * 1024;

/// What a node says of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// The newest ST of a bucket that an indexer had applied when the edition began. What it applies later in the term its
    /// coordinator has issued itself.
    Applied { bucket: String, st: StabilityTimestamp },
    /// A slice of an indexer.
    Slice(SliceItem),
    /// What a projector found in a source that contradicts what was read from it before.
    Suspicion(Suspicion),
    /// A session that a projector cannot go on with.
    BrokenSession { bucket: String, session: u64 },
    /// A projector asks for a reconcile with a higher number.
    Reconcile { bucket: String, after: u64 },
    /// A projector has documents to name in a reconcile with a higher number.
    Named { bucket: String, after: u64 },
    /// What a projector covers stands still until a reconcile.
    Urgent { bucket: String },
    /// A projector cannot go on with the chain of a vbucket in this generation.
    LostChain { bucket: String, vb: u16, generation: u64 },
    /// How far a projector has read for a session.
    Reading(SessionReading),
    /// What a projector has read of a vbucket.
    Reads(VbReads),
}

/// Tells the items of a bucket from each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    Applied,
    Slice { index: u32, partition: u32 },
    Suspicion { vb: u16 },
    BrokenSession { session: u64 },
    Reconcile,
    Named,
    Urgent,
    LostChain { vb: u16, generation: u64 },
    Reading { session: u64, vb: u16 },
    Reads { vb: u16 },
}

/// What the coordinator must know of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceItem {
    pub bucket: String,
    pub index: u32,
    pub partition: u32,
    pub state: SliceState,
    /// As in [`SliceReport`], as are those below.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub done_with: u64,
    /// Empty where it needs no session, and where it begins at zero.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resume: Vec<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub built: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub to_build: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compare: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub branch: u64,
    /// Empty where it holds no more than the newest ST that its node has applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content: Vec<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub staged: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unstaged: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Item {
    /// Of a slice, what the coordinator must know.
    pub fn slice(report: &SliceReport) -> Self {
        let waits = matches!(report.state, SliceState::Building | SliceState::Catchup);
        let resume = if waits && report.resume.iter().any(|at| *at > 0) { report.resume.clone() } else { Vec::new() };
        // An active one has been readable since an ST that covers all that it held.
        let content = if report.state == SliceState::Active { Vec::new() } else { report.content.clone() };
        Self::Slice(SliceItem {
            bucket: report.bucket.clone(),
            index: report.index,
            partition: report.partition,
            state: report.state,
            session: report.session,
            done_with: report.done_with,
            resume,
            built: report.built,
            to_build: report.to_build,
            error: report.error.as_ref().map(|error| error.chars().take(MOST_WORDS).collect()),
            compare: report.compare,
            branch: report.branch,
            content,
            staged: report.staged,
            unstaged: report.unstaged,
        })
    }

    /// With as much of its proof as fits.
    pub fn suspicion(suspicion: &Suspicion) -> Self {
        let mut room = PROOF;
        let fits = suspicion.bookmarks.iter().rev().take_while(|bookmark| {
            let size = bookmark.subject.len() + 64;
            room.checked_sub(size).map(|left| room = left).is_some()
        });
        let fitting = fits.count();
        let bookmarks = suspicion.bookmarks[suspicion.bookmarks.len() - fitting..].to_vec();
        let reason = suspicion.reason.chars().take(MOST_WORDS).collect();
        Self::Suspicion(Suspicion { bookmarks, reason, bucket: suspicion.bucket.clone(), ..*suspicion })
    }

    pub fn bucket(&self) -> &str {
        match self {
            Self::Slice(slice) => &slice.bucket,
            Self::Suspicion(suspicion) => &suspicion.bucket,
            Self::Reading(reading) => &reading.bucket,
            Self::Reads(reads) => &reads.bucket,
            Self::Applied { bucket, .. }
            | Self::BrokenSession { bucket, .. }
            | Self::Reconcile { bucket, .. }
            | Self::Named { bucket, .. }
            | Self::Urgent { bucket }
            | Self::LostChain { bucket, .. } => bucket,
        }
    }

    pub fn key(&self) -> Key {
        match self {
            Self::Applied { .. } => Key::Applied,
            Self::Slice(slice) => Key::Slice { index: slice.index, partition: slice.partition },
            Self::Suspicion(suspicion) => Key::Suspicion { vb: suspicion.vb },
            Self::BrokenSession { session, .. } => Key::BrokenSession { session: *session },
            Self::Reconcile { .. } => Key::Reconcile,
            Self::Named { .. } => Key::Named,
            Self::Urgent { .. } => Key::Urgent,
            Self::LostChain { vb, generation, .. } => Key::LostChain { vb: *vb, generation: *generation },
            Self::Reading(reading) => Key::Reading { session: reading.session, vb: reading.vb },
            Self::Reads(reads) => Key::Reads { vb: reads.vb },
        }
    }

    /// It only counts work: nothing is decided by it.
    pub fn is_count(&self) -> bool {
        matches!(self, Self::Reading(_) | Self::Reads(_))
    }
}

impl SliceItem {
    pub fn name(&self) -> SliceName {
        SliceName { index: self.index, partition: self.partition }
    }
}

/// As the coordinator keeps it: what is not told is zero.
impl From<SliceItem> for SliceReport {
    fn from(item: SliceItem) -> Self {
        Self {
            session: item.session,
            done_with: item.done_with,
            resume: item.resume,
            built: item.built,
            to_build: item.to_build,
            error: item.error,
            compare: item.compare,
            branch: item.branch,
            content: item.content,
            staged: item.staged,
            unstaged: item.unstaged,
            ..Self::new(&item.bucket, SliceName { index: item.index, partition: item.partition }, item.state)
        }
    }
}
