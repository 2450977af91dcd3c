//! The meta record: what the slice is and what its data stands for, in the same transaction as the data.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | magic `HWSL` |
//! | 4..8 | format version |
//! | 8..12 | crc32 of the rest |
//! | then | bucket, declared, index id, index, partition, items, unindexed, the mark |
//!
//! All numbers are little-endian; a text is its length as u32 and its bytes.

use super::StoreError;
use highwater_schemas::Position;

/// The format version that this release writes and reads.
pub const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 4] = *b"HWSL";
const HEADER: usize = 12;
const VB_BYTES: usize = 56;

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
    pub vbs: Vec<SliceVb>,
    /// Mutation-topic sequence up to which everything lies within `vbs`.
    pub topic: u64,
    /// Creation time of that topic, nanoseconds since the epoch.
    pub topic_created: i64,
    /// Documents that the build has read.
    pub docs_done: u64,
}

/// The whole record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Meta {
    pub identity: SliceIdentity,
    pub items: u64,
    pub unindexed: u64,
    pub mark: SliceMark,
}

impl Meta {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        let (id, mark) = (&self.identity, &self.mark);
        put_text(&mut out, &id.bucket);
        out.extend_from_slice(&id.declared.to_le_bytes());
        put_text(&mut out, &id.index_id);
        out.extend_from_slice(&id.index.to_le_bytes());
        out.extend_from_slice(&id.partition.to_le_bytes());
        for n in [self.items, self.unindexed, mark.st, mark.term, mark.topic] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&mark.topic_created.to_le_bytes());
        out.extend_from_slice(&mark.docs_done.to_le_bytes());
        out.push(u8::from(mark.building));
        out.extend_from_slice(&(mark.vbs.len() as u32).to_le_bytes());
        for vb in &mark.vbs {
            for n in [vb.vbuuid, vb.position.seqno, vb.position.round, vb.covered, vb.content] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            out.extend_from_slice(&vb.server_time.to_le_bytes());
            out.extend_from_slice(&vb.hash.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[HEADER..]);
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[8..HEADER].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut r = Reader(bytes);
        if r.take::<4>()? != MAGIC {
            return Err(StoreError::damaged("meta record has no magic"));
        }
        let found = r.u32()?;
        if found != FORMAT_VERSION {
            return Err(StoreError::UnknownVersion { found, supported: FORMAT_VERSION });
        }
        if r.u32()? != crc32fast::hash(r.0) {
            return Err(StoreError::damaged("meta record fails its checksum"));
        }
        let identity = SliceIdentity {
            bucket: r.text()?,
            declared: r.u64()?,
            index_id: r.text()?,
            index: r.u32()?,
            partition: r.u32()?,
        };
        let (items, unindexed) = (r.u64()?, r.u64()?);
        let mut mark = SliceMark { st: r.u64()?, term: r.u64()?, topic: r.u64()?, ..SliceMark::default() };
        mark.topic_created = r.i64()?;
        mark.docs_done = r.u64()?;
        mark.building = match r.take::<1>()? {
            [0] => false,
            [1] => true,
            _ => return Err(StoreError::damaged("meta record: building is neither yes nor no")),
        };
        let vbs = r.u32()? as usize;
        if vbs.checked_mul(VB_BYTES) != Some(r.0.len()) {
            return Err(StoreError::damaged("meta record has another length than it says"));
        }
        for _ in 0..vbs {
            mark.vbs.push(SliceVb {
                vbuuid: r.u64()?,
                position: Position::new(r.u64()?, r.u64()?),
                covered: r.u64()?,
                content: r.u64()?,
                server_time: r.i64()?,
                hash: r.u64()?,
            });
        }
        Ok(Self { identity, items, unindexed, mark })
    }
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

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or_else(|| StoreError::damaged("meta record is too short"))?;
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
        let damaged = || StoreError::damaged("meta record: text");
        let (text, rest) = self.0.split_at_checked(len).ok_or_else(damaged)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| damaged())
    }
}
