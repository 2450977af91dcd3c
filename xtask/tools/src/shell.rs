//! Commands that run to their end, quietly; what they complain of last is the error.

use anyhow::{Context, Result, bail};
use std::process::{Command, Output, Stdio};

/// Lines of a failed command's stderr that are shown.
const TAIL: usize = 8;

/// What the command prints. It is killed when this is dropped.
pub async fn run(command: Command) -> Result<String> {
    let name = name(&command);
    let mut command = tokio::process::Command::from(command);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    read(&name, output.with_context(|| format!("{name} does not start"))?)
}

/// The same for drops, which cannot wait otherwise.
pub fn run_blocking(mut command: Command) -> Result<String> {
    let name = name(&command);
    let output = command.stdin(Stdio::null()).output();
    read(&name, output.with_context(|| format!("{name} does not start"))?)
}

/// Runs with its output on the terminal.
pub async fn show(command: Command) -> Result<()> {
    let name = name(&command);
    let mut command = tokio::process::Command::from(command);
    let status = command.kill_on_drop(true).status().await.with_context(|| format!("{name} does not start"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

fn read(name: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("{name} failed ({}): {}", output.status, last_words(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} prints something that is not text"))
}

/// Its last lines: Compose says what happened before it says that something did.
fn last_words(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n    ")
}

/// The program and its first words, for messages.
fn name(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let mut name = program.rsplit('/').next().unwrap_or_default().to_owned();
    for argument in command.get_args().take_while(|argument| !argument.to_string_lossy().starts_with('-')).take(3) {
        name.push(' ');
        name.push_str(&argument.to_string_lossy());
    }
    name
}
