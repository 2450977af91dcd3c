//! What the log says of this node: its slices, and what each bucket's worker is told.

use super::SliceInfo;
use crate::{
    config::Config,
    core::{Branch, BucketView, OpenSession, Shares, Start},
    store::SliceIdentity,
};
use highwater_schemas::state::{Bucket, SessionKind, SliceName, StateContext};
use std::collections::BTreeMap;

pub(super) fn view(config: &Config, term: u64, bucket: &Bucket) -> BucketView {
    let shares = bucket
        .vbuckets
        .iter()
        .map(|v| Shares {
            vbuuid: v.vbuuid(),
            generation: v.generation,
            starts: v
                .starts
                .iter()
                .filter(|(_, s)| s.vbuuid == v.vbuuid())
                .map(|(g, s)| (*g, Start { x: s.x, term: s.term, merged: s.merged }))
                .collect(),
            branches: v
                .failover
                .iter()
                .map(|f| Branch { vbuuid: f.vbuuid, start: f.start, broken: f.broken })
                .collect(),
        })
        .collect();
    let slices = hosted(&config.node, bucket).map(|(name, topology, _)| (name, topology)).collect();
    let sessions = bucket
        .sessions
        .values()
        .filter(|s| s.node == config.node && s.incarnation == config.incarnation)
        .map(|s| {
            let open = OpenSession {
                slices: s.slices.clone(),
                from: s.vbs.iter().map(|v| v.from).collect(),
                reconciled: s.vbs.iter().map(|v| v.reconciled).collect(),
                lists: s.kind.lists(),
                stages: bucket.reconcile.as_ref().filter(|_| s.kind == SessionKind::Reconcile).map(|r| r.id),
            };
            (s.id, open)
        })
        .collect();
    let numbers_below = bucket.numbers_below;
    BucketView { term, numbers_below, topology: bucket.topology, shares, slices, sessions }
}

pub(super) fn hosted<'a>(node: &'a str, bucket: &'a Bucket) -> impl Iterator<Item = (SliceName, u64, SliceInfo)> + 'a {
    bucket.live_indexes().flat_map(move |(number, index)| {
        let partitions = index.placed.hosts.len() as u32;
        index.placed.hosts.iter().enumerate().filter(move |(_, host)| *host == node).map(move |(partition, _)| {
            let name = SliceName { index: number, partition: partition as u32 };
            let identity = SliceIdentity {
                bucket: bucket.definition.name.clone(),
                declared: bucket.declared,
                index_id: index.placed.id.clone(),
                index: number,
                partition: partition as u32,
            };
            (name, index.topology, SliceInfo { identity, partitions, directions: index.compiled.directions() })
        })
    })
}

/// Slices of all buckets on this node.
pub(super) fn hosted_slices(node: &str, context: &StateContext) -> usize {
    context.buckets.values().map(|bucket| hosted(node, bucket).count()).sum()
}

pub(super) fn infos(node: &str, bucket: &Bucket) -> BTreeMap<SliceName, SliceInfo> {
    hosted(node, bucket).map(|(name, _, info)| (name, info)).collect()
}
