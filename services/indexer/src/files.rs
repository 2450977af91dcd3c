//! Where the slices of a node live: `slices/<bucket>/<index id>.<partition>.<life>/`.
//!
//! A slice that starts over gets a new directory (a new *life*): scans that still read the old files do not stand in the way.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The directories of one node.
#[derive(Debug, Clone)]
pub(crate) struct SliceFiles {
    root: PathBuf,
    /// One probe at a time.
    probing: Arc<Mutex<()>>,
}

impl SliceFiles {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.join("slices"), probing: Arc::default() }
    }

    fn lives(&self, bucket: &str, stem: &str) -> Vec<(u64, PathBuf)> {
        let Ok(entries) = fs::read_dir(self.root.join(bucket)) else { return Vec::new() };
        let mut lives: Vec<(u64, PathBuf)> = entries
            .filter_map(Result::ok)
            .filter_map(|e| {
                let name = e.file_name().into_string().ok()?;
                let life = name.strip_prefix(stem)?.strip_prefix('.')?.parse().ok()?;
                Some((life, e.path()))
            })
            .collect();
        lives.sort();
        lives
    }

    /// The directory to open; `reset`: a new life, the old ones are removed.
    pub(crate) fn open(&self, bucket: &str, stem: &str, reset: bool) -> io::Result<PathBuf> {
        let lives = self.lives(bucket, stem);
        let newest = lives.last().map_or(0, |(life, _)| *life);
        if let (Some((_, path)), false) = (lives.last(), reset) {
            return Ok(path.clone());
        }
        let path = self.root.join(bucket).join(format!("{stem}.{}", newest + 1));
        fs::create_dir_all(&path)?;
        for (_, old) in lives {
            fs::remove_dir_all(old)?;
        }
        Ok(path)
    }

    /// Removes a slice.
    pub(crate) fn remove(&self, bucket: &str, stem: &str) -> io::Result<()> {
        for (_, path) in self.lives(bucket, stem) {
            fs::remove_dir_all(path)?;
        }
        Ok(())
    }

    /// Writes a file and removes it: fails where nothing can be written.
    pub(crate) fn probe(&self) -> io::Result<()> {
        let _alone = self.probing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.root.with_file_name("probe");
        fs::write(&path, [0; 4_096])?;
        fs::remove_file(&path)
    }

    /// Removes what the log does not know: `known` holds (bucket, stem).
    pub(crate) fn remove_orphans(&self, known: &BTreeSet<(String, String)>) -> io::Result<()> {
        let buckets = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for bucket in buckets.filter_map(Result::ok) {
            let Ok(bucket_name) = bucket.file_name().into_string() else { continue };
            for slice in fs::read_dir(bucket.path())?.filter_map(Result::ok) {
                let name = slice.file_name().into_string().unwrap_or_default();
                let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem).to_owned();
                if !known.contains(&(bucket_name.clone(), stem)) {
                    tracing::info!(bucket = bucket_name, slice = name, "removing an orphan");
                    fs::remove_dir_all(slice.path())?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_starts_a_new_life_and_orphans_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = SliceFiles::new(dir.path());
        let first = files.open("b", "id.0", false).unwrap();
        assert_eq!(files.open("b", "id.0", false).unwrap(), first);
        let second = files.open("b", "id.0", true).unwrap();
        assert!(second != first && second.exists() && !first.exists());
        files.open("b", "gone.0", false).unwrap();
        files.remove_orphans(&BTreeSet::from([("b".to_owned(), "id.0".to_owned())])).unwrap();
        assert!(second.exists() && files.lives("b", "gone.0").is_empty());
        files.remove("b", "id.0").unwrap();
        assert!(!second.exists());
    }
}
