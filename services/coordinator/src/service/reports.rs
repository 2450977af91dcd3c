//! What an index manager says of itself, and what nodes say.

use super::Shell;
use crate::{CoordinatorError, core, manager::Event};
use highwater_schemas::{
    api::{self, Join, NodeKind},
    report::{PART_BYTES, ReportPart},
};

/// Maximum size of a received part, bytes. Nodes keep parts to [`PART_BYTES`], unless a single item is larger.
const MOST_PART: usize = 8 * PART_BYTES;

impl Shell {
    pub(super) fn join(&self) -> Join {
        Join {
            term: self.manager.context().term,
            manager: Some(self.manager.report()),
            ..Join::new(NodeKind::Coordinator, &self.config.node, self.config.incarnation)
        }
    }

    pub(super) async fn beat(&mut self) {
        let join = self.join();
        self.heart.beat(&join).await;
    }

    pub(super) async fn join_of(&mut self, payload: &[u8]) -> Result<(), CoordinatorError> {
        match api::read_heartbeat(payload) {
            Ok(join) => self.handle(Event::Join(join)).await?,
            Err(why) => self.refuse(&why),
        }
        Ok(())
    }

    /// For who coordinates alone.
    pub(super) async fn report_of(&mut self, payload: &[u8]) -> Result<(), CoordinatorError> {
        if self.manager.leading().is_none() {
            return Ok(());
        }
        if payload.len() > MOST_PART {
            self.refuse(&"a part of a report is too large");
            return Ok(());
        }
        let Some(part) = self.decoded::<ReportPart>(payload) else { return Ok(()) };
        self.handle(Event::Lead(core::Event::Report(part))).await
    }
}
