//! What the log says of a vbucket, for the task that reads it.

use crate::{removals::Staged, vbucket::Plan, verify::Known};
use highwater_schemas::{
    lane::Routes,
    state::{Bucket, Session, SessionKind},
};
use std::{collections::BTreeMap, sync::Arc};

/// What the source of a vbucket is compared with.
pub(crate) fn known(bucket: &Bucket, vb: usize) -> Known {
    let vbucket = &bucket.vbuckets[vb];
    let durable = bucket.history.last().and_then(|st| st.vbs.get(vb)).filter(|st| st.vbuuid == vbucket.vbuuid());
    let x = vbucket.start_of(vbucket.generation).map_or(0, |x| x.seqno);
    Known {
        created: durable.map_or(0, |st| st.created),
        first_seq: 0,
        position: x.max(vbucket.restart),
        held: vbucket.held,
        bookmarks: vbucket.bookmarks.clone(),
        doubt: None,
    }
}

/// What the live chain of a vbucket is evaluated for.
pub(crate) fn live_plan(bucket: &Bucket, vb: usize) -> Arc<Plan> {
    Arc::new(Plan {
        routes: Arc::new(bucket.routes(vb)),
        indexes: bucket.live_indexes().map(|(n, i)| (n, i.compiled.clone())).collect(),
        // Every session needs a place in the live chain to merge at.
        anchor: bucket.sessions.values().filter(|s| s.kind != SessionKind::Reconcile).map(|s| s.id).max().unwrap_or(0),
        newest_reconcile: bucket.newest_reconcile(),
        newest_named: bucket.newest_named,
        staged: bucket.in_chains().map(|(id, named)| Staged { id, named }),
    })
}

/// A session sees the slices it was opened for, on their one node.
pub(crate) fn session_plan(bucket: &Bucket, session: &Session) -> Arc<Plan> {
    let mut routes = Routes { topology: session.topology, ..Routes::default() };
    let mut indexes: BTreeMap<u32, _> = BTreeMap::new();
    for slice in &session.slices {
        if let Some(index) = bucket.indexes.get(&slice.index) {
            let partitions = index.placed.hosts.len() as u32;
            routes.nodes.entry(session.node.clone()).or_default().push((slice.index, slice.partition, partitions));
            indexes.insert(slice.index, index.compiled.clone());
        }
    }
    Arc::new(Plan { routes: Arc::new(routes), indexes: indexes.into_iter().collect(), ..Plan::default() })
}
