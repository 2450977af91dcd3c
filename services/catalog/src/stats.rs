//! The numbers of an index, put together from the log, its hosts' reports and its source.

use highwater_schemas::{
    api::{IndexStats, NodeStatus, SliceReport, SliceState},
    state::{Index, IndexState},
};
use std::collections::HashMap;

/// How far the reading of the source brings a build. The rest is the merging of what was read into the index.
const READ: f64 = 0.7;
/// What is left above it is for the first stability timestamp that the index can show.
const BUILT: f64 = 0.99;
/// Indexes being built whose progress is remembered.
const MOST_REMEMBERED: usize = 4_096;

/// Reports of the slices on each host, by index and partition; None: the host does not answer.
pub type Reports = HashMap<String, Option<Slices>>;
type Slices = HashMap<(u32, u32), SliceReport>;

/// The slices of one host.
pub fn by_slice(status: NodeStatus) -> Slices {
    status.slices.into_iter().map(|slice| ((slice.index, slice.partition), slice)).collect()
}

/// The numbers of one index. `messages`: how many the source streams hold, if that could be read.
pub fn index_stats(index: &Index, reports: &Reports, messages: Option<u64>) -> IndexStats {
    let definition = &index.placed.definition;
    let number = index.placed.number;
    let mut slices: Vec<&SliceReport> = Vec::new();
    let mut error = None;
    // Without a topology version it has no slices yet.
    for (partition, host) in index.placed.hosts.iter().enumerate().filter(|_| index.topology > 0) {
        let Some(Some(report)) = reports.get(host) else {
            error.get_or_insert_with(|| format!("host {host} does not answer"));
            continue;
        };
        let slice = u32::try_from(partition).ok().and_then(|partition| report.get(&(number, partition)));
        if let Some(why) = slice.and_then(|s| s.error.as_ref()) {
            error = Some(why.clone());
        }
        slices.extend(slice);
    }
    let sum = |number: fn(&SliceReport) -> u64| slices.iter().map(|s| number(s)).sum::<u64>();
    let docs_done = sum(|s| s.docs_done);
    let docs_pending = match index.state {
        IndexState::Active => 0,
        _ => messages.unwrap_or(0).saturating_sub(docs_done),
    };
    let hosts = index.placed.hosts.len();
    let built = |s: &&SliceReport| matches!(s.state, SliceState::Catchup | SliceState::Merged | SliceState::Active);
    let state = match &index.state {
        IndexState::Building if !slices.is_empty() && slices.iter().all(built) => "catchup",
        state => state.as_str(),
    };
    if let IndexState::Failed(reason) = &index.state {
        error = Some(reason.clone());
    }
    let read = match (messages, docs_done + docs_pending) {
        (None, _) => 0.0,
        (_, 0) => 1.0,
        (_, all) => docs_done as f64 / all as f64,
    };
    let progress = match &index.state {
        IndexState::Active => 1.0,
        IndexState::Building => slices.iter().map(|s| slice_progress(s, read)).sum::<f64>() / hosts.max(1) as f64,
        _ => 0.0,
    };
    IndexStats {
        bucket: definition.bucket.clone(),
        name: definition.name.clone(),
        id: index.placed.id.clone(),
        state: state.into(),
        keys: definition.keys.clone(),
        condition: definition.condition.clone(),
        include: definition.include.clone(),
        num_partition: definition.num_partition,
        language: index.placed.language,
        docs_pending,
        docs_done,
        items: sum(|s| s.items),
        bytes: sum(|s| s.bytes),
        unindexed: sum(|s| s.unindexed),
        progress,
        error,
    }
}

/// How far one slice is; `read`: the part of the source that the index's slices have read.
fn slice_progress(slice: &SliceReport, read: f64) -> f64 {
    match slice.to_build {
        0 => READ * read,
        all => READ + (BUILT - READ) * slice.built.min(all) as f64 / all as f64,
    }
}

/// The highest progress that was answered of each index being built: documents that are written meanwhile, a host that is
/// silent for a moment or a step that is repeated do not make it fall.
#[derive(Debug, Default)]
pub struct Highest(HashMap<String, f64>);

impl Highest {
    pub fn raise(&mut self, stats: &mut IndexStats) {
        if !matches!(stats.state.as_str(), "building" | "catchup") {
            self.0.remove(&stats.id);
            return;
        }
        if self.0.len() >= MOST_REMEMBERED && !self.0.contains_key(&stats.id) {
            // Most of them were dropped while they were being built.
            self.0.clear();
        }
        let highest = self.0.entry(stats.id.clone()).or_default();
        *highest = highest.max(stats.progress);
        stats.progress = *highest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{
        definition::IndexDefinition,
        language::Language,
        state::{PlacedIndex, SliceName},
    };

    fn index(state: IndexState, hosts: &[&str]) -> Index {
        let definition: IndexDefinition =
            serde_json::from_str(r#"{"bucket":"users","name":"by_age","keys":["age DESC","city"]}"#).unwrap();
        let compiled = definition.compile(Language::NEWEST).unwrap();
        let hosts = hosts.iter().map(ToString::to_string).collect();
        Index {
            placed: PlacedIndex { number: 7, id: "i7".into(), definition, hosts, language: 1 },
            compiled,
            state,
            topology: 3,
        }
    }

    fn report(node: &str, partition: u32, state: SliceState, docs_done: u64) -> (String, Option<Slices>) {
        let name = SliceName { index: 7, partition };
        let slice =
            SliceReport { docs_done, items: 10, bytes: 100, unindexed: 1, ..SliceReport::new("users", name, state) };
        (node.into(), Some(Slices::from([((7, partition), slice)])))
    }

    #[test]
    fn a_build_shows_what_is_left() {
        let reports =
            Reports::from([report("a", 0, SliceState::Building, 20), report("b", 1, SliceState::Building, 30)]);
        let stats = index_stats(&index(IndexState::Building, &["a", "b"]), &reports, Some(200));
        assert_eq!((stats.state.as_str(), stats.docs_done, stats.docs_pending), ("building", 50, 150));
        assert!((stats.progress - READ * 0.25).abs() < 1e-9);
        assert_eq!((stats.items, stats.bytes, stats.unindexed, stats.error), (20, 200, 2, None));
    }

    #[test]
    fn progress_covers_both_phases_and_never_falls() {
        let mut highest = Highest::default();
        let mut last = 0.0;
        // Documents read of how many, and per slice what was merged of how much.
        let steps = [
            ([10, 10], 200, [(0, 0), (0, 0)]),
            ([60, 30], 200, [(0, 0), (0, 0)]),
            ([60, 30], 500, [(0, 0), (0, 0)]),
            ([110, 90], 200, [(0, 0), (0, 0)]),
            ([110, 90], 200, [(0, 220), (0, 0)]),
            ([110, 90], 200, [(200, 220), (10, 180)]),
            ([110, 90], 200, [(0, 220), (180, 180)]),
            ([110, 90], 900, [(55, 55), (45, 45)]),
        ];
        for (docs, messages, built) in steps {
            let states = [("a", 0), ("b", 1)].map(|(node, partition)| {
                let (name, status) = report(node, partition, SliceState::Building, docs[partition as usize]);
                let slices = status.map(|mut slices| {
                    let slice = slices.get_mut(&(7, partition)).unwrap();
                    (slice.built, slice.to_build) = built[partition as usize];
                    slices
                });
                (name, slices)
            });
            let mut stats =
                index_stats(&index(IndexState::Building, &["a", "b"]), &Reports::from(states), Some(messages));
            highest.raise(&mut stats);
            assert!(stats.progress >= last && stats.progress < 1.0, "{last}, then {} at {built:?}", stats.progress);
            last = stats.progress;
        }
        assert!((last - BUILT).abs() < 1e-9);
        let mut silent = index_stats(&index(IndexState::Building, &["a", "b"]), &Reports::new(), None);
        highest.raise(&mut silent);
        assert!((silent.progress - last).abs() < 1e-9);
        let mut active = index_stats(&index(IndexState::Active, &["a", "b"]), &Reports::new(), None);
        highest.raise(&mut active);
        assert!((active.progress - 1.0).abs() < 1e-9 && highest.0.is_empty());
    }

    #[test]
    fn an_active_index_has_nothing_pending() {
        let reports = Reports::from([report("a", 0, SliceState::Active, 20)]);
        let stats = index_stats(&index(IndexState::Active, &["a"]), &reports, Some(200));
        assert_eq!((stats.state.as_str(), stats.docs_pending, stats.progress), ("active", 0, 1.0));
    }

    #[test]
    fn a_silent_host_leaves_what_is_known() {
        let reports = Reports::from([report("a", 0, SliceState::Catchup, 20), ("b".into(), None)]);
        let stats = index_stats(&index(IndexState::Building, &["a", "b"]), &reports, Some(40));
        assert_eq!(stats.error.as_deref(), Some("host b does not answer"));
        assert_eq!((stats.items, stats.state.as_str()), (10, "catchup"));
    }

    #[test]
    fn a_failed_index_says_why_and_a_created_one_asks_nobody() {
        let stats = index_stats(&index(IndexState::Failed("disk".into()), &["a"]), &Reports::new(), None);
        assert_eq!((stats.state.as_str(), stats.error.as_deref()), ("error", Some("disk")));
        let created = Index { topology: 0, ..index(IndexState::Created, &["a"]) };
        let stats = index_stats(&created, &Reports::new(), Some(5));
        assert_eq!((stats.docs_pending, stats.progress, stats.error), (5, 0.0, None));
    }
}
