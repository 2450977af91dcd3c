//! What the state keeps fits one message, and what it forgets is not missed.

use super::*;
use crate::{
    definition::BucketDefinition,
    state::{Bucket, Change, IndexState, PlacedIndex, Record, pack},
    timestamp::{Dropped, Position, StVb, StabilityTimestamp},
};
use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

/// The largest message that a server takes as it comes, without room for headers.
const MESSAGE: usize = 1024 * 1024 - 16 * 1024;
/// The most streams that a bucket may have.
const STREAMS: usize = 64;

/// The same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    fn subject(&mut self, bytes: usize) -> String {
        (0..bytes).map(|_| char::from(b'!' + self.below(94) as u8)).collect()
    }
    fn bookmark(&mut self, seqno: u64, subject: usize) -> Bookmark {
        let (subject, time) = (self.subject(subject), 1_700_000_000_000_000_000 + self.below(1 << 50) as i64);
        Bookmark { seqno, subject, time, hash: self.next(), source: 1 << 63 }
    }
}

fn append(context: &mut StateContext, change: Change) {
    let record = context.record(change, context.term.max(1), 1_700_000_000_000).to_json();
    context.offer(&record).unwrap();
}

fn declare(context: &mut StateContext, name: &str, streams: usize) {
    let names: Vec<String> = (0..streams).map(|n| format!(r#"{{"name":"{name}_{n}"}}"#)).collect();
    let json = format!(r#"{{"name":"{name}","source":{{"streams":[{}]}}}}"#, names.join(","));
    let definition: BucketDefinition = serde_json::from_str(&json).unwrap();
    let (vbuuids, starts) = ((0..streams as u64).collect(), vec![0; streams]);
    append(context, Change::BucketAdded { definition, vbuuids, starts });
}

fn assigned(vb: u16, generation: u64, x: Position) -> Change {
    Change::VbucketAssigned {
        bucket: "b".into(),
        vb,
        generation,
        projector: "p".into(),
        incarnation: 1,
        x,
        restart: x.seqno,
        held: x.seqno,
        dropped: Dropped::default(),
    }
}

fn branch(vb: u16, random: &mut Random, reason: String) -> Change {
    let (vbuuid, bookmarks) = (random.next(), Vec::new());
    Change::BranchStarted { bucket: "b".into(), vb, vbuuid, start: 1, last: 9, broken: true, bookmarks, reason }
}

/// A bucket that keeps as much as it may of everything that grows with time.
fn full(random: &mut Random, streams: usize, subject: usize) -> Bucket {
    let mut context = StateContext::default();
    declare(&mut context, "b", streams);
    for vb in 0..streams as u16 {
        for _ in 0..40 {
            let reason = random.subject(400);
            append(&mut context, branch(vb, random, reason));
        }
        for generation in 1..=most_starts(streams) as u64 + 9 {
            append(&mut context, assigned(vb, generation, Position::new(generation * 1_000 + random.below(1_000), 0)));
        }
    }
    append(&mut context, Change::RollbackDone { bucket: "b".into() });
    let time = |seqno: u64, vb: &Vbucket, random: &mut Random| StVb {
        vbuuid: vb.vbuuid(),
        generation: vb.generation,
        position: Position::new(seqno * 1_000 + random.below(1_000), 1),
        covered: seqno * 1_000,
        server_time: 1_700_000_000_000_000_000 + random.below(1 << 50) as i64,
        hash: random.next(),
        created: 1_700_000_000_000_000_000,
        ..StVb::default()
    };
    for seqno in 10.. {
        let bucket = &context.buckets["b"];
        let kept = (bucket.history.len(), bucket.vbuckets[0].bookmarks.len());
        if seqno > 80 && kept == (most_history(streams), most_bookmarks(streams)) {
            break;
        }
        let vbs = bucket.vbuckets.iter().map(|vb| time(seqno, vb, random)).collect();
        let bookmarks = (0..streams).map(|_| vec![random.bookmark(seqno, subject)]).collect();
        if kept.1 < most_bookmarks(streams) || seqno <= 80 {
            append(&mut context, Change::Bookmarked { bucket: "b".into(), bookmarks });
        }
        if kept.0 < most_history(streams) || seqno <= 80 {
            let st = StabilityTimestamp { number: seqno, vbs, ..StabilityTimestamp::default() };
            append(&mut context, Change::Persisted { bucket: "b".into(), st });
        }
    }
    context.buckets.remove("b").unwrap()
}

/// Bytes of a snapshot of three such buckets on their way.
fn three_full(subject: usize) -> usize {
    let mut random = Random(subject as u64);
    let buckets = ["users", "orders", "devices"].map(|name| (name.to_owned(), full(&mut random, STREAMS, subject)));
    let context = StateContext { buckets: buckets.into(), ..StateContext::default() };
    let change = Change::Snapshot { context: Box::new(context.clone()), reason: String::new() };
    pack(context.record(change, 1, 0).to_json()).len()
}

#[test]
fn three_of_the_largest_buckets_fit_one_message() {
    let bytes = three_full(30);
    assert!(bytes < MESSAGE, "{bytes}");
}

#[test]
fn they_do_so_with_long_subjects_too() {
    let bytes = three_full(255);
    assert!(bytes < MESSAGE, "{bytes}");
}

#[test]
fn old_bookmarks_of_large_buckets_keep_short_subjects_only() {
    let mut random = Random(5);
    for (streams, bytes, newest) in [(8, 256, 64), (64, 256, 8), (64, 64, 16)] {
        let bucket = full(&mut random, streams, bytes);
        let bookmarks = &bucket.vbuckets[0].bookmarks;
        let whole: Vec<bool> = bookmarks.iter().rev().map(|b| b.subject.len() == bytes).collect();
        assert_eq!(whole.iter().position(|whole| !whole).unwrap_or(whole.len()), newest);
        assert!(whole[newest..].iter().all(|whole| !whole) && bookmarks.iter().all(|b| b.hash > 0));
    }
}

#[test]
fn what_is_read_between_two_marks_fits_one_message() {
    let mut random = Random(1);
    let bookmarks = (0..STREAMS).map(|_| (0..8).map(|seqno| random.bookmark(seqno, MOST_SUBJECT)).collect()).collect();
    let record = StateContext::default().record(Change::Bookmarked { bucket: "b".into(), bookmarks }, 1, 0);
    assert!(pack(record.to_json()).len() < MESSAGE / 2);
}

#[test]
fn small_buckets_keep_more_of_each_vbucket() {
    assert_eq!([1, 8, 16, 64, 1_000].map(most_history), [64, 64, 32, 8, 8]);
    assert_eq!([1, 16, 32, 64, 1_000].map(most_bookmarks), [64, 64, 32, 16, 16]);
    assert_eq!([1, 8, 16, 64, 1_000].map(most_starts), [256, 256, 128, 32, 32]);
    assert_eq!([1, 4, 16, 64, 1_000].map(most_reasons), [32, 32, 8, 2, 2]);
    let mut context = StateContext::default();
    declare(&mut context, "b", 16);
    for number in 1..=500 {
        let st = StabilityTimestamp { number, ..StabilityTimestamp::default() };
        append(&mut context, Change::Persisted { bucket: "b".into(), st });
        let bookmarks = vec![(0..8).map(|n| Bookmark { seqno: number * 8 + n, ..Bookmark::default() }).collect(); 16];
        append(&mut context, Change::Bookmarked { bucket: "b".into(), bookmarks });
    }
    let bucket = &context.buckets["b"];
    let numbers: Vec<u64> = bucket.history.iter().map(|st| st.number).collect();
    assert!(
        (16..=32).contains(&numbers.len()) && numbers[0] == 1 && numbers.ends_with(&[498, 499, 500]),
        "{numbers:?}"
    );
    let marks: Vec<u64> = bucket.vbuckets[15].bookmarks.iter().map(|mark| mark.seqno).collect();
    assert!((32..=64).contains(&marks.len()) && marks[0] == 8 && marks.ends_with(&[4_006, 4_007]), "{marks:?}");
}

#[test]
fn what_an_earlier_version_kept_is_thinned_to_what_this_one_keeps() {
    for len in 0..200 {
        let mut numbers: Vec<usize> = (0..len).collect();
        thin(&mut numbers, 8);
        assert!(numbers.len() <= 8 && numbers.len() >= len.min(5), "{numbers:?}");
        assert!(len == 0 || (numbers[0] == 0 && numbers.last() == Some(&(len - 1))));
    }
    let mut few = vec![1, 2, 3, 4];
    thin(&mut few, 0);
    assert_eq!(few, [1, 3, 4]);
}

#[test]
fn long_subjects_and_reasons_are_cut_where_they_enter() {
    let mut context = StateContext::default();
    declare(&mut context, "b", 1);
    let mark = |seqno, bytes| Bookmark { seqno, subject: "s".repeat(bytes), time: 5, hash: 6, source: 7 };
    append(&mut context, Change::Bookmarked { bucket: "b".into(), bookmarks: vec![vec![mark(1, 256), mark(2, 257)]] });
    let kept = |context: &StateContext| context.buckets["b"].vbuckets[0].bookmarks.clone();
    let short = Bookmark { subject: "\u{fffd}".into(), ..mark(2, 0) };
    assert_eq!(kept(&context), [mark(1, 256), short], "it is still told from every other message");
    let bookmarks = vec![mark(3, 2_000)];
    let reason = "é".repeat(2_000);
    let (start, last) = (4, 4);
    append(
        &mut context,
        Change::BranchStarted { bucket: "b".into(), vb: 0, vbuuid: 9, start, last, broken: false, bookmarks, reason },
    );
    let bucket = &context.buckets["b"];
    assert_eq!(kept(&context)[2].subject, "\u{fffd}");
    let words = "é".repeat(MOST_WORDS);
    assert_eq!(bucket.vbuckets[0].failover[0].reason, words);
    assert_eq!(bucket.rollback.as_ref().unwrap().reason, words);
    let definition = serde_json::from_str(r#"{"bucket":"b","name":"i","keys":["a"]}"#).unwrap();
    let index = PlacedIndex { number: 1, id: "x".into(), definition, hosts: Vec::new(), language: 1 };
    append(&mut context, Change::IndexCreated { index });
    append(&mut context, Change::IndexFailed { bucket: "b".into(), index: 1, reason: "é".repeat(2_000) });
    assert_eq!(context.buckets["b"].indexes[&1].state, IndexState::Failed(words));
}

#[test]
fn the_newest_branches_say_why_they_began() {
    let mut context = StateContext::default();
    declare(&mut context, "b", STREAMS);
    let mut random = Random(3);
    for n in 0..5 {
        append(&mut context, branch(7, &mut random, format!("reason {n}")));
    }
    let failover = &context.buckets["b"].vbuckets[7].failover;
    let reasons: Vec<&str> = failover.iter().map(|f| f.reason.as_str()).collect();
    assert_eq!(reasons, ["reason 4", "reason 3", "", "", "", ""]);
}

fn node(n: usize) -> String {
    format!("node-{n}")
}

fn comes_and_goes(context: &mut StateContext, kind: NodeKind, node: &str) {
    append(context, Change::NodeJoined { node: node.into(), kind, incarnation: 1 });
    append(context, Change::NodeLeft { node: node.into(), kind });
}

#[test]
fn of_the_nodes_that_have_left_the_first_are_forgotten_unless_something_names_them() {
    let mut context = StateContext::default();
    declare(&mut context, "b", 1);
    append(&mut context, Change::NodeJoined { node: "there".into(), kind: NodeKind::Catalog, incarnation: 1 });
    for (kind, node) in [(NodeKind::Coordinator, "c"), (NodeKind::Indexer, "host"), (NodeKind::Projector, "p")] {
        comes_and_goes(&mut context, kind, node);
    }
    append(&mut context, assigned(0, 1, Position::ZERO));
    let definition = serde_json::from_str(r#"{"bucket":"b","name":"i","keys":["a"]}"#).unwrap();
    let hosts = vec!["host".to_owned()];
    let index = PlacedIndex { number: 1, id: "x".into(), definition, hosts, language: 1 };
    append(&mut context, Change::IndexCreated { index });
    for n in 0..MOST_GONE + 200 {
        // Later names are not greater.
        comes_and_goes(&mut context, NodeKind::Projector, &node(10_000 - n));
    }
    let there = |context: &StateContext, kind, node: &str| context.nodes.contains_key(&(kind, node.to_owned()));
    let gone = |context: &StateContext| context.nodes.values().filter(|entry| entry.gone).count();
    assert_eq!(gone(&context), MOST_GONE);
    for (kind, node) in [(NodeKind::Indexer, "host"), (NodeKind::Projector, "p"), (NodeKind::Catalog, "there")] {
        assert!(there(&context, kind, node), "{node}");
    }
    assert!(there(&context, NodeKind::Coordinator, "c"), "others make room before an index manager");
    assert!(!there(&context, NodeKind::Projector, &node(10_000)), "it left first");
    assert!(there(&context, NodeKind::Projector, &node(10_000 - MOST_GONE - 199)));
    append(&mut context, Change::BucketRemoved { bucket: "b".into() });
    comes_and_goes(&mut context, NodeKind::Catalog, "last");
    assert!(!there(&context, NodeKind::Indexer, "host"), "nothing names it any more, and it left before the others");
    for n in 0..MOST_GONE {
        comes_and_goes(&mut context, NodeKind::Coordinator, &node(n));
    }
    assert_eq!(gone(&context), MOST_GONE);
    assert!(!there(&context, NodeKind::Coordinator, "c") && there(&context, NodeKind::Coordinator, &node(0)));
}

#[test]
fn nodes_of_which_nothing_says_when_they_left_left_first() {
    let mut context = StateContext::default();
    for n in 0..MOST_GONE {
        comes_and_goes(&mut context, NodeKind::Catalog, &node(n));
    }
    let mut json = serde_json::to_value(&context).unwrap();
    let old = json["nodes"].as_array_mut().unwrap().iter_mut().find(|entry| entry["node"] == "node-700").unwrap();
    assert!(old.as_object_mut().unwrap().remove("left").is_some());
    let mut context: StateContext = serde_json::from_value(json).unwrap();
    comes_and_goes(&mut context, NodeKind::Catalog, "z");
    assert!(!context.nodes.contains_key(&(NodeKind::Catalog, node(700))));
    assert_eq!(context.nodes.len(), MOST_GONE);
    append(&mut context, Change::NodeJoined { node: "z".into(), kind: NodeKind::Catalog, incarnation: 2 });
    let again = &context.nodes[&(NodeKind::Catalog, "z".to_owned())];
    assert_eq!((again.gone, again.left), (false, 0));
}

type Starts = BTreeMap<u64, RangeStart>;

/// Whether an ST of a generation counts.
fn counts(starts: &Starts, generation: u64, position: Position) -> bool {
    starts.range((Excluded(generation), Unbounded)).all(|(_, start)| position.le(start.x))
}

/// Whether what was applied in a term counts still.
fn holds(starts: &Starts, term: u64, position: Position) -> bool {
    starts.values().filter(|start| start.term > term).all(|start| position.le(start.x))
}

/// What counts of a batch of a generation.
fn counted(starts: &Starts, generation: u64, from: Position, to: Position) -> Option<(Position, Position)> {
    let lo = from.max(starts.get(&generation).filter(|start| !start.merged)?.x);
    let hi = starts.range((Excluded(generation), Unbounded)).fold(to, |hi, (_, next)| hi.min(next.x));
    (lo.le(hi) && lo != hi).then_some((lo, hi))
}

#[test]
fn what_merged_starts_let_pass_all_of_them_let_pass() {
    let mut random = Random(11);
    let (mut merged, mut forgotten) = (0, 0);
    for _ in 0..40 {
        let (mut all, mut vbucket, mut term) = (Starts::new(), Vbucket::new(Vec::new(), 0), 1);
        let rises = random.below(3);
        let (mut x, generations) = (Position::new(100, 10), 16);
        let mut places = vec![x];
        for generation in 1..=generations {
            term += u64::from(random.below(3) == 0);
            x = match random.below(4) {
                // A coordinator that has not heard of the last timestamp.
                0 if rises < 2 => Position::new(x.seqno - x.seqno.min(random.below(20)), x.round - random.below(2)),
                1 if rises > 0 => x,
                _ => Position::new(x.seqno + random.below(9), x.round + random.below(2)),
            };
            x.round = x.round.max(1);
            places.extend([x, Position::new(x.seqno + 1, x.round), Position::new(x.seqno, x.round + 1)]);
            let start = RangeStart { vbuuid: 1, x, term, merged: false };
            all.insert(generation, start);
            vbucket.begin(generation, start, 4);
        }
        let kept = &vbucket.starts;
        assert!(kept.len() <= 4 && kept.last_key_value() == all.last_key_value());
        merged += kept.values().filter(|start| start.merged).count();
        forgotten += usize::from(kept.values().all(|start| !start.merged));
        for position in &places {
            for generation in 0..=generations {
                assert!(!counts(kept, generation, *position) || counts(&all, generation, *position));
                for to in &places {
                    let (some, whole) =
                        (counted(kept, generation, *position, *to), counted(&all, generation, *position, *to));
                    assert!(some.is_none() || some == whole, "{generation}: {some:?} {whole:?}");
                }
            }
            for term in 0..=term {
                assert!(!holds(kept, term, *position) || holds(&all, term, *position));
            }
        }
    }
    assert!(merged > 10 && forgotten > 0, "{merged} {forgotten}");
}

#[test]
fn generations_that_begin_where_the_one_before_did_are_forgotten_without_a_trace() {
    let (mut all, mut vbucket) = (Starts::new(), Vbucket::new(Vec::new(), 0));
    for generation in 1..=100 {
        let x = Position::new(if generation < 5 { generation * 10 } else { 50 }, 0);
        let start = RangeStart { vbuuid: 1, x, term: generation, merged: false };
        all.insert(generation, start);
        vbucket.begin(generation, start, 32);
    }
    assert_eq!(vbucket.starts.len(), 32);
    let x = Position::new(50, 0);
    for at in 0..=100 {
        assert_eq!(counts(&vbucket.starts, at, x), counts(&all, at, x));
        assert_eq!(holds(&vbucket.starts, at, x), holds(&all, at, x));
    }
}

#[test]
fn starts_are_bounded_and_written_as_before_unless_they_are_merged() {
    let mut context = StateContext::default();
    declare(&mut context, "b", 1);
    for generation in 1..=300 {
        append(&mut context, assigned(0, generation, Position::new(generation, 0)));
        let starts = &context.buckets["b"].vbuckets[0].starts;
        assert_eq!(starts.len(), 256.min(generation as usize));
        let json = serde_json::to_string(&context).unwrap();
        assert_eq!(json.contains("merged"), generation > 256);
    }
    let vbucket = &context.buckets["b"].vbuckets[0];
    assert_eq!(vbucket.start_of(300), Some(Position::new(300, 0)));
    let (generation, oldest) = vbucket.starts.first_key_value().unwrap();
    assert_eq!((*generation, oldest.x, oldest.merged), (45, Position::new(1, 0), true));
    let change = Change::Snapshot { context: Box::new(context.clone()), reason: String::new() };
    let snapshot: Record = context.record(change, 1, 0);
    let mut new = StateContext::default();
    new.offer(&snapshot.to_json()).unwrap();
    assert_eq!(new.buckets, context.buckets);
}
