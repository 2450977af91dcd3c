//! `cargo xtask dist`: the archive that people install, and its SHA-256.
//!
//! Unpacked into `/usr/local`, every file is where shells, `man` and systemd look for it.
//!
//! # Layout
//! - [`target`]: what binaries are built for, and what that takes
//! - [`build`]: static binaries, also for the images of `compose/`
//! - `content`: every file of the archive; `units`: those of systemd; `notices`: licences of what is linked in
//! - `archive`: tar, gzip and SHA-256
//! - `check`: unpacks what was made and tries it

mod archive;
pub mod build;
mod check;
mod content;
mod notices;
pub mod target;
mod units;

use crate::{
    term::{bold, step},
    workspace::{HIGHWATER, target_dir},
};
use anyhow::{Context, Result, ensure};
use clap::{Arg, ArgMatches, value_parser};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};
use target::Target;

/// Of Highwater and of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Where the archive goes under the target directory, unless it is said.
const DIRECTORY: &str = "packages";
const OUTPUT: &str = "output";
const TARGET: &str = "target";

/// What to make.
#[derive(Debug)]
pub struct Options {
    output: Option<PathBuf>,
    target: Option<String>,
}

/// `dist` on the command line.
pub fn command() -> clap::Command {
    clap::Command::new("dist")
        .about("Makes the archive that people install: a static binary, completions, manual pages, systemd units")
        .args([
            Arg::new(OUTPUT)
                .long(OUTPUT)
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Directory of the archive, instead of target/packages"),
            Arg::new(TARGET)
                .long(TARGET)
                .value_name("TRIPLE")
                .help("Target of the binary, such as x86_64-unknown-linux-musl; else this machine's own"),
        ])
}

impl Options {
    pub fn read(given: &ArgMatches) -> Self {
        Self { output: given.get_one(OUTPUT).cloned(), target: given.get_one(TARGET).cloned() }
    }
}

/// Builds, packs, and tries what was packed.
pub fn run(options: &Options) -> Result<()> {
    let target = Target::choose(options.target.as_deref())?;
    target.check()?;
    let name = format!("{HIGHWATER}-{VERSION}-{}", target.triple());
    let output = match &options.output {
        Some(named) => std::path::absolute(named).context("there is no current directory")?,
        None => target_dir()?.join(DIRECTORY),
    };
    println!("{}", bold(&name));

    let since = Instant::now();
    let (mut command, built) = build::static_binaries(&[HIGHWATER], &target)?;
    ensure!(
        command.status().context("cargo does not start")?.success(),
        "it does not build; cargo's messages are above"
    );
    let binary = built.join(HIGHWATER);
    step("a static binary", since.elapsed());

    // Of nothing but this archive's files, also where an earlier run was interrupted.
    let staged = output.join(&name);
    let _ = fs::remove_dir_all(&staged);
    let since = Instant::now();
    let files = content::collect(&binary, &staged, &target)?;
    let archive = archive::write(&staged, &files)?;
    step(&format!("an archive of {} files", files.len()), since.elapsed());

    let tried = check::run(&archive, &files, &output.join("unpacked"));
    fs::remove_dir_all(&staged).with_context(|| format!("cannot remove {}", staged.display()))?;
    for (text, took) in tried? {
        step(&text, took);
    }
    print_what_next(&archive);
    Ok(())
}

fn print_what_next(archive: &Path) {
    println!("\n  {}\n  {}.sha256", archive.display(), archive.display());
    println!("\nTo install it:\n\n  sudo tar -xzf {} {} -C /usr/local", archive.display(), archive::STRIPPED);
    println!("\nWhat to do then, and its services for systemd: docs/operating.md#installing");
}
