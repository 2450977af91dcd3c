//! A received payload that counts against a byte limit as long as it is kept.

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

/// Bytes of a message, with its share of the queue's limit.
#[derive(Debug)]
pub struct Payload {
    bytes: Bytes,
    /// Given back when the payload is dropped.
    _share: Option<OwnedSemaphorePermit>,
}

impl Payload {
    pub fn new(bytes: Bytes, share: Option<OwnedSemaphorePermit>) -> Self {
        Self { bytes, _share: share }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
