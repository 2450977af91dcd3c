//! Which projector reads what, and what the log says before it changes.

use super::*;
use highwater_schemas::timestamp::Bookmark;

/// A bucket of four streams. Its projector has said which messages it read of each but the last.
fn read() -> Driver {
    let mut d = Driver::with_index();
    let definition = r#"{"name":"m","source":{"streams":[{"name":"M0"},{"name":"M1"},{"name":"M2"},{"name":"M3"}]}}"#;
    let add = Ddl::BucketAdd(serde_json::from_str(definition).unwrap());
    d.event(Event::Ddl { token: 9, ddl: add, probe: Ok(vec![0; 4].into()), random: 3 });
    d.tick(50);
    for vb in 0..3u16 {
        let vbucket = &d.core.context().buckets["m"].vbuckets[usize::from(vb)];
        let state = StVb { vbuuid: vbucket.vbuuid(), generation: 1, position: Position::new(9, 0), ..StVb::default() };
        let subject = "s".repeat(200 * usize::from(vb));
        let bookmark = Some(Bookmark { seqno: 9, subject, hash: 3, ..Bookmark::default() });
        let part = SyncVb { vb, state, source_last: 9, bookmark };
        d.event(Event::Sync(Sync { bucket: "m".into(), vbs: vec![part] }));
    }
    d
}

/// What is appended of that bucket: the vbuckets of which messages are remembered, then those that are given away.
fn given(d: &mut Driver) -> (Vec<Vec<usize>>, Vec<u16>) {
    let (mut remembered, mut assigned) = (Vec::new(), Vec::new());
    for action in d.core.handle(d.now, Event::Tick { random: 5 }) {
        match action {
            Action::Append(Change::Bookmarked { bucket, bookmarks }) if bucket == "m" => {
                assert!(assigned.is_empty(), "the next owner needs it");
                assert!(bookmarks.iter().flatten().all(|mark| mark.subject.len() <= 256 && mark.hash == 3));
                let some = bookmarks.iter().enumerate().filter(|(_, of_vbucket)| !of_vbucket.is_empty());
                remembered.push(some.map(|(vb, _)| vb).collect());
            }
            Action::Append(Change::VbucketAssigned { bucket, vb, .. }) if bucket == "m" => assigned.push(vb),
            _ => {}
        }
    }
    (remembered, assigned)
}

#[test]
fn what_was_read_is_written_down_once_for_all_vbuckets_that_are_given_away() {
    let mut d = read();
    d.append(Change::NodeLeft { node: "p".into(), kind: NodeKind::Projector });
    d.append(Change::NodeJoined { node: "q".into(), kind: NodeKind::Projector, incarnation: 1 });
    assert_eq!(given(&mut d), (vec![vec![0, 1, 2]], vec![0, 1, 2, 3]));
}

#[test]
fn what_was_read_of_those_that_stay_is_not() {
    let mut d = read();
    for (vb, remembered) in [(3, vec![]), (1, vec![vec![1]])] {
        d.told(NodeKind::Projector, "p", 1, vec![Item::LostChain { bucket: "m".into(), vb, generation: 1 }]);
        assert_eq!(given(&mut d), (remembered, vec![vb]));
    }
}
