//! A process that fills, persists and rolls back is killed at any moment; what is there afterwards is what it had last made
//! durable, or what it was making durable.

use crate::support::{self, REPORT, Rng, apply, assert_is, child, collect, lines, model_of, persist_for, report, seed};
use highwater_indexer::store::{LmdbStore, Purpose, SliceStore, StoreLimits};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Kills of a run; set the variable for more.
const ROUNDS: u64 = 60;
const ROUNDS_VARIABLE: &str = "HIGHWATER_KILLS";
/// Kills of one slice before a new one is begun.
const OF_A_SLICE: u64 = 12;
/// Rounds that a slice is filled with in bulk, and those between two spools.
const FILLING: u64 = 30;
const SPOOL: u64 = 4;
/// Lines of the journal that a child may write, and microseconds after the last of them, before it is killed.
const LINES: u64 = 14;
const MOMENT: u64 = 6_000;
/// One of so many steps is a rollback.
const ROLLBACKS: u64 = 5;

fn limits() -> StoreLimits {
    // Builds go through files of their own, with entries in runs.
    let (build_memory, small_build) = (64 << 10, 0);
    StoreLimits { map_size: 64 << 20, build_memory, small_build, ..StoreLimits::default() }
}

fn open(slice: &Path) -> LmdbStore {
    LmdbStore::open(slice, &support::identity(), limits()).expect("opens")
}

/// The rounds whose changes a state holds: what a rollback takes back is not among them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Lineage(Vec<u64>);

impl Lineage {
    fn st(&self) -> u64 {
        self.0.last().copied().unwrap_or(0)
    }
    /// By a line of the journal: `persist`, `spool` or `build` up to a round, or `back` to one.
    fn after(&self, step: &str, from: u64, to: u64) -> Self {
        let mut next = self.clone();
        match step {
            "back" => next.0.retain(|st| *st <= to),
            _ => next.0.extend(from..=to),
        }
        next
    }
}

/// In a child: goes on from what is there until it is killed. Says what it is about to do, and that it is done.
#[test]
fn worker() {
    let Some(slice) = support::slice() else { return };
    let mut store = open(&slice);
    let mut rng = Rng::new(std::env::var(support::SEED).ok().and_then(|s| s.parse().ok()).unwrap_or(1));
    // Numbers are never used again, whatever was rolled back: the journal knows the highest.
    let journal = PathBuf::from(std::env::var_os(REPORT).expect("is set"));
    let highest = lines(&journal).iter().filter_map(|l| l.split(' ').nth(2)?.parse().ok()).max().unwrap_or(0);
    let mut st = highest.max(store.durable().st);
    report("ready");
    while store.in_bulk() {
        let from = store.durable().st + 1;
        let to = (from + SPOOL - 1).min(FILLING);
        if from > FILLING {
            report(&format!("build {from} {FILLING}"));
            persist_for(&mut store, FILLING, Purpose::Built).expect("builds");
        } else {
            report(&format!("spool {from} {to}"));
            (from..=to).try_for_each(|st| collect(&mut store, st)).expect("collects");
            persist_for(&mut store, to, Purpose::Interim).expect("spools");
        }
        report("done");
        st = st.max(to);
    }
    loop {
        let kept: Vec<u64> = store.kept().iter().map(|k| k.mark.st).collect();
        if !kept.is_empty() && rng.below(ROLLBACKS) == 0 {
            let to = kept[rng.below(kept.len() as u64) as usize];
            report(&format!("back 0 {to}"));
            store.roll_back(to, (0, 0)).expect("rolls back");
        } else {
            let (from, to) = (st + 1, st + 1 + rng.below(4));
            report(&format!("persist {from} {to}"));
            (from..=to).try_for_each(|st| apply(&mut store, st).map(|_| ())).expect("applies");
            let purpose = if rng.below(3) == 0 { Purpose::Interim } else { Purpose::Snapshot { at: to } };
            persist_for(&mut store, to, purpose).expect("persists");
            st = to;
        }
        report("done");
    }
}

/// What the journal leaves possible: the state made durable last, and the one that was in the making.
fn possible(journal: &[String]) -> (Lineage, Option<(String, Lineage)>) {
    let (mut done, mut doing) = (Lineage::default(), None);
    for line in journal {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [step, from, to] => {
                let number = |word: &str| word.parse().expect("a number");
                doing = Some((step.to_owned(), done.after(step, number(from), number(to))));
            }
            ["done"] => done = doing.take().expect("something was begun").1,
            // Found by the parent after a kill.
            ["found", "old"] => doing = None,
            ["found", "new"] => done = doing.take().map_or(done, |(_, new)| new),
            _ => {}
        }
    }
    (done, doing)
}

/// Kills a child at some moment behind some line of its journal.
fn kill_one(slice: &Path, journal: &Path, rng: &mut Rng) {
    let lines_before = lines(journal).len() as u64;
    let mut command = child("killed::worker", slice, journal, &[]);
    command.env(support::SEED, rng.below(u64::MAX).to_string());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut running = command.spawn().expect("starts itself");
    let until = lines_before + 1 + rng.below(LINES);
    while (lines(journal).len() as u64) < until {
        assert!(running.try_wait().expect("can be asked").is_none(), "the worker ended by itself");
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(Duration::from_micros(rng.below(MOMENT)));
    running.kill().expect("is killed");
    running.wait().expect("ends");
}

#[test]
fn whatever_is_killed_nothing_durable_is_lost() {
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let mut rng = Rng::new(seed("killed"));
    let (mut old, mut new, mut steps) = (0, 0, Vec::new());
    for begun in 0..rounds.div_ceil(OF_A_SLICE) {
        let (_keep, dir) = support::directory();
        let (slice, journal) = (dir.join("slice"), dir.join("journal"));
        fs::write(&journal, "").expect("writes");
        for kill in begun * OF_A_SLICE..rounds.min((begun + 1) * OF_A_SLICE) {
            kill_one(&slice, &journal, &mut rng);
            let (done, doing) = possible(&lines(&journal));
            let mut store = open(&slice);
            let st = store.durable().st;
            let found = match &doing {
                Some((_, made)) if made.st() == st && done.st() != st => made.clone(),
                _ => done.clone(),
            };
            assert_eq!(found.st(), st, "kill {kill}: {done:?} was durable, and {doing:?} in the making");
            // A build holds what it must once its last step is done; before that it is read from the runs.
            if store.in_bulk() {
                assert_eq!(store.seal().expect("seals").items(), 0);
            } else {
                store.verify().unwrap_or_else(|e| panic!("kill {kill}: {e}"));
                assert_is(&mut store, &model_of(found.0.iter().copied()), st);
            }
            if let Some((step, made)) = doing {
                let is_new = made.st() == st && made.st() != done.st();
                (old, new) = (old + u64::from(!is_new), new + u64::from(is_new));
                steps.push(step);
                note(&journal, if is_new { "found new" } else { "found old" });
            }
            if store.kept().is_empty() || rng.below(3) > 0 {
                continue;
            }
            // What is kept is right too.
            let kept = store.kept()[rng.below(store.kept().len() as u64) as usize].mark.st;
            note(&journal, &format!("back 0 {kept}"));
            store.roll_back(kept, (0, 0)).expect("rolls back");
            note(&journal, "done");
            let (done, _) = possible(&lines(&journal));
            assert_is(&mut store, &model_of(done.0.iter().copied()), kept);
            store.verify().expect("agrees");
        }
    }
    let count = |step: &str| steps.iter().filter(|s| *s == step).count();
    println!(
        "{rounds} kills, in the middle of {} spools, {} builds, {} persists, {} rollbacks: {old} found undone, {new} done",
        count("spool"),
        count("build"),
        count("persist"),
        count("back")
    );
    assert!(count("persist") > 0, "no kill met a persist");
}

/// A rollback over many documents, killed behind its beginning until one was met halfway.
#[test]
fn a_rollback_that_is_killed_happens_wholly_or_not_at_all() {
    const SNAPSHOTS: u64 = 40;
    const TRIES: u64 = 40;
    let mut rng = Rng::new(seed("rollback killed"));
    let (_keep, dir) = support::directory();
    let (slice, journal) = (dir.join("slice"), dir.join("journal"));
    let (mut undone, mut done) = (0, 0);
    for attempt in 1..=TRIES {
        let _ = fs::remove_dir_all(&slice);
        fs::write(&journal, "").expect("writes");
        let mut store = open(&slice);
        for st in 1..=SNAPSHOTS {
            apply(&mut store, st).expect("applies");
            persist_for(&mut store, st, Purpose::Snapshot { at: st }).expect("persists");
        }
        drop(store);
        let mut command = child("killed::roller", &slice, &journal, &[]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut running = command.spawn().expect("starts itself");
        while lines(&journal).is_empty() {
            std::hint::spin_loop();
        }
        // Longer and longer, so that on any machine some come too late.
        std::thread::sleep(Duration::from_micros(rng.below(MOMENT * attempt)));
        let finished = lines(&journal).len() > 1;
        running.kill().expect("is killed");
        running.wait().expect("ends");
        let mut store = open(&slice);
        store.verify().expect("agrees");
        let st = store.durable().st;
        assert!(st == 1 || (st == SNAPSHOTS && !finished), "ST {st} is there");
        assert_is(&mut store, &model_of(1..=st), st);
        (undone, done) = (undone + u64::from(st != 1), done + u64::from(st == 1));
        if undone >= 3 && done >= 1 {
            break;
        }
    }
    println!("killed rollbacks: {undone} undone, {done} done");
    assert!(undone > 0, "no kill came before the end of a rollback");
}

/// In a child: rolls back to the first snapshot, and waits.
#[test]
fn roller() {
    let Some(slice) = support::slice() else { return };
    let mut store = open(&slice);
    report("begins");
    store.roll_back(1, (0, 0)).expect("rolls back");
    report("done");
    std::thread::sleep(Duration::from_secs(60));
}

fn note(journal: &Path, line: &str) {
    use std::io::Write;
    let mut file = fs::File::options().append(true).open(journal).expect("opens");
    writeln!(file, "{line}").expect("writes");
}
