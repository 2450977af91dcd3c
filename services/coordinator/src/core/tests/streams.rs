//! Requests that make and delete streams.

use super::*;
use highwater_schemas::{
    api::{BucketRemove, TopicRequest},
    definition::BucketDefinition,
};

fn ddl(ddl: Ddl, probe: Probe) -> Event {
    Event::Ddl { token: 7, ddl, probe, random: 3 }
}

fn deleted(actions: &[Action]) -> Option<(Job, &[String])> {
    actions.iter().find_map(|action| match action {
        Action::DeleteStreams { job, streams } => Some((*job, &streams[..])),
        _ => None,
    })
}

fn answered(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Reply { token: 7, .. }))
}

/// A bucket without indexes, with a topic.
fn with_bucket() -> Driver {
    let mut d = Driver::new();
    d.event(ddl(Ddl::BucketAdd(BucketDefinition::kv("b")), Ok(vec![4].into())));
    let topic = TopicRequest { bucket: "b".into(), topic: "t".into() };
    d.event(ddl(Ddl::TopicCreate(topic), unprobed()));
    assert!(d.replies.drain(..).all(|reply| reply.is_ok()));
    d
}

#[test]
fn no_bucket_is_declared_whose_streams_were_not_looked_at() {
    let mut d = Driver::with_index();
    for (probe, code, retry) in
        [(unprobed(), ErrorCode::BucketNotFound, true), (Ok(Probed::default()), ErrorCode::Internal, true)]
    {
        let index: IndexDefinition = serde_json::from_str(r#"{"bucket":"n","name":"y","keys":["a"]}"#).unwrap();
        for request in [Ddl::BucketAdd(BucketDefinition::kv("n")), Ddl::IndexCreate(index)] {
            d.event(ddl(request, probe.clone()));
            let refused = d.replies.pop().unwrap().unwrap_err();
            assert_eq!((refused.code, refused.retry), (code, retry), "{refused}");
        }
    }
    assert!(!d.core.context().buckets.contains_key("n"));
}

#[test]
fn what_removes_streams_is_answered_when_they_are_gone() {
    let mut d = with_bucket();
    let topic = TopicRequest { bucket: "b".into(), topic: "t".into() };
    let actions = d.core.handle(d.now, ddl(Ddl::TopicDelete(topic), unprobed()));
    let (job, streams) = deleted(&actions).unwrap();
    assert_eq!(streams, [subjects::topic_stream("b", "t")]);
    assert!(!answered(&actions) && answered(&d.core.handle(d.now, Event::StreamsDeleted { job })));

    let actions = d.core.handle(d.now, ddl(Ddl::BucketRemove(BucketRemove { name: "b".into() }), unprobed()));
    let (job, streams) = deleted(&actions).unwrap();
    assert_eq!(streams, ["HW_MUTATION_b".to_owned(), "HW_CATCHUP_b".into(), subjects::topic_stream("b", "t")]);
    assert!(!answered(&actions));
    let why = ApiError::new(ErrorCode::Internal, "the removal could not be appended");
    let refused = d.core.handle(d.now, Event::GivenUp { job, why: why.clone() });
    assert_eq!(refused, [Action::Reply { token: 7, answer: Err(why) }]);
}

#[test]
fn streams_that_nobody_needs_are_swept_once() {
    let mut d = with_bucket();
    let new: BucketDefinition = BucketDefinition::kv("new");
    d.core.handle(d.now, ddl(Ddl::BucketAdd(new), Ok(vec![0].into())));
    let kept = ["HW_MUTATION_b", "HW_CATCHUP_b", "HW_MUTATION_new", "HW_CATCHUP_new"].map(str::to_owned);
    let mut streams = vec!["HW_MUTATION_gone".to_owned(), subjects::topic_stream("b", "u")];
    streams.extend(kept);
    streams.push(subjects::topic_stream("b", "t"));
    let found = Some(Found { streams: streams.clone(), sessions: Vec::new() });
    let term = d.core.context().term;
    let checked = Event::TopicsChecked { term, made: Ok(()), found };
    let actions = d.core.handle(d.now, checked.clone());
    let (job, swept) = deleted(&actions).unwrap();
    assert_eq!(swept, &streams[..2]);
    assert_eq!(deleted(&d.core.handle(d.now, checked.clone())), None, "it is under way");
    assert!(d.core.handle(d.now, Event::StreamsDeleted { job }).is_empty());
    assert!(deleted(&d.core.handle(d.now, checked)).is_some());
}
