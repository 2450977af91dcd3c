//! The meta record: what the slice is and what its data stands for, in the same transaction as the data; and the records of
//! kept snapshots.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | magic `HWSL`, of a kept snapshot `HWKS` |
//! | 4..8 | format version |
//! | 8..12 | crc32 of the rest |
//! | then, meta | bucket, declared, index id, index, partition, items, unindexed, undo slot u8 and bytes in use, the mark |
//! | then, snapshot | time, items, unindexed, undo slot u8 and bytes, the mark |
//!
//! All numbers are little-endian; a text is its length as u32 and its bytes; no undo slot is 255.

use super::StoreError;
use highwater_schemas::Position;

/// The format version that this release writes and reads.
pub const FORMAT_VERSION: u32 = 3;
const MAGIC: [u8; 4] = *b"HWSL";
const SNAPSHOT_MAGIC: [u8; 4] = *b"HWKS";
const NO_SLOT: u8 = u8::MAX;
const HEADER: usize = 12;
const VB_BYTES: usize = 72;

/// What a slice is: checked on opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceIdentity {
    pub bucket: String,
    /// When the bucket was declared: a bucket of the same name declared later is another one.
    pub declared: u64,
    pub index_id: String,
    /// The index's number.
    pub index: u32,
    pub partition: u32,
}

/// How far the data of a slice goes in one vbucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SliceVb {
    pub vbuuid: u64,
    pub position: Position,
    pub covered: u64,
    /// The highest seqno that the data may contain.
    pub content: u64,
    /// While it is to be compared: a seqno of the data above this may name a message of an abandoned branch.
    pub proven: u64,
    /// The newest reconcile that was applied to it.
    pub reconciled: u64,
    /// Server time of the message at `position`, nanoseconds since the epoch; 0 if there was none.
    pub server_time: i64,
    /// Hash of that message; 0 if there was none.
    pub hash: u64,
}

/// What the data of a commit stands for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SliceMark {
    /// Number and term of the stability timestamp.
    pub st: u64,
    pub term: u64,
    /// Not readable yet.
    pub building: bool,
    /// What it holds is to be compared with every present document first.
    pub compare: bool,
    pub vbs: Vec<SliceVb>,
    /// Mutation-topic sequence up to which everything lies within `vbs`.
    pub topic: u64,
    /// Creation time of that topic, nanoseconds since the epoch.
    pub topic_created: i64,
    /// Documents that the build has read.
    pub docs_done: u64,
    /// The last stability timestamp whose index events were published.
    pub events: u64,
    /// When it was written by the clock of NATS, milliseconds since the epoch; 0: not known.
    pub at: u64,
}

/// Where undo records are being written, and how many bytes of them there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UndoSlot {
    /// None: nothing is recorded.
    pub slot: Option<u8>,
    pub bytes: u64,
}

/// A persistent snapshot to which the slice can be rolled back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeptSnapshot {
    pub mark: SliceMark,
    /// When it was made, milliseconds since the epoch.
    pub at: u64,
    pub items: u64,
    pub unindexed: u64,
    /// What leads from it to the snapshot before it.
    pub(super) undo: UndoSlot,
}

impl KeptSnapshot {
    /// Bytes of the undo records that lead to the snapshot before it.
    pub fn undo_bytes(&self) -> u64 {
        self.undo.bytes
    }
}

/// The whole record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Meta {
    pub identity: SliceIdentity,
    pub items: u64,
    pub unindexed: u64,
    /// Written since the newest kept snapshot.
    pub undo: UndoSlot,
    pub mark: SliceMark,
}

impl Meta {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        let id = &self.identity;
        put_text(&mut out, &id.bucket);
        out.extend_from_slice(&id.declared.to_le_bytes());
        put_text(&mut out, &id.index_id);
        out.extend_from_slice(&id.index.to_le_bytes());
        out.extend_from_slice(&id.partition.to_le_bytes());
        put_state(&mut out, [self.items, self.unindexed], self.undo, &self.mark);
        finish(out, MAGIC)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut r = Reader::open(bytes, MAGIC, "meta record")?;
        let identity = SliceIdentity {
            bucket: r.text()?,
            declared: r.u64()?,
            index_id: r.text()?,
            index: r.u32()?,
            partition: r.u32()?,
        };
        let (items, unindexed, undo, mark) = r.state()?;
        Ok(Self { identity, items, unindexed, undo, mark })
    }
}

impl KeptSnapshot {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        out.extend_from_slice(&self.at.to_le_bytes());
        put_state(&mut out, [self.items, self.unindexed], self.undo, &self.mark);
        finish(out, SNAPSHOT_MAGIC)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut r = Reader::open(bytes, SNAPSHOT_MAGIC, "record of a kept snapshot")?;
        let at = r.u64()?;
        let (items, unindexed, undo, mark) = r.state()?;
        Ok(Self { mark, at, items, unindexed, undo })
    }
}

/// A mark by itself, checksummed as the others are.
pub(crate) fn encode_mark(mark: &SliceMark) -> Vec<u8> {
    KeptSnapshot { mark: mark.clone(), ..KeptSnapshot::default() }.encode()
}

pub(crate) fn decode_mark(bytes: &[u8]) -> Result<SliceMark, StoreError> {
    KeptSnapshot::decode(bytes).map(|k| k.mark)
}

fn put_state(out: &mut Vec<u8>, counts: [u64; 2], undo: UndoSlot, mark: &SliceMark) {
    for n in counts {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.push(undo.slot.unwrap_or(NO_SLOT));
    for n in [undo.bytes, mark.st, mark.term, mark.topic] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(&mark.topic_created.to_le_bytes());
    out.extend_from_slice(&mark.docs_done.to_le_bytes());
    out.extend_from_slice(&mark.events.to_le_bytes());
    out.extend_from_slice(&mark.at.to_le_bytes());
    out.push(u8::from(mark.building) | u8::from(mark.compare) << 1);
    out.extend_from_slice(&(mark.vbs.len() as u32).to_le_bytes());
    for vb in &mark.vbs {
        for n in [vb.vbuuid, vb.position.seqno, vb.position.round, vb.covered, vb.content, vb.proven, vb.reconciled] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&vb.server_time.to_le_bytes());
        out.extend_from_slice(&vb.hash.to_le_bytes());
    }
}

fn finish(mut out: Vec<u8>, magic: [u8; 4]) -> Vec<u8> {
    let crc = crc32fast::hash(&out[HEADER..]);
    out[..4].copy_from_slice(&magic);
    out[4..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[8..HEADER].copy_from_slice(&crc.to_le_bytes());
    out
}

impl SliceIdentity {
    /// Refuses a directory of another slice, saying how it differs.
    pub(super) fn expect(&self, found: &Self) -> Result<(), StoreError> {
        let fields = [
            ("bucket", found.bucket.clone(), self.bucket.clone()),
            ("bucket declaration", found.declared.to_string(), self.declared.to_string()),
            ("index id", found.index_id.clone(), self.index_id.clone()),
            ("index number", found.index.to_string(), self.index.to_string()),
            ("partition", found.partition.to_string(), self.partition.to_string()),
        ];
        match fields.into_iter().find(|(_, found, expected)| found != expected) {
            Some((what, found, expected)) => Err(StoreError::OtherSlice { what, found, expected }),
            None => Ok(()),
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks magic, version and checksum.
    fn open(bytes: &'a [u8], magic: [u8; 4], what: &str) -> Result<Self, StoreError> {
        let mut r = Self(bytes);
        if r.take::<4>()? != magic {
            return Err(StoreError::damaged(format!("{what} has no magic")));
        }
        let found = r.u32()?;
        if found != FORMAT_VERSION {
            return Err(StoreError::UnknownVersion { found, supported: FORMAT_VERSION });
        }
        if r.u32()? != crc32fast::hash(r.0) {
            return Err(StoreError::damaged(format!("{what} fails its checksum")));
        }
        Ok(r)
    }

    /// Counts, undo slot and mark, which are all of the rest.
    fn state(&mut self) -> Result<(u64, u64, UndoSlot, SliceMark), StoreError> {
        let (items, unindexed) = (self.u64()?, self.u64()?);
        let [slot] = self.take::<1>()?;
        let undo = UndoSlot { slot: (slot != NO_SLOT).then_some(slot), bytes: self.u64()? };
        let mut mark = SliceMark { st: self.u64()?, term: self.u64()?, topic: self.u64()?, ..SliceMark::default() };
        mark.topic_created = self.i64()?;
        mark.docs_done = self.u64()?;
        mark.events = self.u64()?;
        mark.at = self.u64()?;
        let [flags] = self.take::<1>()?;
        if flags > 3 {
            return Err(StoreError::damaged("record: unknown flags"));
        }
        (mark.building, mark.compare) = (flags & 1 != 0, flags & 2 != 0);
        let vbs = self.u32()? as usize;
        if vbs.checked_mul(VB_BYTES) != Some(self.0.len()) {
            return Err(StoreError::damaged("record has another length than it says"));
        }
        for _ in 0..vbs {
            mark.vbs.push(SliceVb {
                vbuuid: self.u64()?,
                position: Position::new(self.u64()?, self.u64()?),
                covered: self.u64()?,
                content: self.u64()?,
                proven: self.u64()?,
                reconciled: self.u64()?,
                server_time: self.i64()?,
                hash: self.u64()?,
            });
        }
        Ok((items, unindexed, undo, mark))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| StoreError::damaged("record is too short"))?;
        self.0 = rest;
        Ok(*head)
    }
    fn u32(&mut self) -> Result<u32, StoreError> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, StoreError> {
        self.take().map(u64::from_le_bytes)
    }
    fn i64(&mut self) -> Result<i64, StoreError> {
        self.take().map(i64::from_le_bytes)
    }
    fn text(&mut self) -> Result<String, StoreError> {
        let len = self.u32()? as usize;
        let damaged = || StoreError::damaged("record: text");
        let (text, rest) = self.0.split_at_checked(len).ok_or_else(damaged)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| damaged())
    }
}
