//! Questions for the state of the source, and what their answers allow.

use super::{Chunk, End, KnownToAll, SILENCE, Task};
use crate::data::env::Env;
use highwater_bus::StreamState;
use highwater_projector::cover::Question;
use highwater_schemas::{timestamp::Wants, wire::KeyVersions};

pub(super) struct Asking {
    question: Question,
    staged: Option<u64>,
    wants: Wants,
    position: u64,
    silent: bool,
    /// The stream's state, once the server has looked.
    state: Option<(StreamState, u64)>,
    /// No message is above the position; asked after that.
    nothing_above: Option<bool>,
}

impl Task {
    pub(super) fn ask_if_needed(&mut self, env: &Env) {
        if self.cover.needs_answer() || !self.waiting.is_empty() || self.removals.needs_answer() {
            self.ask(env);
        }
    }

    pub(super) fn ask(&mut self, env: &Env) {
        if self.asking.is_some() {
            return;
        }
        self.asking = Some(Asking {
            question: self.cover.question(),
            staged: self.removals.question(),
            wants: std::mem::take(&mut self.waiting),
            position: self.cover.position(),
            silent: env.now >= self.read_at + SILENCE,
            state: None,
            nothing_above: None,
        });
    }

    /// The question under way goes on: the server looks, looks again, the answer arrives.
    pub(super) fn look(&mut self, env: &mut Env, all: &mut KnownToAll) -> Result<(), End> {
        let Some(mut asking) = self.asking.take() else { return Ok(()) };
        let source = self.stream(env);
        match (&asking.state, asking.nothing_above) {
            (None, _) => {
                asking.state = Some((source.state(), source.identity()));
                self.asking = Some(asking);
                Ok(())
            }
            (Some((state, _)), None) => {
                let none = source.messages.range(asking.position + 1..).next().is_none();
                let open = self.offering.batches.is_open() || self.offering.is_unknown();
                let ahead = state.last_seq > asking.position || open && state.last_seq == asking.position;
                // The store answers when the batch that it is taking is complete.
                asking.nothing_above = Some(ahead && asking.silent && none && !source.is_taking_a_batch());
                self.asking = Some(asking);
                Ok(())
            }
            (Some((state, identity)), Some(nothing_above)) => {
                let (state, identity) = (state.clone(), *identity);
                self.answer(env, all, asking, (&state, identity, nothing_above))
            }
        }
    }

    fn answer(
        &mut self,
        env: &mut Env,
        all: &mut KnownToAll,
        asking: Asking,
        (state, source, nothing_above): (&StreamState, u64, bool),
    ) -> Result<(), End> {
        let fell =
            state.last_seq < self.source_last.max(self.assignment.lane.from.seqno) || state.first_seq < self.first_seq;
        if state.created != self.created || fell {
            self.changed(env, all, "the source's state has changed")?;
        }
        if source != self.source && self.source != 0 && self.live() {
            self.restarted(env, all)?;
        }
        self.source = source;
        self.first_seq = state.first_seq;
        if self.listing {
            return Ok(());
        }
        self.source_last = state.last_seq;
        self.look_for_removals(env, all, state, asking.staged);
        self.cover.answer(asking.question, state.last_seq);
        self.look_at_doubt();
        let nothing_above = nothing_above && asking.position == self.cover.position();
        let above = nothing_above && state.last_seq > asking.position;
        if above && self.cover.nothing_more(asking.question, state.last_seq) {
            self.recent.pass(self.cover.position());
            all.held = all.held.max(self.cover.position());
            self.last_message = (state.last_time, 0);
            self.offering.passed(self.last_message);
            self.send(env, KeyVersions::default(), true, false);
        }
        let position = self.cover.position();
        if nothing_above && state.last_seq == position {
            self.offering.nothing_follows();
        }
        let now = std::time::Duration::from_millis(env.now);
        if nothing_above && state.last_seq == position && self.offering.batches.nothing_follows(position, now) {
            env.count("batches without an end");
            self.cover.batch_is_over();
            self.offering.passed(self.last_message);
        }
        let answered = if self.doubt.is_some() || self.took_older { &mut self.doubted } else { &mut self.answered };
        asking.wants.into_iter().for_each(|want| answered.note(want));
        let asked = self.answered.list().to_vec();
        let (to, covered, source_last) = (self.at(env), self.covered(), self.source_last);
        let offer = self.offer(env);
        self.lane.chunk(env, Chunk::Covered { to, covered, asked, source_last, offer });
        self.put_removals(env, all);
        Ok(())
    }
}
