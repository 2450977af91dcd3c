//! Merging sorted sources: runs and what is in memory.

use super::{StoreError, collect::Collector, run::RunReader, sort::Item};
use std::cmp::Ordering;

/// Records with ascending keys.
pub(super) enum Source<'a> {
    Run(RunReader),
    Memory { records: &'a Collector, order: Vec<Item>, next: usize },
}

impl<'a> Source<'a> {
    pub fn memory(records: &'a Collector) -> Self {
        Self::Memory { records, order: records.sorted(), next: 0 }
    }

    fn advance(&mut self) -> Result<bool, StoreError> {
        match self {
            Self::Run(run) => run.advance(),
            Self::Memory { order, next, .. } => {
                *next += 1;
                Ok(*next <= order.len())
            }
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Self::Run(run) => run.key(),
            Self::Memory { records, order, next } => records.key(order[next - 1].rec),
        }
    }

    fn record(&self) -> (&[u8], &[u8]) {
        match self {
            Self::Run(run) => (run.key(), run.value()),
            Self::Memory { records, order, next } => records.get(order[next - 1].rec),
        }
    }
}

/// Visits every record of all sources, keys ascending; of equal keys that of the earlier source first.
pub(super) fn merge(
    mut sources: Vec<Source<'_>>,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut heap = Vec::with_capacity(sources.len());
    for (i, source) in sources.iter_mut().enumerate() {
        if source.advance()? {
            heap.push(i);
        }
    }
    for at in (0..heap.len() / 2).rev() {
        sift(&mut heap, &sources, at);
    }
    while let Some(&first) = heap.first() {
        let (key, value) = sources[first].record();
        visit(key, value)?;
        if !sources[first].advance()? {
            heap.swap_remove(0);
        }
        sift(&mut heap, &sources, 0);
    }
    Ok(())
}

fn sift(heap: &mut [usize], sources: &[Source<'_>], mut at: usize) {
    let before = |a: usize, b: usize| match sources[a].key().cmp(sources[b].key()) {
        Ordering::Equal => a < b,
        order => order.is_lt(),
    };
    loop {
        let mut least = at;
        for child in [2 * at + 1, 2 * at + 2] {
            if child < heap.len() && before(heap[child], heap[least]) {
                least = child;
            }
        }
        if least == at {
            return;
        }
        heap.swap(at, least);
        at = least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_come_in_the_order_of_their_sources() {
        let collector = |list: &[(&str, &str)]| {
            let mut out = Collector::default();
            for (k, v) in list {
                out.push([k.as_bytes(), b""], v.as_bytes());
            }
            out
        };
        let all = [
            collector(&[("d", "1"), ("a", "1"), ("b", "1")]),
            collector(&[("b", "2"), ("b", "3")]),
            collector(&[]),
            collector(&[("a", "4"), ("c", "4")]),
        ];
        let mut got = String::new();
        merge(all.iter().map(Source::memory).collect(), |key, value| {
            got.extend([key, value].map(|b| std::str::from_utf8(b).expect("text")));
            Ok(())
        })
        .expect("merges");
        assert_eq!(got, "a1a4b1b2b3c4d1");
    }
}
