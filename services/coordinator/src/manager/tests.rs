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
