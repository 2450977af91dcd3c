//! What is made from the command line's own definition: completions of shells, and manual pages.

use crate::args::Args;
use anyhow::{Context, Result};
use clap::{Args as ClapArgs, CommandFactory};
use clap_complete::Shell;
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

/// Under which completions and pages know the program.
const PROGRAM: &str = "highwater";

#[derive(ClapArgs)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

#[derive(ClapArgs)]
pub(crate) struct ManPages {
    /// The directory to write them to; it is made where it is missing.
    directory: PathBuf,
}

/// Prints the script that completes our command line in a shell.
pub(crate) fn completions(args: &Completions) -> Result<()> {
    io::stdout().write_all(&script(args.shell)).context("cannot print the completions")
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), PROGRAM, &mut script);
    script
}

/// Writes one page for the program and one for each of its commands, `highwater-index-create.1` and the like.
pub(crate) fn man_pages(args: &ManPages) -> Result<()> {
    let directory = &args.directory;
    let cannot = || format!("cannot write manual pages to {}", directory.display());
    fs::create_dir_all(directory).with_context(cannot)?;
    clap_mangen::generate_to(Args::command(), directory).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    /// Every command that people are shown, with its parents' names before it.
    fn commands(command: &Command, parents: &[String]) -> Vec<Vec<String>> {
        let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        shown
            .flat_map(|sub| {
                let path = [parents, &[sub.get_name().to_owned()]].concat();
                let further = commands(sub, &path);
                std::iter::once(path).chain(further)
            })
            .collect()
    }

    #[test]
    fn completions_know_every_command_and_option() {
        let all = commands(&Args::command(), &[]);
        assert!(all.iter().any(|path| path.join(" ") == "index create"), "{all:?}");
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).unwrap();
            for path in &all {
                let name = path.last().unwrap();
                assert!(script.contains(name.as_str()), "{shell} does not know {path:?}");
            }
            for option in ["nats-url", "memory-quota", "consistency"] {
                assert!(script.contains(option), "{shell} does not know --{option}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page_with_its_options() {
        let directory = tempfile::tempdir().unwrap();
        man_pages(&ManPages { directory: directory.path().join("man1") }).unwrap();
        let page = |path: &[String]| {
            let name = [&[PROGRAM.to_owned()], path].concat().join("-");
            fs::read_to_string(directory.path().join("man1").join(format!("{name}.1"))).unwrap_or_default()
        };
        let all = commands(&Args::command(), &[]);
        for path in &all {
            let text = page(path);
            assert!(text.contains(".TH"), "no page for {path:?}");
            // Its parent's page names it; roff writes a hyphen as \-.
            let name = path.last().unwrap().replace('-', "\\-");
            assert!(page(&path[..path.len() - 1]).contains(&name), "the page above {path:?} does not name it");
        }
        assert!(page(&["indexer".into()]).contains("memory\\-quota"));
        let files = fs::read_dir(directory.path().join("man1")).unwrap().count();
        assert_eq!(files, all.len() + 1, "a page that stands for no command");
    }
}
