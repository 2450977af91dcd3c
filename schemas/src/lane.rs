//! The bounded in-process channel between the projector and the router that runs beside it.
//!
//! A *lane* carries one vbucket's key versions in order, either for a generation of the mutation topic or for a catchup
//! session. The projector opens a lane by handing its receiving end to the router.

use crate::{
    timestamp::{Asked, Bookmark, Dropped, Position},
    wire::{KeyVersions, Removal},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::mpsc;

/// Chunks that may wait in a lane; a projector that is ahead of its router waits here.
pub const LANE_CAPACITY: usize = 32;
/// So many lanes of a process have all of these places; more share what these have together, and each has a few.
const WHOLE_LANES: usize = 8;
const LEAST_CAPACITY: usize = 4;
/// A chunk waits for a place for each of these bytes, and for no more than there are, and then keeps one: of chunks of 128 KiB 29
/// wait in a whole lane, less than 4 MiB, and of larger ones fewer, up to a single one.
const PLACE: usize = 32 * 1024;
/// The least that nats-server must take in one message, bytes, which is its default: an interval of the chain may hold entries of
/// [`MAX_ENTRY`](crate::wire::MAX_ENTRY) bytes for every index, and is sent in as many messages as there are indexes at most.
pub const LEAST_PAYLOAD: usize = 1024 * 1024;
/// Lanes that may wait to be taken up by the router.
pub const OPEN_CAPACITY: usize = 64;

/// Who gets which of a bucket's entries, under one topology version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    pub topology: u64,
    /// Node → the (index number, partition, number of partitions) that it hosts.
    pub nodes: BTreeMap<String, Vec<(u32, u32, u32)>>,
}

/// What a lane is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaneTarget {
    /// Every subscriber's mutation subject.
    Mutation,
    /// One catchup session's subject.
    Catchup { session: u64 },
}

/// A new lane.
#[derive(Debug)]
pub struct OpenLane {
    pub bucket: String,
    pub vb: u16,
    pub vbuuid: u64,
    pub generation: u64,
    pub target: LaneTarget,
    /// Where the chain starts.
    pub from: Position,
    /// What the rounds up to there have dropped.
    pub dropped: Dropped,
    /// Creation time of the source stream, nanoseconds since the epoch.
    pub created: i64,
    pub input: mpsc::Receiver<Chunk>,
}

/// A position that timestamps may name, in the round of what it comes with: no atomic batch of the source has messages on both
/// sides of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// At or below where the lane is: what lies between may be a part of a batch.
    pub seqno: u64,
    /// Server time and hash of the last message up to there; 0 where that is gone.
    pub server_time: i64,
    pub hash: u64,
}

/// A step of a lane.
#[derive(Debug)]
pub enum Chunk {
    /// Key versions up to a position, maybe none.
    Versions {
        routes: Arc<Routes>,
        versions: KeyVersions,
        to: Position,
        covered: u64,
        server_time: i64,
        hash: u64,
        /// The last message, if there was one.
        bookmark: Option<Bookmark>,
        /// None: nothing newer than before.
        offer: Option<Offer>,
        /// Nothing more was ready: send at once.
        idle: bool,
        /// Send even when it is empty: a chain may start here.
        anchor: bool,
    },
    /// The list of present documents, up to this seqno, is complete. Sessions only.
    Listed { to: Position },
    /// Documents vanished without a message: the next round. Never in a session. `versions`: those that it names.
    Removed { round: u64, removal: Removal, versions: KeyVersions, offer: Option<Offer> },
    /// `covered` rose, or a want was answered, without new messages.
    Covered { to: Position, covered: u64, asked: Vec<Asked>, source_last: u64, offer: Option<Offer> },
}

impl Chunk {
    /// Places that it takes in a lane.
    fn places(&self, most: usize) -> usize {
        match self {
            Self::Versions { versions, .. } | Self::Removed { versions, .. } => {
                versions.size().div_ceil(PLACE).clamp(1, most)
            }
            _ => 1,
        }
    }
}

/// Places of a lane in a process with so many readers of streams.
pub fn capacity(readers: usize) -> usize {
    (WHOLE_LANES * LANE_CAPACITY / readers.max(1)).clamp(LEAST_CAPACITY, LANE_CAPACITY)
}

/// Puts a chunk into a lane, once there is room for it; false: nobody takes it any more. One sender at a time.
pub async fn send(lane: &mpsc::Sender<Chunk>, chunk: Chunk) -> bool {
    // What is not used of these places is free again at once: they only have to be empty when a large chunk comes.
    match lane.reserve_many(chunk.places(lane.max_capacity())).await {
        Ok(mut places) => {
            if let Some(place) = places.next() {
                place.send(chunk);
            }
            true
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::DocOp;
    use std::time::Duration;

    fn chunk(bytes: usize) -> Chunk {
        let mut versions = KeyVersions::default();
        versions.push_doc(1, &"x".repeat(bytes), DocOp::Put);
        Chunk::Versions {
            routes: Arc::default(),
            versions,
            to: Position::default(),
            covered: 0,
            server_time: 0,
            hash: 0,
            bookmark: None,
            offer: None,
            idle: false,
            anchor: false,
        }
    }

    #[tokio::test]
    async fn a_lane_holds_small_chunks_or_one_that_is_large() {
        assert_eq!([0, 1, 8, 16, 64, 1_000].map(capacity), [32, 32, 32, 16, 4, 4]);
        let (lane, mut taken) = mpsc::channel(LANE_CAPACITY);
        for _ in 0..LANE_CAPACITY {
            assert!(send(&lane, chunk(10)).await);
        }
        let large = 8 * LANE_CAPACITY * PLACE;
        let mut waiting = Box::pin(send(&lane, chunk(large)));
        for _ in 0..LANE_CAPACITY {
            assert!(tokio::time::timeout(Duration::from_millis(1), &mut waiting).await.is_err(), "it waits");
            taken.recv().await.unwrap();
        }
        assert!(waiting.await);
        let mut next = Box::pin(send(&lane, chunk(large)));
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut next).await.is_err(), "one at a time");
        taken.recv().await.unwrap();
        assert!(next.await);
        drop(taken);
        assert!(!send(&lane, chunk(1)).await);
    }
}
