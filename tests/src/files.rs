//! Directories are kept and put back; what a node and a stream have on their disks.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Copies a directory with all that is in it.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("cannot copy {} to {}", from.display(), to.display());
    fs::create_dir_all(to).with_context(what)?;
    for entry in fs::read_dir(from).with_context(what)? {
        let entry = entry.with_context(what)?;
        let target = to.join(entry.file_name());
        if entry.file_type().with_context(what)?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target).with_context(what)?;
        }
    }
    Ok(())
}

/// Puts a copy in the place of a directory.
pub fn put_back(copied: &Path, place: &Path) -> Result<()> {
    fs::remove_dir_all(place).with_context(|| format!("cannot remove {}", place.display()))?;
    copy(copied, place)
}

/// The directories of the slices that an indexer has in its data directory, in order.
pub fn slices(data: &Path) -> Result<Vec<PathBuf>> {
    let within = |directory: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
        Ok(entries.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?)
    };
    let mut found = Vec::new();
    for bucket in within(&data.join("indexer/slices"))? {
        found.extend(within(&bucket)?);
    }
    found.sort();
    Ok(found)
}

/// The message blocks of a stopped stream, oldest first.
pub fn blocks(directory: &Path) -> Result<Vec<PathBuf>> {
    let messages = directory.join("msgs");
    let number = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
    let entries = fs::read_dir(&messages).with_context(|| format!("no {}", messages.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut blocks: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == "blk")).collect();
    blocks.sort_by_key(number);
    ensure!(!blocks.is_empty(), "no blocks in {}", messages.display());
    Ok(blocks)
}

/// Where a stream has the index of its blocks, as of when its server ended well.
pub fn block_index(directory: &Path) -> PathBuf {
    directory.join("msgs/index.db")
}

/// Cuts the newest message block of a stopped stream that holds anything to `percent` of its length.
pub fn cut_block(directory: &Path, percent: u64) -> Result<()> {
    for block in blocks(directory)?.iter().rev() {
        let file = fs::File::options().write(true).open(block)?;
        let length = file.metadata()?.len();
        if length > 0 {
            file.set_len(length * percent / 100)?;
            return Ok(());
        }
    }
    bail!("the blocks of {} are empty", directory.display())
}

/// The same, and takes the index of the blocks away.
pub fn cut_stream(directory: &Path, percent: u64) -> Result<()> {
    cut_block(directory, percent)?;
    let index = block_index(directory);
    if index.exists() {
        fs::remove_file(index)?;
    }
    Ok(())
}
