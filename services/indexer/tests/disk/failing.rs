//! Every write and every sync of a script fails once, or from then on: no acknowledged state is ever lost.

use crate::support::{self, apply, assert_holds, child, directory, kind, lines, persist, printed, report, system_page};
use highwater_indexer::store::{SliceStore, StoreError};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/disk/failing_io.c");
/// Rounds of the script.
const ROUNDS: u64 = 4;
/// No script makes so many calls.
const MOST_CALLS: u64 = 500;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// LMDB's meta pages, at the beginning of its file.
const META_PAGES: u64 = 2;
/// What ends a failure: see `failing_io.c`.
const OFF: &str = "FAILING_IO_OFF";

/// The library, built once per test.
fn library(dir: &Path) -> PathBuf {
    let library = dir.join("failing_io.so");
    let output = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(SOURCE).output();
    match output {
        Ok(output) => assert!(output.status.success(), "cc does not build {SOURCE}: {}", printed(&output)),
        Err(error) => panic!("a C compiler named cc is needed to build {SOURCE} (package gcc or clang): {error}"),
    }
    library
}

/// How calls fail.
#[derive(Clone, Copy, Debug)]
struct Failure {
    /// "sync" or "write".
    calls: &'static str,
    errno: i32,
    /// From the chosen call on, not once.
    lasting: bool,
    /// What fails has its effect all the same.
    done: bool,
}

/// One run of the script and what it left.
struct Run {
    /// The last state whose persist succeeded.
    acknowledged: u64,
    /// How the first persist that failed did, or the opening.
    failed: Option<String>,
    /// How the persist after that one did.
    then: Option<String>,
    /// Offset and path of the first call that failed; none if no call was left to fail.
    place: Option<(i64, String)>,
}

/// Runs the script with the n-th call failing, and reopens the slice without the library.
fn run(library: &Path, failure: Failure, n: u64) -> Run {
    let (_keep, dir) = directory();
    let (slice, findings, log) = (dir.join("below/slice"), dir.join("report"), dir.join("log"));
    fs::create_dir(dir.join("below")).expect("creates");
    let mut command = child("failing::script", &slice, &findings, &[]);
    command.env("LD_PRELOAD", library).env("FAILING_IO_DIR", dir.join("below")).env("FAILING_IO_LOG", &log);
    command.env("FAILING_IO_CALLS", failure.calls).env("FAILING_IO_AT", n.to_string()).env(OFF, dir.join("off"));
    command.env("FAILING_IO_ERRNO", failure.errno.to_string());
    command.env("FAILING_IO_TIMES", if failure.lasting { "0" } else { "1" });
    if failure.done {
        command.env("FAILING_IO_DONE", "1");
    }
    let output = command.output().expect("starts itself");
    assert!(output.status.success(), "{failure:?} at {n}: {}", printed(&output));

    let mut run = Run { acknowledged: 0, failed: None, then: None, place: None };
    for line in lines(&findings) {
        match line.split_once(' ').expect("two words") {
            ("durable", st) => run.acknowledged = st.parse().expect("a number"),
            ("failed", kind) => run.failed = Some(kind.into()),
            ("then", kind) => run.then = Some(kind.into()),
            other => panic!("{other:?}"),
        }
    }
    run.place = lines(&log).first().map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[2].parse().expect("an offset"), words[3].into())
    });

    let mut store = support::open(&slice).unwrap_or_else(|e| panic!("{failure:?} at {n}: does not reopen: {e}"));
    let found = store.durable().st;
    let attempted = run.acknowledged + u64::from(run.failed.is_some());
    assert!(
        (run.acknowledged..=attempted).contains(&found),
        "{failure:?} at {n}: round {} was acknowledged, {found} is there",
        run.acknowledged
    );
    store.verify().unwrap_or_else(|e| panic!("{failure:?} at {n}: {e}"));
    assert_holds(&mut store, found);
    for st in found + 1..=ROUNDS {
        apply(&mut store, st).expect("applies");
    }
    persist(&mut store, ROUNDS).unwrap_or_else(|e| panic!("{failure:?} at {n}: reopened, but: {e}"));
    assert_holds(&mut store, ROUNDS);
    run
}

/// Lets each call fail in turn and looks at every run; answers how many calls there are.
fn every_call(failure: Failure, look: impl Fn(u64, Run)) -> u64 {
    let (_keep, dir) = directory();
    let library = library(&dir);
    for n in 1..MOST_CALLS {
        let run = run(&library, failure, n);
        if run.place.is_none() {
            assert_eq!(run.acknowledged, ROUNDS);
            println!("{failure:?}: {} calls, each failed in turn", n - 1);
            return n - 1;
        }
        look(n, run);
    }
    panic!("{failure:?}: more than {MOST_CALLS} calls");
}

/// In a child: round after round is applied and made durable, until that fails.
#[test]
fn script() {
    let Some(slice) = support::slice() else { return };
    let mut store = match support::open(&slice) {
        Ok(store) => store,
        Err(error) => return report(&format!("failed {}", kind(&error))),
    };
    for st in 1..=ROUNDS {
        let before = store.durable().clone();
        apply(&mut store, st).expect("applies");
        let Err(error) = persist(&mut store, st) else {
            report(&format!("durable {st}"));
            continue;
        };
        report(&format!("failed {}", kind(&error)));
        assert_eq!(store.durable(), &before, "only what is acknowledged counts");
        assert_holds(&mut store, st);
        if matches!(error, StoreError::DiskFull) {
            // Space returns.
            fs::write(std::env::var_os(OFF).expect("set"), "").expect("writes");
        } else {
            assert!(matches!(error, StoreError::Poisoned(_)), "{error}");
            assert!(store.stats().poisoned.is_some(), "it says so");
            apply(&mut store, st + 1).expect("still takes changes");
            assert_holds(&mut store, st + 1);
        }
        let again = persist(&mut store, st);
        report(&format!("then {}", again.as_ref().map_or_else(kind, |()| "succeeded".into())));
        if again.is_err() {
            assert!(store.stats().poisoned.is_some(), "what does not persist any more says so");
            assert_eq!(store.durable(), &before);
            assert_holds(&mut store, if matches!(error, StoreError::DiskFull) { st } else { st + 1 });
            return;
        }
        report(&format!("durable {st}"));
    }
}

fn poisons(n: u64, run: &Run, failure: Failure) {
    // While the slice is made there is no store yet that could be poisoned.
    if let Some(then) = &run.then {
        assert_eq!((run.failed.as_deref(), then.as_str()), (Some("Poisoned"), "Poisoned"), "{failure:?} at {n}");
    }
}

#[test]
fn a_failed_sync_poisons_and_loses_nothing_acknowledged() {
    for lasting in [false, true] {
        let failure = Failure { calls: "sync", errno: EIO, lasting, done: false };
        let calls = every_call(failure, |n, run| poisons(n, &run, failure));
        assert!(calls >= ROUNDS, "{calls} syncs");
    }
}

#[test]
fn a_failed_write_poisons_and_loses_nothing_acknowledged() {
    for (lasting, done) in [(false, false), (true, false), (false, true), (true, true)] {
        let failure = Failure { calls: "write", errno: EIO, lasting, done };
        let calls = every_call(failure, |n, run| poisons(n, &run, failure));
        assert!(calls >= 2 * ROUNDS, "{calls} writes");
    }
}

#[test]
fn a_write_without_space_is_repeated_when_there_is_space() {
    for (lasting, done) in [(false, false), (true, false), (true, true)] {
        let failure = Failure { calls: "write", errno: ENOSPC, lasting, done };
        every_call(failure, |n, run| {
            let (Some((offset, path)), Some(then)) = (run.place, run.then) else { return };
            // A meta page that cannot be written is LMDB's end in this process, whatever the reason.
            let meta = u64::try_from(offset).is_ok_and(|offset| offset < META_PAGES * system_page());
            let (failed, expected) = (run.failed.as_deref(), if meta { "Poisoned" } else { "succeeded" });
            assert!(
                failed == Some("DiskFull") || (meta && failed == Some("Poisoned")),
                "{failure:?} at {n}: {failed:?}"
            );
            assert_eq!(then, expected, "{failure:?} at {n}: offset {offset} of {path}");
        });
    }
}

#[test]
fn a_sync_without_space_loses_nothing_acknowledged() {
    for lasting in [false, true] {
        every_call(Failure { calls: "sync", errno: ENOSPC, lasting, done: false }, |_, _| {});
    }
}
