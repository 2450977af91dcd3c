//! Some hundred simulated data paths; any number of others: `cargo xtask simulate --data --seeds N --from S`.

use highwater_simulation::{Campaign, DataLimits, Limits, Summary, first_seed};

fn run(from: u64, seeds: u64, limits: DataLimits) -> Summary {
    Campaign { from, seeds, threads: 2, limits: Limits::default(), verbose: false, first: false }.run_data(limits)
}

/// Each of these has happened.
fn counted(summary: &Summary, wanted: &[&str]) {
    for what in wanted {
        assert!(summary.stats.get(what).is_some_and(|n| *n > 0), "no {what}: {:?}", summary.stats);
    }
}

#[test]
fn without_faults_indexes_are_what_the_source_is() {
    let summary = run(first_seed(), 50, DataLimits { calm: true, ..DataLimits::default() });
    assert!(summary.failures.is_empty(), "seed and why: {:#?}", summary.failures);
    counted(
        &summary,
        &["exact", "requests served", "sessions", "timestamps at the end of a batch", "timestamps shown"],
    );
}

#[test]
fn whatever_sources_and_topics_lose_indexes_are_what_the_source_is() {
    let summary = run(first_seed(), 600, DataLimits::default());
    assert!(summary.failures.is_empty(), "seed and why: {:#?}", summary.failures);
    // That the runs are worth something.
    let wanted = [
        "batches cut by a fault",
        "batches without an end",
        "branches, broken",
        "branches, unproven",
        "exact",
        "faults of catchup topics",
        "faults of the mutation topic",
        "floors",
        "offered though something is hidden",
        "offers before the beginning of an open batch",
        "reconciles done",
        "requests served",
        "rollbacks done",
        "slices rolled back",
        "terms",
        "hosts lost",
        "timestamps asked for",
        "timestamps at the end of a batch",
        "timestamps told again",
    ];
    counted(&summary, &wanted);
}

#[test]
fn a_seed_is_a_run() {
    let one = || run(7, 4, DataLimits::default()).stats;
    assert_eq!(one(), one());
}
