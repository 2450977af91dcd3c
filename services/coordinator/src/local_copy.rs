//! The coordinator's own durable copy of the log: one record per line, appended and synced after the log acknowledged it.
//!
//! It answers one question at start: is the log in NATS the one that this coordinator wrote? A log that lost its tail is
//! completed from the copy; one that contradicts it is refused. A torn last line (a crash in the middle of a write) is dropped.

use highwater_schemas::state::StateContext;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

const FILE: &str = "state.log";

/// The open copy.
pub(crate) struct LocalCopy {
    file: File,
}

impl LocalCopy {
    /// Reads the copy; what follows a damaged record is dropped.
    pub(crate) fn open(dir: &Path) -> io::Result<(Self, Vec<Vec<u8>>)> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let (mut context, mut records, mut good) = (StateContext::default(), Vec::new(), 0);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let Some(record) = line.strip_suffix(b"\n") else { break };
            if context.apply_json(record).is_err() {
                break;
            }
            good += line.len() as u64;
            records.push(record.to_vec());
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.set_len(good)?;
        file.sync_all()?;
        Ok((Self { file }, records))
    }

    /// Starts over with these records.
    pub(crate) fn replace(&mut self, records: &[Vec<u8>]) -> io::Result<()> {
        self.file.set_len(0)?;
        for record in records {
            self.write(record)?;
        }
        self.file.sync_data()
    }

    pub(crate) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        self.write(record)?;
        self.file.sync_data()
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let mut line = record.to_vec();
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

/// How the log and the copy relate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// The copy is the log, or its beginning.
    LogIsAhead,
    /// The log is the beginning of the copy: these records are missing from it.
    LogLostTail(Vec<Vec<u8>>),
    /// They differ at this record.
    Contradiction(usize),
}

pub(crate) fn compare(log: &[Vec<u8>], copy: &[Vec<u8>]) -> Comparison {
    if let Some(at) = log.iter().zip(copy).position(|(a, b)| a != b) {
        return Comparison::Contradiction(at);
    }
    if copy.len() > log.len() {
        return Comparison::LogLostTail(copy[log.len()..].to_vec());
    }
    Comparison::LogIsAhead
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_compared_record_by_record() {
        let r = |s: &str| s.as_bytes().to_vec();
        assert_eq!(compare(&[r("a"), r("b")], &[r("a")]), Comparison::LogIsAhead);
        assert_eq!(compare(&[], &[]), Comparison::LogIsAhead);
        assert_eq!(compare(&[r("a")], &[r("a"), r("b")]), Comparison::LogLostTail(vec![r("b")]));
        assert_eq!(compare(&[r("a"), r("c")], &[r("a"), r("b")]), Comparison::Contradiction(1));
    }
}
