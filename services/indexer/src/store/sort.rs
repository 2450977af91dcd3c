//! Sorting records by keys that lie elsewhere.
//!
//! Keys of an index share long prefixes: a city, an age, then the docid. Comparing them whole looks at the same bytes again and
//! again, in memory that is far apart. So eight bytes of each key are fetched behind what all keys share, the records are sorted
//! by these, and records with the same eight are sorted by what follows. The sort is stable, and records often arrive in the
//! order of their docids, so what is left after the first bytes is mostly in order: looked at once, and left as it is.

/// A record of one of several sources, with a piece of its key at hand.
pub(super) struct Item {
    piece: u64,
    pub source: u32,
    pub rec: u32,
}

const PIECE: usize = 8;
/// So few records are compared whole.
const FEW: usize = 24;

/// Sorts (source, record) pairs by key; records with equal keys stay in the order given.
pub(super) fn sorted<'a>(pairs: impl Iterator<Item = (u32, u32)>, key: impl Fn(u32, u32) -> &'a [u8]) -> Vec<Item> {
    let mut items: Vec<Item> = pairs.map(|(source, rec)| Item { piece: 0, source, rec }).collect();
    let key = |item: &Item| key(item.source, item.rec);
    // What is still to be sorted: a range of items, and how many bytes of their keys are equal.
    let mut todo = vec![(0, items.len(), 0)];
    while let Some((from, to, equal)) = todo.pop() {
        let group = &mut items[from..to];
        let shared = match look(group, equal, &key) {
            Look::Sorted => continue,
            Look::Mixed { shared, shortest } if group.len() > FEW && shortest >= shared + PIECE => shared,
            Look::Mixed { .. } => {
                group.sort_by(|a, b| key(a)[equal..].cmp(&key(b)[equal..]));
                continue;
            }
        };
        for item in group.iter_mut() {
            let piece = key(item)[shared..].first_chunk::<PIECE>().copied().unwrap_or_default();
            item.piece = u64::from_be_bytes(piece);
        }
        group.sort_by_key(|item| item.piece);
        let mut at = from;
        for part in group.chunk_by(|a, b| a.piece == b.piece) {
            if part.len() > 1 {
                todo.push((at, at + part.len(), shared + PIECE));
            }
            at += part.len();
        }
    }
    items
}

enum Look {
    Sorted,
    Mixed { shared: usize, shortest: usize },
}

/// Looks at keys that are equal in their first bytes: are they in order, and how much more do they share?
fn look<'a>(group: &[Item], equal: usize, key: &impl Fn(&Item) -> &'a [u8]) -> Look {
    let Some((first, rest)) = group.split_first() else { return Look::Sorted };
    let first = key(first);
    let (mut before, mut in_order, mut shortest) = (first, true, first.len());
    for item in rest {
        let key = key(item);
        in_order &= before[equal..] <= key[equal..];
        shortest = shortest.min(key.len());
        before = key;
    }
    if in_order {
        return Look::Sorted;
    }
    let mut shared = first.len();
    for item in rest {
        let key = key(item);
        if key.get(..shared) != first.get(..shared) {
            shared = equal + key[equal..].iter().zip(&first[equal..]).take_while(|(a, b)| a == b).count();
        }
    }
    Look::Mixed { shared, shortest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    proptest! {
        #[test]
        fn sorts_as_whole_keys_do_and_keeps_the_order_of_equal_ones(
            mut keys in vec((0usize..3, vec(prop_oneof![Just(0u8), Just(1), Just(255)], 0..22)), 0..160),
            ends in any::<bool>(),
        ) {
            // Long shared prefixes, and ends that only the last bytes tell apart.
            for (prefix, key) in &mut keys {
                let mut whole = [&b"a city with a long name"[..], b"a city with another", b""][*prefix].to_vec();
                whole.append(key);
                *key = whole;
                if ends {
                    key.extend_from_slice(b"12345678");
                }
            }
            let mut expected: Vec<u32> = (0..keys.len() as u32).collect();
            expected.sort_by(|a, b| keys[*a as usize].1.cmp(&keys[*b as usize].1));
            let got = sorted((0..keys.len() as u32).map(|i| (0, i)), |_, i| &keys[i as usize].1);
            prop_assert_eq!(got.iter().map(|i| i.rec).collect::<Vec<_>>(), expected);
        }
    }
}
