//! Room for one more in what is fed by messages.

use std::collections::BTreeMap;

/// Whether a map has room for `key`, or for what is known by it: at `most` entries the one that was heard longest ago makes
/// room, if that was before `before`.
pub(crate) fn make<K: Ord + Clone, V>(
    map: &mut BTreeMap<K, V>,
    key: &K,
    most: usize,
    before: u64,
    heard: impl Fn(&V) -> u64,
) -> bool {
    if map.len() < most || map.contains_key(key) {
        return true;
    }
    let oldest = map.iter().map(|(key, value)| (heard(value), key)).min_by_key(|(at, _)| *at);
    let Some(oldest) = oldest.filter(|(at, _)| *at < before).map(|(_, key)| key.clone()) else { return false };
    map.remove(&oldest);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_is_silent_longest_makes_room() {
        let mut map = BTreeMap::from([("a", 5), ("b", 3)]);
        let fits = |map: &mut BTreeMap<_, u64>, key, before| make(map, &key, 2, before, |at| *at);
        assert!(fits(&mut map, "a", 0), "it is there");
        assert!(!fits(&mut map, "c", 3), "all are there");
        assert!(fits(&mut map, "c", 4));
        assert_eq!(map.into_keys().collect::<Vec<_>>(), ["a"]);
    }
}
