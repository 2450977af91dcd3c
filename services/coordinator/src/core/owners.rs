//! Which projector reads which vbucket.

use super::{Action, Core, stability::BucketStability};
use highwater_schemas::{
    Position,
    api::NodeKind,
    state::{Bucket, Change, RollbackPhase, Vbucket},
    timestamp::{Dropped, StabilityTimestamp},
};
use std::collections::BTreeMap;

impl Core {
    /// A live projector reads it, on its present branch.
    pub(super) fn owned(&self, vbucket: &Vbucket) -> bool {
        let owner = self.context.nodes.get(&(NodeKind::Projector, vbucket.projector.clone()));
        vbucket.generation > 0
            && owner.is_some_and(|e| !e.gone && e.incarnation == vbucket.incarnation)
            && vbucket.starts.get(&vbucket.generation).is_some_and(|start| start.vbuuid == vbucket.vbuuid())
    }

    /// Gives vbuckets without a live owner to the projector with the fewest, under a new generation; when all have one, moves
    /// one from the projector with the most to the one with the fewest.
    pub(super) fn assign_vbuckets(&mut self, out: &mut Vec<Action>) {
        let mut load: BTreeMap<&str, usize> = self.context.alive(NodeKind::Projector).map(|(n, _)| (n, 0)).collect();
        if load.is_empty() {
            return;
        }
        for vbucket in self.context.buckets.values().flat_map(|b| &b.vbuckets).filter(|v| self.owned(v)) {
            *load.entry(vbucket.projector.as_str()).or_default() += 1;
        }
        let mut assigned = false;
        let started = |b: &Bucket| b.rollback.as_ref().is_some_and(|r| r.phase == RollbackPhase::Started);
        for (name, bucket) in self.context.buckets.iter().filter(|(_, b)| !started(b)) {
            let vbuckets = bucket.vbuckets.iter().enumerate();
            let lost = |vb: usize, v: &Vbucket| self.members.is_lost(name, vb, v.generation);
            let mut given = Vec::new();
            for (vb, vbucket) in vbuckets.filter(|(vb, v)| !self.owned(v) || lost(*vb, v)) {
                let Some((projector, n)) = load.iter_mut().min_by_key(|(_, n)| **n) else { return };
                *n += 1;
                given.push((vb, vbucket, *projector));
            }
            assigned |= !given.is_empty();
            self.assign(name, &given, out);
        }
        if !assigned {
            self.move_one(&load, out);
        }
    }

    /// One at a time, and only what is in step: a vbucket with open sessions or without a SYNC of its owner waits.
    fn move_one(&self, load: &BTreeMap<&str, usize>, out: &mut Vec<Action>) {
        let (Some((most, high)), Some((fewest, low))) =
            (load.iter().max_by_key(|(_, n)| **n), load.iter().min_by_key(|(_, n)| **n))
        else {
            return;
        };
        if *high < *low + 2 {
            return;
        }
        for (name, bucket) in self.context.buckets.iter().filter(|(_, b)| b.sessions.is_empty()) {
            let stability = self.stability.get(name);
            let spoke = |vb: usize, v: &Vbucket| {
                let issued = stability.and_then(|s| s.last()).and_then(|l| l.vbs.get(vb));
                issued.is_some_and(|i| i.generation == v.generation)
            };
            if !bucket.vbuckets.iter().enumerate().all(|(vb, v)| spoke(vb, v)) {
                continue;
            }
            if let Some((vb, vbucket)) = bucket.vbuckets.iter().enumerate().find(|(_, v)| v.projector == *most) {
                return self.assign(name, &[(vb, vbucket, fewest)], out);
            }
        }
    }

    /// Gives vbuckets of a bucket away, each to a projector. The next owner compares the source with what was read of it last:
    /// that goes into the log before, once for all of them.
    fn assign(&self, bucket: &str, given: &[(usize, &Vbucket, &str)], out: &mut Vec<Action>) {
        let mut bookmarks = self.stability.get(bucket).map(BucketStability::bookmarks).unwrap_or_default();
        for (vb, of_vbucket) in bookmarks.iter_mut().enumerate() {
            if !given.iter().any(|(given, ..)| *given == vb) {
                of_vbucket.clear();
            }
        }
        if bookmarks.iter().any(|of_vbucket| !of_vbucket.is_empty()) {
            out.push(Action::Append(Change::Bookmarked { bucket: bucket.into(), bookmarks }));
        }
        let assigned =
            given.iter().filter_map(|(vb, vbucket, projector)| self.assignment(bucket, *vb, vbucket, projector));
        out.extend(assigned.map(Action::Append));
    }

    fn assignment(&self, bucket: &str, vb: usize, vbucket: &Vbucket, projector: &str) -> Option<Change> {
        let entry = self.context.nodes.get(&(NodeKind::Projector, projector.to_owned()))?;
        let stability = self.stability.get(bucket);
        let (x, restart) = restart_of(vbucket, stability.and_then(|s| s.last()), vb);
        // What is to be compared with every document may hold anything.
        let branch = self.context.buckets.get(bucket).map_or(0, Bucket::branch);
        let settled = self.members.reports(bucket).filter(|(_, _, r)| !r.compare && r.branch == branch);
        let content = settled.filter_map(|(_, _, r)| r.content.get(vb).copied());
        let last = stability.and_then(|s| s.last()).and_then(|l| l.vbs.get(vb));
        let last = last.filter(|st| st.vbuuid == vbucket.vbuuid());
        let issued = last.map_or(0, |st| st.position.seqno);
        // Slices that are active hold what their node has applied.
        let applied = self.members.applied(bucket).filter_map(|st| st.vbs.get(vb));
        let applied = applied.filter(|st| st.vbuuid == vbucket.vbuuid()).map(|st| st.position.seqno);
        let held = content.chain(applied).chain([issued, vbucket.held]).max().unwrap_or(0);
        let dropped = last.map_or(vbucket.dropped, |st| Dropped { floor: st.floor, reconciled: st.reconciled });
        Some(Change::VbucketAssigned {
            bucket: bucket.into(),
            vb: vb as u16,
            generation: vbucket.generation + 1,
            projector: projector.into(),
            incarnation: entry.incarnation,
            x,
            restart,
            held,
            dropped,
        })
    }
}

/// Where a new generation counts from, and where it reads from: the last ST issued and its covered seqno.
fn restart_of(vbucket: &Vbucket, last: Option<&StabilityTimestamp>, vb: usize) -> (Position, u64) {
    let issued = last.and_then(|l| l.vbs.get(vb)).filter(|l| l.vbuuid == vbucket.vbuuid());
    match issued {
        Some(state) => (state.position, state.covered),
        None => match vbucket.starts.get(&vbucket.generation) {
            Some(start) if start.vbuuid == vbucket.vbuuid() => (start.x, vbucket.restart),
            _ => (Position::new(vbucket.restart, 0), vbucket.restart),
        },
    }
}
