//! From a nomination to a term: the log is compared with the copy, what was lost is published anew, the term is opened.

use super::{
    Action, Manager, Now, Role,
    append::{Append, Settled},
    chain::{Chain, Linked},
    compare::{Comparison, compare},
};
use crate::{
    config::{NUMBER_BLOCK, VERSION_BLOCK},
    core::Bootstrapping,
};
use highwater_schemas::{
    api::Bootstrap,
    state::{Change, Record, is_record, pack},
};
use std::collections::BTreeSet;

/// Milliseconds until the log is read again after it could not be: twice as long each time, so often.
const RETRY: u64 = 200;
const MOST_DOUBLED: u32 = 4;

/// A nomination that is not a term yet.
pub(super) struct Candidate {
    pub(super) boot: Bootstrapping,
    term: u64,
    registered: BTreeSet<String>,
    force: bool,
    since: u64,
    phase: Phase,
    /// Messages that the log holds: records, and what others wrote.
    records: usize,
    /// The last message of the log is no record.
    ends_foreign: bool,
    /// Times that it could not be read.
    failures: u32,
}

enum Phase {
    Reading,
    ReadAgain(u64),
    /// The log is not whole: who else has a copy?
    Gathering {
        last_seq: u64,
        loss: Loss,
        why: String,
    },
    Opening(Append),
}

/// What the log lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// What the copy has behind the log's end.
    Tail,
    All,
    /// Its tail, or nothing.
    Unknown,
}

impl Candidate {
    pub(super) fn term(&self) -> u64 {
        self.term
    }
}

impl Manager {
    /// Stands for a term that this index manager was nominated for.
    pub(super) fn stand(&mut self, now: Now, bootstrap: &Bootstrap, out: &mut Vec<Action>) {
        let note = format!("by {} for term {}", bootstrap.cluster_manager, bootstrap.term);
        let mut boot = Bootstrapping::begin(now.ms, note);
        boot.done(now.ms, 2, format!("version {}", self.context.version));
        self.role = Role::Candidate(Box::new(Candidate {
            boot,
            term: bootstrap.term,
            registered: bootstrap.registered.iter().cloned().collect(),
            force: bootstrap.force,
            since: now.ms,
            phase: Phase::Reading,
            records: 0,
            ends_foreign: false,
            failures: 0,
        }));
        out.push(Action::ReadLog);
    }

    pub(super) fn read(&mut self, now: Now, read: Result<(u64, Vec<Vec<u8>>), String>, out: &mut Vec<Action>) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        if !matches!(candidate.phase, Phase::Reading) {
            return;
        }
        let (last_seq, mut records) = match read {
            Ok(read) => read,
            Err(why) => {
                self.waiting = Some(format!("the state log cannot be read: {why}"));
                candidate.phase = Phase::ReadAgain(now.ms + (RETRY << candidate.failures.min(MOST_DOUBLED)));
                candidate.failures += 1;
                return;
            }
        };
        candidate.records = records.len();
        candidate.ends_foreign = records.last().is_some_and(|last| !is_record(last));
        records.retain(|record| is_record(record));
        let versions: Vec<String> =
            self.peers.iter().map(|(node, p)| format!("{node} has version {}", p.report.version)).collect();
        candidate.boot.done(now.ms, 3, if versions.is_empty() { "no others".into() } else { versions.join(", ") });
        let compared = compare(&records, &self.context, &self.chain);
        let gather = |loss, why| Phase::Gathering { last_seq, loss, why };
        // Who holds no more than the log does not see what it lost.
        let end = match &compared {
            Ok(Comparison::Ahead { context, .. }) => Some(context.version),
            Ok(Comparison::Other { context, .. }) if self.context.version == 0 => Some(context.version),
            _ => None,
        };
        let beyond = end.filter(|_| !candidate.force).and_then(|end| Some((end, self.beyond(now, end)?)));
        if let Some((end, (node, version))) = beyond {
            let why = format!("the state log ends at version {end}, and {node} has version {version}");
            self.decline(why, out);
            return;
        }
        let Role::Candidate(candidate) = &mut self.role else { return };
        match compared {
            Ok(Comparison::Ahead { context, news }) => {
                let note = format!("the log, version {}", context.version);
                self.adopt(*context, &news, false, out);
                self.open_behind(now, last_seq, note, out);
            }
            Ok(Comparison::Other { context, records }) => {
                let note = format!("the log, version {}: the local copy was another one", context.version);
                let note =
                    if self.context.version == 0 { format!("the log, version {}", context.version) } else { note };
                self.adopt(*context, &records, true, out);
                self.open_behind(now, last_seq, note, out);
            }
            Ok(Comparison::LostTail { version }) => {
                candidate.phase =
                    gather(Loss::Tail, format!("the state log lost its tail: it ends at version {version}"));
                self.gather(now, out);
            }
            Ok(Comparison::Unknown { version }) => {
                let copy = self.context.version;
                let why = format!(
                    "the state log ends at version {version}, and the local copy, version {copy}, does not tell whether it goes on from there"
                );
                candidate.phase = gather(Loss::Unknown, why);
                self.gather(now, out);
            }
            Ok(Comparison::Gone(why)) => {
                candidate.phase = gather(Loss::All, format!("the state log is lost: {why}"));
                self.gather(now, out);
            }
            Err(error) if candidate.force => {
                candidate.phase = gather(Loss::All, format!("the state log cannot be used: {error}"));
                self.gather(now, out);
            }
            Err(error) => self.decline(
                format!("the state log cannot be used: {error}; `highwater state recover --force` publishes the copy"),
                out,
            ),
        }
    }

    /// Takes what the log holds beyond the copy, or in its place.
    fn adopt(
        &mut self,
        context: highwater_schemas::state::StateContext,
        records: &[Vec<u8>],
        anew: bool,
        out: &mut Vec<Action>,
    ) {
        if anew {
            self.chain = Chain::default();
        }
        let records: Vec<Linked> = records.iter().filter_map(|r| Linked::read(r)).collect();
        for Linked { link, .. } in &records {
            self.chain.push(link.version, &link.hash);
        }
        self.context = context;
        self.term = self.term.max(self.context.term);
        if anew || !records.is_empty() {
            out.push(Action::Keep { records, anew });
        }
    }

    /// A lost log is published anew from the latest copy, once it is known which that is.
    pub(super) fn gather(&mut self, now: Now, out: &mut Vec<Action>) {
        let Role::Candidate(candidate) = &self.role else { return };
        let Phase::Gathering { last_seq, loss, why } = &candidate.phase else { return };
        let (last_seq, loss, why) = (*last_seq, *loss, why.clone());
        if let Some((node, version)) = self.later(now) {
            let note = format!("{why}, and {node} has version {version} of it");
            self.decline(note, out);
            return;
        }
        if loss == Loss::Unknown && !candidate.force {
            if self.others_may_tell(now) {
                self.undecided = Some(candidate.term);
                self.decline(why, out);
            } else {
                self.waiting = Some(format!("{why}: `highwater state recover --force` publishes the copy"));
            }
            return;
        }
        let missing = self.missing(now, &candidate.registered);
        let patient = now.ms < candidate.since + self.config.patience();
        if !missing.is_empty() && !candidate.force && (loss == Loss::All || patient) {
            let missing = missing.join(", ");
            self.waiting = Some(format!(
                "{why}, and {missing} may have a later copy: start it, or give it up with `highwater state recover --force`"
            ));
            return;
        }
        self.waiting = None;
        if self.context.version == 0 {
            self.open_term(now, last_seq, "a new one: nobody has any".into(), out);
            return;
        }
        // The snapshot opens the term too: nobody can follow from the end of what is left.
        let mut context = self.context.clone();
        context.coordinator.clone_from(&self.config.node);
        // What is missing of the log may have reserved numbers: they are not used a second time.
        for bucket in context.buckets.values_mut() {
            bucket.numbers_below += NUMBER_BLOCK;
        }
        let note = format!("the local copy, version {}: {why}", context.version);
        let change = Change::Snapshot { context: Box::new(context), reason: why };
        // Nor are its versions.
        let record = Record {
            incarnation: self.context.incarnation + 1,
            version: self.context.version.saturating_add(VERSION_BLOCK),
            ..self.context.record(change, candidate.term, now.wall)
        };
        self.open_with(now, last_seq, &record, true, note, out);
    }

    /// Opens the term behind what the log holds, unless someone was faster.
    fn open_behind(&mut self, now: Now, last_seq: u64, note: String, out: &mut Vec<Action>) {
        let Role::Candidate(candidate) = &self.role else { return };
        let (opened, mine) = (self.context.term, candidate.term);
        if opened >= mine {
            let why = format!("term {opened} was opened by {} before term {mine}", self.context.coordinator);
            self.step_down(why, out);
            return;
        }
        self.open_term(now, last_seq, note, out);
    }

    fn open_term(&mut self, now: Now, last_seq: u64, note: String, out: &mut Vec<Action>) {
        let Role::Candidate(candidate) = &self.role else { return };
        let change = Change::TermStarted { coordinator: self.config.node.clone() };
        let record = self.context.record(change, candidate.term, now.wall);
        // A first record takes the place of what nobody can read.
        let rollup = self.context.version == 0 && candidate.records > 0;
        self.open_with(now, last_seq, &record, rollup, note, out);
    }

    fn open_with(
        &mut self,
        now: Now,
        last_seq: u64,
        record: &Record,
        rollup: bool,
        note: String,
        out: &mut Vec<Action>,
    ) {
        let id = self.next_id();
        let ends_foreign = matches!(&self.role, Role::Candidate(candidate) if candidate.ends_foreign);
        let before = if rollup || ends_foreign { String::new() } else { self.context.hash.clone() };
        let record = Linked::from(record);
        let payload = pack(record.json.clone());
        if payload.len() > self.max_record {
            let size = payload.len();
            self.decline(format!("the state does not fit one NATS message: {size} bytes; raise max_payload"), out);
            return;
        }
        let Role::Candidate(candidate) = &mut self.role else { return };
        candidate.boot.done(now.ms, 4, note);
        let append = Append::new(id, last_seq, before, record, payload, rollup);
        out.push(append.send());
        candidate.phase = Phase::Opening(append);
    }

    /// It cannot lead; the cluster manager hears why.
    fn decline(&mut self, why: String, out: &mut Vec<Action>) {
        self.step_down(why.clone(), out);
        self.waiting = Some(why);
    }

    /// The append that opens the term, if it is under way.
    pub(super) fn opening(&mut self) -> Option<&mut Append> {
        match &mut self.role {
            Role::Candidate(candidate) => match &mut candidate.phase {
                Phase::Opening(append) => Some(append),
                _ => None,
            },
            _ => None,
        }
    }

    /// What became of it.
    pub(super) fn opened_term(&mut self, now: Now, settled: Settled, out: &mut Vec<Action>) {
        match settled {
            Settled::NotYet => {}
            Settled::Done(seq) => {
                let Role::Candidate(candidate) = std::mem::replace(&mut self.role, Role::Replica) else { return };
                let Phase::Opening(append) = candidate.phase else { return };
                let passed_over = append.passed_over();
                let mut boot = candidate.boot;
                let version = self.context.version;
                if let Err(error) = self.context.offer(&append.record.json) {
                    // It was made from this context.
                    self.decline(format!("the opened term cannot be applied: {error}"), out);
                    return;
                }
                debug_assert_eq!(self.context.version, append.record.link.version, "the term is open");
                self.chain.push(self.context.version, &self.context.hash);
                // A copy that was given up is on the disk until something takes its place.
                out.push(Action::Keep { records: vec![append.record], anew: version == 0 });
                boot.done(now.ms, 5, format!("term {}, version {}", candidate.term, self.context.version));
                self.waiting = None;
                let records = if append.rollup { 1 } else { candidate.records + passed_over + 1 };
                self.take_office(now, candidate.term, seq, records, boot, out);
            }
            Settled::Deposed => self.step_down("another index manager has appended to the log".into(), out),
            // The record may have been in what the log lost, and a term is opened once: the next nomination has a higher one.
            Settled::Lost => self.step_down("the state log changed while the term was being opened".into(), out),
        }
    }

    pub(super) fn tick_candidate(&mut self, now: Now, out: &mut Vec<Action>) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        match &mut candidate.phase {
            Phase::ReadAgain(at) if now.ms >= *at => {
                candidate.phase = Phase::Reading;
                out.push(Action::ReadLog);
            }
            Phase::Reading | Phase::ReadAgain(_) => {}
            Phase::Gathering { .. } => self.gather(now, out),
            Phase::Opening(append) => append.tick(now.ms, out),
        }
    }
}
