//! A term: the core's actions one after the other, each append settled before what follows it.

use super::{
    Action, Manager, Now, Role,
    append::{Append, Outcome, Settled},
    chain::{Linked, link},
};
use crate::core::{self, Bootstrapping, Core};
use highwater_schemas::{
    ApiError, ErrorCode,
    state::{Change, Record, pack, unpack},
};
use std::collections::VecDeque;

/// The last and the first record of the log are looked for this often, milliseconds.
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
    /// Events that came while an append was not settled: the core must not look at what is about to change. They are outcomes
    /// of what it asked for, requests that others passed on, of both no more than the shell has under way, and the newest
    /// word of the cluster manager.
    held: VecDeque<core::Event>,
    /// Something was appended: the core has not looked at it yet.
    news: bool,
    /// Messages in the log: records, and what others wrote.
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
            held: VecDeque::new(),
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
                    match leading.begin(id, change, now, max_record) {
                        Ok(append) => {
                            out.push(append.send());
                            leading.append = Some(append);
                        }
                        Err(why) => {
                            leading.give_up(&why);
                            out.push(Action::NotAppended(why));
                        }
                    }
                }
                Some(action) => out.push(Action::Lead(action)),
                None if !leading.held.is_empty() => {
                    let Some(event) = leading.held.pop_front() else { continue };
                    let actions = leading.core.handle(now.ms, event);
                    leading.queue.extend(actions);
                }
                None if leading.news => {
                    leading.news = false;
                    leading.random = leading.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(now.wall | 1);
                    let random = leading.random;
                    let actions = leading.core.handle(now.ms, core::Event::Tick { random });
                    leading.queue.extend(actions);
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

    /// Something for who coordinates.
    pub(super) fn lead(&mut self, now: Now, event: core::Event, out: &mut Vec<Action>) {
        match (&mut self.role, event) {
            (Role::Leading(leading), event) => {
                if matches!(event, core::Event::Cluster(_)) {
                    // The newest tells all.
                    leading.held.retain(|e| !matches!(e, core::Event::Cluster(_)));
                }
                leading.held.push_back(event);
                self.drive(now, out);
            }
            (_, core::Event::Ddl { token, .. }) => {
                let error = ApiError::new(ErrorCode::NoCoordinator, "this index manager does not coordinate any more");
                out.push(Action::Lead(core::Action::Reply { token, answer: Err(error) }));
            }
            _ => {}
        }
    }

    /// What the server said of an append.
    pub(super) fn appended(&mut self, now: Now, id: u64, outcome: &Outcome, out: &mut Vec<Action>) {
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
            self.checked(now, seq, record, out);
            return;
        }
        if let Some(append) = leading.append.as_mut().filter(|a| a.id == id) {
            let settled = append.found(now.ms, record, out);
            self.settled(now, settled, out);
        }
    }

    /// What a look at the log found: first at its last record, then at its first one.
    fn checked(&mut self, now: Now, seq: u64, record: Result<Option<Vec<u8>>, String>, out: &mut Vec<Action>) {
        let id = self.next_id();
        let Role::Leading(leading) = &mut self.role else { return };
        let hash = &leading.core.context().hash;
        let ours = |record: &[u8]| unpack(record).is_ok_and(|json| Record::hash(&json) == *hash);
        let first = leading.first_seq();
        match record {
            Ok(None) if seq == first && seq != leading.last_seq => {
                // Nobody can begin to read there: a snapshot takes the place of what is left.
                leading.compact_above = 0;
                self.drive(now, out);
            }
            Ok(_) if seq == first && seq != leading.last_seq => {}
            // Something was appended since it was asked.
            Ok(_) if leading.append.is_some() || leading.last_seq != seq => leading.check_due = now.ms,
            Ok(Some(record)) if ours(&record) => {
                if seq != first {
                    leading.checking = Some((id, first));
                    out.push(Action::ReadAt { id, seq: first });
                }
            }
            Ok(_) => self.step_down("the state log lost its tail".into(), out),
            Err(_) => leading.check_due = now.ms + CHECK / 10,
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
                    leading.records = 1;
                    leading.compact_above = self.config.compact_above;
                } else {
                    leading.records = leading.records.saturating_add(append.passed_over()).saturating_add(1);
                }
                if let Err(error) = leading.core.applied(&append.record.json) {
                    // It was made from this context, and checked before it was sent.
                    self.step_down(format!("an acknowledged record cannot be applied: {error}"), out);
                    return;
                }
                let context = leading.core.context();
                self.chain.push(context.version, &context.hash);
                out.push(Action::Keep { records: vec![append.record], anew: false });
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
            link.incarnation > context.incarnation
                || (link.incarnation == context.incarnation
                    && self.chain.agrees(link.version, &link.hash) == Some(false))
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
        self.ticked = now.ms;
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
    /// Sequence of the record with which reading the log begins.
    fn first_seq(&self) -> u64 {
        (self.last_seq + 1).saturating_sub(self.records as u64)
    }

    /// The append of a change, or why it cannot be.
    fn begin(&mut self, id: u64, change: Change, now: Now, max_record: usize) -> Result<Append, String> {
        let rollup = matches!(change, Change::Snapshot { .. });
        let context = self.core.context();
        // A record that nobody could apply must not get in.
        context.check(&change).map_err(|e| e.to_string())?;
        let record = Linked::from(&context.record(change, self.term, now.wall));
        let payload = pack(record.json.clone());
        if payload.len() > max_record {
            return Err(format!(
                "a record of {} bytes does not fit one NATS message; raise max_payload",
                payload.len()
            ));
        }
        Ok(Append::new(id, self.last_seq, context.hash.clone(), record, payload, rollup))
    }

    /// What followed from a change that cannot be made is not done; who waits for it hears why, the core too.
    fn give_up(&mut self, why: &str) {
        let error = || ApiError::new(ErrorCode::Internal, why);
        for action in std::mem::take(&mut self.queue) {
            match action {
                core::Action::Reply { token, .. } => {
                    self.queue.push_back(core::Action::Reply { token, answer: Err(error()) });
                }
                core::Action::EnsureStreams { job, .. }
                | core::Action::Assign { job, .. }
                | core::Action::DeleteStreams { job, .. } => {
                    self.held.push_back(core::Event::GivenUp { job, why: error() });
                }
                core::Action::CheckTopics { term, .. } => {
                    self.held.push_back(core::Event::TopicsChecked { term, made: Err(why.into()), found: None });
                }
                core::Action::Append(_)
                | core::Action::Publish(_)
                | core::Action::AskReport { .. }
                | core::Action::PurgeSession { .. } => {}
            }
        }
    }
}
