//! Failures of reading a stream that its next reader takes into account: reads in parts that failed, and lists that lacked messages.

use crate::pulls::ListPulls;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Streams that are read in parts at once: each takes some connections, and some MiB for what was read ahead.
const MOST_IN_PARTS: usize = 2;
/// A stream that could not be read in parts is read by one reader for so long.
const PARTS_AGAIN: Duration = Duration::from_secs(60);
/// Streams of which it is remembered that a list fell short, and for how long.
const MOST_SHORT: usize = 1_024;
const SHORT_FOR: Duration = Duration::from_secs(600);
/// Room of the pulls of a list, in messages of the average size: at first, and after it was too little.
const ROOM: [u64; 2] = [2, 16];
/// So many lists in a row may lack a message that the server had counted: it may have been removed meanwhile.
const MOST_LACKING: usize = 3;

/// Shared by all readers of a connection.
#[derive(Debug)]
pub(crate) struct Attempts {
    /// Streams that may be read in parts at once.
    in_parts: Arc<Semaphore>,
    /// Streams of which reading in parts failed, and when it did last.
    failed_in_parts: Mutex<HashMap<String, Instant>>,
    /// Streams of which lists fell short.
    short: Mutex<HashMap<String, Short>>,
}

/// Shortfalls of a stream's lists.
#[derive(Debug)]
struct Short {
    /// How often a pull had no room for a message.
    room: usize,
    /// How many in a row lacked messages.
    lacks: usize,
    at: Instant,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            in_parts: Arc::new(Semaphore::new(MOST_IN_PARTS)),
            failed_in_parts: Mutex::default(),
            short: Mutex::default(),
        }
    }
}

impl Attempts {
    fn failed_in_parts(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.failed_in_parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while a stream is read in parts; None: as many others as may are, or it failed a moment ago.
    pub(crate) fn turn_in_parts(&self, stream: &str) -> Option<OwnedSemaphorePermit> {
        let mut failed = self.failed_in_parts();
        failed.retain(|_, at| at.elapsed() < PARTS_AGAIN);
        if failed.contains_key(stream) {
            return None;
        }
        Arc::clone(&self.in_parts).try_acquire_owned().ok()
    }

    /// Reading this stream in parts failed.
    pub(crate) fn parts_failed(&self, stream: &str) {
        self.failed_in_parts().insert(stream.to_owned(), Instant::now());
    }

    /// Reads or changes the shortfalls of a stream's lists.
    fn lists<T>(&self, stream: &str, change: impl FnOnce(&mut Short) -> T) -> T {
        let mut short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        short.retain(|_, of| of.at.elapsed() < SHORT_FOR);
        if !short.contains_key(stream) && short.len() >= MOST_SHORT {
            short.clear();
        }
        let of = short.entry(stream.to_owned()).or_insert(Short { room: 0, lacks: 0, at: Instant::now() });
        let changed = change(of);
        // As long as it is listed again and again it is not forgotten.
        of.at = Instant::now();
        if (of.room, of.lacks) == (0, 0) {
            short.remove(stream);
        }
        changed
    }

    /// How the next list of a stream is pulled, whose messages have this size on average.
    pub(crate) fn list_pulls(&self, stream: &str, size: u64) -> ListPulls {
        let room = self.lists(stream, |of| of.room);
        ROOM.get(room).map_or(ListPulls::Largest, |times| ListPulls::Room { size, times: *times })
    }

    /// A list has come that has all that the server had counted, or lacks some of it. Whether it is to be begun again.
    pub(crate) fn lacks_messages(&self, stream: &str, lacks: bool) -> bool {
        self.lists(stream, |of| {
            of.lacks = if lacks { of.lacks.saturating_add(1) } else { 0 };
            lacks && of.lacks <= MOST_LACKING
        })
    }

    /// A list of this stream fell short: a message had no room.
    pub(crate) fn list_fell_short(&self, stream: &str) {
        self.lists(stream, |of| of.room = of.room.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_fell_short_gets_more_room_the_next_time() {
        let attempts = Attempts::default();
        assert!(matches!(attempts.list_pulls("a", 100), ListPulls::Room { size: 100, times: 2 }));
        attempts.list_fell_short("a");
        assert!(matches!(attempts.list_pulls("a", 100), ListPulls::Room { size: 100, times: 16 }));
        attempts.list_fell_short("a");
        assert!(matches!(attempts.list_pulls("a", 100), ListPulls::Largest));
        assert!(matches!(attempts.list_pulls("b", 7), ListPulls::Room { size: 7, times: 2 }));
    }

    #[test]
    fn a_list_that_lacks_messages_is_begun_again_three_times_in_a_row() {
        let attempts = Attempts::default();
        let lacking = || (0..5).map(|_| attempts.lacks_messages("a", true)).collect::<Vec<_>>();
        assert_eq!(lacking(), [true, true, true, false, false]);
        assert!(!attempts.lacks_messages("a", false), "it is whole");
        assert_eq!(lacking(), [true, true, true, false, false]);
    }

    #[test]
    fn two_streams_are_read_in_parts_at_once_and_none_that_failed() {
        let attempts = Attempts::default();
        let first = attempts.turn_in_parts("a");
        let _second = attempts.turn_in_parts("b");
        assert!(first.is_some() && attempts.turn_in_parts("c").is_none());
        drop(first);
        attempts.parts_failed("a");
        assert!(attempts.turn_in_parts("a").is_none() && attempts.turn_in_parts("c").is_some());
    }
}
