//! Whether what a task has read may still be trusted; as `services/projector/src/vbucket/trust.rs`.

use super::{End, Frozen, KnownToAll, Task};
use crate::data::{env::Env, looks::check};
use highwater_projector::verify::{Known, Proven};

impl Task {
    pub(super) fn changed(&mut self, env: &mut Env, all: &mut KnownToAll, _why: &str) -> Result<(), End> {
        if !self.live() {
            return Err(End::Broken);
        }
        self.verify(env, all)?;
        Err(End::Again)
    }

    pub(super) fn known(&self, all: &KnownToAll) -> Known {
        Known {
            created: self.created,
            first_seq: self.first_seq,
            position: self.cover.position(),
            held: all.held.max(self.assignment.known.held),
            bookmarks: self.marks.clone(),
            doubt: self.doubt,
        }
    }

    pub(super) fn verify(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
        let known = self.known(all);
        let source = &env.sources[usize::from(self.assignment.lane.vb)];
        let Proven { source: read_from, overwritten } =
            check(source, &known, Some(&mut self.recent)).map_err(End::Suspected)?;
        self.source = read_from;
        self.line = source.line();
        self.compared = Some(read_from);
        self.took_older = false;
        self.doubt = overwritten.or(self.doubt.filter(|_| !self.cover.is_closed()));
        if overwritten.is_some() {
            env.count("histories accounted for");
            self.cover.doubt(self.offering.batches.begins());
        } else if self.doubt.is_none() {
            self.trust();
        }
        Ok(())
    }

    pub(super) fn trust(&mut self) {
        self.doubt = None;
        std::mem::take(&mut self.doubted).into_iter().for_each(|want| self.waiting.note(want));
        if let Some(last) = self.marks.last_mut() {
            last.source = self.source;
        }
    }

    pub(super) fn look_at_doubt(&mut self) {
        if self.doubt.is_some() && self.cover.is_closed() {
            self.trust();
        }
    }

    pub(super) fn freeze(&mut self, all: &mut KnownToAll) {
        self.frozen = Some(Frozen { at: self.covered(), after: self.plan.newest_reconcile });
        self.ask_to_reconcile(all);
    }

    pub(super) fn restarted(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
        let hidden = self.cover.covered() < self.cover.position();
        if !self.live() {
            return if hidden { Err(End::Broken) } else { Ok(()) };
        }
        if self.compared == Some(self.stream(env).identity()) && !self.took_older {
            return Ok(());
        }
        self.verify(env, all)?;
        if hidden || self.doubt.is_some() {
            self.freeze(all);
        }
        self.ask_to_reconcile(all);
        Ok(())
    }

    pub(super) fn ask_to_reconcile(&self, all: &mut KnownToAll) {
        all.reconcile_after = all.reconcile_after.max(self.plan.newest_reconcile + 1);
    }
}
