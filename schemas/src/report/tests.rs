//! A node's report, told and received.

use super::*;
use crate::{
    api::{SliceReport, SliceState, Suspicion},
    definition::MAX_VBUCKETS,
    state::SliceName,
    timestamp::{Bookmark, StVb, StabilityTimestamp},
};
use std::collections::BTreeMap;

fn slice(bucket: &str, index: u32, done_with: u64) -> Item {
    let name = SliceName { index, partition: 0 };
    Item::slice(&SliceReport { done_with, ..SliceReport::new(bucket, name, SliceState::Active) })
}

fn next(reporter: &mut Reporter) -> Option<ReportPart> {
    reporter.next_part("i", NodeKind::Indexer, 1)
}

fn parts(reporter: &mut Reporter) -> Vec<ReportPart> {
    std::iter::from_fn(|| next(reporter)).collect()
}

/// What a receiver holds: applied only when an edition is whole.
#[derive(Default)]
struct Held {
    receiver: Receiver,
    items: BTreeMap<(String, Key), Item>,
    aside: Option<BTreeMap<(String, Key), Item>>,
}

impl Held {
    fn take(&mut self, part: &ReportPart) {
        // As it travels.
        let bytes = serde_json::to_vec(part).unwrap();
        let accepted = self.receiver.take(serde_json::from_slice(&bytes).unwrap());
        if accepted.begins {
            self.aside = Some(BTreeMap::new());
        }
        for part in accepted.parts {
            let items = self.aside.as_mut().unwrap_or(&mut self.items);
            items.extend(part.items.into_iter().map(|item| ((item.bucket().to_owned(), item.key()), item)));
            part.gone.iter().for_each(|gone| _ = items.remove(gone));
            if part.whole {
                self.items = self.aside.take().unwrap();
            }
        }
    }
}

#[test]
fn only_what_changed_is_told() {
    let mut reporter = Reporter::default();
    assert_eq!(reporter.told(), Told::default());
    reporter.begin(3);
    let all: Vec<Item> = (0..9).map(|index| slice("b", index, 0)).collect();
    reporter.set("b", all.clone());
    reporter.set("c", vec![slice("c", 20, 0)]);
    let first = parts(&mut reporter);
    assert_eq!((first.len(), first[0].items.len(), first[0].whole, first[0].term), (1, 10, true, 3));
    assert_eq!(reporter.told(), Told { edition: 1, parts: 1 });
    reporter.set("b", all.clone());
    assert!(reporter.is_told() && next(&mut reporter).is_none());
    let mut changed = all;
    changed[4] = slice("b", 4, 7);
    changed.pop();
    reporter.set("b", changed.clone());
    reporter.keep(|bucket| bucket == "b");
    let second = next(&mut reporter).unwrap();
    assert_eq!((second.part, second.whole, &second.items[..]), (1, false, &changed[4..5]));
    let gone = |bucket: &str, index| (bucket.to_owned(), Key::Slice { index, partition: 0 });
    assert_eq!(second.gone, [gone("b", 8), gone("c", 20)]);
    assert!(next(&mut reporter).is_none());
}

#[test]
fn an_edition_without_items_is_told_too() {
    let mut reporter = Reporter::default();
    assert!(next(&mut reporter).is_none(), "none was begun");
    reporter.begin(1);
    let part = next(&mut reporter).unwrap();
    assert!(part.whole && part.items.is_empty() && reporter.is_told());
}

#[test]
fn nothing_counts_before_an_edition_is_whole() {
    let mut reporter = Reporter::default();
    let mut held = Held::default();
    reporter.begin(1);
    reporter.set("b", (0..2_000).map(|index| slice("b", index, 0)).collect());
    let first = parts(&mut reporter);
    assert!(first.len() > 3);
    for part in &first {
        held.take(part);
    }
    assert_eq!(held.items.len(), 2_000);
    // Another edition, of which something gets lost: what was known counts until all has come.
    reporter.begin(2);
    reporter.set("b", (0..2_000).map(|index| slice("b", index, 1)).collect());
    let mut second = parts(&mut reporter);
    let lost = second.remove(1);
    for part in &second {
        held.take(part);
    }
    assert!(held.items.values().all(|item| matches!(item, Item::Slice(slice) if slice.done_with == 0)));
    assert!(!held.receiver.has(reporter.told()));
    // It was late, not lost.
    held.take(&lost);
    assert!(held.items.values().all(|item| matches!(item, Item::Slice(slice) if slice.done_with == 1)));
    assert!(held.items.len() == 2_000 && held.receiver.has(reporter.told()));
    held.take(&second[0]);
    assert!(held.receiver.has(reporter.told()), "what came twice counts once");
    // A change that gets lost shows in what was told, and a new edition mends it.
    reporter.set("b", vec![slice("b", 1, 5)]);
    assert!(!parts(&mut reporter).is_empty() && !held.receiver.has(reporter.told()));
    reporter.begin(2);
    reporter.set("b", vec![slice("b", 1, 5)]);
    for part in parts(&mut reporter) {
        held.take(&part);
    }
    assert_eq!((held.items.len(), held.receiver.has(reporter.told())), (1, true));
}

#[test]
fn what_goes_while_an_edition_is_told_is_gone_in_it() {
    let (mut reporter, mut held) = (Reporter::default(), Held::default());
    reporter.begin(1);
    let all: Vec<Item> = (0..2_000).map(|index| slice("b", index, 0)).collect();
    reporter.set("b", all.clone());
    held.take(&next(&mut reporter).unwrap());
    reporter.set("b", all[1_990..].to_vec());
    for part in parts(&mut reporter) {
        held.take(&part);
    }
    assert_eq!(held.items.len(), 10);
}

#[test]
fn parts_ahead_are_kept_up_to_a_bound() {
    let mut reporter = Reporter::default();
    reporter.begin(1);
    reporter.set("b", (0..40_000).map(|index| slice("b", index, u64::MAX)).collect());
    let all = parts(&mut reporter);
    assert!(all.len() > 70);
    let mut receiver = Receiver::default();
    for part in all[1..].iter().cloned() {
        assert_eq!(receiver.take(part).parts.len(), 0);
    }
    assert_eq!(receiver.take(all[0].clone()).parts.len(), 65, "64 ahead, and the one that was missing");
    assert!(!receiver.has(reporter.told()));
}

/// The largest slice there is, of a bucket with the most vbuckets.
fn largest(index: u32) -> Item {
    let numbers = vec![u64::MAX; MAX_VBUCKETS];
    Item::slice(&SliceReport {
        session: u64::MAX,
        done_with: u64::MAX,
        resume: numbers.clone(),
        built: u64::MAX,
        to_build: u64::MAX,
        error: Some("\u{1}".repeat(10_000)),
        branch: u64::MAX,
        content: numbers,
        staged: u64::MAX,
        unstaged: u64::MAX,
        ..SliceReport::new(&"b".repeat(64), SliceName { index, partition: u32::MAX }, SliceState::Catchup)
    })
}

#[test]
fn a_part_stays_below_a_small_max_payload() {
    let most = u64::MAX;
    let vb = StVb {
        vbuuid: most,
        generation: most,
        position: crate::Position::new(most, most),
        covered: most,
        server_time: i64::MIN,
        hash: most,
        created: i64::MIN,
        asked: Vec::new(),
        floor: most,
        reconciled: most,
    };
    let st = StabilityTimestamp { number: most, term: most, wanted: true, persist: true, vbs: vec![vb; MAX_VBUCKETS] };
    let bookmark = |seqno| Bookmark { seqno, subject: "\u{1}".repeat(1_100), time: i64::MIN, hash: most, source: most };
    let bucket = "b".repeat(64);
    let suspicion = Item::suspicion(&Suspicion {
        bucket: bucket.clone(),
        vb: 63,
        vbuuid: most,
        reason: "\u{1}".repeat(10_000),
        intact: most,
        last: most,
        broken: true,
        bookmarks: (0..64).map(bookmark).collect(),
    });
    let Item::Suspicion(told) = &suspicion else { panic!() };
    let proof: Vec<u64> = told.bookmarks.iter().map(|bookmark| bookmark.seqno).collect();
    assert_eq!(proof, [61, 62, 63], "the newest are the best proof");
    let mut reporter = Reporter::default();
    reporter.begin(most);
    let mut items: Vec<Item> = (0..100).map(largest).collect();
    items.extend([suspicion, Item::Applied { bucket: bucket.clone(), st }]);
    reporter.set(&bucket, items);
    let sizes: Vec<usize> = parts(&mut reporter).iter().map(|part| serde_json::to_vec(part).unwrap().len()).collect();
    assert!(sizes.iter().all(|size| *size < 34 * 1_024), "{sizes:?}");
}

#[test]
fn twenty_thousand_slices_are_told_in_small_parts_and_then_only_what_changes() {
    let mut reporter = Reporter::default();
    reporter.begin(1);
    let all = |done_with| -> Vec<Item> {
        (0..20_000).map(|index| slice("a bucket of many indexes", index, done_with)).collect()
    };
    reporter.set("a bucket of many indexes", all(1_000_000));
    let told = parts(&mut reporter);
    let sizes: Vec<usize> = told.iter().map(|part| serde_json::to_vec(part).unwrap().len()).collect();
    assert!(sizes.iter().all(|size| *size < 34 * 1_024), "{sizes:?}");
    assert!(sizes.iter().sum::<usize>() < 4 << 20, "{}", sizes.iter().sum::<usize>());
    let mut one = all(1_000_000);
    one[77] = slice("a bucket of many indexes", 77, 1_000_001);
    reporter.set("a bucket of many indexes", one);
    let told = parts(&mut reporter);
    assert_eq!((told.len(), told[0].items.len()), (1, 1));
    assert!(serde_json::to_vec(&told[0]).unwrap().len() < 512);
}

#[test]
fn a_node_tells_of_so_many_items_at_most() {
    let mut reporter = Reporter::default();
    reporter.begin(1);
    reporter.set("b", (0..=MOST_ITEMS as u32).map(|index| slice("b", index, 0)).collect());
    reporter.set("c", vec![slice("c", 0, 0)]);
    assert_eq!(parts(&mut reporter).iter().map(|part| part.items.len()).sum::<usize>(), MOST_ITEMS);
    assert_eq!(reporter.untold(), 2);
    reporter.keep(|bucket| bucket == "b");
    assert_eq!(reporter.untold(), 1);
    reporter.set("b", vec![slice("b", 7, 0)]);
    assert_eq!((reporter.untold(), parts(&mut reporter)[0].items.len()), (0, 0));
}

#[test]
fn what_a_report_holds_of_a_slice_is_what_the_coordinator_decides_by() {
    let name = SliceName { index: 3, partition: 1 };
    let full = |state| SliceReport {
        session: 4,
        done_with: 3,
        resume: vec![5, 0],
        docs_done: 9,
        items: 10,
        bytes: 11,
        unindexed: 1,
        branch: 7,
        content: vec![8, 9],
        staged: 2,
        unstaged: 1,
        ..SliceReport::new("b", name, state)
    };
    let told = |state| match Item::slice(&full(state)) {
        Item::Slice(slice) => SliceReport::from(slice),
        other => panic!("{other:?}"),
    };
    let counted = SliceReport { docs_done: 0, items: 0, bytes: 0, unindexed: 0, ..full(SliceState::Catchup) };
    assert_eq!(told(SliceState::Catchup), counted, "without what only people want to know");
    let active = told(SliceState::Active);
    assert_eq!(
        (active.resume.len(), active.content.len()),
        (0, 0),
        "they change with every timestamp, and nobody needs them"
    );
}
