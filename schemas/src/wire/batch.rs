//! A batch of a vbucket's chain, on a mutation or catchup subject.

use super::{KeyVersions, Kind, Message, VersionsView, WireError, access, versions::ArchivedKeyVersions};
use crate::timestamp::Position;
use rkyv::{Archive, Deserialize, Serialize};

/// Documents that vanished from the source without a message; one round each.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// Drop documents whose seqno is below this one, the source's first.
    Below(u64),
    /// In a mutation topic: apply what was staged for reconcile `session`. In a session: its list of the present documents,
    /// which goes up to seqno `upto`, is complete.
    Listed { session: u64, upto: u64 },
    /// In a mutation topic: reconcile `session` is of the documents that the batch names. Each is what the batch says, whatever the
    /// seqno of its last message, and has nothing where that is a delete; of other documents it says nothing.
    Named { session: u64 },
}

/// One interval of a vbucket's chain, for one subscriber.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub bucket: String,
    pub vb: u16,
    pub vbuuid: u64,
    pub generation: u64,
    /// The topology version it was packed under.
    pub topology: u64,
    /// 0 on a mutation subject, else the catchup session.
    pub session: u64,
    /// Exclusive. Equal to `to` in an anchor: an empty batch that a chain may start from.
    pub from: Position,
    /// Inclusive.
    pub to: Position,
    pub covered: u64,
    /// Server time of the message at `to`, nanoseconds since the epoch.
    pub server_time: i64,
    /// Hash of that message.
    pub hash: u64,
    /// Rises when a router sends its window again.
    pub attempt: u32,
    /// The seqno below which the rounds before this batch have dropped every document; 0 where none did.
    pub floor: u64,
    /// The newest reconcile that a round before this batch was; 0 where none was.
    pub reconciled: u64,
    pub removal: Option<Removal>,
    /// The indexes that it is for, by number; empty: all that the subscriber hosts. An interval that is too large for one message
    /// comes in several, each for indexes of its own.
    pub only: Vec<u32>,
    pub versions: KeyVersions,
}

impl Message for Batch {
    const KIND: Kind = Kind::Batch;

    fn size_hint(&self) -> usize {
        self.versions.size() + self.bucket.len() + 4 * self.only.len() + 256
    }
}

/// A received batch, validated once and read in place.
#[derive(Debug, Clone)]
pub struct BatchView<B> {
    bytes: B,
    pub vb: u16,
    pub vbuuid: u64,
    pub generation: u64,
    pub topology: u64,
    pub session: u64,
    pub from: Position,
    pub to: Position,
    pub covered: u64,
    pub server_time: i64,
    pub hash: u64,
    pub floor: u64,
    pub reconciled: u64,
    pub removal: Option<Removal>,
    only: Vec<u32>,
    /// Number of documents.
    pub docs: usize,
}

impl<B: AsRef<[u8]>> BatchView<B> {
    /// Validates the message and that it belongs to `bucket`.
    pub fn parse(bucket: &str, bytes: B) -> Result<Self, WireError> {
        let a = access::<Batch>(bytes.as_ref())?;
        if a.bucket != *bucket {
            return Err(WireError::Content("another bucket's batch"));
        }
        let position = |p: &crate::timestamp::ArchivedPosition| Position::new(p.seqno.to_native(), p.round.to_native());
        let (from, to, covered) = (position(&a.from), position(&a.to), a.covered.to_native());
        if !from.le(to) {
            return Err(WireError::Content("from is above to"));
        }
        if covered > to.seqno {
            return Err(WireError::Content("covered is above to"));
        }
        a.versions.check()?;
        let removal = a.removal.as_ref().map(|r| match r {
            ArchivedRemoval::Below(first) => Removal::Below(first.to_native()),
            ArchivedRemoval::Listed { session, upto } => {
                Removal::Listed { session: session.to_native(), upto: upto.to_native() }
            }
            ArchivedRemoval::Named { session } => Removal::Named { session: session.to_native() },
        });
        // Documents that are named were written before.
        let named = matches!(removal, Some(Removal::Named { .. }));
        // They rise, so the ends decide.
        if let Some((first, last)) = a.versions.seqnos()
            && (first <= from.seqno && !named || last > to.seqno)
        {
            return Err(WireError::Content("seqno outside the interval"));
        }
        let (vb, vbuuid, generation, topology) =
            (a.vb.to_native(), a.vbuuid.to_native(), a.generation.to_native(), a.topology.to_native());
        let (session, server_time, hash) = (a.session.to_native(), a.server_time.to_native(), a.hash.to_native());
        let docs = a.versions.view().len();
        let only = a.only.iter().map(|index| index.to_native()).collect();
        let (floor, reconciled) = (a.floor.to_native(), a.reconciled.to_native());
        Ok(Self {
            bytes,
            vb,
            vbuuid,
            generation,
            topology,
            session,
            from,
            to,
            covered,
            server_time,
            hash,
            floor,
            reconciled,
            removal,
            only,
            docs,
        })
    }

    /// The documents; empty if the bytes have changed since [`Self::parse`].
    pub fn versions(&self) -> Option<VersionsView<'_>> {
        access::<Batch>(self.bytes.as_ref()).ok().map(|a| ArchivedKeyVersions::view(&a.versions))
    }

    /// Whether it carries an index over its interval.
    pub fn is_for(&self, index: u32) -> bool {
        self.only.is_empty() || self.only.contains(&index)
    }

    /// Size of the message in bytes.
    pub fn size(&self) -> usize {
        self.bytes.as_ref().len()
    }
}
