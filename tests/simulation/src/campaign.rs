//! Many seeds.

use crate::{
    data::{DataLimits, DataWorld},
    world::{Limits, Outcome, World},
};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Which seeds, and how.
#[derive(Debug, Clone)]
pub struct Campaign {
    pub from: u64,
    pub seeds: u64,
    pub threads: usize,
    pub limits: Limits,
    pub verbose: bool,
    /// Ends at the first seed that fails.
    pub first: bool,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Summary {
    pub runs: u64,
    /// Seed and why.
    pub failures: Vec<(u64, String)>,
    pub stats: BTreeMap<&'static str, u64>,
}

impl Campaign {
    pub fn run(&self) -> Summary {
        self.run_all(|seed| World::new(seed, self.limits, self.verbose).run())
    }

    /// The same of the data path.
    pub fn run_data(&self, limits: DataLimits) -> Summary {
        self.run_all(|seed| DataWorld::new(seed, limits, self.verbose).run())
    }

    fn run_all(&self, one: impl Fn(u64) -> Outcome + Sync) -> Summary {
        let next = AtomicU64::new(self.from);
        let summary = Mutex::new(Summary::default());
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.from + self.seeds {
                            return;
                        }
                        let outcome = run_seed(|| one(seed));
                        let Ok(mut summary) = summary.lock() else { return };
                        summary.runs += 1;
                        for (what, n) in outcome.stats {
                            *summary.stats.entry(what).or_default() += n;
                        }
                        if let Some(why) = outcome.failure {
                            println!("seed {seed} fails {why}");
                            summary.failures.push((seed, why));
                            if self.first {
                                next.store(u64::MAX / 2, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        let mut summary = summary.into_inner().unwrap_or_default();
        summary.failures.sort();
        summary
    }
}

fn run_seed(one: impl FnOnce() -> Outcome) -> Outcome {
    let run = catch_unwind(AssertUnwindSafe(one));
    run.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        Outcome { failure: Some(format!("I7: it panics: {said}")), ..Outcome::default() }
    })
}

/// The first seed of a test: the number in `HIGHWATER_SEED`, else 1.
///
/// # Panics
/// When the variable is no number.
pub fn first_seed() -> u64 {
    std::env::var("HIGHWATER_SEED").map_or(1, |text| text.parse().expect("HIGHWATER_SEED is a number"))
}
