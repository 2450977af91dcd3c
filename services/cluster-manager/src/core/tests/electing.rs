//! Who coordinates.

use super::*;
use crate::core::election::LIST_AGAIN;

#[test]
fn the_highest_version_is_elected_in_a_higher_term_and_all_are_told_it_first() {
    let mut world = World::new("cm");
    world.nodes = vec![manager("a", 5, 3), manager("b", 9, 2), manager("c", 9, 0)];
    world.run(2_000);
    assert_eq!(world.chosen(), ("b", 4));
    let told: Vec<&str> = world.nominated.iter().take(3).map(|(to, _)| to.as_str()).collect();
    assert_eq!(told, ["b", "a", "c"]);
    assert_eq!(world.nominated[0].1.registered, ["a", "b", "c"]);
    assert_eq!(world.registered, ["a", "b", "c"]);
    assert_eq!(world.master(), None, "its heartbeat does not say so yet");
    world.take_office();
    assert_eq!(world.master(), Some(("b".into(), 4)));
    world.run(HEARTBEAT);
    let nominated = world.nominated.len();
    world.run(10_000);
    assert_eq!(world.nominated.len(), nominated);
}

#[test]
fn the_first_of_a_new_deployment_waits_a_heartbeat_for_others() {
    let mut world = World::new("cm");
    world.run(700);
    world.handle(Event::Join(manager("a", 0, 0)));
    world.run(200);
    world.handle(Event::Join(manager("b", 3, 0)));
    assert!(world.nominated.is_empty());
    world.run(400);
    assert_eq!(world.chosen(), ("b", 1));
}

#[test]
fn registered_index_managers_are_waited_for_but_not_for_ever() {
    let mut world = World::new("cm");
    world.registered = vec!["a".into(), "b".into()];
    world.nodes = vec![manager("a", 5, 3)];
    world.run(1_400);
    assert!(world.nominated.is_empty());
    world.run(200);
    assert_eq!(world.chosen(), ("a", 4));

    let mut world = World::new("cm");
    world.registered = vec!["a".into(), "b".into()];
    world.nodes = vec![manager("a", 5, 3)];
    world.run(600);
    world.handle(Event::Join(manager("b", 9, 3)));
    assert_eq!(world.chosen(), ("b", 4), "all are there");
}

#[test]
fn an_index_manager_that_coordinates_is_adopted_without_election() {
    let mut world = World::new("cm");
    let mut leader = manager("a", 5, 6);
    leader.manager.as_mut().expect("report").leading = Some(6);
    world.nodes = vec![leader, manager("b", 9, 6)];
    world.run(3_000);
    assert_eq!(world.master(), Some(("a".into(), 6)));
    assert!(world.nominated.is_empty());
    // One that has heard of a higher term ends it.
    world.report("b", |r| r.term = 8);
    assert_eq!(world.master(), None);
    assert_eq!(world.chosen(), ("b", 9));
}

#[test]
fn terms_rise_over_refusals() {
    let mut world = World::new("cm");
    world.nodes = vec![manager("a", 5, 3), manager("b", 9, 3)];
    world.run(2_000);
    assert_eq!(world.chosen(), ("b", 4));
    world.answer("a", false, 20);
    world.run(HEARTBEAT);
    assert_eq!(world.chosen(), ("b", 21));
    // It cannot lead: the other one is tried.
    world.answer("b", false, 21);
    world.run(HEARTBEAT);
    assert_eq!(world.chosen(), ("a", 22));
    world.answer("a", false, 22);
    world.run(2 * HEARTBEAT);
    assert_eq!(world.chosen(), ("b", 23), "again from the best");
}

#[test]
fn a_nomination_without_effect_is_given_up() {
    let mut world = World::new("cm");
    world.nodes = vec![manager("a", 5, 3), manager("b", 9, 3)];
    world.run(2_000);
    let first = world.nominated.len();
    world.run(HEARTBEAT);
    assert!(world.nominated.len() > first, "told again while it is not acknowledged");
    world.run(PATIENCE);
    assert_eq!(world.chosen(), ("a", 5));
}

#[test]
fn what_a_bucket_that_another_instance_made_lacks_is_written_again() {
    let mut world = settled();
    // Nobody tells this one, and the lease is as it was.
    world.registered.clear();
    world.run(LIST_AGAIN + 2 * HEARTBEAT);
    assert!(world.active());
    assert_eq!(world.registered, ["a", "b"]);
    world.run(2 * LIST_AGAIN);
    assert_eq!(world.registered, ["a", "b"], "what is there is not written again");
}

#[test]
fn whoever_cannot_renew_the_lease_in_a_lost_bucket_writes_everything_again() {
    let mut world = settled();
    (world.lease, world.registered) = (None, Vec::new());
    let sent_at = world.now;
    world.core.handle(sent_at, Event::LeaseWritten { sent_at, outcome: LeaseWritten::NoBucket });
    world.run(2 * HEARTBEAT);
    assert_eq!(world.registered, ["a", "b"]);
}

#[test]
fn a_master_that_is_gone_leaves_changes_or_resigns_is_followed_by_another() {
    let leave = Leave { node: "b".into(), kind: NodeKind::Coordinator, incarnation: 7 };
    let mut restarted = manager("b", 9, 4);
    restarted.incarnation = 8;
    for (what, event) in [
        ("left", Event::Leave(leave)),
        ("restarted", Event::Join(restarted)),
        ("resigned", Event::Join(manager("b", 9, 4))),
    ] {
        let mut world = settled();
        world.nominated.clear();
        world.handle(event);
        assert_eq!(world.chosen().1, 5, "{what}: at once");
        assert_eq!(world.published.last().expect(what).master, None, "{what}");
    }
    let mut world = settled();
    world.nodes.retain(|j| j.node != "b");
    world.run(5 * HEARTBEAT);
    assert_eq!(world.chosen(), ("a", 5));
    world.take_office();
    assert_eq!(world.master(), Some(("a".into(), 5)));
}

#[test]
fn a_standby_that_takes_over_adopts_or_elects_at_once() {
    for leader_lives in [true, false] {
        let mut world = World::new("cm");
        world.registered = vec!["a".into(), "b".into()];
        world.lease = Some((7, lease_of("other")));
        let mut leader = manager("b", 9, 6);
        leader.manager.as_mut().expect("report").leading = Some(6);
        world.nodes = vec![manager("a", 9, 6), leader];
        world.run(1_000);
        if !leader_lives {
            world.nodes.pop();
        }
        world.run(4_500);
        assert!(world.active());
        let chosen = if leader_lives { ("", 0) } else { ("a", 7) };
        assert_eq!(world.chosen(), chosen);
    }
}

#[test]
fn a_standby_answers_with_what_the_active_one_says() {
    let mut world = World::new("cm");
    world.lease = Some((7, lease_of("other")));
    world.nodes = vec![manager("b", 9, 6), Join::new(NodeKind::ClusterManager, "other", 1)];
    world.run(1_000);
    let master = Some(Master { node: "b".into(), term: 6 });
    let event = ClusterEvent {
        cluster_manager: "other".into(),
        lease: 7,
        heartbeat_ms: HEARTBEAT,
        master,
        members: Vec::new(),
    };
    world.handle(Event::Heard(event));
    let status = world.core.status(world.now);
    assert_eq!((status.cluster_manager.as_str(), status.coordinator.as_str(), status.term), ("other", "b", 6));
    assert_eq!(status.version, 9);
    let roles: Vec<&str> = status.members.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["standby", "active", "master"]);
}

#[test]
fn a_bucket_made_anew_gets_everything_again_and_terms_go_on() {
    let mut world = settled();
    (world.lease, world.registered) = (None, Vec::new());
    world.handle(Event::BucketMade);
    world.run(LEASE);
    assert!(world.active());
    assert_eq!(world.registered, ["a", "b"]);
    world.handle(Event::Leave(Leave { node: "b".into(), kind: NodeKind::Coordinator, incarnation: 7 }));
    assert_eq!(world.chosen(), ("a", 5));
}
