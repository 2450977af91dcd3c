//! House rules as a program: what review would otherwise have to remember.

mod dependencies;
mod links;
mod manifests;
mod sources;

use crate::tools;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
};
use xtask::workspace::root;

/// Directories that hold nothing of ours.
const SKIPPED: [&str; 4] = ["target", ".git", "__pycache__", "node_modules"];

/// A file of the workspace, its path relative to the root and with `/`.
pub struct SourceFile {
    pub path: String,
    pub text: String,
}

/// Checks every rule and lists what offends.
pub fn run() -> Result<()> {
    let files = read(&root())?;
    let mut offences = Vec::new();
    for file in &files {
        match file.path.rsplit('.').next() {
            Some("rs") => sources::check(file, &mut offences),
            Some("md") => links::check(file, &root(), &mut offences),
            Some("toml") if file.path.ends_with("Cargo.toml") => manifests::check(file, &mut offences),
            _ => {}
        }
    }
    dependencies::check(&mut offences)?;
    if let Err(error) = tools::check_schemas() {
        offences.push(format!("{error:#}"));
    }
    for offence in &offences {
        println!("{offence}");
    }
    if !offences.is_empty() {
        bail!("{} offences against the house rules", offences.len());
    }
    println!("{} files follow the house rules", files.len());
    Ok(())
}

fn read(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", directory.display()))?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name();
            if kind.is_dir() && !SKIPPED.iter().any(|skipped| name == *skipped) {
                waiting.push(path);
            } else if kind.is_file() && is_checked(&path) {
                files.push(load(root, &path)?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn is_checked(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["rs", "md", "toml"].iter().any(|checked| extension == *checked))
}

fn load(root: &Path, path: &Path) -> Result<SourceFile> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let relative: PathBuf = path.strip_prefix(root).unwrap_or(path).into();
    let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
    Ok(SourceFile { path: parts.join("/"), text })
}
