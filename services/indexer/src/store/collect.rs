//! Records collected in the order of their arrival, to be sorted once: what a build holds in memory.
//!
//! The bytes lie in chunks that never move, so collecting costs neither an allocation per record nor the copies of a growing
//! buffer.

use super::sort::{Item, sorted};

/// Bytes of the first chunk; each further one is as large as all before it, up to the largest. A longer record gets a chunk of
/// its own.
const FIRST_CHUNK: usize = 4 << 10;
const CHUNK: usize = 1 << 20;

/// Records of key and value.
#[derive(Default)]
pub(super) struct Collector {
    chunks: Vec<Vec<u8>>,
    recs: Vec<Rec>,
    bytes: usize,
}

struct Rec {
    chunk: u32,
    at: u32,
    value_len: u32,
    key_len: u16,
}

impl Collector {
    pub fn is_empty(&self) -> bool {
        self.recs.is_empty()
    }
    pub fn len(&self) -> usize {
        self.recs.len()
    }

    /// Bytes held, with what sorting them takes.
    pub fn memory(&self) -> usize {
        self.bytes + self.recs.capacity() * size_of::<Rec>() + self.recs.len() * size_of::<Item>()
    }

    /// Adds a record with the key that the two parts make up.
    pub fn push(&mut self, key: [&[u8]; 2], value: &[u8]) {
        let len = key[0].len() + key[1].len() + value.len();
        if self.chunks.last().is_none_or(|c| c.capacity() - c.len() < len) {
            let chunk = Vec::with_capacity(len.max(self.bytes.clamp(FIRST_CHUNK, CHUNK)));
            self.bytes += chunk.capacity();
            self.chunks.push(chunk);
        }
        let number = self.chunks.len() - 1;
        let chunk = &mut self.chunks[number];
        let at = chunk.len() as u32;
        chunk.extend_from_slice(key[0]);
        chunk.extend_from_slice(key[1]);
        chunk.extend_from_slice(value);
        let key_len = (key[0].len() + key[1].len()) as u16;
        self.recs.push(Rec { chunk: number as u32, at, value_len: value.len() as u32, key_len });
    }

    pub fn key(&self, i: u32) -> &[u8] {
        let rec = &self.recs[i as usize];
        &self.chunks[rec.chunk as usize][rec.at as usize..][..usize::from(rec.key_len)]
    }

    /// Key and value of a record.
    pub fn get(&self, i: u32) -> (&[u8], &[u8]) {
        let rec = &self.recs[i as usize];
        let (key, rest) = self.chunks[rec.chunk as usize][rec.at as usize..].split_at(usize::from(rec.key_len));
        (key, &rest[..rec.value_len as usize])
    }

    /// The records, keys ascending; those with equal keys in the order of their arrival.
    pub fn sorted(&self) -> Vec<Item> {
        sorted((0..self.recs.len() as u32).map(|i| (0, i)), |_, i| self.key(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_sorted_and_whole_also_long_ones() {
        let mut collector = Collector::default();
        let long = vec![7; CHUNK + 1];
        collector.push([b"b", b"2"], b"two");
        collector.push([b"a", b""], &long);
        collector.push([b"b", b"2"], b"again");
        collector.push([b"", b"c"], b"");
        let got: Vec<_> = collector.sorted().iter().map(|i| collector.get(i.rec)).collect();
        assert_eq!(got, [(&b"a"[..], &long[..]), (b"b2", b"two"), (b"b2", b"again"), (b"c", b"")]);
        assert!(collector.memory() > 2 * CHUNK && collector.len() == 4);
    }
}
