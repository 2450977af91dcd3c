//! Names of buckets, indexes and nodes: `[A-Za-z0-9_-]{1,64}`, of a bucket up to 252, refused at the door otherwise; and what
//! NATS calls its streams.

use crate::error::{ApiError, ErrorCode};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// The longest name of a bucket, in bytes: that of a NATS key-value bucket, whose stream is called `KV_` and its name.
pub const MAX_BUCKET: usize = MAX_STREAM_NAME - 3;

/// The longest name of a stream that NATS takes, and the longest beginning of its subjects that is taken here, bytes.
pub const MAX_STREAM_NAME: usize = 255;

/// Checks a name of `what` (used in the message) that is no bucket.
pub fn check(what: &str, name: &str) -> Result<(), ApiError> {
    check_within(what, name, MAX_NAME)
}

/// Checks a name of a bucket, Highwater's or one of NATS.
pub fn check_bucket(what: &str, name: &str) -> Result<(), ApiError> {
    check_within(what, name, MAX_BUCKET)
}

fn check_within(what: &str, name: &str, most: usize) -> Result<(), ApiError> {
    let good = !name.is_empty()
        && name.len() <= most
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(most + 1).collect();
    Err(ApiError::new(
        ErrorCode::BadName,
        format!("{what} name {shown:?} is not 1 to {most} characters of A-Z a-z 0-9 _ -"),
    ))
}

/// Whether NATS may have a stream of this name.
pub fn is_stream(name: &str) -> bool {
    !name.is_empty() && is_subject_part(name) && !name.contains(['.', '*', '>', '/', '\\'])
}

/// Whether a subject may begin with this, or a stream be called so: neither blank nor control character, and not too long.
pub fn is_subject_part(text: &str) -> bool {
    text.len() <= MAX_STREAM_NAME && !text.chars().any(|c| c == ' ' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_streams_and_beginnings_of_subjects_are_what_nats_takes() {
        for good in ["ORDERS_0", "é", "$a", &"x".repeat(255)] {
            assert!(is_stream(good) && is_subject_part(good), "{good}");
        }
        for good in ["", "orders.0.", "$KV.users.", "/a\\"] {
            assert!(is_subject_part(good) && !is_stream(good), "{good}");
        }
        for bad in ["a b", " ", "a\tb", "a\r\nb", "a\0", "\u{7f}", "\u{85}", &"x".repeat(256), &"é".repeat(128)] {
            assert!(!is_stream(bad) && !is_subject_part(bad), "{bad:?}");
        }
    }

    #[test]
    fn accepts_the_documented_alphabet_and_nothing_else() {
        for good in ["a", "users", "by_age-2", &"x".repeat(64)] {
            assert!(check("index", good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a b", "é", "*", ">", &"x".repeat(65)] {
            assert_eq!(check("index", bad).unwrap_err().code, ErrorCode::BadName, "{bad}");
        }
        assert!(check_bucket("bucket", &"x".repeat(252)).is_ok());
        for bad in ["", "a.b", &"x".repeat(253)] {
            assert_eq!(check_bucket("bucket", bad).unwrap_err().code, ErrorCode::BadName, "{bad}");
        }
    }
}
