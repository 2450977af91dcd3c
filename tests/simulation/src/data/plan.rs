//! What a task is to evaluate, and for whom, as the log says.

use highwater_projector::removals::Staged;
use highwater_schemas::{
    lane::Routes,
    state::{Bucket, Session, SessionKind},
};
use std::sync::Arc;

/// What to evaluate and for whom.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub routes: Arc<Routes>,
    pub indexes: Vec<u32>,
    pub anchor: u64,
    pub newest_reconcile: u64,
    pub newest_named: u64,
    pub staged: Option<Staged>,
}

impl Plan {
    pub fn live(bucket: &Bucket, vb: usize) -> Self {
        let sessions = bucket.sessions.values().filter(|s| s.kind != SessionKind::Reconcile);
        Self {
            routes: Arc::new(bucket.routes(vb)),
            indexes: bucket.live_indexes().map(|(n, _)| n).collect(),
            anchor: sessions.map(|s| s.id).max().unwrap_or(0),
            newest_reconcile: bucket.newest_reconcile(),
            newest_named: bucket.newest_named,
            staged: bucket.in_chains().map(|(id, named)| Staged { id, named }),
        }
    }

    pub fn session(bucket: &Bucket, session: &Session) -> Self {
        let mut routes = Routes { topology: session.topology, ..Routes::default() };
        let mut indexes = Vec::new();
        for slice in &session.slices {
            if let Some(index) = bucket.indexes.get(&slice.index) {
                let partitions = index.placed.hosts.len() as u32;
                routes.nodes.entry(session.node.clone()).or_default().push((slice.index, slice.partition, partitions));
                indexes.push(slice.index);
            }
        }
        indexes.dedup();
        Self { routes: Arc::new(routes), indexes, ..Self::default() }
    }
}
