//! What the tests draw their random numbers from.

use anyhow::{Context, Result};
use std::{
    fmt,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

/// Read by every test that draws: those of processes, of the store, of the corpus, and the simulation.
const OWN: &str = "HIGHWATER_SEED";
/// Read by proptest.
const PROPTEST: &str = "PROPTEST_RNG_SEED";
/// What a run uses that is told nothing, so that it is the same run everywhere.
const FIXED: u64 = 1;
/// Drawn ones are short, to be typed again.
const DRAWN_BELOW: u128 = 1_000_000;

/// One number for every test.
pub struct Seeds(u64);

impl Seeds {
    /// A drawn one, a given one, that of the environment, or the fixed one.
    pub fn choose(random: bool, given: Option<u64>) -> Result<Self> {
        if random {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
            return Ok(Self((now.as_micros() % DRAWN_BELOW) as u64).said());
        }
        if let Some(given) = given {
            return Ok(Self(given).said());
        }
        match std::env::var(OWN) {
            Ok(text) => Ok(Self(text.parse().with_context(|| format!("{OWN} is not a number: {text}"))?).said()),
            Err(_) => Ok(Self(FIXED).said()),
        }
    }

    fn said(self) -> Self {
        println!("{self}");
        self
    }

    pub fn give(&self, command: &mut Command) {
        command.env(OWN, self.0.to_string()).env(PROPTEST, self.0.to_string());
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{OWN}={0} {PROPTEST}={0}", self.0)
    }
}
