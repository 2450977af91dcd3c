//! Page tokens: where the next page of a scan begins. Opaque to clients, good at any catalog.
//!
//! # Format
//! Hexadecimal of, all little-endian:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | format version, [`VERSION`] |
//! | 1..9 | ST number |
//! | 9..17 | rows still to go; `u64::MAX`: no limit |
//! | 17..25 | fingerprint of the request and of the very index |
//! | 25..27 | JSON bytes for one byte of encoded row, in 1/256 |
//! | 27..n | entry key of the last row given; every partition goes on behind it |
//! | n..n+8 | xxh3 of all before |
//!
//! One key serves every partition: a scan of several partitions is merged in key order, so all that is not behind this key has
//! been given, wherever it lies.

use highwater_schemas::{ApiError, ErrorCode};
use xxhash_rust::xxh3::xxh3_64;

/// The format version of page tokens.
pub const VERSION: u8 = 1;
const FIXED: usize = 27;
const CHECKSUM: usize = 8;
const UNLIMITED: u64 = u64::MAX;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The state of a scan between two pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken {
    pub st: u64,
    /// Rows still to go; none: no limit.
    pub left: Option<u64>,
    /// See [`crate::request::Plan::fingerprint`].
    pub fingerprint: u64,
    /// How many times larger rows are in JSON, in 1/256: tells the next page how much to ask for.
    pub expansion: u16,
    pub after: Vec<u8>,
}

impl PageToken {
    /// How many characters a token with a key of this length has.
    pub fn text_len(key: usize) -> usize {
        (FIXED + key + CHECKSUM) * 2
    }

    pub fn write(&self) -> String {
        let mut bytes = Vec::with_capacity(FIXED + self.after.len() + CHECKSUM);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.st.to_le_bytes());
        bytes.extend_from_slice(&self.left.unwrap_or(UNLIMITED).to_le_bytes());
        bytes.extend_from_slice(&self.fingerprint.to_le_bytes());
        bytes.extend_from_slice(&self.expansion.to_le_bytes());
        bytes.extend_from_slice(&self.after);
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| char::from(DIGITS[usize::from(n)])).collect()
    }

    /// Reads a token that was given for a request of this fingerprint.
    pub fn read(text: &str, fingerprint: u64) -> Result<Self, ApiError> {
        let damaged =
            || ApiError::new(ErrorCode::BadPageToken, "page_token is damaged: send back exactly what the reply had");
        let token = Self::parse(text).ok_or_else(damaged)?;
        if token.fingerprint != fingerprint {
            return Err(ApiError::new(
                ErrorCode::BadPageToken,
                "page_token belongs to another request, or its index was made anew: send it with the otherwise unchanged request",
            ));
        }
        Ok(token)
    }

    fn parse(text: &str) -> Option<Self> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        let bytes: Vec<u8> = pairs.iter().map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?)).collect::<Option<_>>()?;
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
        if xxh3_64(content) != u64::from_le_bytes(*checksum) {
            return None;
        }
        let ([version], rest) = content.split_first_chunk()?;
        let (st, rest) = rest.split_first_chunk()?;
        let (left, rest) = rest.split_first_chunk()?;
        let (fingerprint, rest) = rest.split_first_chunk()?;
        let (expansion, after) = rest.split_first_chunk()?;
        if *version != VERSION {
            return None;
        }
        Some(Self {
            st: u64::from_le_bytes(*st),
            left: Some(u64::from_le_bytes(*left)).filter(|left| *left != UNLIMITED),
            fingerprint: u64::from_le_bytes(*fingerprint),
            expansion: u16::from_le_bytes(*expansion),
            after: after.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> PageToken {
        PageToken { st: 812, left: Some(40), fingerprint: 7, expansion: 600, after: vec![0, 255, 16] }
    }

    #[test]
    fn a_token_comes_back_as_it_was() {
        for left in [None, Some(0), Some(40)] {
            let token = PageToken { left, ..token() };
            assert_eq!(PageToken::read(&token.write(), 7).unwrap(), token);
            assert_eq!(token.write().len(), PageToken::text_len(3));
        }
    }

    #[test]
    fn a_foreign_token_is_refused() {
        let error = PageToken::read(&token().write(), 8).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadPageToken);
        assert!(error.message.contains("another request"), "{error}");
    }

    #[test]
    fn every_damaged_character_is_noticed() {
        let good = token().write();
        for at in 0..good.len() {
            for with in ["0", "f", "x", "A", ""] {
                let mut bad = good.clone();
                bad.replace_range(at..=at, with);
                if bad != good {
                    assert_eq!(PageToken::read(&bad, 7).unwrap_err().code, ErrorCode::BadPageToken, "{bad}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused(text in ".{0,80}", hex in "[0-9a-f]{0,120}") {
            prop_assert!(PageToken::read(&text, 7).is_err());
            prop_assert!(PageToken::read(&hex, 7).is_err());
        }
    }
}
