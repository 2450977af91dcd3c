//! Sources whose history changed.

use super::*;
use highwater_schemas::{
    api::{MOST_WORDS, SessionReading},
    state::{RollbackPhase, SessionKind},
    timestamp::Bookmark,
};

/// A projector says that its source is not what it was.
fn suspect(d: &mut Driver, intact: u64, broken: bool) -> u64 {
    let old = d.core.context().buckets["b"].vbuckets[0].vbuuid();
    let suspicion = Suspicion {
        bucket: "b".into(),
        vb: 0,
        vbuuid: old,
        reason: "r".into(),
        intact,
        last: 9,
        broken,
        bookmarks: vec![],
    };
    d.report(NodeKind::Projector, "p", 1, vec![Item::Suspicion(suspicion)]);
    d.tick(1);
    assert_ne!(d.core.context().buckets["b"].vbuckets[0].vbuuid(), old);
    old
}

#[test]
fn what_a_projector_says_of_a_source_is_cut_before_it_is_written_down() {
    let mut d = Driver::with_index();
    let vbuuid = d.core.context().buckets["b"].vbuckets[0].vbuuid();
    let bookmark = |bytes, seqno| Bookmark { seqno, subject: "s".repeat(bytes), hash: 7, ..Bookmark::default() };
    let bookmarks = vec![bookmark(256, 1), bookmark(257, 2)];
    let (reason, bucket) = ("long ".repeat(100), "b".to_owned());
    let found = Suspicion { bucket, vb: 0, vbuuid, reason, intact: 4, last: 9, broken: true, bookmarks };
    d.told(NodeKind::Projector, "p", 1, vec![Item::Suspicion(found)]);
    let actions = d.core.handle(d.now, Event::Tick { random: 5 });
    let begun = actions.into_iter().find_map(|action| match action {
        Action::Append(Change::BranchStarted { reason, bookmarks, .. }) => Some((reason, bookmarks)),
        _ => None,
    });
    let (reason, bookmarks) = begun.unwrap();
    assert_eq!(reason.len(), MOST_WORDS);
    let subjects: Vec<usize> = bookmarks.iter().map(|b| b.subject.len()).collect();
    assert_eq!(subjects, [256, "\u{fffd}".len()]);
}

#[test]
fn a_source_of_which_nothing_is_left_has_everything_built_again() {
    let mut d = Driver::with_index();
    d.append(Change::IndexActive { bucket: "b".into(), index: 1 });
    suspect(&mut d, 0, true);
    assert_eq!(d.core.context().buckets["b"].indexes[&1].state, IndexState::Building);
}

#[test]
fn a_rollback_waits_for_every_slice_then_for_the_comparison() {
    let mut d = Driver::with_index();
    d.append(Change::IndexActive { bucket: "b".into(), index: 1 });
    let branch = d.core.context().buckets["b"].branch();
    let before = SliceReport { branch, ..report(SliceState::Active, 1) };
    suspect(&mut d, 5, true);
    let phase = |d: &Driver| d.core.context().buckets["b"].rollback.as_ref().map(|r| r.phase);
    let vbucket = |d: &Driver| d.core.context().buckets["b"].vbuckets[0].clone();
    d.join(NodeKind::Indexer, "i", 1, vec![before], None);
    d.tick(1);
    assert_eq!(phase(&d), Some(RollbackPhase::Started), "what it says is of the branch before");
    assert!(vbucket(&d).start_of(vbucket(&d).generation).is_none(), "nobody reads it meanwhile");
    let branch = d.core.context().buckets["b"].branch();
    let on_it = |state, compare| SliceReport { branch, compare, content: vec![5], ..report(state, 1) };
    d.join(NodeKind::Indexer, "i", 1, vec![on_it(SliceState::Catchup, true)], None);
    d.tick(1);
    d.tick(1);
    assert_eq!(phase(&d), Some(RollbackPhase::Restart));
    assert_eq!((vbucket(&d).restart, vbucket(&d).held), (9, 5), "the live chain goes on at the source's end");
    let sessions: Vec<_> = d.core.context().buckets["b"].sessions.values().cloned().collect();
    assert_eq!(sessions.iter().map(|s| (s.kind, s.vbs[0].from)).collect::<Vec<_>>(), [(SessionKind::Comparison, 0)]);
    let merged = SliceReport { done_with: sessions[0].id, ..on_it(SliceState::Active, false) };
    d.join(NodeKind::Indexer, "i", 1, vec![merged], None);
    d.tick(1);
    assert_eq!(phase(&d), None);
    let bucket = &d.core.context().buckets["b"];
    assert_eq!(bucket.rollbacks.last().map(|r| (r.phase, r.broken)), Some((RollbackPhase::Resumed, true)));
    assert_eq!(bucket.indexes[&1].state, IndexState::Active, "it never was anything else");
}

#[test]
fn status_shows_the_phase_of_a_rollback_and_how_far_its_sessions_are() {
    let mut d = Driver::with_index();
    d.append(Change::IndexActive { bucket: "b".into(), index: 1 });
    let shown = |d: &Driver| d.core.buckets(None).0.pop().unwrap();
    assert_eq!((shown(&d).rollback, shown(&d).sessions), (None, vec![]));
    suspect(&mut d, 5, true);
    let rollback = shown(&d).rollback.unwrap();
    assert_eq!((rollback.phase, rollback.broken, rollback.reason.as_str()), (RollbackPhase::Started, true, "r"));
    assert_eq!(rollback.streams, [shown(&d).vbuckets[0].stream.clone()]);
    let branch = d.core.context().buckets["b"].branch();
    let back = SliceReport { branch, compare: true, content: vec![5], ..report(SliceState::Catchup, 1) };
    d.join(NodeKind::Indexer, "i", 1, vec![back], None);
    d.tick(1);
    d.tick(1);
    assert_eq!(shown(&d).rollback.map(|r| r.phase), Some(RollbackPhase::Restart));
    let session = shown(&d).sessions.pop().unwrap();
    assert_eq!((session.kind, session.node.as_str()), (SessionKind::Comparison, "i"));
    assert_eq!((session.slices.len(), session.slices[0].state), (1, Some(SliceState::Catchup)));
    assert_eq!((session.read, session.documents), (0, 0), "nobody has begun");
    let reading = |session, read| SessionReading { bucket: "b".into(), session, vb: 0, read, pending: 70 };
    let reading = [reading(session.session, 30), reading(session.session + 1, 1)].map(Item::Reading);
    d.report(NodeKind::Projector, "p", 1, reading.into());
    let session = shown(&d).sessions.pop().unwrap();
    assert_eq!((session.read, session.documents), (30, 100));
}
