//! The table of a run: each measure beside its limit, its floor and its budget.

use super::{Options, machine::Machine, process::Memory};
use crate::term::{bold, green, group, red, time};
use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};
use std::{fmt, fs, path::Path, time::Duration};

const MIB: f64 = 1024.0 * 1024.0;
/// What the indexer may take besides its memory quota, MiB.
const MEMORY_BASE: f64 = 256.0;
/// The indexer's memory quota when none is set, MiB.
const MEMORY_QUOTA: f64 = 96.0;

/// Median and 99th percentile of some times.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub p50: Duration,
    pub p99: Duration,
}

impl Spread {
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let index = (times.len() as f64 * share) as usize;
            times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {}, p99 {}", time(self.p50), time(self.p99))
    }
}

/// A bound that a number must keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, number: f64) -> bool {
        match self {
            Self::AtLeast(bound) => number >= bound,
            Self::AtMost(bound) => number <= bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {}", number(*bound)),
            Self::AtMost(bound) => write!(f, "≤ {}", number(*bound)),
        }
    }
}

/// One measure. The bounds speak of the ratio where there is one, else of the value.
#[derive(Debug, Clone, Serialize)]
struct Measure {
    name: String,
    value: f64,
    unit: &'static str,
    /// The value divided by a limit of the same run.
    ratio: Option<f64>,
    /// What a release must keep.
    floor: Option<Bound>,
    /// What the design asks for.
    budget: Option<Bound>,
    /// Whether the budget is kept.
    met: Option<bool>,
}

/// What the steady updates showed.
pub struct Steady {
    pub rate: f64,
    pub asked: f64,
    /// What NATS alone takes of such updates.
    pub raw: f64,
    pub lag: u64,
    pub most: u64,
    pub caught_up: Duration,
    /// Name of each process and how many cores it used.
    pub cpu: Vec<(String, f64)>,
}

/// What the store by itself showed; times are microseconds for each entry.
pub struct Store {
    pub entries: u64,
    pub built: f64,
    pub updated: f64,
    pub rolled_back: f64,
    /// Bytes of anonymous memory at most, and what of it the program may keep for entries.
    pub memory: u64,
    pub quota: u64,
    /// Seconds until every slice has answered.
    pub restart: f64,
    /// Live pages of the data files for each entry, bytes.
    pub bytes: f64,
}

/// What recovery showed.
pub struct Recovery {
    pub entries: u64,
    /// From the start of an indexer until every index has answered, at worst.
    pub restart: Duration,
    /// Documents caught up in a second, and those read raw.
    pub rate: f64,
    pub read: f64,
    pub mutations: u64,
    /// What an indexer spent with rolling them back, and the time until the source as it is then is readable.
    pub rolled_back: Duration,
    pub resumed: Duration,
}

/// What crashes of the master showed.
pub struct Takeover {
    /// From the crash until DDL was acknowledged.
    pub median: Duration,
    pub worst: Duration,
    /// From the nomination until the term was open, at worst.
    pub opened: Duration,
    /// Between two counts that were answered, at most.
    pub gap: Duration,
    /// Counts that were not.
    pub failed: u64,
}

/// What many indexes showed.
pub struct Many {
    pub indexes: u64,
    /// Made in a second, all of them active at the end.
    pub per_second: f64,
    /// From the request to an active index, with few indexes and with the many.
    pub before: Spread,
    pub after: Spread,
    /// From the start of an index manager until it takes part.
    pub started: Duration,
    /// From a nomination until the term is open.
    pub opened: Duration,
    /// From a crash of the master until DDL is acknowledged.
    pub taken: Duration,
    /// Cores at rest, by service.
    pub cpu: Vec<(String, f64)>,
}

/// The results of a run.
pub struct Report {
    machine: Machine,
    flags: Value,
    limits: Vec<Measure>,
    measures: Vec<Measure>,
}

impl Report {
    pub fn new(machine: Machine, options: &Options) -> Self {
        if options.store_only {
            let flags = json!({"store_only": true, "entries": options.entries, "slices": options.slices});
            return Self { machine, flags, limits: Vec::new(), measures: Vec::new() };
        }
        let coordination = json!({"takeovers": options.takeovers, "creates": options.creates,
                                  "indexes": options.indexes});
        let flags = if options.coordination_only {
            json!({"coordination_only": true, "coordination": coordination})
        } else if options.recovery_only {
            json!({"docs": options.docs, "recovery_only": true})
        } else if options.limits_only {
            json!({"docs": options.docs, "limits_only": true})
        } else {
            json!({"docs": options.docs, "rate": options.rate, "probes": options.probes,
                   "steady_seconds": options.steady_seconds, "coordination": coordination})
        };
        Self { machine, flags, limits: Vec::new(), measures: Vec::new() }
    }

    pub fn limit(&mut self, name: &str, value: f64, unit: &'static str) {
        self.limits.push(Measure { name: name.into(), value, unit, ratio: None, floor: None, budget: None, met: None });
    }

    /// `cpu` has microseconds for one document, by process.
    pub fn build(&mut self, rate: f64, read: f64, cpu: Vec<(String, f64)>) {
        let (floor, budget) = (Bound::AtLeast(0.25), Bound::AtLeast(0.75));
        self.add("initial build of two indexes, to raw read", rate, "docs/s", Some(rate / read), Some(floor), budget);
        for (name, used) in cpu {
            self.plain(&format!("initial build: CPU of {name}"), used, "µs/doc");
        }
    }

    pub fn lookup(&mut self, spread: &Spread, round_trip: &Spread) {
        let ratio = spread.p50.as_secs_f64() / round_trip.p50.as_secs_f64();
        let (floor, budget) = (Bound::AtMost(4.0), Bound::AtMost(2.5));
        self.add("lookup of 10 rows p50, to round trip", ms(spread.p50), "ms", Some(ratio), Some(floor), budget);
        self.plain("lookup of 10 rows p99", ms(spread.p99), "ms");
    }

    pub fn range(&mut self, rate: f64) {
        let floor = Bound::AtLeast(500_000.0);
        self.add("range scan to a client", rate, "rows/s", None, Some(floor), Bound::AtLeast(1_000_000.0));
    }

    pub fn count(&mut self, rate: f64, cursor: f64) {
        let ratio = Some(rate / cursor);
        self.add("count of a range, to raw LMDB cursor", rate, "rows/s", ratio, None, Bound::AtLeast(0.5));
    }

    pub fn freshness(&mut self, spread: &Spread, rate: f64) {
        let at = group(rate.round());
        let (floor, budget) = (Bound::AtMost(10.0), Bound::AtMost(3.0));
        self.add(&format!("freshness p50 at {at} writes/s"), ms(spread.p50), "ms", None, Some(floor), budget);
        let (floor, budget) = (Bound::AtMost(40.0), Bound::AtMost(12.0));
        self.add(&format!("freshness p99 at {at} writes/s"), ms(spread.p99), "ms", None, Some(floor), budget);
    }

    pub fn steady(&mut self, steady: &Steady) {
        let share = Some(steady.rate / steady.asked);
        let budget = Bound::AtLeast(0.95);
        self.add("steady updates, to the rate asked for", steady.rate, "docs/s", share, None, budget);
        let (unit, floor, budget, met) = ("docs/s", None, None, None);
        let (name, ratio) = ("steady updates, to raw acked updates".into(), Some(steady.rate / steady.raw));
        self.measures.push(Measure { name, value: steady.rate, unit, ratio, floor, budget, met });
        self.plain("steady updates: behind at the end", steady.lag as f64, "docs");
        self.plain("steady updates: behind at most", steady.most as f64, "docs");
        let budget = Bound::AtMost(10.0);
        self.add("steady updates: caught up in", steady.caught_up.as_secs_f64(), "s", None, None, budget);
        for (name, cores) in &steady.cpu {
            self.plain(&format!("steady updates: CPU of {name}"), *cores, "cores");
        }
    }

    pub fn disk(&mut self, live: u64, files: u64, encoded: u64) {
        let ratio = Some(live as f64 / encoded as f64);
        let budget = Bound::AtMost(2.0);
        self.add("disk, live pages, to encoded entries", live as f64 / MIB, "MiB", ratio, None, budget);
        self.plain("disk, files of the indexer", files as f64 / MIB, "MiB");
        self.plain("encoded entries of both indexes", encoded as f64 / MIB, "MiB");
    }

    pub fn memory(&mut self, memory: Option<Memory>) {
        let Some(memory) = memory else { return };
        let budget = Bound::AtMost(MEMORY_BASE + MEMORY_QUOTA);
        self.add("indexer memory, RssAnon at most", memory.anonymous as f64 / MIB, "MiB", None, None, budget);
        self.plain("indexer memory, VmHWM (with mapped files)", memory.resident as f64 / MIB, "MiB");
    }

    pub fn recovery(&mut self, recovery: &Recovery) {
        let name = format!("restart of an indexer with {} entries", group(recovery.entries as f64));
        self.add(&name, recovery.restart.as_secs_f64(), "s", None, None, Bound::AtMost(2.0));
        let ratio = Some(recovery.rate / recovery.read);
        let budget = Bound::AtLeast(0.5);
        self.add("catchup of two indexes, to raw read", recovery.rate, "docs/s", ratio, None, budget);
        let name = format!("rollback of {} mutations in two indexes", group(recovery.mutations as f64));
        let budget = Bound::AtMost(3.0);
        self.add(&format!("{name}: in the indexer"), recovery.rolled_back.as_secs_f64(), "s", None, None, budget);
        self.plain(&format!("{name}: until readable"), recovery.resumed.as_secs_f64(), "s");
    }

    /// `within` is the budget, seconds.
    pub fn takeover(&mut self, settings: &str, within: f64, takeover: &Takeover) {
        let (name, budget) = (format!("master crash to DDL, {settings}"), Bound::AtMost(within));
        self.add(&format!("{name}, median"), takeover.median.as_secs_f64(), "s", None, None, budget);
        self.add(&format!("{name}, worst"), takeover.worst.as_secs_f64(), "s", None, None, budget);
        self.plain(&format!("{name}: nomination to term"), ms(takeover.opened), "ms");
        self.add(&format!("{name}: worst gap of counts"), ms(takeover.gap), "ms", None, None, Bound::AtMost(100.0));
        self.add(&format!("{name}: failed counts"), takeover.failed as f64, "counts", None, None, Bound::AtMost(0.0));
    }

    /// `of`: what kind of bucket.
    pub fn ddl(&mut self, of: &str, acknowledged: &Spread, active: &Spread) {
        let name = format!("index {of}");
        self.add(&format!("{name}, active, p50"), ms(active.p50), "ms", None, None, Bound::AtMost(50.0));
        self.plain(&format!("{name}, active, p99"), ms(active.p99), "ms");
        self.plain(&format!("{name}, acknowledged, p50"), ms(acknowledged.p50), "ms");
    }

    pub fn many(&mut self, many: &Many) {
        let with = format!("with {} indexes", group(many.indexes as f64));
        let ratio = Some(many.after.p50.as_secs_f64() / many.before.p50.as_secs_f64());
        self.plain("with ten indexes: a further one, active, p50", ms(many.before.p50), "ms");
        let name = format!("{with}: a further one, active, p50, to ten");
        self.add(&name, ms(many.after.p50), "ms", ratio, None, Bound::AtMost(2.0));
        self.plain(&format!("{with}: made"), many.per_second, "indexes/s");
        let (started, opened) = (many.started.as_secs_f64(), many.opened.as_secs_f64());
        let (name, budget) = (format!("{with}: start of an index manager"), Bound::AtMost(1.0));
        self.add(&name, started, "s", None, None, budget);
        self.add(&format!("{with}: nomination to term"), opened, "s", None, None, budget);
        let taken = many.taken.as_secs_f64();
        self.add(&format!("{with}: master crash to DDL"), taken, "s", None, None, Bound::AtMost(5.0));
        for (name, cores) in &many.cpu {
            self.plain(&format!("{with}, at rest: CPU of {name}"), *cores, "cores");
        }
    }

    pub fn store(&mut self, few: &Store, many: &Store) {
        for (name, few, many) in [
            ("filling, for one entry", few.built, many.built),
            ("updating, for one entry", few.updated, many.updated),
            ("rolling back, for one entry", few.rolled_back, many.rolled_back),
        ] {
            self.plain(&format!("{name}, few"), few, "µs");
            let ratio = Some(many / few);
            self.add(&format!("{name}, many, to few"), many, "µs", ratio, None, Bound::AtMost(1.5));
        }
        self.plain("live pages for one entry, few", few.bytes, "bytes");
        self.plain("live pages for one entry, many", many.bytes, "bytes");
        let budget = Bound::AtMost(MEMORY_BASE + many.quota as f64 / MIB);
        let name = format!("memory with {} entries, RssAnon at most", group(many.entries as f64));
        self.add(&name, many.memory as f64 / MIB, "MiB", None, None, budget);
        let name = format!("restart to serving with {} entries", group(many.entries as f64));
        self.add(&name, many.restart, "s", None, None, Bound::AtMost(2.0));
    }

    fn plain(&mut self, name: &str, value: f64, unit: &'static str) {
        let (ratio, floor, budget, met) = (None, None, None, None);
        self.measures.push(Measure { name: name.into(), value, unit, ratio, floor, budget, met });
    }

    fn add(
        &mut self,
        name: &str,
        value: f64,
        unit: &'static str,
        ratio: Option<f64>,
        floor: Option<Bound>,
        budget: Bound,
    ) {
        let met = Some(budget.holds(ratio.unwrap_or(value)));
        self.measures.push(Measure { name: name.into(), value, unit, ratio, floor, budget: Some(budget), met });
    }

    /// Prints the machine and the table.
    pub fn print(&self) {
        let m = &self.machine;
        println!("\n{}", bold("Machine"));
        println!("  {} cores of {}, {} GiB, {}", m.cores, m.cpu, m.memory_gib, m.kernel);
        println!("  nats-server {}, {}, {}", m.nats_server, m.rustc, m.date);
        println!("  {}\n", self.flags);
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        table.set_header(["measure", "value", "ratio", "floor", "budget", "result"]);
        for measure in self.limits.iter().chain(&self.measures) {
            table.add_row(measure.cells());
        }
        println!("{table}");
        let missed = self.measures.iter().filter(|measure| measure.met == Some(false)).count();
        let below = self.measures.iter().filter(|measure| measure.floor_holds() == Some(false)).count();
        match (missed, below) {
            (0, _) if self.measures.is_empty() => {}
            (0, _) => println!("{}", green("every budget is met")),
            (_, 0) => println!("{missed} budgets missed, every floor met"),
            _ => println!("{}", red(&format!("{missed} budgets missed, {below} of them below the floor"))),
        }
    }

    /// Writes machine, flags and every measure as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let all =
            json!({"machine": self.machine, "flags": self.flags, "limits": self.limits, "measures": self.measures});
        let text = serde_json::to_string_pretty(&all).context("the results do not serialize")?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Measure {
    fn floor_holds(&self) -> Option<bool> {
        Some(self.floor?.holds(self.ratio.unwrap_or(self.value)))
    }

    fn cells(&self) -> Vec<Cell> {
        let bound = |bound: Option<Bound>| bound.map(|bound| bound.to_string()).unwrap_or_default();
        let result = match (self.met, self.floor_holds()) {
            (None, _) => "",
            (Some(true), _) => "met",
            (Some(false), Some(true)) => "MISSED (floor met)",
            (Some(false), _) => "MISSED",
        };
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        vec![
            Cell::new(&self.name),
            right(format!("{} {}", number(self.value), self.unit)),
            right(self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default()),
            right(bound(self.floor)),
            right(bound(self.budget)),
            Cell::new(result),
        ]
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// With separators from a hundred on, else with what digits it needs.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => group(v.round()),
        v if v.fract() == 0.0 => format!("{v}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_sorted_times() {
        let spread = Spread::of((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(spread.p50, Duration::from_millis(51));
        assert_eq!(spread.p99, Duration::from_millis(100));
        assert_eq!(Spread::of(Vec::new()).p50, Duration::ZERO);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(712_345.6), "712,346");
        assert_eq!(number(0.147), "0.15");
        assert_eq!(number(2.0), "2");
    }
}
