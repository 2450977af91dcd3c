//! A term: the core's actions one after the other, each append settled before what follows it.

use super::{
    Action, Manager, Now, Role,
    append::{Append, Outcome, Settled},
    chain::link,
};
use crate::core::{self, Bootstrapping, Core};
use highwater_schemas::state::{Change, Record, pack, unpack};
use std::collections::VecDeque;

/// The last record of the log is looked for this often, milliseconds.
const CHECK: u64 = 5_000;

/// What is known while it coordinates.
pub(super) struct Leading {
    pub(super) term: u64,
    pub(super) core: Core,
    /// Sequence of the last record.
    last_seq: u64,
    /// Still to be carried out.
    pub(super) queue: VecDeque<core::Action>,
    pub(super) append: Option<Append>,
    /// Requests and their next steps that came while an append was not settled: they are checked against what it changes.
    pub(super) deferred: VecDeque<core::Event>,
    /// Something was appended: the core has not looked at it yet.
    news: bool,
    /// Records in the log.
    records: usize,
    /// Where compaction begins; rises when it fails.
    compact_above: usize,
    /// A look at the last record that is under way, with its sequence, and when the next one is due.
    checking: Option<(u64, u64)>,
    check_due: u64,
    random: u64,
}

impl Manager {
    /// The term is open.
    pub(super) fn take_office(
        &mut self,
        now: Now,
        term: u64,
        last_seq: u64,
        records: usize,
        boot: Bootstrapping,
        out: &mut Vec<Action>,
    ) {
        let core = Core::new(self.config.clone(), std::mem::take(&mut self.context), boot, now.ms);
        self.role = Role::Leading(Box::new(Leading {
            term,
            core,
            last_seq,
            queue: VecDeque::new(),
            append: None,
            deferred: VecDeque::new(),
            news: true,
            records,
            compact_above: self.config.compact_above,
            checking: None,
            check_due: now.ms + CHECK,
            random: term,
        }));
        out.push(Action::Beat);
        self.drive(now, out);
    }

    /// Carries out what the core wants, up to the next append.
    pub(super) fn drive(&mut self, now: Now, out: &mut Vec<Action>) {
        let mut id = self.last_id;
        let max_record = self.max_record;
        let Role::Leading(leading) = &mut self.role else { return };
        while leading.append.is_none() {
            match leading.queue.pop_front() {
                Some(core::Action::Append(change)) => {
                    id += 1;
                    if let Some(append) = leading.begin(id, change, now, max_record) {
                        out.push(append.send());
                        leading.append = Some(append);
                    }
                }
                Some(action) => out.push(Action::Lead(action)),
                None if leading.news => {
                    leading.news = false;
                    leading.random = leading.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(now.wall | 1);
                    let random = leading.random;
                    let actions = leading.core.handle(now.ms, core::Event::Tick { random });
                    leading.queue.extend(actions);
                }
                None if !leading.deferred.is_empty() => {
                    if let Some(event) = leading.deferred.pop_front() {
                        let actions = leading.core.handle(now.ms, event);
                        leading.queue.extend(actions);
                    }
                }
                None if leading.records > leading.compact_above => {
                    let context = Box::new(leading.core.context().clone());
                    let snapshot = Change::Snapshot { context, reason: String::new() };
                    leading.queue.push_back(core::Action::Append(snapshot));
                    // Should it not fit, the next attempt is made when the log has doubled.
                    leading.compact_above = leading.records * 2;
                }
                None => break,
            }
        }
        self.last_id = id;
    }

    /// What the server said of an append.
    pub(super) fn appended(&mut self, now: Now, id: u64, outcome: Outcome, out: &mut Vec<Action>) {
        if let Some(append) = self.opening().filter(|a| a.id == id) {
            let settled = append.appended(outcome, out);
            self.opened_term(now, settled, out);
            return;
        }
        let Role::Leading(leading) = &mut self.role else { return };
        if let Some(append) = leading.append.as_mut().filter(|a| a.id == id) {
            let settled = append.appended(outcome, out);
            self.settled(now, settled, out);
        }
    }

    /// What was found at a place of the log.
    pub(super) fn found(&mut self, now: Now, id: u64, record: Result<Option<Vec<u8>>, String>, out: &mut Vec<Action>) {
        if let Some(append) = self.opening().filter(|a| a.id == id) {
            let settled = append.found(now.ms, record, out);
            self.opened_term(now, settled, out);
            return;
        }
        let Role::Leading(leading) = &mut self.role else { return };
        if let Some((_, seq)) = leading.checking.filter(|(check, _)| *check == id) {
            leading.checking = None;
            leading.check_due = now.ms + CHECK;
            let hash = &leading.core.context().hash;
            let ours = |record: &[u8]| unpack(record).is_ok_and(|json| Record::hash(&json) == *hash);
            match record {
                // Something was appended since it was asked.
                Ok(_) if leading.append.is_some() || leading.last_seq != seq => leading.check_due = now.ms,
                Ok(Some(record)) if ours(&record) => {}
                Ok(_) => self.step_down("the state log lost its tail".into(), out),
                Err(_) => leading.check_due = now.ms + CHECK / 10,
            }
            return;
        }
        if let Some(append) = leading.append.as_mut().filter(|a| a.id == id) {
            let settled = append.found(now.ms, record, out);
            self.settled(now, settled, out);
        }
    }

    fn settled(&mut self, now: Now, settled: Settled, out: &mut Vec<Action>) {
        let Role::Leading(leading) = &mut self.role else { return };
        match settled {
            Settled::NotYet => {}
            Settled::Done(seq) => {
                let Some(append) = leading.append.take() else { return };
                leading.last_seq = seq;
                leading.news = true;
                if append.rollup {
                    leading.records = 0;
                    leading.compact_above = self.config.compact_above;
                }
                leading.records += 1;
                if let Err(error) = leading.core.applied(&append.json) {
                    // It was made from this context, and checked before it was sent.
                    self.step_down(format!("an acknowledged record cannot be applied: {error}"), out);
                    return;
                }
                let context = leading.core.context();
                self.chain.push(context.version, &context.hash);
                out.push(Action::Keep { records: vec![append.json], anew: false });
                self.drive(now, out);
            }
            Settled::Deposed => self.step_down("another index manager has appended to the log".into(), out),
            Settled::Lost => self.step_down("the state log lost its tail".into(), out),
        }
    }

    /// The log as everyone sees it: a record that is not ours means that someone else coordinates.
    pub(super) fn overheard(&mut self, payload: &[u8], out: &mut Vec<Action>) {
        let Role::Leading(leading) = &self.role else { return };
        let Some(link) = link(payload) else { return };
        let context = leading.core.context();
        let foreign = if link.version <= context.version {
            link.incarnation == context.incarnation && self.chain.agrees(link.version, &link.hash) == Some(false)
        } else {
            leading.append.as_ref().is_none_or(|a| a.payload != payload)
        };
        if foreign {
            self.step_down("another index manager has appended to the log".into(), out);
        }
    }

    /// Looks whether the last record is still there.
    pub(super) fn check_last(&mut self, out: &mut Vec<Action>) {
        let id = self.next_id();
        let Role::Leading(leading) = &mut self.role else { return };
        if leading.checking.is_none() && leading.append.is_none() {
            leading.checking = Some((id, leading.last_seq));
            out.push(Action::ReadAt { id, seq: leading.last_seq });
        } else {
            leading.check_due = 0;
        }
    }

    pub(super) fn tick(&mut self, now: Now, random: u64, out: &mut Vec<Action>) {
        self.tick_candidate(now, out);
        let Role::Leading(leading) = &mut self.role else { return };
        leading.random ^= random;
        if let Some(append) = leading.append.as_mut() {
            append.tick(now.ms, out);
            return;
        }
        let actions = leading.core.handle(now.ms, core::Event::Tick { random });
        leading.queue.extend(actions);
        if now.ms >= leading.check_due && leading.checking.is_none() {
            leading.check_due = now.ms + CHECK;
            self.check_last(out);
        }
        self.drive(now, out);
    }
}

impl Leading {
    /// The append of a change; None when it cannot be: what follows it goes on without.
    fn begin(&mut self, id: u64, change: Change, now: Now, max_record: usize) -> Option<Append> {
        let rollup = matches!(change, Change::Snapshot { .. });
        let context = self.core.context();
        let json = context.record(change.clone(), self.term, now.wall).to_json();
        let payload = pack(json.clone());
        // A record that nobody could apply must not get in.
        if payload.len() > max_record || context.check(&change).is_err() {
            return None;
        }
        Some(Append::new(id, self.last_seq, context.hash.clone(), json, payload, rollup))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Config,
        core::Ddl,
        manager::{Event, chain::Chain},
    };
    use highwater_schemas::{
        api::{Bootstrap, Join, NodeKind},
        state::StateContext,
    };

    /// Acknowledges every append and grants whatever is asked for, until nothing is left; answers how many replies were good.
    fn settle(manager: &mut Manager, seq: &mut u64, mut actions: VecDeque<Action>) -> usize {
        let mut good = 0;
        while let Some(action) = actions.pop_front() {
            let event = match action {
                Action::ReadLog => Event::Read(Ok((0, Vec::new()))),
                Action::Append { id, .. } => {
                    *seq += 1;
                    Event::Appended { id, outcome: Outcome::Acked(*seq) }
                }
                Action::Lead(core::Action::EnsureStreams { job, .. }) => {
                    Event::Lead(core::Event::StreamsEnsured { job, outcome: Ok(()), random: 4 })
                }
                Action::Lead(core::Action::Assign { job, node, .. }) => {
                    Event::Lead(core::Event::Assigned { job, node, outcome: Ok(()) })
                }
                Action::Lead(core::Action::Reply { answer, .. }) => {
                    good += usize::from(answer.is_ok());
                    continue;
                }
                _ => continue,
            };
            actions.extend(manager.handle(Now::default(), event));
        }
        good
    }

    #[test]
    fn requests_that_come_during_an_append_are_checked_after_it() {
        let mut manager = Manager::new(Config::new("c", 1), StateContext::default(), Chain::default(), 0, 1 << 20);
        let mut seq = 0;
        let bootstrap = Bootstrap {
            cluster_manager: "m".into(),
            master: "c".into(),
            term: 1,
            registered: vec!["c".into()],
            force: false,
        };
        let actions = manager.handle(Now::default(), Event::Nominated { token: 1, bootstrap });
        settle(&mut manager, &mut seq, actions.into());
        let join = Join { term: 1, ..Join::new(NodeKind::Indexer, "i", 1) };
        let mut actions = VecDeque::from(manager.handle(Now::default(), Event::Join(join)));
        actions.extend(manager.handle(Now::default(), Event::Tick { random: 5 }));
        settle(&mut manager, &mut seq, actions);
        let create = |manager: &mut Manager, name: &str| {
            let definition = serde_json::json!({"bucket": "b", "name": name, "keys": ["a"]});
            let ddl = Ddl::IndexCreate(serde_json::from_value(definition).unwrap());
            let ddl = core::Event::Ddl { token: 9, ddl, probe: Ok(vec![0]), random: 9 };
            VecDeque::from(manager.handle(Now::default(), Event::Lead(ddl)))
        };
        let first = create(&mut manager, "first");
        assert_eq!(settle(&mut manager, &mut seq, first), 1);
        let mut actions = create(&mut manager, "second");
        assert!(manager.busy());
        actions.extend(create(&mut manager, "third"));
        actions.extend(create(&mut manager, "second"));
        assert_eq!(settle(&mut manager, &mut seq, actions), 2, "a name is taken once");
        let indexes = &manager.context().buckets["b"].indexes;
        let names: Vec<&str> = indexes.values().map(|i| i.placed.definition.name.as_str()).collect();
        assert_eq!(names, ["first", "second", "third"], "each has a number of its own");
    }
}
