//! Which projector reads which vbucket.

use super::{Action, Core, ddl::mix};
use highwater_schemas::{
    Position,
    api::NodeKind,
    state::{Change, Vbucket},
    timestamp::StabilityTimestamp,
};
use std::collections::BTreeMap;

impl Core {
    /// A live projector reads it, on its present branch.
    pub(super) fn owned(&self, vbucket: &Vbucket) -> bool {
        let owner = self.context.nodes.get(&(NodeKind::Projector, vbucket.projector.clone()));
        vbucket.generation > 0
            && owner.is_some_and(|e| !e.gone && e.incarnation == vbucket.incarnation)
            && vbucket.starts.get(&vbucket.generation).is_some_and(|(vbuuid, _)| *vbuuid == vbucket.vbuuid())
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
        for (name, bucket) in &self.context.buckets {
            for (vb, vbucket) in bucket.vbuckets.iter().enumerate().filter(|(_, v)| !self.owned(v)) {
                let Some((projector, n)) = load.iter_mut().min_by_key(|(_, n)| **n) else { return };
                *n += 1;
                assigned = true;
                out.extend(self.assignment(name, vb, vbucket, projector));
            }
        }
        if !assigned {
            out.extend(self.move_one(&load));
        }
    }

    /// One at a time, and only what is in step: a vbucket with open sessions or without a SYNC of its owner waits.
    fn move_one(&self, load: &BTreeMap<&str, usize>) -> Option<Action> {
        let (most, high) = load.iter().max_by_key(|(_, n)| **n)?;
        let (fewest, low) = load.iter().min_by_key(|(_, n)| **n)?;
        if *high < *low + 2 {
            return None;
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
                return self.assignment(name, vb, vbucket, fewest);
            }
        }
        None
    }

    fn assignment(&self, bucket: &str, vb: usize, vbucket: &Vbucket, projector: &str) -> Option<Action> {
        let entry = self.context.nodes.get(&(NodeKind::Projector, projector.to_owned()))?;
        let (x, restart) = restart_of(vbucket, self.stability.get(bucket).and_then(|s| s.last()), vb);
        Some(Action::Append(Change::VbucketAssigned {
            bucket: bucket.into(),
            vb: vb as u16,
            generation: vbucket.generation + 1,
            projector: projector.into(),
            incarnation: entry.incarnation,
            x,
            restart,
        }))
    }

    /// A source that contradicts what was read from it: a new branch from zero. It costs time, never truth.
    pub(super) fn start_branches(&mut self, random: u64, out: &mut Vec<Action>) {
        for suspicion in self.members.take_suspicions() {
            let vbucket =
                self.context.buckets.get(&suspicion.bucket).and_then(|b| b.vbuckets.get(usize::from(suspicion.vb)));
            if vbucket.is_some_and(|v| v.vbuuid() == suspicion.vbuuid) {
                out.push(Action::Append(Change::BranchStarted {
                    bucket: suspicion.bucket,
                    vb: suspicion.vb,
                    vbuuid: mix(random, u64::from(suspicion.vb)),
                    start: 0,
                    reason: suspicion.reason,
                }));
            }
        }
    }
}

/// Where a new generation counts from, and where it reads from: the last ST issued and its covered seqno.
fn restart_of(vbucket: &Vbucket, last: Option<&StabilityTimestamp>, vb: usize) -> (Position, u64) {
    let issued = last.and_then(|l| l.vbs.get(vb)).filter(|l| l.vbuuid == vbucket.vbuuid());
    match issued {
        Some(state) => (state.position, state.covered),
        None => match vbucket.starts.get(&vbucket.generation) {
            Some((vbuuid, x)) if *vbuuid == vbucket.vbuuid() => (*x, vbucket.restart),
            _ => (Position::new(vbucket.restart, 0), vbucket.restart),
        },
    }
}
