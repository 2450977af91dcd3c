//! Some hundred simulated deployments; any number of others: `cargo xtask simulate --seeds N --from S`.

use highwater_simulation::{Campaign, Limits, first_seed};

#[test]
fn whatever_goes_wrong_what_must_hold_holds() {
    let campaign = Campaign {
        from: first_seed(),
        seeds: 400,
        threads: 2,
        limits: Limits::default(),
        verbose: false,
        first: false,
    };
    let summary = campaign.run();
    assert!(summary.failures.is_empty(), "seed and why: {:#?}", summary.failures);
    let excused = summary.stats.get("runs in which what was acknowledged may be lost").copied().unwrap_or(0);
    assert!(excused * 50 <= 400, "{excused} runs prove nothing of what was acknowledged");
    // That the runs are worth something.
    let happened = [
        "DDL done",
        "timestamps applied",
        "lost tails completed",
        "old copies brought back",
        "compactions",
        "foreign messages in the log",
    ];
    for what in happened {
        assert!(summary.stats.get(what).is_some_and(|n| *n > 0), "no {what}: {:?}", summary.stats);
    }
}

#[test]
fn a_seed_is_a_run() {
    let run = || {
        Campaign { from: 7, seeds: 2, threads: 1, limits: Limits::default(), verbose: false, first: false }.run().stats
    };
    assert_eq!(run(), run());
}
