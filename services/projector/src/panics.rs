//! How often the tasks of a vbucket have panicked: what panics at once again and again, as one that meets a document that it
//! cannot stand, must not cost a generation or a session each time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The first panic is reported at once, the second after this, each further one after twice as long.
const SECOND: Duration = Duration::from_secs(2);
/// The longest wait; after so long without another panic all is forgotten.
const LONGEST: Duration = Duration::from_secs(60);

/// The panics of each vbucket: how many, and until when what follows from it is to wait.
#[derive(Debug, Default)]
pub(crate) struct Panics(BTreeMap<(String, u16), Panicked>);

#[derive(Debug)]
struct Panicked {
    times: u32,
    until: Instant,
}

impl Panics {
    /// A task of a vbucket panicked.
    pub(crate) fn count(&mut self, bucket: &str, vb: u16, now: Instant) {
        self.0.retain(|_, panicked| now < panicked.until + LONGEST);
        let fresh = || Panicked { times: 0, until: now };
        let panicked = self.0.entry((bucket.to_owned(), vb)).or_insert_with(fresh);
        let wait = match panicked.times {
            0 => Duration::ZERO,
            times => SECOND.saturating_mul(1 << (times - 1).min(8)).min(LONGEST),
        };
        *panicked = Panicked { times: panicked.times.saturating_add(1), until: now + wait };
    }

    /// From when on it is to be reported that a chain of the vbucket is lost, or a session of it broken.
    pub(crate) fn patience(&self, bucket: &str, vb: u16) -> Instant {
        self.0.get(&(bucket.to_owned(), vb)).map_or_else(Instant::now, |panicked| panicked.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_panics_again_and_again_waits_longer_and_longer() {
        let (mut panics, start) = (Panics::default(), Instant::now());
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..12 {
            panics.count("orders", 3, now);
            let until = panics.patience("orders", 3);
            waits.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(waits, [0, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]);
        assert!(panics.patience("orders", 2) <= Instant::now(), "another vbucket");
        panics.count("orders", 3, now + LONGEST);
        assert_eq!(panics.patience("orders", 3), now + LONGEST, "it was forgotten");
    }
}
