//! Sorted runs: files of a build that does not fit memory, and the points from which an interrupted build goes on.
//!
//! | part | bytes |
//! |---|---|
//! | head | magic `HWRN`, format version u32 |
//! | blocks | length u32, crc32 of the payload, payload: records of key length u16, value length u32, key, value |
//! | footer | as a block: a meta record (`meta.rs`), which counts the run's records |
//! | tail | offset of the footer u64, crc32 of that number, magic `NRWH` |
//!
//! All numbers are little-endian. Keys ascend; records with equal keys stand in the order of their arrival. A run is written
//! under another name, synced, and renamed: one that bears its name is whole. What a disk did to it later, checksums show.

use super::{
    StoreError,
    meta::{FORMAT_VERSION, Meta},
};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const HEAD: [u8; 4] = *b"HWRN";
const TAIL: [u8; 4] = *b"NRWH";
const TAIL_BYTES: u64 = 16;
const BLOCK_HEADER: usize = 8;
const RECORD_HEADER: usize = 6;
/// Payload at which a block is written; a record is never split.
const BLOCK: usize = 64 * 1024;
/// No block is larger: a message of NATS is not either.
const MOST_BLOCK: u32 = 80 << 20;
const EXTENSION: &str = "run";

/// Writes a run.
pub(super) struct RunWriter {
    file: File,
    path: PathBuf,
    block: Vec<u8>,
    at: u64,
}

impl RunWriter {
    /// Begins run `number` in `dir`, under a temporary name.
    pub fn create(dir: &Path, number: u32) -> Result<Self, StoreError> {
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{number:08}.tmp"));
        let mut file = File::create(&path)?;
        file.write_all(&HEAD)?;
        file.write_all(&FORMAT_VERSION.to_le_bytes())?;
        let block = vec![0; BLOCK_HEADER];
        Ok(Self { file, path, block, at: (HEAD.len() + size_of::<u32>()) as u64 })
    }

    /// Adds a record; keys must not descend.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.block.extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.block.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value);
        if self.block.len() > BLOCK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let payload = &self.block[BLOCK_HEADER..];
        let (len, crc) = (payload.len() as u32, crc32fast::hash(payload));
        self.block[..4].copy_from_slice(&len.to_le_bytes());
        self.block[4..BLOCK_HEADER].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all(&self.block)?;
        self.at += self.block.len() as u64;
        self.block.truncate(BLOCK_HEADER);
        Ok(())
    }

    /// Makes the run durable under its name.
    pub fn finish(mut self, meta: &Meta) -> Result<PathBuf, StoreError> {
        if self.block.len() > BLOCK_HEADER {
            self.flush()?;
        }
        let footer = self.at.to_le_bytes();
        self.block.extend_from_slice(&meta.encode());
        self.flush()?;
        self.file.write_all(&footer)?;
        self.file.write_all(&crc32fast::hash(&footer).to_le_bytes())?;
        self.file.write_all(&TAIL)?;
        self.file.sync_all()?;
        let path = self.path.with_extension(EXTENSION);
        fs::rename(&self.path, &path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(path)
    }
}

/// Reads a run, record by record.
pub(super) struct RunReader {
    file: File,
    /// Where the blocks end.
    footer: u64,
    at: u64,
    block: Vec<u8>,
    next: usize,
    key: (usize, usize),
    value: (usize, usize),
}

impl RunReader {
    /// Opens a run and reads its footer.
    pub fn open(path: &Path) -> Result<(Self, Meta), StoreError> {
        let damaged = |what: &str| StoreError::damaged(format!("run {}: {what}", path.display()));
        let mut file = File::open(path)?;
        let mut head = [0; 8];
        let end = file.seek(SeekFrom::End(0))?.checked_sub(TAIL_BYTES).ok_or_else(|| damaged("too short"))?;
        let mut tail = [0; TAIL_BYTES as usize];
        file.read_exact_at(&mut tail, end)?;
        file.read_exact_at(&mut head, 0)?;
        if head[..4] != HEAD {
            return Err(damaged("has no magic"));
        }
        let found = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if found != FORMAT_VERSION {
            return Err(StoreError::UnknownVersion { found, supported: FORMAT_VERSION });
        }
        let (footer, crc) = (super::value::u64_of(&tail[..8]), &tail[8..12]);
        if tail[12..] != TAIL || crc != crc32fast::hash(&tail[..8]).to_le_bytes() || footer >= end {
            return Err(damaged("has no end"));
        }
        let mut reader = Self { file, footer: end, at: footer, block: Vec::new(), next: 0, key: (0, 0), value: (0, 0) };
        reader.file.seek(SeekFrom::Start(footer))?;
        reader.load()?;
        let meta = Meta::decode(&reader.block)?;
        reader.file.seek(SeekFrom::Start(head.len() as u64))?;
        (reader.at, reader.footer, reader.next) = (head.len() as u64, footer, 0);
        reader.block.clear();
        Ok((reader, meta))
    }

    /// Goes to the next record; false at the end.
    pub fn advance(&mut self) -> Result<bool, StoreError> {
        if self.next == self.block.len() {
            if self.at == self.footer {
                return Ok(false);
            }
            self.load()?;
            self.next = 0;
        }
        let rest = &self.block[self.next..];
        let damaged = || StoreError::damaged("record of a run");
        let (header, rest) = rest.split_first_chunk::<RECORD_HEADER>().ok_or_else(damaged)?;
        let key = usize::from(u16::from_le_bytes([header[0], header[1]]));
        let value = u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize;
        if rest.len() < key + value {
            return Err(damaged());
        }
        let at = self.next + RECORD_HEADER;
        self.key = (at, at + key);
        self.value = (at + key, at + key + value);
        self.next = self.value.1;
        Ok(true)
    }

    pub fn key(&self) -> &[u8] {
        &self.block[self.key.0..self.key.1]
    }
    pub fn value(&self) -> &[u8] {
        &self.block[self.value.0..self.value.1]
    }

    fn load(&mut self) -> Result<(), StoreError> {
        let short = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => StoreError::damaged("block of a run ends early"),
            _ => e.into(),
        };
        let mut header = [0; BLOCK_HEADER];
        self.file.read_exact(&mut header).map_err(short)?;
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let end = self.at + BLOCK_HEADER as u64 + u64::from(len);
        if len == 0 || len > MOST_BLOCK || end > self.footer {
            return Err(StoreError::damaged("block of a run has a wrong length"));
        }
        self.block.resize(len as usize, 0);
        self.file.read_exact(&mut self.block).map_err(short)?;
        if crc32fast::hash(&self.block).to_le_bytes() != header[4..] {
            return Err(StoreError::damaged("block of a run fails its checksum"));
        }
        self.at = end;
        Ok(())
    }
}

/// A run with its number.
pub(super) type Numbered = (u32, PathBuf);

/// The runs of a directory, oldest first, and what an interrupted build left unfinished there.
pub(super) fn find(dir: &Path) -> Result<(Vec<Numbered>, Vec<PathBuf>), StoreError> {
    let (mut runs, mut unfinished) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((runs, unfinished)),
        Err(e) => return Err(e.into()),
    };
    for entry in entries {
        let path = entry?.path();
        let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
        match number.filter(|_| path.extension().is_some_and(|e| e == EXTENSION)) {
            Some(number) => runs.push((number, path)),
            None => unfinished.push(path),
        }
    }
    runs.sort();
    Ok((runs, unfinished))
}

/// The runs of a directory, oldest first; what is unfinished is removed.
pub(super) fn list(dir: &Path) -> Result<Vec<Numbered>, StoreError> {
    let (runs, unfinished) = find(dir)?;
    unfinished.iter().try_for_each(fs::remove_file)?;
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, records: &[(&[u8], &[u8])]) -> PathBuf {
        let mut writer = RunWriter::create(dir, 3).expect("creates");
        for (key, value) in records {
            writer.push(key, value).expect("writes");
        }
        writer.finish(&Meta { items: records.len() as u64, ..Meta::default() }).expect("finishes")
    }

    type Records = Vec<(Vec<u8>, Vec<u8>)>;

    fn read(path: &Path) -> Result<Records, StoreError> {
        let (mut reader, meta) = RunReader::open(path)?;
        let mut out = Vec::new();
        while reader.advance()? {
            out.push((reader.key().to_vec(), reader.value().to_vec()));
        }
        assert_eq!(out.len() as u64, meta.items);
        Ok(out)
    }

    #[test]
    fn a_run_is_read_as_written_and_every_damage_shows() {
        let dir = tempfile::tempdir().expect("a directory");
        let long = vec![9; BLOCK];
        let records: [(&[u8], &[u8]); 4] = [(b"a", b"1"), (b"a", &long), (b"b", b""), (b"c", b"3")];
        let path = write(dir.path(), &records);
        let got = read(&path).expect("reads");
        assert!(got.iter().map(|(k, v)| (&k[..], &v[..])).eq(records));
        fs::write(dir.path().join("00000009.tmp"), b"half a run").expect("writes");
        assert_eq!(list(dir.path()).expect("lists"), [(3, path.clone())]);
        assert!(!dir.path().join("00000009.tmp").exists());

        let whole = fs::read(&path).expect("reads");
        for at in (0..whole.len()).step_by(if whole.len() > 1_000 { 97 } else { 1 }) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).expect("writes");
            let error = read(&path).expect_err("damage shows");
            assert!(matches!(error, StoreError::Damaged(_) | StoreError::UnknownVersion { .. }), "byte {at}: {error}");
            fs::write(&path, &whole[..at]).expect("writes");
            assert!(read(&path).is_err(), "cut at {at}");
        }
    }
}
