//! The state machine, event by event.

use super::*;
use crate::config::VERSION_BLOCK;
use highwater_schemas::state::{Change, pack};

fn at(ms: u64) -> Now {
    Now { ms, wall: ms }
}

fn manager(node: &str) -> Manager {
    Manager::new(Config::new(node, 1), StateContext::default(), Chain::default(), 0, 1 << 20)
}

fn nominate(manager: &mut Manager, now: Now, term: u64) -> Vec<Action> {
    let bootstrap = Bootstrap {
        cluster_manager: "c".into(),
        master: manager.config.node.clone(),
        term,
        registered: vec![manager.config.node.clone()],
        force: false,
    };
    manager.handle(now, Event::Nominated { token: 1, bootstrap })
}

fn append(actions: &[Action]) -> Option<(u64, u64, Vec<u8>)> {
    actions.iter().find_map(|a| match a {
        Action::Append { id, expected, payload, .. } => Some((*id, *expected, payload.clone())),
        _ => None,
    })
}

/// Ticks when they are due, as the service does that looks for it now and then.
fn pass(manager: &mut Manager, from: u64, to: u64) -> Vec<Action> {
    let mut out = Vec::new();
    for ms in from..to {
        if manager.next_tick(ms) <= ms {
            out.extend(manager.handle(at(ms), Event::Tick { random: 1 }));
        }
    }
    out
}

#[test]
fn an_append_that_was_refused_is_sent_again() {
    let mut m = manager("a");
    nominate(&mut m, at(0), 1);
    let (id, expected, payload) = append(&m.handle(at(1), Event::Read(Ok((0, Vec::new()))))).unwrap();
    assert_eq!(expected, 0);
    m.handle(at(2), Event::Appended { id, outcome: Outcome::Refused("full".into()) });
    m.handle(at(3), Event::Found { id, record: Ok(None) });
    let again = append(&pass(&mut m, 3, 300)).unwrap();
    assert_eq!(again, (id, expected, payload));
    m.handle(at(301), Event::Appended { id, outcome: Outcome::Acked(1) });
    assert_eq!(m.leading(), Some(1));
}

#[test]
fn no_term_is_opened_behind_a_later_one() {
    let mut m = manager("a");
    nominate(&mut m, at(0), 4);
    let mut log = StateContext::default();
    let started = log.record(Change::TermStarted { coordinator: "b".into() }, 6, 0).to_json();
    log.offer(&started).unwrap();
    let actions = m.handle(at(9), Event::Read(Ok((1, vec![pack(started)]))));
    assert_eq!(append(&actions), None, "term 6 is there already");
    assert_eq!((m.context(), m.report().term), (&log, 6));
    let refused = nominate(&mut m, at(10), 5);
    assert!(matches!(&refused[..], [Action::Answer { reply, .. }] if !reply.accepted && reply.report.term == 6));
    assert!(!nominate(&mut m, at(11), 7).is_empty());
}

/// One that coordinates in term 1, with the sequence of the log's last record.
fn coordinator(node: &str) -> (Manager, u64) {
    let mut m = manager(node);
    nominate(&mut m, at(0), 1);
    let opening = m.handle(at(1), Event::Read(Ok((0, Vec::new()))));
    let last = acknowledge(&mut m, at(2), &opening).1;
    (m, last)
}

/// Acknowledges every append that comes, and those that follow: all actions, and the last sequence.
fn acknowledge(m: &mut Manager, now: Now, actions: &[Action]) -> (Vec<Action>, u64) {
    let (mut all, mut last) = (actions.to_vec(), 0);
    let mut next = append(actions);
    while let Some((id, expected, _)) = next {
        last = expected + 1;
        let actions = m.handle(now, Event::Appended { id, outcome: Outcome::Acked(last) });
        next = append(&actions);
        all.extend(actions);
    }
    (all, last)
}

#[test]
fn two_indexes_that_are_created_at_once_are_two() {
    let (mut m, _) = coordinator("a");
    let joined = m.handle(at(3), Event::Join(Join::new(NodeKind::Indexer, "i", 1)));
    acknowledge(&mut m, at(3), &joined);
    let ticked = m.handle(at(60), Event::Tick { random: 1 });
    acknowledge(&mut m, at(60), &ticked);
    let create = |token, name: &str| {
        let definition = serde_json::json!({"bucket": "b", "name": name, "keys": ["a"]});
        let ddl = core::Ddl::IndexCreate(serde_json::from_value(definition).unwrap());
        Event::Lead(core::Event::Ddl { token, ddl, probe: Ok(vec![0].into()), random: token })
    };
    // Jobs are numbered by term.
    let ensured = |job| Event::Lead(core::Event::StreamsEnsured { job: (1 << 32) + job, outcome: Ok(()), random: job });
    m.handle(at(61), create(1, "x"));
    m.handle(at(61), create(2, "y"));
    let first = m.handle(at(62), ensured(1));
    // The outcome comes while the first one's record is on its way.
    assert!(m.handle(at(63), ensured(2)).is_empty());
    acknowledge(&mut m, at(64), &first);
    let names: Vec<_> =
        m.context().buckets["b"].indexes.iter().map(|(n, i)| (*n, i.placed.definition.name.as_str())).collect();
    assert_eq!(names, [(1, "x"), (2, "y")]);
}

#[test]
fn a_term_whose_opening_was_lost_with_the_log_is_not_opened_again() {
    let mut m = manager("a");
    nominate(&mut m, at(0), 4);
    let log = StateContext::default();
    let started = log.record(Change::TermStarted { coordinator: "b".into() }, 1, 0).to_json();
    let (id, expected, _) = append(&m.handle(at(1), Event::Read(Ok((1, vec![pack(started)]))))).unwrap();
    assert_eq!(expected, 1);
    m.handle(at(2), Event::Appended { id, outcome: Outcome::Unknown });
    m.handle(at(3), Event::Found { id, record: Ok(None) });
    let actions = m.handle(at(4), Event::Found { id, record: Ok(None) });
    assert!(!actions.contains(&Action::ReadLog) && append(&actions).is_none());
    assert!(nominate(&mut m, at(5), 5).contains(&Action::ReadLog));
}

fn joined(n: u64) -> Change {
    Change::NodeJoined { node: "n".into(), kind: NodeKind::Indexer, incarnation: n }
}

/// The next record of a log, as it travels.
fn next(log: &mut StateContext, term: u64, change: Change) -> Vec<u8> {
    let json = log.record(change, term, 0).to_json();
    log.offer(&json).unwrap();
    pack(json)
}

/// What was kept: versions, and whether instead of all that was there.
fn kept(actions: &[Action]) -> Vec<(Vec<u64>, bool)> {
    let keep = |action: &Action| match action {
        Action::Keep { records, anew } => Some((records.iter().map(|r| r.link.version).collect(), *anew)),
        _ => None,
    };
    actions.iter().filter_map(keep).collect()
}

#[test]
fn what_follows_a_copy_that_was_given_up_takes_its_place() {
    let mut m = manager("a");
    let (mut old, mut new) = (StateContext::default(), StateContext::default());
    for n in 1..=3 {
        let actions = m.handle(at(n), Event::Record(next(&mut old, n, joined(n))));
        assert_eq!(kept(&actions), [(vec![n], n == 1)]);
    }
    let records: Vec<_> = (5..=6).map(|n| next(&mut new, 1, joined(n))).collect();
    let actions = m.handle(at(5), Event::Record(records[0].clone()));
    let given_up = [Action::KeepTerm(3), Action::Follow];
    assert_eq!(actions, given_up, "another log: it is read from its beginning, and no term is forgotten");
    m.handle(at(6), Event::Opened);
    let read: Vec<_> = records.into_iter().map(|r| kept(&m.handle(at(7), Event::Record(r)))).collect();
    assert_eq!(read, [[(vec![1], true)], [(vec![2], false)]]);
    assert_eq!(m.context(), &new);
}

#[test]
fn a_term_without_a_copy_takes_the_place_of_what_is_on_the_disk() {
    let mut m = manager("a");
    nominate(&mut m, at(0), 1);
    let opening = m.handle(at(1), Event::Read(Ok((0, Vec::new()))));
    assert_eq!(kept(&acknowledge(&mut m, at(2), &opening).0)[0], (vec![1], true));
}

#[test]
fn a_record_of_a_later_term_than_the_copy_is_of_another_log() {
    let mut log = StateContext::default();
    let records: Vec<_> = (1..=3).map(|n| next(&mut log, 1, joined(n))).collect();
    let mut chain = Chain::default();
    chain.push(3, &log.hash);
    // It does not know the hashes of what came before.
    let mut m = Manager::new(Config::new("a", 1), log.clone(), chain, 1, 1 << 20);
    assert!(m.handle(at(1), Event::Record(records[1].clone())).is_empty());
    let mut other = StateContext::default();
    let record = next(&mut other, 2, joined(7));
    assert_eq!(m.handle(at(2), Event::Record(record)), [Action::KeepTerm(1), Action::Follow]);
}

#[test]
fn a_later_life_of_the_log_is_not_ours() {
    let (mut m, _) = coordinator("a");
    let log = m.context().clone();
    let change = Change::Snapshot { context: Box::new(log.clone()), reason: "lost".into() };
    let anew = highwater_schemas::state::Record { incarnation: 2, version: 1, ..log.record(change, 2, 0) };
    let actions = m.handle(at(9), Event::Record(pack(anew.to_json())));
    assert!(matches!(&actions[0], Action::SteppedDown(_)) && m.leading().is_none());
}

#[test]
fn who_waits_for_a_change_that_does_not_fit_hears_of_it() {
    let config = Config::new("a", 1);
    let mut m = Manager::new(config, StateContext::default(), Chain::default(), 0, 900);
    nominate(&mut m, at(0), 1);
    let opening = m.handle(at(1), Event::Read(Ok((0, Vec::new()))));
    acknowledge(&mut m, at(2), &opening);
    let feed = |m: &mut Manager, ms, event| {
        let actions = m.handle(at(ms), event);
        acknowledge(m, at(ms), &actions).0
    };
    feed(&mut m, 3, Event::Join(Join::new(NodeKind::Indexer, "i", 1)));
    feed(&mut m, 60, Event::Tick { random: 1 });
    let create = |token, name: &str| {
        let definition = serde_json::json!({"bucket": "b", "name": name, "keys": ["a"], "where": format!("a > '{}'", "x".repeat(1_000))});
        let ddl = core::Ddl::IndexCreate(serde_json::from_value(definition).unwrap());
        Event::Lead(core::Event::Ddl { token, ddl, probe: Ok(vec![0].into()), random: token })
    };
    feed(&mut m, 61, create(1, "x"));
    let ensured = core::Event::StreamsEnsured { job: (1 << 32) + 1, outcome: Ok(()), random: 1 };
    let actions = feed(&mut m, 62, Event::Lead(ensured));
    let refused = |action: &Action| {
        let Action::Lead(core::Action::Reply { token: 1, answer: Err(error) }) = action else { return false };
        error.message.contains("does not fit")
    };
    assert_eq!(actions.iter().filter(|a| refused(a)).count(), 1, "{actions:?}");
    // There is room for as many as before.
    for token in 2..400 {
        let actions = feed(&mut m, 60 + token, create(token, "x"));
        let full = |a: &Action| matches!(a, Action::Lead(core::Action::Reply { answer: Err(e), .. }) if e.code == highwater_schemas::ErrorCode::TooManyRequests);
        assert!(!actions.iter().any(full), "request {token}");
    }
}

/// One whose copy begins with a snapshot, version 5, behind the end of what is left of the log, version 3.
fn undecided() -> (Manager, Event) {
    let mut log = StateContext::default();
    let records: Vec<_> = (1..=3).map(|n| next(&mut log, 1, joined(n))).collect();
    next(&mut log, 1, joined(4));
    let mut chain = Chain::default();
    for n in 5..=6 {
        next(&mut log, 1, joined(n));
        chain.push(n, &log.hash);
    }
    let m = Manager::new(Config::new("a", 1), log, chain, 1, 1 << 20);
    (m, Event::Read(Ok((3, records))))
}

fn peer(m: &mut Manager, now: u64, report: ManagerReport) -> Vec<Action> {
    m.handle(at(now), Event::Join(Join { manager: Some(report), ..Join::new(NodeKind::Coordinator, "b", 1) }))
}

#[test]
fn a_log_that_may_be_a_beginning_of_the_copy_is_left_to_who_can_tell() {
    let (mut m, read) = undecided();
    let other = |declined| ManagerReport { version: 6, declined, ..ManagerReport::default() };
    peer(&mut m, 0, other(Some(4)));
    nominate(&mut m, at(1), 5);
    assert_eq!(append(&m.handle(at(2), read.clone())), None);
    assert_eq!((m.report().declined, m.report().undecided), (Some(5), Some(5)), "the other one has its turn");
    assert!(m.report().waiting.is_some_and(|why| why.contains("ends at version 3")));
    // The other one cannot tell either.
    peer(&mut m, 3, other(Some(6)));
    nominate(&mut m, at(4), 7);
    assert_eq!(append(&m.handle(at(5), read.clone())), None);
    let report = m.report();
    assert_eq!(report.declined, Some(5), "it waits");
    assert!(report.waiting.is_some_and(|why| why.contains("--force")));
    assert_eq!(append(&pass(&mut m, 6, 1_000)), None);
    // Until someone may know more.
    peer(&mut m, 1_001, other(None));
    assert_eq!(m.report().declined, Some(7));
}

#[test]
fn alone_it_waits_for_force_and_publishes_its_copy_then() {
    let (mut m, read) = undecided();
    nominate(&mut m, at(1), 5);
    m.handle(at(2), read.clone());
    assert_eq!(append(&pass(&mut m, 3, 20_000)), None);
    assert_eq!((m.report().declined, m.leading()), (None, None));
    assert!(m.report().waiting.is_some_and(|why| why.contains("--force")));
    let bootstrap = Bootstrap {
        cluster_manager: "c".into(),
        master: "a".into(),
        term: 6,
        registered: vec!["a".into(), "b".into()],
        force: true,
    };
    m.handle(at(20_001), Event::Nominated { token: 2, bootstrap });
    let opening = m.handle(at(20_002), read);
    assert!(matches!(&opening[..], [Action::Append { rollup: true, expected: 3, .. }]), "{opening:?}");
    acknowledge(&mut m, at(20_003), &opening);
    assert_eq!((m.leading(), m.context().incarnation), (Some(6), 2));
    // What was lost had versions too, and topics may hold what was packed under them.
    assert_eq!(m.context().version, 6 + VERSION_BLOCK);
}

#[test]
fn a_replica_follows_a_log_that_is_published_anew() {
    let mut log = StateContext::default();
    let (mut ahead, mut behind) = (manager("a"), manager("b"));
    for n in 1..=3 {
        let record = next(&mut log, 1, joined(n));
        ahead.handle(at(n), Event::Record(record.clone()));
        if n < 3 {
            behind.handle(at(n), Event::Record(record));
        }
    }
    let change = Change::Snapshot { context: Box::new(log.clone()), reason: "lost".into() };
    let version = log.version + VERSION_BLOCK;
    let anew = highwater_schemas::state::Record { incarnation: 2, version, ..log.record(change, 2, 0) }.to_json();
    log.offer(&anew).unwrap();
    let after = next(&mut log, 2, joined(4));
    for (m, keeps) in [(&mut ahead, true), (&mut behind, false)] {
        assert_eq!(kept(&m.handle(at(9), Event::Record(pack(anew.clone())))), [(vec![version], !keeps)]);
        assert_eq!(kept(&m.handle(at(9), Event::Record(after.clone()))), [(vec![version + 1], false)]);
        assert_eq!(m.context(), &log);
    }
}

#[test]
fn who_holds_no_more_than_the_log_leaves_it_to_a_later_copy() {
    let mut log = StateContext::default();
    let records: Vec<_> = (1..=3).map(|n| next(&mut log, 1, joined(n))).collect();
    let read = || Event::Read(Ok((3, records.clone())));
    let later = |undecided| ManagerReport { version: 4, undecided, ..ManagerReport::default() };
    for copy in [0, 2, 3] {
        let mut m = manager("a");
        for record in &records[..copy] {
            m.handle(at(0), Event::Record(record.clone()));
        }
        peer(&mut m, 1, later(None));
        nominate(&mut m, at(2), 5);
        assert_eq!(append(&m.handle(at(3), read())), None, "{copy} records");
        assert_eq!(m.report().declined, Some(5));
        // It cannot tell whether it is one.
        peer(&mut m, 4, later(Some(6)));
        nominate(&mut m, at(5), 7);
        assert!(append(&m.handle(at(6), read())).is_some());
        let mut m = manager("a");
        peer(&mut m, 1, later(None));
        nominate(&mut m, at(2_000), 5);
        assert!(append(&m.handle(at(2_001), read())).is_some(), "it is gone");
    }
}
