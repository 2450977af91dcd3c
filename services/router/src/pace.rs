//! When a lane does something though nothing comes: it sends the open batch, or says SYNC.
//!
//! Nothing else wakes a lane. A session says no SYNC, nor does a chain that begins inside of an atomic batch, before its end: with
//! nothing to send, these sleep until a chunk or an acknowledgement comes.

use std::time::{Duration, Instant};

/// Key versions wait at most this long for company.
const LINGER: Duration = Duration::from_millis(2);
/// SYNC on progress, no faster than this.
const SYNC_SPACING: Duration = Duration::from_millis(5);
/// SYNC of an idle vbucket is repeated this often: broadcasts are lossy.
const SYNC_REPEAT: Duration = Duration::from_millis(500);

/// What is due in a lane, and when.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Its lane is the live chain of a vbucket, no session.
    live: bool,
    /// A position was offered, so that SYNC may be sent.
    offered: bool,
    changed: bool,
    urgent: bool,
    synced_at: Instant,
    /// When the open batch is to be sent at the latest.
    due: Option<Instant>,
    flushed_at: Instant,
}

impl Pace {
    pub(crate) fn new(live: bool, now: Instant) -> Self {
        Self { live, offered: false, changed: false, urgent: false, synced_at: now, due: None, flushed_at: now }
    }

    /// When the open batch or the next SYNC is due; None: neither will be before something comes.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        let spacing = if self.changed { SYNC_SPACING } else { SYNC_REPEAT };
        let sync = self.speaks().then(|| self.synced_at + spacing);
        self.due.into_iter().chain(sync).min()
    }

    /// The open batch is to be sent.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Something waits in the open batch.
    pub(crate) fn lingers(&mut self, now: Instant) {
        self.due = self.due.or(Some(now + LINGER));
    }

    /// The open batch was sent, if anything was in it.
    pub(crate) fn flushed(&mut self, now: Instant) {
        self.due = None;
        self.flushed_at = now;
    }

    /// Little comes: a lone message need not wait for company.
    pub(crate) fn is_quiet(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.flushed_at) >= LINGER
    }

    /// A position is offered, another one than before if it `moved`.
    pub(crate) fn offers(&mut self, moved: bool) {
        self.changed |= moved || !self.offered;
        self.offered = true;
    }

    /// Somebody waits for what the next SYNC says.
    pub(crate) fn hurries(&mut self) {
        self.urgent = true;
    }

    fn speaks(&self) -> bool {
        self.live && self.offered
    }

    /// True: SYNC is to be said now, and counts as said.
    pub(crate) fn says_sync(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.synced_at);
        let due = self.urgent || self.changed && elapsed >= SYNC_SPACING || elapsed >= SYNC_REPEAT;
        if !self.speaks() || !due {
            return false;
        }
        (self.urgent, self.changed, self.synced_at) = (false, false, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// How often a lane wakes up, sends and says SYNC in an hour in which nothing comes.
    fn an_hour(pace: &mut Pace, from: Instant) -> (u32, u32, u32) {
        let (mut now, mut woken, mut sent, mut said) = (from, 0, 0, 0);
        while let Some(at) = pace.wakes_at().filter(|at| *at <= from + HOUR) {
            now = now.max(at);
            woken += 1;
            if pace.is_due(now) {
                pace.flushed(now);
                sent += 1;
            }
            said += u32::from(pace.says_sync(now));
        }
        (woken, sent, said)
    }

    #[test]
    fn a_session_without_work_is_never_woken() {
        let start = Instant::now();
        let mut pace = Pace::new(false, start);
        assert_eq!(an_hour(&mut pace, start), (0, 0, 0));
        // Whatever it was told: nobody hears SYNC of it.
        pace.offers(true);
        pace.hurries();
        assert!(!pace.says_sync(start));
        assert_eq!(an_hour(&mut pace, start), (0, 0, 0));
        // What waits is sent once, and then it sleeps again.
        pace.lingers(start);
        pace.lingers(start + LINGER / 2);
        assert_eq!(pace.wakes_at(), Some(start + LINGER));
        assert_eq!(an_hour(&mut pace, start), (1, 1, 0));
        pace.lingers(start + HOUR);
        pace.flushed(start + HOUR);
        assert_eq!(an_hour(&mut pace, start + HOUR), (0, 0, 0), "it was sent before it was due");
    }

    #[test]
    fn a_live_chain_without_work_says_where_it_is_and_no_more() {
        let start = Instant::now();
        let mut pace = Pace::new(true, start);
        assert_eq!(an_hour(&mut pace, start), (0, 0, 0), "it has offered nothing yet");
        pace.offers(false);
        // At once, and then twice a second.
        assert_eq!(an_hour(&mut pace, start), (7_200, 0, 7_200));
    }

    #[test]
    fn progress_is_said_soon_and_what_somebody_waits_for_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(true, start);
        pace.offers(true);
        assert!(!pace.says_sync(start + SYNC_SPACING / 2));
        assert!(pace.says_sync(start + SYNC_SPACING));
        let said = start + SYNC_SPACING;
        pace.offers(false);
        assert_eq!(pace.wakes_at(), Some(said + SYNC_REPEAT), "it is where it was");
        pace.offers(true);
        assert_eq!(pace.wakes_at(), Some(said + SYNC_SPACING));
        pace.hurries();
        assert!(pace.says_sync(said));
        assert!(!pace.says_sync(said), "it was said");
    }

    #[test]
    fn a_lone_message_waits_for_no_company() {
        let start = Instant::now();
        let mut pace = Pace::new(true, start);
        assert!(!pace.is_quiet(start) && pace.is_quiet(start + LINGER));
        pace.flushed(start + LINGER);
        assert!(!pace.is_quiet(start + LINGER));
    }
}
