//! What an index manager says of itself, and what nodes say.

use super::Shell;
use crate::{CoordinatorError, core, manager::Event};
use highwater_schemas::{
    api::{Join, MOST_HEARTBEAT, NodeKind},
    names,
    report::{PART_BYTES, ReportPart},
};

/// Bytes of a part of a report: one whose only item is larger than a part should be is sent all the same.
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
        if payload.len() > MOST_HEARTBEAT {
            self.refuse(&"a heartbeat is too large");
            return Ok(());
        }
        let Some(join) = self.decoded::<Join>(payload) else { return Ok(()) };
        match names::check("node", &join.node) {
            Ok(()) => self.handle(Event::Join(join)).await?,
            Err(error) => self.refuse(&error),
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
