//! Panics and standstills that tests ask for, in builds for tests alone.
//!
//! A place that a test may break passes [`fault`]. When the environment names a directory ([`ENVIRONMENT`]) and that holds a file
//! `<place>.<of>` or `<place>`, whoever passes first takes it (it is renamed to `….taken`, which shows that the fault has hit) and
//! does what its text says: `panic`, or `hang`, which blocks the thread until the taken file is removed. In a release build
//! [`fault`] is empty, and a process that is asked for faults does not start.

/// Names the directory of the faults to be.
pub const ENVIRONMENT: &str = "HIGHWATER_TEST_FAULTS";

/// A place, and what it serves there, that a test may break. The place is a literal where it is passed: a test of `highwater-tests`
/// looks for them, and fails if no test breaks one of them.
///
/// # Panics
/// When a test asks for it.
#[inline]
pub fn fault(place: &'static str, of: &str) {
    #[cfg(debug_assertions)]
    asked::pass(place, of);
    #[cfg(not(debug_assertions))]
    let _ = (place, of);
}

/// Whether this process may be asked for faults, if it is.
pub(crate) fn check() -> Result<(), String> {
    if cfg!(not(debug_assertions)) && std::env::var_os(ENVIRONMENT).is_some() {
        return Err(format!("{ENVIRONMENT} is for builds with debug assertions, and this is none"));
    }
    Ok(())
}

#[cfg(debug_assertions)]
mod asked {
    use std::{
        fs,
        path::{Path, PathBuf},
        sync::LazyLock,
        thread,
        time::Duration,
    };

    static DIRECTORY: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os(super::ENVIRONMENT).map(Into::into));
    const POLL: Duration = Duration::from_millis(20);

    pub(super) fn pass(place: &'static str, of: &str) {
        let Some(directory) = &*DIRECTORY else { return };
        for name in [format!("{place}.{of}"), place.to_owned()] {
            carry_out(directory, &name);
        }
    }

    pub(super) fn carry_out(directory: &Path, name: &str) {
        let (asked, taken) = (directory.join(name), directory.join(format!("{name}.taken")));
        // Of several that pass, one can rename it.
        if fs::rename(&asked, &taken).is_err() {
            return;
        }
        let what = fs::read_to_string(&taken).unwrap_or_default();
        match what.trim() {
            "hang" => {
                while taken.exists() {
                    thread::sleep(POLL);
                }
            }
            _ => panic!("a test asked {name} to panic"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_passes_first_takes_the_fault() {
        fault("nothing is asked for", "here");
        let directory = std::env::temp_dir().join(format!("highwater-faults-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("lane.orders"), "panic").unwrap();
        let passed = std::panic::catch_unwind(|| asked::carry_out(&directory, "lane.orders"));
        assert!(passed.is_err());
        assert!(directory.join("lane.orders.taken").exists());
        asked::carry_out(&directory, "lane.orders");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
