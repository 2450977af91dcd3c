//! A disk that is really full: a small file system in memory, mounted by a child in namespaces of its own.

use crate::{
    promises,
    support::{
        self, Rows, apply, assert_holds, child, directory, kind, lines, persist, printed, report, rows, system_page,
        tell,
    },
};
use highwater_indexer::store::{SliceStore, Snapshot, StoreError};
use highwater_schemas::wire::ByteRange;
use std::{
    fs,
    io::{self, Write as _},
    ops::ControlFlow,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Output},
};

const DISK: &str = "size=4m";
/// Pages left free, one attempt each.
const FREE: [u64; 8] = [0, 1, 2, 3, 5, 9, 17, 33];
/// Scans that run at once; with the other readers more than the first page of LMDB's reader table takes.
const SCANS: usize = 60;
/// What the child says when it has its disk.
const MOUNTED: &str = "mounted";
const SIGBUS: i32 = 7;

/// Runs a test in a child that may mount, and answers how it ended and what it reported.
///
/// None, with a word to the reader, where the machine does not allow that.
fn on_a_small_disk(test: &str) -> Option<(Output, Vec<String>)> {
    let (_keep, dir) = directory();
    let (mount, findings) = (dir.join("disk"), dir.join("report"));
    fs::create_dir(&mount).expect("creates");
    let output = match child(test, &mount, &findings, &["unshare", "-Urm", "--"]).output() {
        Ok(output) => output,
        Err(error) => {
            tell(&format!("{test} was not run: unshare does not start: {error}"));
            return None;
        }
    };
    let found = lines(&findings);
    if found.first().is_none_or(|line| line != MOUNTED) {
        let why = found.first().cloned().unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned());
        tell(&format!("{test} was not run: no file system can be mounted in a user namespace here: {why}"));
        return None;
    }
    Some((output, found))
}

/// In a child: mounts the disk; false when that is not allowed.
fn mount(at: &Path) -> bool {
    let output = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(at).output();
    let why = match output {
        Ok(output) if output.status.success() => MOUNTED.into(),
        Ok(output) => printed(&output).replace('\n', " "),
        Err(error) => format!("mount does not start: {error}"),
    };
    report(&why);
    why == MOUNTED
}

/// Takes all space but so many pages.
fn fill(ballast: &Path, free: u64) {
    let mut file = fs::File::options().create(true).append(true).open(ballast).expect("opens");
    let page = system_page();
    let full = loop {
        if let Err(error) = file.write_all(&vec![b'x'; page as usize]) {
            break error;
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let length = file.metadata().expect("is there").len() / page * page;
    file.set_len(length.saturating_sub(free * page)).expect("gives space back");
}

#[test]
fn a_full_disk_fails_the_persist_and_space_cures_it() {
    let Some((output, found)) = on_a_small_disk("full::writer") else { return };
    assert!(output.status.success(), "{found:?} {}", printed(&output));
    let count = |what: &str| found.iter().filter(|line| line.starts_with(what)).count();
    assert!(count("DiskFull") >= 1 && count("cured") == FREE.len(), "{found:?}");
}

/// In a child: fills the disk to different degrees, and empties it again.
#[test]
fn writer() {
    let Some(disk) = support::slice() else { return };
    if !mount(&disk) {
        return;
    }
    let (slice, ballast) = (disk.join("slice"), disk.join("ballast"));
    let mut store = support::open(&slice).expect("opens");
    let mut st = 0;
    for free in FREE {
        fill(&ballast, free);
        apply(&mut store, st + 1).expect("applies");
        for _ in 0..2 {
            match persist(&mut store, st + 1) {
                // It was enough, or the file had free pages.
                Ok(()) => {
                    report("fitted");
                    break;
                }
                Err(StoreError::DiskFull) => report("DiskFull"),
                Err(error) => panic!("{free} pages were free: {error}"),
            }
            assert_eq!((store.durable().st, store.stats().poisoned), (st, None));
            assert_holds(&mut store, st + 1);
            store.verify().expect("the last durable state is whole");
        }
        fs::remove_file(&ballast).expect("removes");
        persist(&mut store, st + 1).expect("there is space again");
        st += 1;
        assert_holds(&mut store, st);
        drop(store);
        store = support::open(&slice).expect("reopens");
        assert_eq!(store.durable().st, st);
        store.verify().expect("is whole");
        assert_holds(&mut store, st);
        report("cured");
    }
}

#[test]
fn many_scans_run_while_the_disk_is_full() {
    let Some((output, found)) = on_a_small_disk("full::readers") else { return };
    // LMDB maps its reader table from a file with holes; a slot in a hole cannot be had when the disk is full.
    if output.status.signal() == Some(SIGBUS) && !promises::READER_TABLE_IS_ALLOCATED {
        tell(&format!("{SCANS} scans at once on a full disk: killed by SIGBUS, which the store does not prevent yet"));
        return;
    }
    assert!(output.status.success(), "{found:?} {}", printed(&output));
    assert_eq!(found, [MOUNTED, "scanned"]);
}

/// In a child: as many scans at once as there may be, on two commits, without a byte of space.
#[test]
fn readers() {
    let Some(disk) = support::slice() else { return };
    if !mount(&disk) {
        return;
    }
    let mut store = support::open(&disk.join("slice")).expect("opens");
    let mut held = Vec::new();
    for st in 1..=2 {
        apply(&mut store, st).expect("applies");
        persist(&mut store, st).unwrap_or_else(|e| panic!("{}", kind(&e)));
        held.push(store.seal().expect("seals"));
    }
    fill(&disk.join("ballast"), 0);
    assert_eq!(nested(&held[1], SCANS), support::model(2));
    assert_eq!(rows(&held[0], false).expect("scans"), support::model(1));
    report("scanned");
}

/// The rows as the innermost of so many scans sees them.
fn nested(snapshot: &Snapshot, scans: usize) -> Rows {
    if scans == 0 {
        return rows(snapshot, false).expect("scans");
    }
    let mut found = Rows::new();
    let all = [ByteRange { low: Vec::new(), high: None }];
    let visit = &mut |_: &[u8], _: &[u8]| {
        found = nested(snapshot, scans - 1);
        ControlFlow::Break(())
    };
    snapshot.scan(&all, false, None, visit).expect("scans");
    found
}
