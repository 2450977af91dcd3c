//! The state machine, event by event.

use super::*;
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
        Event::Lead(core::Event::Ddl { token, ddl, probe: Ok(vec![0]), random: token })
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
