//! How a record travels: as JSON, and when it is large, as a snapshot of many indexes is, compressed.

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use std::{
    borrow::Cow,
    io::{self, Read, Write},
};

/// Larger records are compressed.
const PLAIN: usize = 64 * 1024;
/// The JSON of a compressed record has this many bytes at most. Of one that was packed into more than 1 MiB, which only a server
/// takes whose largest message was raised, it has [`MOST_TIMES`] as many as that, and never more than [`MOST_OF_ANY`].
const MOST: usize = 32 * 1024 * 1024;
const MOST_TIMES: usize = 32;
const MOST_OF_ANY: usize = 256 * 1024 * 1024;

/// Bytes that are read of a record that travels in so many.
fn most(packed: usize) -> usize {
    packed.saturating_mul(MOST_TIMES).clamp(MOST, MOST_OF_ANY)
}

/// A record's JSON, ready for the log. What could not be read again stays as it is, and is too large for any message.
pub fn pack(json: Vec<u8>) -> Vec<u8> {
    if json.len() <= PLAIN {
        return json;
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    // Writing into memory cannot fail.
    match encoder.write_all(&json).and_then(|()| encoder.finish()) {
        Ok(packed) if json.len() <= most(packed.len()) => packed,
        _ => json,
    }
}

/// The JSON of a record as it came from the log.
///
/// # Errors
/// It is not what [`pack`] makes: garbage, or longer than any record.
pub fn unpack(payload: &[u8]) -> io::Result<Cow<'_, [u8]>> {
    // A zlib stream never begins as a JSON object does.
    if payload.first() != Some(&0x78) {
        return Ok(Cow::Borrowed(payload));
    }
    let mut json = Vec::new();
    let most = most(payload.len());
    ZlibDecoder::new(payload).take(most as u64 + 1).read_to_end(&mut json)?;
    if json.len() > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {most} bytes")));
    }
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

    #[test]
    fn what_is_small_on_its_way_is_not_read_without_end() {
        let packed = |bytes: usize| {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&vec![b' '; bytes]).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(unpack(&packed(MOST)).unwrap().len(), MOST);
        let longer = packed(MOST + 1);
        assert!(longer.len() < MOST / 100);
        assert!(unpack(&longer).is_err());
        let json = vec![b' '; MOST + 1];
        assert_eq!(pack(json.clone()), json, "what nobody could read is not made");
        assert_eq!((most(1024 * 1024), most(2 * 1024 * 1024), most(usize::MAX)), (MOST, 2 * MOST, MOST_OF_ANY));
    }
}
