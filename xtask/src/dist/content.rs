//! Every file of the archive, under the name that it has below `/usr/local`.

use super::{archive::succeeds, notices, target::Target, units};
use anyhow::{Context, Result};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// Shells with the path of their completions.
pub const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/highwater"),
    ("zsh", "share/zsh/site-functions/_highwater"),
    ("fish", "share/fish/vendor_completions.d/highwater.fish"),
];
/// Where the binary is.
pub const BINARY: &str = "bin/highwater";
/// Where manual pages are.
pub const PAGES: &str = "share/man/man1";

/// A file of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative, with `/`.
    pub path: String,
    pub mode: u32,
    pub bytes: Vec<u8>,
}

impl File {
    /// One that is read.
    pub fn text(path: String, text: String) -> Self {
        Self { path, mode: 0o644, bytes: text.into_bytes() }
    }

    /// Writes it where it belongs under a directory.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(&self.path);
        let cannot = || format!("cannot write {}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(directory)).with_context(cannot)?;
        fs::write(&path, &self.bytes).with_context(cannot)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(self.mode)).with_context(cannot)
    }
}

/// Puts all of them into a directory, in the order of their names; the binary says itself how it is completed and documented.
pub fn collect(binary: &Path, directory: &Path, target: &Target) -> Result<Vec<File>> {
    let bytes = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let mut files = vec![File { path: BINARY.into(), mode: 0o755, bytes }];
    for (shell, path) in COMPLETIONS {
        let bytes = succeeds(Command::new(binary).args(["completions", shell]))?.stdout;
        files.push(File { path: path.into(), mode: 0o644, bytes });
    }
    files.extend(pages(binary, &directory.join(PAGES))?);
    files.extend(units::files());
    files.push(File::text("share/doc/highwater/THIRD-PARTY-NOTICES".into(), notices::collect(target)?));
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.iter().try_for_each(|file| file.write(directory))?;
    Ok(files)
}

fn pages(binary: &Path, directory: &Path) -> Result<Vec<File>> {
    succeeds(Command::new(binary).arg("man-pages").arg(directory))?;
    let entries = fs::read_dir(directory).context("cannot list the manual pages")?;
    let page = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        let path = format!("{PAGES}/{}", entry.file_name().to_string_lossy());
        Ok(File { path, mode: 0o644, bytes: fs::read(entry.path())? })
    };
    entries.map(page).collect::<std::io::Result<_>>().context("cannot read the manual pages")
}
