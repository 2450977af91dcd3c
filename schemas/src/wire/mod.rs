//! The messages of the data path: rkyv archives behind a small header.
//!
//! # Format
//! | bytes | meaning |
//! |---|---|
//! | 0..2 | magic `HW` |
//! | 2 | format version, [`VERSION`] |
//! | 3 | [`Kind`] |
//! | 4..8 | length of the archive, little-endian |
//! | 8.. | the archive |
//!
//! The archive is validated with bytecheck, and its own content by the type, before anything of it is used. Archives are
//! little-endian and unaligned, so they are read where they lie in the received message.
//!
//! # Failures
//! Every decoder answers garbage with a [`WireError`]; none panics.

mod batch;
mod packed;
mod scan;
mod stability;
mod versions;

pub use batch::{Batch, BatchView, Removal};
pub use scan::{ByteRange, Row, Rows, ScanMode, ScanPage, ScanReply, ScanRequest, StChoice};
pub use stability::{HighWatermark, MOST_NAMED, Missed, Stability, Sync, SyncVb, Want};
pub use versions::{DocOp, DocView, KeyVersions, KeyView, MAX_ENTRY, Unindexable, VersionsView, partition_of};

use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor::Error as RkyvError,
    ser::allocator::ArenaHandle,
};

/// The format version of every data message.
pub const VERSION: u8 = 4;
const MAGIC: [u8; 2] = *b"HW";
const HEADER: usize = 8;

/// What a data message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Batch = 1,
    Sync = 2,
    Stability = 3,
    Want = 4,
    HighWatermark = 5,
    ScanRequest = 6,
    ScanReply = 7,
    Missed = 8,
}

/// Why a data message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("too short: {0} bytes")]
    Short(usize),
    #[error("wrong magic {0:02x}{1:02x}")]
    Magic(u8, u8),
    #[error("unknown format version {0}, this is version {VERSION}")]
    Version(u8),
    #[error("wrong kind {found}, expected {expected}")]
    Kind { found: u8, expected: u8 },
    #[error("wrong length: header says {header}, message has {found}")]
    Length { header: usize, found: usize },
    #[error("damaged archive: {0}")]
    Archive(String),
    #[error("contradictory content: {0}")]
    Content(&'static str),
}

/// A message type of the data path.
pub trait Message: Sized {
    const KIND: Kind;

    /// About how many bytes the archive takes.
    fn size_hint(&self) -> usize {
        256
    }
}

/// Puts `value` behind a header.
pub fn encode<T>(value: &T) -> Vec<u8>
where
    T: Message + for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, RkyvError>>,
{
    let mut out = Vec::with_capacity(HEADER + value.size_hint());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, T::KIND as u8]);
    out.extend_from_slice(&[0; 4]);
    // Archives are unaligned and point relatively, so one may begin anywhere. Serialising into memory fails only when memory is
    // exhausted.
    let mut out = rkyv::api::high::to_bytes_in::<_, RkyvError>(value, out).expect("archive fits memory");
    let length = (out.len() - HEADER) as u32;
    out[HEADER - 4..HEADER].copy_from_slice(&length.to_le_bytes());
    out
}

/// The archive behind the header, checked for magic, version, kind and length only.
fn body(kind: Kind, bytes: &[u8]) -> Result<&[u8], WireError> {
    if bytes.len() < HEADER {
        return Err(WireError::Short(bytes.len()));
    }
    if bytes[..2] != MAGIC {
        return Err(WireError::Magic(bytes[0], bytes[1]));
    }
    if bytes[2] != VERSION {
        return Err(WireError::Version(bytes[2]));
    }
    if bytes[3] != kind as u8 {
        return Err(WireError::Kind { found: bytes[3], expected: kind as u8 });
    }
    let header = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
    let found = bytes.len() - HEADER;
    if header != found {
        return Err(WireError::Length { header, found });
    }
    Ok(&bytes[HEADER..])
}

/// The validated archive, read in place.
pub fn access<T>(bytes: &[u8]) -> Result<&T::Archived, WireError>
where
    T: Message + Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, RkyvError>> + rkyv::Portable,
{
    let body = body(T::KIND, bytes)?;
    rkyv::access::<T::Archived, RkyvError>(body).map_err(|e| WireError::Archive(e.to_string()))
}

/// An owned copy of a message.
pub fn decode<T>(bytes: &[u8]) -> Result<T, WireError>
where
    T: Message + Archive,
    T::Archived:
        for<'a> CheckBytes<HighValidator<'a, RkyvError>> + rkyv::Portable + Deserialize<T, HighDeserializer<RkyvError>>,
{
    let archived = access::<T>(bytes)?;
    rkyv::deserialize::<T, RkyvError>(archived).map_err(|e| WireError::Archive(e.to_string()))
}
