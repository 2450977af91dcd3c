//! What a node has told, and what is yet to be told.

use super::{Item, Key, MOST_ITEMS, PART_BYTES, ReportPart, Told};
use crate::api::{NodeKind, json_size};
use std::collections::{BTreeMap, BTreeSet};

/// The report of one node. Pure: who sends it takes part after part.
#[derive(Debug, Default)]
pub struct Reporter {
    term: u64,
    told: Told,
    /// What counts, by bucket; what is in `waiting` is yet to be told.
    items: BTreeMap<String, BTreeMap<Key, Item>>,
    count: usize,
    /// Of each bucket, those beyond [`MOST_ITEMS`].
    untold: BTreeMap<String, usize>,
    /// What has changed, or is gone.
    waiting: BTreeSet<(String, Key)>,
    /// Not everything was told once in this edition.
    begins: bool,
}

impl Reporter {
    /// Begins a new edition, in this term: all that is set from now on is told.
    pub fn begin(&mut self, term: u64) {
        self.term = term;
        self.told = Told { edition: self.told.edition + 1, parts: 0 };
        self.items.clear();
        self.count = 0;
        self.untold.clear();
        self.waiting.clear();
        self.begins = true;
    }

    /// The term of the edition.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// What was taken so far.
    pub fn told(&self) -> Told {
        self.told
    }

    /// All items of a bucket; none: it is gone.
    pub fn set(&mut self, bucket: &str, items: Vec<Item>) {
        let mut before = self.items.remove(bucket).unwrap_or_default();
        self.count -= before.len();
        let (mut after, mut untold) = (BTreeMap::new(), 0);
        for item in items {
            let key = item.key();
            // An ST that was applied is told once in an edition.
            let known = before.remove(&key);
            let old = known.as_ref().is_some_and(|known| *known == item || key == Key::Applied);
            if !old {
                if self.count + after.len() >= MOST_ITEMS {
                    untold += 1;
                    continue;
                }
                self.waiting.insert((bucket.to_owned(), key.clone()));
            }
            after.insert(key, known.filter(|_| old).unwrap_or(item));
        }
        self.waiting.extend(before.into_keys().map(|key| (bucket.to_owned(), key)));
        self.count += after.len();
        self.untold.remove(bucket);
        if untold > 0 {
            self.untold.insert(bucket.to_owned(), untold);
        }
        if !after.is_empty() {
            self.items.insert(bucket.to_owned(), after);
        }
    }

    /// How many items are not told, being more than [`MOST_ITEMS`].
    pub fn untold(&self) -> usize {
        self.untold.values().sum()
    }

    /// Buckets that are not among these have no items any more.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        let known = self.items.keys().chain(self.untold.keys());
        let gone: BTreeSet<String> = known.filter(|bucket| !is_there(bucket)).cloned().collect();
        for bucket in gone {
            self.set(&bucket, Vec::new());
        }
    }

    /// Everything was told.
    pub fn is_told(&self) -> bool {
        !self.begins && self.waiting.is_empty()
    }

    /// The next part of what is yet to be told. None: everything was.
    pub fn next_part(&mut self, node: &str, kind: NodeKind, incarnation: u64) -> Option<ReportPart> {
        if self.is_told() {
            return None;
        }
        let (mut items, mut gone, mut size) = (Vec::new(), Vec::new(), 0);
        while let Some((bucket, key)) = self.waiting.pop_first() {
            let item = self.items.get(&bucket).and_then(|items| items.get(&key));
            let own = item.map_or(bucket.len() + 64, |item| json_size(item) + 1);
            if size > 0 && size + own > PART_BYTES {
                self.waiting.insert((bucket, key));
                break;
            }
            size += own;
            match item {
                Some(item) => items.push(item.clone()),
                None => gone.push((bucket, key)),
            }
        }
        let whole = self.begins && self.waiting.is_empty();
        if whole {
            self.begins = false;
        }
        let Told { edition, parts } = self.told;
        self.told.parts += 1;
        let (node, term) = (node.to_owned(), self.term);
        Some(ReportPart { node, kind, incarnation, term, edition, part: parts, whole, items, gone })
    }
}
