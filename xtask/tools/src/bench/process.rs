//! What processes use, from /proc; elsewhere than on Linux nothing is known.

use crate::fleet::Fleet;
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Clock ticks per second in /proc/<pid>/stat; fixed in Linux's interface.
const TICKS: f64 = 100.0;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// Bytes of memory that a process had at most.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Anonymous memory; mapped files are cache.
    pub anonymous: u64,
    /// Resident memory with mapped files.
    pub resident: u64,
}

/// Watches the memory of one process until it is stopped.
pub struct Watch {
    process: u32,
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start(process: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let most = Arc::new(AtomicU64::new(0));
        let (stopped, highest) = (stop.clone(), most.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                highest.fetch_max(status(process, "RssAnon").unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(SAMPLE_EVERY);
            }
        });
        Self { process, stop, most, thread: Some(thread) }
    }

    /// What was seen; none where there is no /proc.
    pub fn stop(mut self) -> Option<Memory> {
        self.end();
        let anonymous = self.most.load(Ordering::Relaxed);
        let resident = status(self.process, "VmHWM")?;
        Some(Memory { anonymous, resident })
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

fn status(process: u32, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// CPU seconds that a process has used.
fn cpu(process: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold spaces: the fields are counted after it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS)
}

/// Name and CPU seconds of every process of a run, this one last.
pub fn cpu_of_all(fleet: &Fleet) -> Vec<(String, f64)> {
    let services = fleet.services().iter().map(|service| (service.name.clone(), service.id()));
    let others = [("nats-server".to_owned(), fleet.nats_id()), ("bench client".to_owned(), std::process::id())];
    services.chain(others).filter_map(|(name, process)| Some((name, cpu(process)?))).collect()
}

/// Name and CPU seconds of every process of a run since `before`.
pub fn cpu_since(fleet: &Fleet, before: Vec<(String, f64)>) -> Vec<(String, f64)> {
    cpu_of_all(fleet).into_iter().zip(before).map(|((name, now), (_, then))| (name, now - then)).collect()
}

/// Bytes that the files under a directory take on disk.
pub fn disk(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_process() {
        assert!(cpu(std::process::id()).is_some());
        let watch = Watch::start(std::process::id());
        std::thread::sleep(SAMPLE_EVERY * 2);
        let memory = watch.stop().unwrap();
        assert!(memory.anonymous > 0 && memory.resident >= memory.anonymous);
    }
}
