//! A child process with its output in files, killed by its id when dropped.

use crate::wait::deadline;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(5);
/// Bytes of a log that a failed test shows.
const SHOWN: usize = 6_000;

/// A running process.
pub struct Child {
    name: String,
    inner: std::process::Child,
    out: PathBuf,
    log: PathBuf,
}

impl Child {
    /// Starts `command`; stdout goes to `<name>.out` and stderr is appended to `<name>.log` in `directory`.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Result<Self> {
        let out = directory.join(format!("{name}.out"));
        let log = directory.join(format!("{name}.log"));
        let stdout = File::create(&out).with_context(|| format!("cannot write {}", out.display()))?;
        let stderr = File::options().create(true).append(true).open(&log);
        let stderr = stderr.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        let inner = command.spawn().with_context(|| format!("{name} does not start"))?;
        Ok(Self { name: name.to_owned(), inner, out, log })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// Its exit status, when it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.inner.try_wait().ok().flatten()
    }

    /// The first whole line of its stdout that begins with `start`.
    pub fn said(&self, start: &str) -> Option<String> {
        let text = self.stdout();
        let whole = &text[..=text.rfind('\n')?];
        whole.lines().find(|line| line.starts_with(start)).map(str::to_owned)
    }

    /// Waits until it has said that; fails with its log when it ends before, or takes several times as long as `within`.
    pub async fn wait_said(&mut self, start: &str, within: Duration) -> Result<String> {
        let deadline = deadline(within);
        loop {
            if let Some(line) = self.said(start) {
                return Ok(line);
            }
            if let Some(status) = self.exited() {
                bail!("{} ended ({status})\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} did not say {start:?} within {within:?}\n{}", self.name, self.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for its end; fails with its log when that takes several times as long as `within`.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = deadline(within);
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end within {within:?}\n{}", self.name, self.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// What it wrote to stderr, over all its lives in this directory.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of its log, with its name.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let end = String::from_utf8_lossy(&log[log.len().saturating_sub(SHOWN)..]);
        format!("--- end of the log of {} (process {}):\n{end}", self.name, self.id())
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGSTOP, and waits until none of its threads runs any more: the signal alone reaches them one after the other, and those
    /// that it has not reached yet go on with what they do.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let news = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&self.inner)), news).context("nothing is heard of it")?;
        ensure!(self.exited().is_none(), "{} has ended\n{}", self.name, self.log_tail());
        Ok(())
    }

    /// Lets it run on after [`Self::freeze`].
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGHUP: a nats-server reads its configuration again.
    pub fn reload(&mut self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited().is_none() {
            // The child is not reaped yet, so the id is still its own.
            kill_process(Pid::from_child(&self.inner), signal).context("it cannot be signalled")?;
        }
        Ok(())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.inner.kill();
        let _ = self.inner.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
