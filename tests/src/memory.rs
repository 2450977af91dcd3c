//! How much memory a process takes.

use anyhow::{Context, Result};
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

const EVERY: Duration = Duration::from_millis(5);

/// Looks at a process again and again.
pub struct Memory {
    process: u32,
    over: Arc<AtomicBool>,
    highest: Arc<AtomicU64>,
    watch: Option<JoinHandle<()>>,
}

impl Memory {
    pub fn watch(process: u32) -> Result<Self> {
        let (over, highest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(anonymous(process)?)));
        let (told, seen) = (Arc::clone(&over), Arc::clone(&highest));
        let watch = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let Ok(now) = anonymous(process) else { break };
                seen.fetch_max(now, Ordering::Relaxed);
                thread::sleep(EVERY);
            }
        });
        Ok(Self { process, over, highest, watch: Some(watch) })
    }

    /// The highest so far of what it has in memory beside its files (`RssAnon`), bytes.
    pub fn highest(&self) -> Result<u64> {
        let now = anonymous(self.process)?;
        Ok(self.highest.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(watch) = self.watch.take() {
            // A watch that panicked has said so.
            let _ = watch.join();
        }
    }
}

fn anonymous(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("the process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("no number: {line}"))?;
    Ok(kib * 1024)
}
