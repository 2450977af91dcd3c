//! A child process in a group of its own, with its output in files, ended by its id when dropped.

use anyhow::{Context, Result};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How long a process may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// Lines of a log that an error shows.
const TAIL: usize = 12;

/// A child process.
pub struct Child {
    inner: std::process::Child,
    out: PathBuf,
    log: PathBuf,
    kept: bool,
}

impl Child {
    /// Starts `command`; its stdout goes to `<name>.out` and its stderr to `<name>.log` in `directory`.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Result<Self> {
        let out = directory.join(format!("{name}.out"));
        let log = directory.join(format!("{name}.log"));
        let file = |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
        // Of its own group, so that Ctrl-C reaches only us and the end is orderly.
        command.stdin(Stdio::null()).stdout(file(&out)?).stderr(file(&log)?).process_group(0);
        let inner = command.spawn().with_context(|| format!("{name} does not start"))?;
        Ok(Self { inner, out, log, kept: false })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// Its exit status, when it has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.inner.try_wait().context("cannot ask for the state of a child process")
    }

    /// The first line of its stdout that begins with `start`.
    pub fn said(&self, start: &str) -> Option<String> {
        let text = fs::read_to_string(&self.out).ok()?;
        // Only whole lines: the last one may still be being written.
        let whole = &text[..=text.rfind('\n')?];
        whole.lines().find(|line| line.starts_with(start)).map(str::to_owned)
    }

    /// The end of its log, for an error message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            return "it logged nothing".into();
        }
        lines[lines.len().saturating_sub(TAIL)..].join("\n    ")
    }

    /// SIGTERM, then SIGKILL after a while; waits for the end.
    pub fn stop(&mut self) {
        self.stop_within(PATIENCE);
    }

    /// The same with more or less patience.
    pub fn stop_within(&mut self, patience: Duration) {
        self.terminate();
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.inner.try_wait() {
                Ok(None) => std::thread::sleep(POLL),
                _ => return,
            }
        }
        let _ = self.inner.kill();
        let _ = self.inner.wait();
    }

    /// SIGKILL; waits for the end.
    pub fn kill(&mut self) {
        let _ = self.inner.kill();
        let _ = self.inner.wait();
    }

    /// SIGTERM, without waiting.
    #[allow(unsafe_code)]
    pub fn terminate(&mut self) {
        if matches!(self.inner.try_wait(), Ok(None)) {
            // SAFETY: kill(2) touches no memory, and the child is not yet reaped, so the id is still its own.
            unsafe { libc::kill(self.inner.id() as libc::pid_t, libc::SIGTERM) };
        }
    }

    /// Leaves it running when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.kept {
            self.stop();
        }
    }
}
