//! Lists that do not fit one message.

use super::*;
use highwater_schemas::{
    api::{self, BucketList, BucketListRequest, MOST_SESSIONS_SHOWN, MOST_SLICES_SHOWN, TopicList, TopicListRequest},
    definition::{BucketDefinition, MAX_VBUCKETS, Source, SourceStream},
    lane::LEAST_PAYLOAD,
    state::{PlacedIndex, SessionKind},
};
use std::collections::BTreeSet;

const BUCKETS: usize = 100;

/// Many buckets of the most streams.
fn many() -> Driver {
    let mut d = Driver::with_index();
    for n in 0..BUCKETS {
        let stream = |s: usize| SourceStream { name: format!("{}{s}", "s".repeat(60)), strip_prefix: String::new() };
        let streams = (0..MAX_VBUCKETS).map(stream).collect();
        let name = format!("{}{n}", "n".repeat(60));
        let definition = BucketDefinition { name, source: Source { streams: Some(streams), ..Source::default() } };
        let vbuuids = (0..MAX_VBUCKETS as u64).map(|vb| vb + 1).collect();
        d.append(Change::BucketAdded { definition, vbuuids, starts: Vec::new() });
    }
    d
}

fn answer(d: &mut Driver, ddl: Ddl) -> Value {
    d.event(Event::Ddl { token: 1, ddl, probe: crate::core::unprobed(), random: 3 });
    d.replies.pop().unwrap().unwrap()
}

#[test]
fn the_status_of_many_buckets_comes_in_pages_that_fit() {
    let d = many();
    let (mut seen, mut pages, mut after) = (Vec::new(), 0, None);
    loop {
        let (buckets, more) = d.core.buckets(after.as_deref());
        assert!(api::json_size(&buckets) < LEAST_PAYLOAD / 2 + 2);
        after = buckets.last().map(|bucket| bucket.name.clone());
        seen.extend(buckets.into_iter().map(|bucket| bucket.name));
        pages += 1;
        if !more {
            break;
        }
    }
    assert!(seen.len() == BUCKETS + 1 && seen.is_sorted() && pages > 2, "{} in {pages}", seen.len());
}

#[test]
fn buckets_and_topics_are_listed_in_pages_that_fit() {
    let mut d = many();
    let (mut request, mut seen, mut pages) = (BucketListRequest::default(), Vec::new(), 0);
    loop {
        let reply = answer(&mut d, Ddl::BucketList(request.clone()));
        assert!(api::json_size(&reply) < LEAST_PAYLOAD);
        let list: BucketList = serde_json::from_value(reply).unwrap();
        seen.extend(list.buckets.into_iter().map(|bucket| bucket.name));
        request.after = seen.last().cloned();
        pages += 1;
        if !list.more {
            break;
        }
    }
    assert!(seen.len() == BUCKETS + 1 && seen.is_sorted() && pages > 1, "{} in {pages}", seen.len());
    let (mut request, mut seen) = (TopicListRequest::default(), BTreeSet::new());
    loop {
        let reply = answer(&mut d, Ddl::TopicList(request.clone()));
        let list: TopicList = serde_json::from_value(reply).unwrap();
        request.after = list.topics.last().map(|topic| (topic.bucket.clone(), topic.topic.clone()));
        assert!(list.topics.into_iter().all(|topic| seen.insert((topic.bucket, topic.topic))), "each once");
        if !list.more {
            break;
        }
    }
    assert!(seen.len() > BUCKETS, "{}", seen.len());
    let of = TopicListRequest { bucket: Some("b".into()), after: Some(("b".into(), "zzz".into())) };
    let list: TopicList = serde_json::from_value(answer(&mut d, Ddl::TopicList(of))).unwrap();
    assert!(list.topics.is_empty() && !list.more);
}

/// Twenty thousand indexes on one node, all of them in one of many sessions.
#[test]
fn of_very_many_slices_and_sessions_the_first_are_shown_and_all_are_counted() {
    const SLICES: u32 = 20_000;
    let mut d = Driver::with_index();
    for number in 2..SLICES {
        let definition = format!(r#"{{"bucket":"b","name":"x{number}","keys":["a"],"defer_build":true}}"#);
        let definition = serde_json::from_str(&definition).unwrap();
        let hosts = vec!["i".to_owned()];
        let index = PlacedIndex { number, id: format!("x{number}"), definition, hosts, language: 1 };
        d.append(Change::IndexCreated { index });
    }
    d.append(Change::IndexBuilding { bucket: "b".into(), indexes: (2..SLICES).collect() });
    let slices: Vec<SliceName> = (2..SLICES).map(|index| SliceName { index, partition: 0 }).collect();
    let first = d.core.context().next_session.max(1);
    for id in first..first + 40 {
        d.append(Change::SessionOpened {
            bucket: "b".into(),
            session: id,
            node: "i".into(),
            incarnation: 1,
            slices: slices.clone(),
            vbs: Vec::new(),
            kind: SessionKind::Recovery,
        });
    }
    let (buckets, more) = d.core.buckets(None);
    assert!(!more && api::json_size(&buckets) < LEAST_PAYLOAD / 2);
    let bucket = &buckets[0];
    assert_eq!((bucket.sessions.len(), bucket.session_count), (MOST_SESSIONS_SHOWN, 40));
    let session = &bucket.sessions[0];
    assert_eq!((session.slices.len(), session.slice_count), (MOST_SLICES_SHOWN, slices.len() as u64));
    let reply = answer(&mut d, Ddl::TopicList(TopicListRequest::default()));
    assert!(api::json_size(&reply) < LEAST_PAYLOAD, "{}", api::json_size(&reply));
    let list: TopicList = serde_json::from_value(reply).unwrap();
    let predicates = list.topics.iter().flat_map(|topic| &topic.subscriptions).map(|s| &s.predicate);
    assert!(predicates.clone().all(|shown| shown.len() < 4_200 && shown.ends_with("more)")), "{:?}", list.topics.len());
    assert!(predicates.count() >= 41 && !list.more);
}
