//! Who is active, and who is there.

use super::*;
use highwater_schemas::{
    api::{self, Presence},
    lane::LEAST_PAYLOAD,
    names,
};

#[test]
fn a_lease_that_nobody_holds_is_taken_and_renewed() {
    let mut world = World::new("cm");
    world.run(100);
    assert!(world.active());
    let first = world.revision;
    world.run(10_000);
    assert!(world.active());
    assert!((9..=11).contains(&(world.revision - first)), "every third of the lease");
}

#[test]
fn a_lease_that_is_not_renewed_is_taken_over_after_its_time_by_our_clock() {
    let mut world = World::new("cm");
    world.lease = Some((7, lease_of("other")));
    world.run(LEASE - 100);
    assert!(!world.active());
    // Renewed: its time begins again.
    world.lease = Some((8, lease_of("other")));
    world.run(LEASE);
    assert!(!world.active());
    world.run(2 * HEARTBEAT);
    assert!(world.active());
}

#[test]
fn a_lease_that_lasts_longer_for_its_holder_is_given_that_time() {
    let mut world = World::new("cm");
    world.lease = Some((7, Lease { lease_ms: 3 * LEASE, ..lease_of("other") }));
    world.run(2 * LEASE);
    assert!(!world.active());
    world.run(LEASE + 2 * HEARTBEAT);
    assert!(world.active());
}

#[test]
fn a_lost_lease_stops_everything() {
    let mut world = settled();
    world.cut = true;
    let before = world.now;
    world.run(LEASE);
    assert!(!world.active(), "not renewed for the whole lease");
    // Renewed at the latest a third of it before the cut.
    assert!(world.now - before >= LEASE * 2 / 3);
    assert_eq!(world.master(), None);
    let (published, nominated) = (world.published.len(), world.nominated.len());
    world.run(5_000);
    assert_eq!((world.published.len(), world.nominated.len()), (published, nominated));
}

#[test]
fn another_holder_ends_ours_at_the_next_renewal() {
    let mut world = settled();
    world.lease = Some((99, lease_of("other")));
    world.run(LEASE / 3 + 100);
    assert!(!world.active());
}

#[test]
fn writes_whose_outcome_is_unknown_are_found_by_looking() {
    let mut world = World::new("cm");
    world.silent = true;
    world.run(10_000);
    assert!(world.active());
}

#[test]
fn a_pause_ends_the_lease_first_of_all_and_nobody_is_down_for_it() {
    let mut world = settled();
    world.published.clear();
    // Stopped, and another took over meanwhile.
    world.now += 60_000;
    world.lease = Some((99, lease_of("other")));
    assert!(world.core.handle(world.now, Event::Join(manager("a", 5, 4))).is_empty());
    assert!(!world.active());
    // It ends at once: active again, everyone is listened to anew.
    world.lease = None;
    world.run(5_000);
    assert!(world.active() && !world.published.is_empty());
    for event in &world.published {
        assert!(event.members.iter().all(|m| m.alive), "{event:?}");
    }
}

#[test]
fn a_short_pause_makes_nobody_silent() {
    let mut world = settled();
    world.published.clear();
    world.now += LEASE / 2;
    world.run(3_000);
    assert!(world.active() && !world.published.is_empty());
    assert!(world.published.iter().all(|e| e.members.iter().all(|m| m.alive)));
    assert_eq!(world.master(), Some(("b".into(), 4)));
}

#[test]
fn what_cannot_be_heard_is_not_silent() {
    let mut world = settled();
    world.published.clear();
    world.cut = true;
    world.run(LEASE / 2 + 200);
    world.cut = false;
    world.run(3_000);
    assert!(!world.published.is_empty());
    assert!(world.published.iter().all(|e| e.members.iter().all(|m| m.alive)));
}

#[test]
fn a_silent_node_is_down_after_the_misses_and_up_when_it_is_heard() {
    let mut world = settled();
    let indexer = world.nodes.pop().expect("the indexer");
    world.run(3 * HEARTBEAT - 100);
    assert_eq!(world.alive("i"), Some(true));
    world.run(HEARTBEAT + 200);
    assert_eq!(world.alive("i"), Some(false));
    world.handle(Event::Join(indexer));
    assert_eq!(world.alive("i"), Some(true), "published at once");
}

#[test]
fn who_left_is_gone_at_once_and_not_brought_back_by_a_late_heartbeat() {
    let mut world = settled();
    let late = world.nodes.pop().expect("the indexer");
    world.handle(Event::Leave(Leave { node: "i".into(), kind: NodeKind::Indexer, incarnation: 99 }));
    world.run(HEARTBEAT);
    assert_eq!(world.alive("i"), Some(true), "another incarnation left");
    world.handle(Event::Leave(Leave { node: "i".into(), kind: NodeKind::Indexer, incarnation: 4 }));
    assert_eq!(world.alive("i"), Some(false));
    world.handle(Event::Join(late.clone()));
    world.run(HEARTBEAT);
    assert_eq!(world.alive("i"), Some(false));
    world.handle(Event::Join(Join { incarnation: 5, ..late.clone() }));
    assert_eq!(world.alive("i"), Some(true));
    world.handle(Event::Join(late));
    assert_eq!(
        world.published.last().and_then(|e| e.members.iter().find(|m| m.node == "i")).map(|m| m.incarnation),
        Some(5)
    );
}

#[test]
fn a_late_heartbeat_of_an_earlier_life_of_ours_counts_for_nothing() {
    let mut world = settled();
    let cm = Join::new(NodeKind::ClusterManager, "cm", 77);
    world.handle(Event::Join(cm));
    let published = world.published.len();
    world.run(4 * HEARTBEAT);
    assert!(world.published.len() > published, "it hears itself");
    assert_eq!(world.master(), Some(("b".into(), 4)));
}

#[test]
fn who_stops_releases_the_lease_and_does_not_take_it_again() {
    let mut world = settled();
    world.handle(Event::Stop);
    assert!(!world.active() && world.lease.is_none());
    world.run(2 * LEASE);
    assert!(!world.active() && world.lease.is_none());
}

#[test]
fn there_is_no_end_to_names_but_to_what_is_remembered() {
    let mut world = settled();
    for n in 0..MOST_MEMBERS + 100 {
        world.core.handle(world.now, Event::Join(Join::new(NodeKind::Indexer, &format!("x{n}"), 1)));
    }
    assert_eq!(world.core.status(world.now).members.len(), MOST_MEMBERS);
    // With the longest names and numbers, everyone is told of in one message.
    let member = || Presence {
        node: "n".repeat(names::MAX_NAME),
        kind: NodeKind::ClusterManager,
        incarnation: u64::MAX,
        alive: false,
    };
    let members: Vec<Presence> = std::iter::repeat_with(member).take(MOST_MEMBERS).collect();
    assert!(api::json_size(&members) < LEAST_PAYLOAD / 2);
    for n in 0..MOST_REGISTERED + 100 {
        world.core.handle(world.now, Event::Join(manager(&format!("y{n}"), 1, 1)));
    }
    assert_eq!(world.core.registered().count(), MOST_REGISTERED);
}

#[test]
fn another_of_the_same_name_does_not_stand_in_for_us() {
    let mut world = settled();
    for _ in 0..10 {
        world.handle(Event::Join(Join::new(NodeKind::ClusterManager, "cm", 99)));
        world.run(HEARTBEAT);
    }
    world.published.clear();
    world.nodes.pop();
    world.run(5 * HEARTBEAT);
    assert_eq!(world.alive("i"), Some(false), "our own heartbeats still count");
}

#[test]
fn a_term_that_no_other_could_follow_is_not_believed() {
    let mut world = settled();
    let nominated = world.nominated.len();
    for term in [u64::MAX, u64::MAX - 1, 1 << 63] {
        let mut join = manager("x", 9, term);
        world.core.handle(world.now, Event::Join(join.clone()));
        if let Some(report) = &mut join.manager {
            (report.term, report.leading) = (5, Some(term));
        }
        world.core.handle(world.now, Event::Join(join));
        let master = Some(api::Master { node: "x".into(), term });
        let (cluster_manager, members) = ("other".into(), Vec::new());
        let event = api::ClusterEvent { cluster_manager, lease: 9, heartbeat_ms: HEARTBEAT, master, members };
        world.core.handle(world.now, Event::Heard(event));
    }
    world.run(4 * LEASE);
    assert_eq!((world.master(), world.nominated.len()), (Some(("b".into(), 4)), nominated));
}
