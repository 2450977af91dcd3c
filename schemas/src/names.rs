//! Names of buckets, indexes and nodes: `[A-Za-z0-9_-]{1,64}`, refused at the door otherwise.

use crate::error::{ApiError, ErrorCode};

/// The longest name, in bytes.
pub const MAX_NAME: usize = 64;

/// Checks a name of `what` (used in the message).
pub fn check(what: &str, name: &str) -> Result<(), ApiError> {
    let good = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME + 1).collect();
    Err(ApiError::new(
        ErrorCode::BadName,
        format!("{what} name {shown:?} is not 1 to {MAX_NAME} characters of A-Z a-z 0-9 _ -"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_documented_alphabet_and_nothing_else() {
        for good in ["a", "users", "by_age-2", &"x".repeat(64)] {
            assert!(check("index", good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a b", "é", "*", ">", &"x".repeat(65)] {
            assert_eq!(check("index", bad).unwrap_err().code, ErrorCode::BadName, "{bad}");
        }
    }
}
