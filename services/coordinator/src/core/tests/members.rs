//! Who is there.

use super::*;
use highwater_schemas::api::{MOST_MEMBERS, Presence};

const P: (NodeKind, &str) = (NodeKind::Projector, "p");
const I: (NodeKind, &str) = (NodeKind::Indexer, "i");

fn cluster(heartbeat_ms: u64, members: Vec<Presence>) -> Event {
    Event::Cluster(ClusterEvent { cluster_manager: "cm".into(), lease: 1, heartbeat_ms, master: None, members })
}

#[test]
fn nodes_that_miss_their_heartbeats_are_gone_and_their_vbuckets_move() {
    let mut d = Driver::with_index();
    d.pass(2_400, &[(NodeKind::Projector, "q"), I]);
    assert!(d.gone(P.0, P.1) && !d.gone(I.0, I.1));
    assert_eq!(d.core.context().buckets["b"].vbuckets[0].projector, "q");
}

#[test]
fn nobody_is_gone_because_we_hear_nothing() {
    let mut d = Driver::with_index();
    d.pass(2_000, &[P, I]);
    // Nothing comes through for a while, and then our own heartbeat first.
    for _ in 0..40 {
        d.now += 300;
        d.event(Event::Tick { random: 5 });
    }
    d.echo();
    d.event(Event::Tick { random: 5 });
    assert!(!d.gone(P.0, P.1) && !d.gone(I.0, I.1));
    d.pass(1_200, &[I]);
    assert!(!d.gone(P.0, P.1), "it has its time to be heard again");
    d.pass(800, &[I]);
    assert!(d.gone(P.0, P.1) && !d.gone(I.0, I.1));
}

#[test]
fn a_short_break_does_not_add_to_the_silence_before_it() {
    let mut d = Driver::with_index();
    d.pass(2_000, &[P, I]);
    d.now += 400;
    d.echo();
    d.now += 1_200;
    d.echo();
    d.event(Event::Tick { random: 5 });
    assert!(!d.gone(P.0, P.1) && !d.gone(I.0, I.1));
}

#[test]
fn who_was_started_again_and_died_again_is_gone() {
    let mut d = Driver::with_index();
    d.pass(2_000, &[P, I]);
    // It dies before it could be entered.
    let dead = |alive| Presence { node: "p".into(), kind: NodeKind::Projector, incarnation: 2, alive };
    d.core.handle(d.now, Event::Join(Join::new(NodeKind::Projector, "p", 2)));
    d.core.handle(d.now, cluster(500, vec![dead(false)]));
    for _ in 0..6 {
        d.event(cluster(500, vec![dead(false)]));
        d.pass(400, &[I]);
    }
    assert!(d.gone(P.0, P.1));
}

#[test]
fn the_cluster_manager_says_how_often_nodes_report() {
    let mut d = Driver::with_index();
    d.pass(2_000, &[P, I]);
    d.event(cluster(2_000, Vec::new()));
    d.pass(5_000, &[I]);
    assert!(!d.gone(P.0, P.1), "three heartbeats are six seconds");
    d.pass(2_000, &[I]);
    assert!(d.gone(P.0, P.1));
}

#[test]
fn there_is_room_for_so_many_nodes() {
    let mut d = Driver::with_index();
    let known = d.core.members.nodes();
    for n in 0..MOST_MEMBERS {
        enter(&mut d, &format!("c{n}"));
        hear(&mut d, &format!("c{n}"));
    }
    assert_eq!(d.core.members.nodes(), MOST_MEMBERS);
    let last = |d: &Driver| d.core.members.follows(NodeKind::Catalog, &format!("c{}", MOST_MEMBERS - 1), 0);
    assert!(known > 0 && !last(&d), "those that are there stay");
    d.now += 10_000;
    d.core.handle(d.now, Event::Join(Join::new(NodeKind::Catalog, &format!("c{}", MOST_MEMBERS - 1), 1)));
    assert!(last(&d) && d.core.members.nodes() == MOST_MEMBERS);
}

fn hear(d: &mut Driver, catalog: &str) {
    d.core.handle(d.now, Event::Join(Join::new(NodeKind::Catalog, catalog, 1)));
}

fn enter(d: &mut Driver, catalog: &str) {
    d.append(Change::NodeJoined { node: catalog.into(), kind: NodeKind::Catalog, incarnation: 1 });
}

#[test]
fn names_that_the_log_does_not_know_leave_room_for_those_that_it_does() {
    let mut d = Driver::with_index();
    let known = d.core.members.nodes();
    for n in 0..MOST_MEMBERS {
        hear(&mut d, &format!("new{n}"));
    }
    let new = d.core.members.nodes() - known;
    assert!((512..=MOST_MEMBERS / 2).contains(&new), "{new}");
    enter(&mut d, "known");
    hear(&mut d, "known");
    assert_eq!(d.core.members.nodes(), known + new + 1);
    d.now += 10_000;
    hear(&mut d, "later");
    assert_eq!(d.core.members.nodes(), known + new + 1, "it takes the place of one that is silent");
    let follows = |d: &Driver, node: &str| d.core.members.follows(NodeKind::Catalog, node, 0);
    assert!(follows(&d, "later") && follows(&d, "known"));
}

#[test]
fn new_names_are_entered_so_many_at_a_time_and_first_those_heard_first() {
    let mut d = Driver::with_index();
    d.tick(50);
    let entered = |d: &Driver| -> Vec<String> {
        let names = d.core.context().nodes.keys().map(|(_, node)| node.clone());
        names.filter(|node| node.starts_with("new")).collect()
    };
    let (start, mut first) = (d.now, Vec::new());
    for n in (0..150).rev() {
        d.now = start + (150 - n);
        hear(&mut d, &format!("new{n:03}"));
        first.push(format!("new{n:03}"));
    }
    enter(&mut d, "known");
    d.event(Event::Join(Join::new(NodeKind::Catalog, "known", 2)));
    for _ in 0..3 {
        d.event(Event::Tick { random: 5 });
    }
    let now = entered(&d);
    assert!(now.len() < 100, "{}", now.len());
    assert!(first[..now.len()].iter().all(|name| now.contains(name)), "{now:?}");
    let known = &d.core.context().nodes[&(NodeKind::Catalog, "known".to_owned())];
    assert_eq!(known.incarnation, 2, "whom the log knows it takes up at once");
    for _ in 0..3 {
        d.now += 1_000;
        for name in &first {
            hear(&mut d, name);
        }
        d.event(Event::Tick { random: 5 });
    }
    assert_eq!(entered(&d).len(), 150);
}

#[test]
fn a_number_that_was_never_given_holds_up_no_others() {
    let d = Driver::with_index();
    let mut next = Driver::over(d.core.context().clone(), 0);
    let vbuuid = next.core.context().buckets["b"].vbuckets[0].vbuuid();
    let vbs = vec![StVb { vbuuid, generation: 1, ..StVb::default() }];
    let applied = StabilityTimestamp { number: u64::MAX, vbs, ..StabilityTimestamp::default() };
    next.join(NodeKind::Projector, "p", 1, Vec::new(), None);
    next.join(NodeKind::Indexer, "i", 1, Vec::new(), Some(applied));
    next.tick(20);
    next.sync(1, 9, 1);
    next.tick(20);
    assert_eq!(next.last().vbs[0].position.seqno, 9);
    assert!(next.last().number < next.core.context().buckets["b"].numbers_below);
}

#[test]
fn who_has_opened_its_slices_hears_the_newest_timestamp_at_once() {
    for news in [false, true] {
        let mut d = Driver::with_index();
        d.now = 1_000;
        d.sync(1, 9, 0);
        d.join(NodeKind::Indexer, "i", 2, Vec::new(), None);
        d.tick(20);
        let before = d.published.len();
        // In a report of everything, or in one of what is new.
        let open = |d: &mut Driver, part| {
            if news {
                let items = vec![Item::slice(&report(SliceState::Active, 0))];
                d.event(Event::Report(ReportPart { items, ..d.part(NodeKind::Indexer, "i", 2, part) }));
            } else {
                d.join(NodeKind::Indexer, "i", 2, vec![report(SliceState::Active, 0)], None);
            }
        };
        d.join(NodeKind::Indexer, "i", 2, Vec::new(), None);
        open(&mut d, 1);
        d.tick(20);
        assert_eq!((d.published.len(), d.last().vbs[0].position.seqno), (before + 1, 9));
        open(&mut d, 2);
        d.tick(20);
        assert_eq!(d.published.len(), before + 1, "once");
    }
}

#[test]
fn no_timestamp_is_issued_beyond_the_start_of_a_generation_that_begins_with_it() {
    let mut d = Driver::with_index();
    d.now = 1_000;
    d.join(NodeKind::Projector, "q", 1, Vec::new(), None);
    d.sync(1, 5, 0);
    d.sync(1, 9, 0);
    assert_eq!(d.last().vbs[0].position.seqno, 5, "the second waits for the interval");
    d.core.handle(d.now, cluster(500, vec![Presence { node: P.1.into(), kind: P.0, incarnation: 1, alive: false }]));
    d.now += 20;
    d.event(Event::Tick { random: 5 });
    let vbucket = &d.core.context().buckets["b"].vbuckets[0];
    assert_eq!(vbucket.projector, "q");
    let start = vbucket.starts[&2].x;
    assert_eq!((d.last().vbs[0].position, start.seqno), (start, 9));
}
