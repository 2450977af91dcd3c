//! The numbers of an index, put together from the log, its hosts' reports and its source.

use highwater_schemas::{
    api::{IndexStats, NodeStatus, SliceReport, SliceState},
    state::{Index, IndexState},
};
use std::collections::HashMap;

/// What each host said; none: it does not answer.
pub type Reports = HashMap<String, Option<NodeStatus>>;

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
        let slice = report.slices.iter().find(|s| s.index == number && s.partition as usize == partition);
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
    let building = matches!(index.state, IndexState::Building);
    let built = |s: &&SliceReport| matches!(s.state, SliceState::Catchup | SliceState::Merged | SliceState::Active);
    let state = match &index.state {
        IndexState::Building if !slices.is_empty() && slices.iter().all(built) => "catchup",
        state => state.as_str(),
    };
    if let IndexState::Failed(reason) = &index.state {
        error = Some(reason.clone());
    }
    let progress = match (&index.state, docs_done + docs_pending) {
        (IndexState::Active, _) => 1.0,
        (_, 0) if building && !slices.is_empty() => 1.0,
        (_, 0) => 0.0,
        (_, all) => docs_done as f64 / all as f64,
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
        docs_pending,
        docs_done,
        items: sum(|s| s.items),
        bytes: sum(|s| s.bytes),
        unindexed: sum(|s| s.unindexed),
        progress,
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{api::NodeKind, definition::IndexDefinition, state::PlacedIndex};

    fn index(state: IndexState, hosts: &[&str]) -> Index {
        let definition: IndexDefinition =
            serde_json::from_str(r#"{"bucket":"users","name":"by_age","keys":["age DESC","city"]}"#).unwrap();
        let compiled = definition.compile().unwrap();
        let hosts = hosts.iter().map(ToString::to_string).collect();
        Index { placed: PlacedIndex { number: 7, id: "i7".into(), definition, hosts }, compiled, state, topology: 3 }
    }

    fn report(node: &str, partition: u32, state: SliceState, docs_done: u64) -> (String, Option<NodeStatus>) {
        let slice = SliceReport {
            bucket: "users".into(),
            index: 7,
            partition,
            state,
            session: 0,
            done_with: 0,
            resume: vec![],
            docs_done,
            items: 10,
            bytes: 100,
            unindexed: 1,
            error: None,
        };
        let kind = NodeKind::Indexer;
        let status =
            NodeStatus { node: node.into(), kind, slices: vec![slice], refused_messages: 0, unindexed: vec![] };
        (node.into(), Some(status))
    }

    #[test]
    fn a_build_shows_what_is_left() {
        let reports =
            Reports::from([report("a", 0, SliceState::Building, 20), report("b", 1, SliceState::Building, 30)]);
        let stats = index_stats(&index(IndexState::Building, &["a", "b"]), &reports, Some(200));
        assert_eq!((stats.state.as_str(), stats.docs_done, stats.docs_pending), ("building", 50, 150));
        assert!((stats.progress - 0.25).abs() < 1e-9);
        assert_eq!((stats.items, stats.bytes, stats.unindexed, stats.error), (20, 200, 2, None));
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
