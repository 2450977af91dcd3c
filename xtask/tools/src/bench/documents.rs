//! The bench's documents: seeded, about 200 bytes each, the same on every machine.

use super::BUCKET;
use bytes::Bytes;
use std::fmt::Write;

const SEED: u64 = 0x48_49_47_48_57_41_54_52;
pub const AGES: std::ops::RangeInclusive<u64> = 18..=97;

const FIRST: [&str; 16] = [
    "Ada",
    "Grace",
    "Alan",
    "Barbara",
    "Edsger",
    "Katherine",
    "Donald",
    "Frances",
    "Dennis",
    "Margaret",
    "Niklaus",
    "Radia",
    "Leslie",
    "Sophie",
    "Claude",
    "Hedy",
];
const LAST: [&str; 16] = [
    "Lovelace", "Hopper", "Turing", "Liskov", "Dijkstra", "Johnson", "Knuth", "Allen", "Ritchie", "Hamilton", "Wirth",
    "Perlman", "Lamport", "Wilson", "Shannon", "Lamarr",
];
const PLACE: [&str; 25] = [
    "North", "South", "East", "West", "High", "Low", "New", "Old", "Upper", "Lower", "Spring", "Summer", "Winter",
    "River", "Lake", "Stone", "Green", "White", "Black", "Silver", "Golden", "Cedar", "Maple", "Oak", "Elm",
];
const KIND: [&str; 20] = [
    "haven", "ford", "bridge", "field", "wood", "ton", "ville", "port", "mouth", "dale", "hill", "water", "gate",
    "church", "castle", "burgh", "stead", "well", "cliff", "shore",
];
const TAGS: [&str; 12] = [
    "premium",
    "newsletter",
    "early-adopter",
    "mobile",
    "desktop",
    "beta",
    "wholesale",
    "returning",
    "partner",
    "verified",
    "trial",
    "archived",
];

/// A small seeded generator (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(SEED ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One document's fields that matter for its index entries.
pub struct Document {
    pub id: String,
    pub name: String,
    pub age: u64,
    pub city: String,
    pub json: Bytes,
}

/// Document `number` in its `version`-th shape; 0 is what is loaded first.
pub fn document(number: u64, version: u64) -> Document {
    let mut random = Random::new(number.wrapping_add(version.wrapping_mul(0x0100_0000_01b3)));
    let (first, last) = (random.pick(&FIRST), random.pick(&LAST));
    let city = city(random.below((PLACE.len() * KIND.len()) as u64));
    let age = AGES.start() + random.below(AGES.end() - AGES.start() + 1);
    let id = format!("u{number:08}");
    let mut json = format!(
        "{{\"id\":\"{id}\",\"name\":\"{first} {last}\",\"age\":{age},\"city\":\"{city}\",\
         \"email\":\"{first}.{last}.{number}@mail.example.org\",\"tags\":["
    );
    for i in 0..7 {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(json, "{comma}\"{}\"", random.pick(&TAGS));
    }
    json.push_str("]}");
    Document { id, name: format!("{first} {last}"), age, city, json: json.into() }
}

/// The name of city `number`.
pub fn city(number: u64) -> String {
    let number = number as usize % (PLACE.len() * KIND.len());
    format!("{}{}", PLACE[number / KIND.len()], KIND[number % KIND.len()])
}

/// The subject of a document's key.
pub fn subject(id: &str) -> String {
    format!("$KV.{BUCKET}.{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_json_of_about_200_bytes_and_always_the_same() {
        let total: usize = (0..1_000).map(|number| document(number, 0).json.len()).sum();
        assert!((180..220).contains(&(total / 1_000)), "{}", total / 1_000);
        let one = document(7, 0);
        let value: serde_json::Value = serde_json::from_slice(&one.json).unwrap();
        assert_eq!(value["age"], one.age);
        assert_eq!(one.json, document(7, 0).json);
        assert_ne!(one.json, document(7, 1).json);
    }
}
