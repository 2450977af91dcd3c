//! Checking the pages of an LMDB file before LMDB maps it.
//!
//! LMDB trusts its file: a page number or an offset that a disk made up ends in a crash of the process, not in an error. What
//! is looked at here is what LMDB follows: the meta pages, the list of databases, and the pages of their trees, each within the
//! file, of the right kind and reached once. Branches, free pages and names are a hundredth of a file and checked on every
//! opening; so are the leaves of a file that is not large. Those of a large file are checked beside its use, against the
//! commit that was the newest when the check began. What a leaf *says* is for the checks of the records in it.
//!
//! The layout is that of LMDB's data version 1 on 64-bit little-endian machines. How large a page is says the file: LMDB makes one
//! with the page size of the system, up to 32 KiB, and reads and writes it on any other system as it was made.

use super::StoreError;
use std::{fs::File, io, ops::RangeInclusive, os::unix::fs::FileExt, path::Path};

/// Page sizes that LMDB can have made a file with; each is a power of two.
const PAGE_SIZES: RangeInclusive<u32> = 512..=32_768;
/// Where the first meta page says how large pages are.
const PAGE_SIZE_AT: usize = HEADER + 24;
const HEADER: usize = 16;
const NODE: usize = 8;
/// A database's record: pad u32, flags u16, depth u16, branch, leaf and overflow pages, entries, root: u64 each.
const DATABASE: usize = 48;
const META_MAGIC: u32 = 0xBEEF_C0DE;
const META_VERSION: u32 = 1;
const META: usize = HEADER + 24 + 2 * DATABASE + 16;
const NO_PAGE: u64 = u64::MAX;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META_PAGE: u16 = 0x08;
const BIG: u16 = 0x01;
const SUB_DATABASE: u16 = 0x02;
const FREE_PAGES: &str = "free pages";
const NAMES: &str = "names";
/// Of LMDB's cursors.
const MOST_DEPTH: u16 = 32;
/// Elsewhere nothing is checked.
const KNOWN: bool = cfg!(all(target_endian = "little", target_pointer_width = "64"));

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    Branches,
    Leaves,
}

/// Checks a file that nobody writes; one that is empty has not been written yet.
pub(super) fn check(path: &Path, depth: Depth) -> Result<(), StoreError> {
    let file = File::open(path)?;
    if !KNOWN || file.metadata()?.len() == 0 {
        return Ok(());
    }
    walk(file, depth)
}

/// How large the pages of a file are, bytes.
pub(super) fn page_size(file: &File) -> Result<usize, StoreError> {
    let mut head = [0; PAGE_SIZE_AT + 4];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged("page 0 is cut off")),
        Err(e) => return Err(e.into()),
    }
    if u16_at(&head, 10) & META_PAGE == 0 || u32_at(&head, HEADER) != META_MAGIC {
        return Err(damaged("meta page 0 has no magic"));
    }
    let size = u32_at(&head, PAGE_SIZE_AT);
    if !PAGE_SIZES.contains(&size) || !size.is_power_of_two() {
        return Err(damaged(format!("pages of {size} bytes")));
    }
    Ok(size as usize)
}

/// The pages of one commit, to be checked later, as long as somebody keeps that commit's pages from being used again.
pub(super) struct Commit(Option<(Walk, Root)>);

impl Commit {
    /// Finds the commit, one of the two newest.
    pub fn find(path: &Path, commit: u64) -> Result<Self, StoreError> {
        if !KNOWN {
            return Ok(Self(None));
        }
        let walk = Walk::new(File::open(path)?, Depth::Leaves)?;
        let root = walk.roots()?.into_iter().find(|root| root.transaction == commit);
        Ok(Self(Some((walk, root.ok_or_else(|| damaged(format!("no meta page of commit {commit}")))?))))
    }

    /// Checks all its pages.
    pub fn check(self) -> Result<(), StoreError> {
        self.0.map_or(Ok(()), |(walk, root)| walk.run(root))
    }
}

fn walk(file: File, depth: Depth) -> Result<(), StoreError> {
    let walk = Walk::new(file, depth)?;
    let [first, second] = walk.roots()?;
    walk.run(if second.transaction > first.transaction { second } else { first })
}

struct Walk {
    file: File,
    /// Bytes of a page.
    page: usize,
    /// Whole pages in the file.
    pages: u64,
    /// One bit for each page that a tree has reached.
    seen: Vec<u64>,
    depth: Depth,
}

/// What a meta page says: whose commit it is, the last page, the trees of free pages and of names.
#[derive(Clone, Copy)]
struct Root {
    transaction: u64,
    last: u64,
    free: Tree,
    main: Tree,
}

#[derive(Clone, Copy)]
struct Tree {
    depth: u16,
    branches: u64,
    leaves: u64,
    overflows: u64,
    entries: u64,
    root: u64,
}

fn damaged(what: impl std::fmt::Display) -> StoreError {
    StoreError::damaged(format!("data file: {what}"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | (u32::from(u16_at(bytes, at + 2)) << 16)
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}

impl Tree {
    fn read(bytes: &[u8]) -> Self {
        Self {
            depth: u16_at(bytes, 6),
            branches: u64_at(bytes, 8),
            leaves: u64_at(bytes, 16),
            overflows: u64_at(bytes, 24),
            entries: u64_at(bytes, 32),
            root: u64_at(bytes, 40),
        }
    }
}

impl Walk {
    fn read(&self, number: u64) -> Result<Vec<u8>, StoreError> {
        let mut page = vec![0; self.page];
        match self.file.read_exact_at(&mut page, self.at(number)) {
            Ok(()) => Ok(page),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(damaged(format!("page {number} is cut off"))),
            Err(e) => Err(e.into()),
        }
    }

    fn new(file: File, depth: Depth) -> Result<Self, StoreError> {
        let page = page_size(&file)?;
        let pages = file.metadata()?.len() / page as u64;
        Ok(Self { file, page, pages, seen: Vec::new(), depth })
    }

    /// Where a page lies in the file.
    fn at(&self, number: u64) -> u64 {
        number * self.page as u64
    }

    fn roots(&self) -> Result<[Root; 2], StoreError> {
        Ok([self.meta(0)?, self.meta(1)?])
    }

    fn run(mut self, root: Root) -> Result<(), StoreError> {
        let Root { transaction, last, free, main } = root;
        if transaction == 0 {
            return Ok(());
        }
        self.seen.resize((self.pages / 64 + 1) as usize, 0);
        let mut lists = Vec::new();
        self.tree(FREE_PAGES, free, last, Depth::Leaves, &mut |node| {
            lists.push(node.data.to_vec());
            Ok(())
        })?;
        for list in lists {
            self.free_list(&list, last)?;
        }
        let mut named = Vec::new();
        self.tree(NAMES, main, last, Depth::Leaves, &mut |node| {
            if node.flags & SUB_DATABASE != 0 {
                if node.data.len() < DATABASE {
                    return Err(damaged("a database's record is too short"));
                }
                named.push((String::from_utf8_lossy(node.key).into_owned(), Tree::read(node.data)));
            }
            Ok(())
        })?;
        for (name, tree) in named {
            let depth = if name == "meta" || name == "snap" { Depth::Leaves } else { self.depth };
            self.tree(&name, tree, last, depth, &mut |_| Ok(()))?;
        }
        Ok(())
    }

    fn meta(&self, number: u64) -> Result<Root, StoreError> {
        let page = self.read(number)?;
        let at = PAGE_SIZE_AT;
        let page_size = u32_at(&page, at);
        if u16_at(&page, 10) & META_PAGE == 0
            || u32_at(&page, HEADER) != META_MAGIC
            || u32_at(&page, HEADER + 4) != META_VERSION
        {
            return Err(damaged(format!("meta page {number} has no magic")));
        }
        if page_size as usize != self.page {
            return Err(damaged(format!("meta page {number} says that pages have {page_size} bytes")));
        }
        let (free, main) = (Tree::read(&page[at..]), Tree::read(&page[at + DATABASE..]));
        let (map, last) = (u64_at(&page, HEADER + 16), u64_at(&page, META - 16));
        // The last pages may be free and not written yet, but none lies beyond the map.
        if last >= (map / self.page as u64).max(self.pages) {
            return Err(damaged(format!("meta page {number} counts pages that cannot be")));
        }
        Ok(Root { transaction: u64_at(&page, META - 8), last, free, main })
    }

    fn tree(
        &mut self,
        name: &str,
        tree: Tree,
        last: u64,
        depth: Depth,
        visit: &mut dyn FnMut(&Node<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if tree.root == NO_PAGE {
            return if tree.depth == 0 { Ok(()) } else { Err(damaged(format!("{name} has no root"))) };
        }
        if tree.depth == 0 || tree.depth > MOST_DEPTH {
            return Err(damaged(format!("{name} has a depth of {}", tree.depth)));
        }
        let wrong = |page: u64, what: &str| damaged(format!("{name}, page {page}: {what}"));
        let (mut branches, mut leaves, mut overflows, mut entries) = (0, 0, 0, 0);
        let mut stack = vec![(tree.root, 1)];
        while let Some((number, level)) = stack.pop() {
            if number < 2 || number > last || number >= self.pages || !self.first_time(number, 1) {
                return Err(wrong(number, "lies outside the file, or is used twice"));
            }
            let is_leaf = level == tree.depth;
            if is_leaf {
                leaves += 1;
                if depth == Depth::Branches {
                    continue;
                }
            } else {
                branches += 1;
            }
            let page = self.read(number)?;
            let (flags, kind) = (u16_at(&page, 10), if is_leaf { LEAF } else { BRANCH });
            let (lower, upper) = (usize::from(u16_at(&page, 12)), usize::from(u16_at(&page, 14)));
            if u64_at(&page, 0) != number || flags != kind {
                return Err(wrong(number, "is of another kind"));
            }
            if lower < HEADER || lower > upper || upper > self.page || lower % 2 != 0 || lower == HEADER {
                return Err(wrong(number, "has impossible bounds"));
            }
            let (mut used, mut before): (usize, Option<&[u8]>) = (0, None);
            for slot in (HEADER..lower).step_by(2) {
                let node = node(&page, slot, upper, is_leaf).ok_or_else(|| wrong(number, "a node does not fit"))?;
                used += node.bytes;
                // The first key of a branch is not used; free pages have numbers for keys.
                if name != FREE_PAGES && before.is_some_and(|before| before >= node.key) {
                    return Err(wrong(number, "keys do not ascend"));
                }
                before = (is_leaf || slot > HEADER).then_some(node.key);
                if is_leaf && node.flags & !(if name == NAMES { SUB_DATABASE } else { BIG }) != 0 {
                    return Err(wrong(number, "a node is of another kind"));
                }
                entries += u64::from(is_leaf);
                if !is_leaf {
                    stack.push((node.child, level + 1));
                } else if node.flags & BIG != 0 {
                    let first = u64_at(node.data, 0);
                    let count = self.overflow(first, node.size, last).ok_or_else(|| wrong(number, "overflow pages"))?;
                    overflows += count;
                    if name == FREE_PAGES {
                        let mut data = vec![0; node.size];
                        self.file.read_exact_at(&mut data, self.at(first) + HEADER as u64)?;
                        visit(&Node { data: &data, ..node })?;
                    }
                } else {
                    visit(&node)?;
                }
            }
            if used != self.page - upper {
                return Err(wrong(number, "nodes overlap"));
            }
        }
        let counted = (overflows, entries) != (tree.overflows, tree.entries) && depth == Depth::Leaves;
        if branches != tree.branches || leaves != tree.leaves || counted {
            return Err(damaged(format!("{name} has another number of pages or entries than its record says")));
        }
        Ok(())
    }

    /// A list of free pages: their number, then each. LMDB writes into them, so nothing else may use them.
    fn free_list(&mut self, list: &[u8], last: u64) -> Result<(), StoreError> {
        let count = u64_at(list, 0);
        if count.checked_add(1).and_then(|words| words.checked_mul(8)).is_none_or(|bytes| bytes > list.len() as u64) {
            return Err(damaged("a list of free pages is too short"));
        }
        for i in 1..=count as usize {
            let number = u64_at(list, i * 8);
            // LMDB counts on their descending.
            let descends = i == 1 || number < u64_at(list, (i - 1) * 8);
            if number < 2 || number > last || !descends || (number < self.pages && !self.first_time(number, 1)) {
                return Err(damaged(format!("page {number} cannot be free")));
            }
        }
        Ok(())
    }

    /// The number of overflow pages from page `first` on, if they can hold `size` bytes and are what they should be.
    fn overflow(&mut self, first: u64, size: usize, last: u64) -> Option<u64> {
        if first < 2 || first >= self.pages {
            return None;
        }
        let page = self.read(first).ok()?;
        // A value that became shorter stays where it is, so there may be more than it needs.
        let (count, needed) = (u64::from(u32_at(&page, 12)), ((HEADER - 1 + size) / self.page + 1) as u64);
        let end = first.checked_add(count)?;
        let good = u64_at(&page, 0) == first && u16_at(&page, 10) == OVERFLOW && count >= needed;
        (good && end <= last + 1 && end <= self.pages && self.first_time(first, count)).then_some(count)
    }

    /// Marks pages as reached; false if one was reached before.
    fn first_time(&mut self, first: u64, count: u64) -> bool {
        (first..first + count).all(|number| {
            let Some(word) = self.seen.get_mut((number / 64) as usize) else { return false };
            let bit = 1 << (number % 64);
            let fresh = *word & bit == 0;
            *word |= bit;
            fresh
        })
    }
}

struct Node<'a> {
    flags: u16,
    key: &'a [u8],
    /// In a branch.
    child: u64,
    /// In a leaf: the value, or the number of its first overflow page.
    data: &'a [u8],
    size: usize,
    /// What it takes of the page.
    bytes: usize,
}

fn node(page: &[u8], slot: usize, upper: usize, is_leaf: bool) -> Option<Node<'_>> {
    let at = usize::from(u16_at(page, slot));
    if at < upper || at % 2 != 0 {
        return None;
    }
    let head = page.get(at..at + NODE)?;
    let (low, high, flags) = (u16_at(head, 0), u16_at(head, 2), u16_at(head, 4));
    let key_end = at + NODE + usize::from(u16_at(head, 6));
    let key = page.get(at + NODE..key_end)?;
    let size = usize::from(low) | (usize::from(high) << 16);
    if !is_leaf {
        let child = u64::from(low) | (u64::from(high) << 16) | (u64::from(flags) << 32);
        let bytes = (NODE + key.len()).next_multiple_of(2);
        return Some(Node { flags: 0, key, child, data: &[], size: 0, bytes });
    }
    let stored = if flags & BIG != 0 { 8 } else { size };
    let data = page.get(key_end..key_end + stored)?;
    let bytes = (NODE + key.len() + stored).next_multiple_of(2);
    Some(Node { flags, key, child: 0, data, size, bytes })
}
