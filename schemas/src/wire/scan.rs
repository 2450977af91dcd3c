//! Scans of one slice: catalog → indexer and back.

use super::{Kind, Message, WireError};
use crate::{error::ErrorCode, timestamp::StabilityTimestamp};
use rkyv::{Archive, Deserialize, Serialize};

/// Which stability timestamp may serve.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum StChoice {
    /// The newest one held, waiting for this number if need be.
    AtLeast(u64),
    /// This one, waiting for it if need be.
    Exactly(u64),
}

/// A range of encoded entry keys, `low ≤ key < high`.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ByteRange {
    pub low: Vec<u8>,
    /// None: up to the end.
    pub high: Option<Vec<u8>>,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanMode {
    Rows,
    Count,
}

/// A scan of one slice.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ScanRequest {
    pub bucket: String,
    /// The index's number.
    pub index: u32,
    pub partition: u32,
    pub at: StChoice,
    /// Disjoint and ascending.
    pub ranges: Vec<ByteRange>,
    pub reverse: bool,
    /// Continue after this entry key (before it when reverse).
    pub after: Option<Vec<u8>>,
    /// Rows to pass over first.
    pub skip: u64,
    /// The most rows wanted.
    pub limit: u64,
    /// The most bytes of rows in one reply.
    pub page_bytes: u32,
    pub mode: ScanMode,
    /// How long the ST shall stay readable after this, milliseconds; 0: as usual.
    pub lease_ms: u32,
    /// How long to wait for the ST, milliseconds.
    pub timeout_ms: u32,
}
impl Message for ScanRequest {
    const KIND: Kind = Kind::ScanRequest;
}

/// Rows in columns: `bytes` holds entry key and included fields of each row, the ends say where.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    ends: Vec<(u32, u32)>,
    bytes: Vec<u8>,
}

/// One row of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Secondary key, docid and vbucket, encoded.
    pub key: &'a [u8],
    /// A JSON object, or empty.
    pub include: &'a [u8],
}

impl Rows {
    pub fn push(&mut self, key: &[u8], include: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len() as u32;
        self.bytes.extend_from_slice(include);
        self.ends.push((key_end, self.bytes.len() as u32));
    }
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
    /// Bytes that the rows take in a message.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.ends.len() * 8
    }
    pub fn get(&self, i: usize) -> Option<Row<'_>> {
        let start = if i == 0 { 0 } else { self.ends.get(i - 1)?.1 };
        let (key_end, end) = *self.ends.get(i)?;
        Some(Row {
            key: self.bytes.get(start as usize..key_end as usize)?,
            include: self.bytes.get(key_end as usize..end as usize)?,
        })
    }
    pub fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).filter_map(|i| self.get(i))
    }
    /// Checks that every row lies within the bytes.
    pub fn check(&self) -> Result<(), WireError> {
        let mut at = 0;
        for &(key_end, end) in &self.ends {
            if key_end < at || end < key_end {
                return Err(WireError::Content("row out of range"));
            }
            at = end;
        }
        if at as usize != self.bytes.len() {
            return Err(WireError::Content("bytes that belong to no row"));
        }
        Ok(())
    }
}

/// A page of rows, or a count, at one ST.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct ScanPage {
    pub st: StabilityTimestamp,
    /// Documents that this slice could not take, at this ST.
    pub unindexed: u64,
    pub rows: Rows,
    /// Count mode: the number of rows in the ranges.
    pub count: u64,
    /// Rows passed over because of `skip`.
    pub skipped: u64,
    /// More rows follow the last one.
    pub more: bool,
}

/// An indexer's answer.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub enum ScanReply {
    Page(ScanPage),
    Refused { code: String, message: String },
}
impl Message for ScanReply {
    const KIND: Kind = Kind::ScanReply;
}

impl ScanReply {
    pub fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused { code: code.as_str().into(), message: message.into() }
    }
}
