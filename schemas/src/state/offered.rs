//! What becomes of a record that is offered to a StateContext.

use super::{
    FORMAT,
    record::{Change, Record},
};

/// Why a record cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("record {found} follows {expected}: the log has a hole or is another log")]
    Order { expected: u64, found: u64 },
    #[error("record {version} does not continue the hash chain: this is another log")]
    Chain { version: u64 },
    #[error("record {version} has term {found}, below {current}")]
    Term { version: u64, found: u64, current: u64 },
    #[error("record {version} cannot be read: {why}")]
    Garbage { version: u64, why: String },
    #[error("record {version} speaks of {what}, which does not exist")]
    Unknown { version: u64, what: String },
    #[error("record {version} has format {found}; this version reads format {FORMAT}")]
    Format { version: u64, found: u32 },
}

/// What became of a record that was offered.
#[derive(Debug, Clone, PartialEq)]
pub enum Offered {
    /// It was the next one.
    Applied(Box<Record>),
    /// It is part of what is known already.
    Known,
    /// A snapshot took the place of everything.
    Replaced,
}

/// Which buckets a record changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerns {
    Nothing,
    Bucket(String),
    Everything,
}

impl Offered {
    /// Which buckets it changed.
    pub fn concerns(&self) -> Concerns {
        match self {
            Self::Applied(record) => match (&record.change, record.change.bucket()) {
                (_, Some(bucket)) => Concerns::Bucket(bucket.to_owned()),
                // Owners and sessions name their nodes; a snapshot that could be applied says nothing new.
                (Change::NodeJoined { .. } | Change::NodeLeft { .. } | Change::Snapshot { .. }, None) => {
                    Concerns::Nothing
                }
                (_, None) => Concerns::Everything,
            },
            Self::Known => Concerns::Nothing,
            Self::Replaced => Concerns::Everything,
        }
    }
}
