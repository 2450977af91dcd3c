//! Versions of the rules by which an index reads values.

use crate::error::{ApiError, ErrorCode};

/// The rules that an index was made with. It keeps them until it is made anew, so that all its slices agree at any time, also
/// those that are built again after an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    /// Of indexes made before versions were recorded. A number is an integer of 64 bits if it is written as one, else the nearest
    /// f64. Included fields are copied as they are.
    V0,
    /// A number is an integer of 64 bits however it is written, else the nearest f64, and one of more than 17 significant digits
    /// that neither holds exactly is inexact: no key and no bound. What some readers of JSON refuse is of no value.
    V1,
    /// As V1. A name that serde_json keeps for itself is no path, and an object with one counts as missing in conditions, as it does
    /// in keys; an `L` behind digits is refused.
    V2,
}

impl Language {
    /// The version that new indexes get.
    pub const NEWEST: Self = Self::V2;

    /// As the log of changes has it.
    pub fn number(self) -> u32 {
        match self {
            Self::V0 => 0,
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    /// Refuses a number that only a later version of Highwater knows.
    pub fn from_number(number: u32) -> Result<Self, ApiError> {
        match number {
            0 => Ok(Self::V0),
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            other => Err(ApiError::new(
                ErrorCode::NotSupported,
                format!("the index has version {other} of the language; this version of Highwater knows up to 2"),
            )),
        }
    }
}
