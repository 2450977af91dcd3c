//! What an index manager says of itself.

use super::Shell;
use highwater_schemas::api::{Join, NodeKind};

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
}
