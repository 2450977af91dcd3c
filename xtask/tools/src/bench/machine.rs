//! What the numbers were measured on.

use serde::Serialize;
use std::{fs, process::Command};
use time::OffsetDateTime;

/// The machine and the day.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub rustc: String,
    pub nats_server: String,
    pub date: String,
}

pub fn describe(nats_server: &str) -> Machine {
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    Machine {
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gib: (memory.unwrap_or(0.0) / 1024.0 / 1024.0 * 10.0).round() / 10.0,
        kernel: said("uname", &["-sr"]),
        rustc: said("rustc", &["--version"]),
        nats_server: nats_server.to_owned(),
        date: OffsetDateTime::now_utc().date().to_string(),
    }
}

/// The value of the first `name: value` line.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
