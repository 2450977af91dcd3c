//! How a log and a copy of it relate.

use super::chain::{Chain, link};
use highwater_schemas::state::{Offered, StateContext, StateError};

/// What a log is beside a copy.
#[derive(Debug, PartialEq)]
pub enum Comparison {
    /// The log holds the copy, and maybe more: these records follow it. Applying them gives this context.
    Ahead { context: Box<StateContext>, news: Vec<Vec<u8>> },
    /// The log is another one than the copy: what it adds up to, and all of its records.
    Other { context: Box<StateContext>, records: Vec<Vec<u8>> },
    /// The log ends before the copy, and the copy goes on where it ends.
    LostTail { version: u64 },
    /// The log ends before the copy, and before the first record of which the copy knows the hash: it may be a beginning of the
    /// copy or another log.
    Unknown { version: u64 },
    /// There is nothing in the log that can be used: no record, or not from its beginning.
    Gone(String),
}

/// Compares the records of a log with a copy: its context and the hashes that led there.
///
/// # Errors
/// The log holds what this version cannot read.
pub fn compare(records: &[Vec<u8>], copy: &StateContext, chain: &Chain) -> Result<Comparison, StateError> {
    let mut read = StateContext::default();
    let mut same = true;
    let mut known = 0;
    for (at, record) in records.iter().enumerate() {
        match read.offer(record) {
            Ok(Offered::Known) => continue,
            Ok(_) => {}
            Err(StateError::Order { found, .. }) if read.version == 0 => {
                return Ok(Comparison::Gone(format!("its first record is number {found}")));
            }
            Err(error) => return Err(error),
        }
        if read.version <= copy.version {
            known = at + 1;
            // A hash that is no longer kept contradicts nothing.
            same &= link(record).is_some_and(|l| chain.agrees(l.version, &l.hash) != Some(false));
        }
    }
    if read.version == 0 {
        return Ok(Comparison::Gone("it is empty".into()));
    }
    if copy.version == 0 {
        return Ok(Comparison::Other { context: Box::new(read), records: records.to_vec() });
    }
    if !same && read.incarnation < copy.incarnation {
        return Ok(Comparison::Gone("it is an earlier life of it".into()));
    }
    if !same {
        return Ok(Comparison::Other { context: Box::new(read), records: records.to_vec() });
    }
    if read.version < copy.version {
        // Only what is certainly the beginning of the copy is completed from it.
        let before = read.incarnation <= copy.incarnation && read.term <= copy.term;
        return Ok(match chain.agrees(read.version, &read.hash) {
            Some(true) if before => Comparison::LostTail { version: read.version },
            None if before => Comparison::Unknown { version: read.version },
            _ => Comparison::Other { context: Box::new(read), records: records.to_vec() },
        });
    }
    // The copy may end before the log begins, or be of an earlier life: offering decides.
    let mut context = copy.clone();
    let news = records[known..].to_vec();
    for record in &news {
        // Beyond the copy nothing is known, unless it is of an earlier life.
        if !matches!(context.offer(record), Ok(Offered::Applied(_) | Offered::Replaced)) {
            return Ok(Comparison::Other { context: Box::new(read), records: records.to_vec() });
        }
    }
    Ok(Comparison::Ahead { context: Box::new(context), news })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VERSION_BLOCK;
    use highwater_schemas::{
        api::NodeKind,
        state::{Change, Record},
    };

    /// A context with the chain and the records that led to it.
    #[derive(Clone, Default)]
    struct Log {
        context: StateContext,
        chain: Chain,
        records: Vec<Vec<u8>>,
    }

    impl Log {
        fn append(mut self, change: Change) -> Self {
            let json = self.context.record(change, 1, 0).to_json();
            self.context.offer(&json).unwrap();
            self.chain.push(self.context.version, &self.context.hash);
            self.records.push(json);
            self
        }
        fn node(self, name: &str) -> Self {
            self.append(Change::NodeJoined { node: name.into(), kind: NodeKind::Indexer, incarnation: 1 })
        }
        fn snapshot(self) -> Self {
            let context = Box::new(self.context.clone());
            let mut log = self.append(Change::Snapshot { context, reason: String::new() });
            log.records.drain(..log.records.len() - 1);
            log
        }
    }

    fn three() -> Log {
        Log::default().append(Change::TermStarted { coordinator: "c".into() }).node("a").node("b")
    }

    fn compared(log: &Log, copy: &Log) -> Comparison {
        compare(&log.records, &copy.context, &copy.chain).unwrap()
    }

    fn ahead(log: &Log, copy: &Log, news: usize) {
        match compared(log, copy) {
            Comparison::Ahead { context, news: found } => {
                assert_eq!((*context, found.len()), (log.context.clone(), news));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_log_that_goes_on_is_ahead() {
        ahead(&three(), &three(), 0);
        ahead(&three().node("c").node("d"), &three(), 2);
        ahead(&three().snapshot().node("d"), &three(), 2);
        ahead(&three().node("c").snapshot().node("d"), &three(), 2);
    }

    #[test]
    fn a_log_that_ends_early_lost_its_tail() {
        let long = three().node("c").node("d");
        assert_eq!(compared(&three(), &long), Comparison::LostTail { version: 3 });
        let compacted = three().snapshot();
        assert_eq!(compared(&compacted, &compacted.clone().node("x")), Comparison::LostTail { version: 4 });
        assert_eq!(compared(&three(), &three().snapshot().node("x")), Comparison::LostTail { version: 3 });
    }

    #[test]
    fn a_log_that_ends_before_what_the_copy_knows_may_be_any() {
        // Who begins with a snapshot knows no hash before it.
        let mut late = three().node("c").snapshot().node("d");
        late.chain = Chain::default();
        late.chain.push(5, "5");
        late.chain.push(6, &late.context.hash);
        assert_eq!(compared(&three(), &late), Comparison::Unknown { version: 3 });
        let mut later = three().node("x");
        let json = later.context.record(Change::TermStarted { coordinator: "z".into() }, 9, 0).to_json();
        later.context.offer(&json).unwrap();
        later.records.push(json);
        later.records.truncate(5);
        late = late.node("e");
        assert!(matches!(compared(&later, &late), Comparison::Other { .. }), "a later term is another log");
    }

    #[test]
    fn a_log_that_contradicts_is_another_one() {
        for (log, copy) in [
            (three().node("c"), three().node("x")),
            (three().node("c").node("d"), three().node("x")),
            (three().node("c"), three().node("x").node("y")),
            (
                three().node("c").node("d").node("e"),
                Log::default().append(Change::TermStarted { coordinator: "z".into() }),
            ),
            (three(), Log::default()),
        ] {
            match compared(&log, &copy) {
                Comparison::Other { context, records } => assert_eq!((*context, records), (log.context, log.records)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_log_of_the_life_before_is_told_from_its_own_tail() {
        // The copy was published anew after version 3, and the log is what it was before that, or went on from there.
        let mut anew = three();
        let change = Change::Snapshot { context: Box::new(anew.context.clone()), reason: "lost".into() };
        let record = anew.context.record(change, 1, 0);
        let json = Record { incarnation: 2, version: record.version + VERSION_BLOCK, ..record }.to_json();
        anew.context.offer(&json).unwrap();
        anew.chain.push(anew.context.version, &anew.context.hash);
        anew.records.push(json);
        let anew = anew.node("x");
        assert_eq!(compared(&three(), &anew), Comparison::LostTail { version: 3 });
        assert!(matches!(compared(&three().node("c"), &anew), Comparison::Gone(_)));
        ahead(&Log { records: anew.records[3..].to_vec(), ..anew.clone() }, &three(), 2);
        ahead(&Log { records: anew.records[3..].to_vec(), ..anew.clone() }, &three().node("c"), 2);
        ahead(&Log { records: anew.records[3..].to_vec(), ..anew.clone() }, &anew, 0);
    }

    #[test]
    fn a_log_without_its_beginning_is_gone() {
        assert!(matches!(compared(&Log::default(), &three()), Comparison::Gone(_)));
        let mut headless = three().node("c");
        headless.records.drain(..2);
        assert!(matches!(compared(&headless, &three()), Comparison::Gone(_)));
        let unreadable = Log { records: vec![b"garbage".to_vec()], ..Log::default() };
        assert!(matches!(compared(&unreadable, &three()), Comparison::Gone(_)));
        let of_a_later_version =
            br#"{"incarnation":1,"term":1,"version":1,"prev":"","at":0,"change":{"what":"unheard_of"}}"#.to_vec();
        assert!(compare(&[of_a_later_version], &three().context, &three().chain).is_err());
    }
}
