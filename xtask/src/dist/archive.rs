//! The archive, the same bytes whenever it is made of the same files; by the programs that unpack it.

use super::content::File;
use anyhow::{Context, Result, ensure};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// What `tar` is told when it unpacks, so that what is under the archive's name comes to where it belongs.
pub const STRIPPED: &str = "--strip-components=1";
/// When each file was modified: the beginning of 2020, since some programs take what is much older for a mistake.
const MODIFIED: &str = "--mtime=@1577836800";

/// Packs a directory into an archive beside it, called after it, with its SHA-256 in another file. There are no entries for
/// directories: unpacking leaves those as they are that are there already.
pub fn write(directory: &Path, files: &[File]) -> Result<PathBuf> {
    let parent = directory.parent().context("it is in no directory")?;
    let name = directory.file_name().context("it has no name")?.to_string_lossy().into_owned();
    let archive = format!("{name}.tar.gz");
    let mut tar = Command::new("tar");
    tar.current_dir(parent).args(["--create", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner", MODIFIED]);
    tar.args(["--use-compress-program=gzip --best --no-name", "--file", &archive]);
    tar.args(files.iter().map(|file| format!("{name}/{}", file.path)));
    succeeds(&mut tar)?;
    let mut sum = Command::new("sha256sum");
    let sum = succeeds(sum.current_dir(parent).arg(&archive))?;
    let archive = parent.join(archive);
    fs::write(sum_of(&archive), sum.stdout)
        .with_context(|| format!("cannot write the sum of {}", archive.display()))?;
    Ok(archive)
}

/// The file with the archive's sum, as `sha256sum --check` reads it.
pub fn sum_of(archive: &Path) -> PathBuf {
    let mut path = archive.as_os_str().to_owned();
    path.push(".sha256");
    path.into()
}

/// Runs a program to its end, and fails with what it complains of.
pub fn succeeds(command: &mut Command) -> Result<Output> {
    let name =
        Path::new(command.get_program()).file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned();
    let output = command.output().with_context(|| format!("{name} does not start"))?;
    ensure!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(directory: &Path) -> Vec<File> {
        let files = vec![
            File { path: "bin/highwater".into(), mode: 0o755, bytes: b"\x7fELF".to_vec() },
            File::text(format!("share/man/man1/highwater-{}.1", "x".repeat(120)), ".TH\n".into()),
        ];
        for file in &files {
            file.write(directory).unwrap();
        }
        files
    }

    #[test]
    fn an_archive_has_its_files_with_their_modes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let files = staged(&directory.path().join("highwater-1"));
        fs::write(directory.path().join("highwater-1/left-over"), "").unwrap();
        let archive = write(&directory.path().join("highwater-1"), &files).unwrap();
        let listed = succeeds(Command::new("tar").args(["-tzvf"]).arg(&archive)).unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let lines: Vec<(&str, &str)> =
            listed.lines().map(|line| (&line[..14], line.rsplit(' ').next().unwrap())).collect();
        let page = format!("highwater-1/{}", files[1].path);
        assert_eq!(lines, [("-rwxr-xr-x 0/0", "highwater-1/bin/highwater"), ("-rw-r--r-- 0/0", page.as_str())]);
    }

    #[test]
    fn the_same_files_make_the_same_archive_whose_sum_is_right() {
        let [one, two] = [(); 2].map(|()| {
            let directory = tempfile::tempdir().unwrap();
            let files = staged(&directory.path().join("a"));
            let archive = write(&directory.path().join("a"), &files).unwrap();
            succeeds(Command::new("sha256sum").current_dir(directory.path()).args(["--check", "a.tar.gz.sha256"]))
                .unwrap();
            fs::read(archive).unwrap()
        });
        assert_eq!(one, two);
    }
}
