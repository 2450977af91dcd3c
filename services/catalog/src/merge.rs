//! Merges the pages of several partitions in entry-key order.

use highwater_schemas::wire::{Row, Rows};
use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, binary_heap::PeekMut},
};

/// One partition's page.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    pub rows: &'a Rows,
    /// The partition has rows behind these.
    pub more: bool,
}

/// Yields the rows of all pages in order, up to where a page ends whose partition has more: what follows there is unknown.
#[derive(Debug)]
pub struct Merge<'a> {
    pages: &'a [Page<'a>],
    heads: BinaryHeap<Reverse<Head<'a>>>,
    /// A partition's next row is unknown.
    cut: bool,
}

/// The next row of a page.
#[derive(Debug)]
struct Head<'a> {
    row: Row<'a>,
    page: usize,
    /// Its place in the page.
    at: usize,
    reverse: bool,
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = self.row.key.cmp(other.row.key);
        if self.reverse { order.reverse() } else { order }
    }
}
impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Head<'_> {}

impl<'a> Merge<'a> {
    pub fn new(pages: &'a [Page<'a>], reverse: bool) -> Self {
        let mut cut = false;
        let mut heads = BinaryHeap::with_capacity(pages.len());
        for (i, page) in pages.iter().enumerate() {
            match page.rows.get(0) {
                Some(row) => heads.push(Reverse(Head { row, page: i, at: 0, reverse })),
                None => cut |= page.more,
            }
        }
        Self { pages, heads, cut }
    }

    /// Whether rows follow those that were yielded, here or in the partitions.
    pub fn more(&self) -> bool {
        self.cut || !self.heads.is_empty()
    }
}

impl<'a> Iterator for Merge<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        if self.cut {
            return None;
        }
        let mut top = self.heads.peek_mut()?;
        let head = &mut top.0;
        let row = head.row;
        let page = &self.pages[head.page];
        head.at += 1;
        if let Some(next) = page.rows.get(head.at) {
            head.row = next;
        } else {
            self.cut = page.more;
            PeekMut::pop(top);
        }
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn rows<'a>(keys: impl Iterator<Item = &'a Vec<u8>>) -> Rows {
        let mut rows = Rows::default();
        keys.for_each(|key| rows.push(key, b"{}"));
        rows
    }

    proptest! {
        /// Distinct keys are dealt to partitions and pages cut anywhere: what comes out is a prefix of the sorted whole, all of
        /// it when nothing was cut, and going on behind its last key gives the rest.
        #[test]
        fn pages_merged_one_after_the_other_are_the_sorted_whole(
            keys in proptest::collection::btree_set(proptest::collection::vec(any::<u8>(), 1..4), 0..60),
            deal in proptest::collection::vec(0usize..4, 60),
            size in 1usize..12,
            reverse in any::<bool>(),
        ) {
            let mut parts = vec![BTreeSet::new(); 4];
            keys.iter().zip(&deal).for_each(|(key, part)| { parts[*part].insert(key.clone()); });
            let mut whole: Vec<Vec<u8>> = keys.into_iter().collect();
            if reverse {
                whole.reverse();
            }
            let mut merged: Vec<Vec<u8>> = Vec::new();
            for _ in 0..=whole.len() {
                let after = merged.last().cloned();
                let behind = |key: &&Vec<u8>| after.as_ref().is_none_or(|a| if reverse { *key < a } else { *key > a });
                let rest: Vec<Vec<&Vec<u8>>> = parts.iter().map(|part| {
                    let mut rest: Vec<&Vec<u8>> = part.iter().filter(behind).collect();
                    if reverse {
                        rest.reverse();
                    }
                    rest
                }).collect();
                let data: Vec<Rows> = rest.iter().map(|keys| rows(keys.iter().take(size).copied())).collect();
                let pages: Vec<Page> = data.iter().zip(&rest).map(|(rows, rest)| Page { rows, more: rest.len() > size }).collect();
                let mut merge = Merge::new(&pages, reverse);
                let before = merged.len();
                merged.extend(merge.by_ref().map(|row| row.key.to_vec()));
                if !merge.more() {
                    break;
                }
                prop_assert!(merged.len() > before, "a page makes progress");
            }
            prop_assert_eq!(merged, whole);
        }
    }

    #[test]
    fn a_partition_that_gave_nothing_but_has_more_stops_the_merge() {
        let (full, empty) = (rows([vec![1]].iter()), Rows::default());
        let pages = [Page { rows: &full, more: false }, Page { rows: &empty, more: true }];
        let mut merge = Merge::new(&pages, false);
        assert!(merge.next().is_none());
        assert!(merge.more());
    }
}
