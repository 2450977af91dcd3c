//! Where a chain or a session's list is, said again and again: topics may lose what was said last.

use super::{End, POLL, Task};
use highwater_schemas::{Position, lane::Chunk, wire::KeyVersions};

impl Task {
    /// Also when nothing is written.
    pub(super) async fn say_where_it_is(&mut self) -> Result<(), End> {
        if self.list_end == Some(self.cover.position()) {
            // The topic may have lost the end of the list.
            let to = Position::new(self.cover.position(), self.round);
            self.put(Chunk::Listed { to }).await?;
        }
        // A slice that merges needs a place in the live chain.
        // The topic of a session may have lost its end: then this one does not join on.
        let sessions = self.plan.borrow().anchor > 0;
        if sessions || !self.live() { self.send(KeyVersions::default(), true, true).await } else { Ok(()) }
    }

    /// The session's list is complete.
    pub(super) async fn listed(&mut self, upto: u64) -> Result<(), End> {
        self.listing = false;
        self.cover.list_complete(upto);
        self.list_end = Some(self.cover.position());
        let to = Position::new(self.cover.position(), self.round);
        self.put(Chunk::Listed { to }).await?;
        if self.assignment.ends_listed {
            // Ended from outside, with its session. Until then, who missed the end of the list shall notice.
            loop {
                tokio::time::sleep(POLL).await;
                self.put(Chunk::Listed { to }).await?;
            }
        }
        // Its slices take nothing up to there from the chain.
        self.holds(to.seqno);
        Ok(())
    }
}
