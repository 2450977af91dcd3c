//! The clock of NATS, by which marks are dated: the clock of this machine may differ from it, and a slice's files may have been
//! written on another machine.

use std::time::{Duration, Instant};

/// Delete markers live this long where clients purge them. Where a source lets them go sooner, the projector that reads what the
/// slice missed notices.
const MARKER_LIFE: Duration = Duration::from_secs(30 * 60);

/// What the server's clock showed, and when it was that.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerClock {
    /// Milliseconds since the epoch.
    showed: u64,
    at: Instant,
}

impl ServerClock {
    /// It shows so many nanoseconds since the epoch now; None: it is not known.
    pub(super) fn showing(nanos: i64) -> Option<Self> {
        let showed = u64::try_from(nanos / 1_000_000).ok().filter(|showed| *showed > 0)?;
        Some(Self { showed, at: Instant::now() })
    }

    /// Milliseconds since the epoch.
    pub(super) fn now(self) -> u64 {
        self.showed.saturating_add(u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether delete markers written after a mark of this date may have been purged by now; false where it has no date.
    pub(super) fn markers_may_be_gone(self, date: u64) -> bool {
        date > 0 && Duration::from_millis(self.now().saturating_sub(date)) > MARKER_LIFE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_judged_by_the_clock_that_dated_it() {
        let year_2100: u64 = 4_102_444_800_000;
        let clock = ServerClock::showing(4_102_444_800_000_000_000).expect("it shows something");
        let life = 30 * 60 * 1_000;
        assert!(clock.markers_may_be_gone(year_2100 - life - 1));
        // What the test takes is not a minute.
        assert!(!clock.markers_may_be_gone(year_2100 - life + 60_000));
        assert!(!clock.markers_may_be_gone(0), "of no date nothing is known");
        assert!(!clock.markers_may_be_gone(u64::MAX));
        assert!(ServerClock::showing(0).is_none() && ServerClock::showing(-1).is_none());
        assert!(ServerClock::showing(i64::MAX).is_some_and(|clock| clock.now() > year_2100));
    }
}
