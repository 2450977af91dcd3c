//! How a record travels: as JSON, and when it is large, as a snapshot of many indexes is, compressed.

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use std::{
    borrow::Cow,
    io::{self, Read, Write},
};

/// Larger records are compressed.
const PLAIN: usize = 64 * 1024;
/// A record is never larger than this, bytes.
const MOST: u64 = 256 * 1024 * 1024;

/// A record's JSON, ready for the log.
pub fn pack(json: Vec<u8>) -> Vec<u8> {
    if json.len() <= PLAIN {
        return json;
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    // Writing into memory cannot fail.
    match encoder.write_all(&json).and_then(|()| encoder.finish()) {
        Ok(packed) => packed,
        Err(_) => json,
    }
}

/// The JSON of a record as it came from the log.
pub fn unpack(payload: &[u8]) -> io::Result<Cow<'_, [u8]>> {
    // A zlib stream never begins as a JSON object does.
    if payload.first() != Some(&0x78) {
        return Ok(Cow::Borrowed(payload));
    }
    let mut json = Vec::new();
    ZlibDecoder::new(payload).take(MOST).read_to_end(&mut json)?;
    Ok(Cow::Owned(json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_records_are_smaller_on_their_way() {
        let (small, large) = (b"{\"a\":1}".to_vec(), format!("{{\"a\":\"{}\"}}", "x".repeat(PLAIN)).into_bytes());
        assert_eq!(pack(small.clone()), small);
        let packed = pack(large.clone());
        assert!(packed.len() < large.len() / 10);
        assert_eq!(unpack(&packed).unwrap(), large);
        assert!(unpack(&packed[..packed.len() / 2]).is_err());
        assert!(unpack(b"xgarbage").is_err());
    }
}
