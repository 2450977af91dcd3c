//! Random documents, random writes, and the indexes over them.

use crate::{
    oracle::{Index, at},
    order::compare,
    rng::Rng,
    source::{Op, Write},
};
use serde_json::{Map, Value, json};
use std::cmp::Ordering;

const CITIES: [&str; 8] = ["Oslo", "Łódź", "São Paulo", "Nuuk", "", "Xi'an", "Graz", "Ürümqi \u{0} end"];

/// A document with some fields missing, null or of another type.
pub fn document(rng: &mut Rng) -> Value {
    let mut fields = Map::new();
    let mut put = |rng: &mut Rng, name: &str, percent: u64, value: Value| {
        if rng.chance(percent) {
            fields.insert(name.to_owned(), value);
        }
    };
    let age = match rng.below(12) {
        0 => odd(rng),
        1 => json!(rng.below(80) as f64 / 2.0),
        2 => json!(9_007_199_254_740_990u64 + rng.below(6)),
        3 => json!(-(rng.below(30) as i64)),
        _ => json!(rng.below(60)),
    };
    put(rng, "age", 90, age);
    let city = *rng.pick(&CITIES);
    let address = match rng.below(8) {
        0 => odd(rng),
        1 => json!({}),
        _ => json!({"city": city, "zip": rng.below(5)}),
    };
    put(rng, "address", 90, address);
    let city = if rng.chance(90) { json!(rng.pick(&CITIES)) } else { odd(rng) };
    put(rng, "city", 85, city);
    let active = if rng.chance(90) { json!(rng.chance(60)) } else { odd(rng) };
    put(rng, "active", 85, active);
    let score = if rng.chance(90) { json!(rng.below(100)) } else { odd(rng) };
    put(rng, "score", 85, score);
    let name = json!(format!("n{}", rng.below(1000)));
    put(rng, "name", 80, name);
    Value::Object(fields)
}

fn odd(rng: &mut Rng) -> Value {
    match rng.below(8) {
        0 => json!(null),
        1 => json!(true),
        2 => json!(false),
        3 => json!("text"),
        4 => json!([1, rng.below(3), "x"]),
        5 => json!({"a": rng.below(3)}),
        6 => json!([]),
        _ => json!(-0.5),
    }
}

/// A write to one of `ids` docids in one of `streams` streams.
pub fn write(rng: &mut Rng, streams: usize, ids: u64) -> Write {
    let vb = rng.below(streams as u64) as usize;
    // A third of the writes goes to few documents.
    let number = if rng.chance(33) { rng.below(4) } else { rng.below(ids) };
    let id = if number % 5 == 0 { format!("group.{}.d{number}", number % 3) } else { format!("d{number}") };
    let op = match rng.below(100) {
        0..12 => Op::Delete,
        12..18 => Op::Purge,
        18..20 => Op::Put("{\"age\": 1, not json".into()),
        _ => Op::Put(document(rng).to_string().into()),
    };
    Write { vb, id, op }
}

/// A composite index with both directions, a nested path, a partial one with included fields, a primary one, a partitioned one.
pub fn indexes(partitions: u32) -> Vec<Index> {
    let new = |name: &str, keys: &[(&'static str, bool)]| Index {
        name: name.into(),
        keys: keys.to_vec(),
        ..Index::default()
    };
    vec![
        new("by_age_city", &[("age", true), ("city", false), ("score", true)]),
        new("by_nested_city", &[("address.city", false)]),
        Index {
            condition: Some(("active = true AND (score >= 50 OR NOT city = 'Oslo') AND age IS NOT MISSING", |d| {
                let either = or(test(d, "score", Ordering::is_ge, &json!(50)), not(equal(d, "city", &json!("Oslo"))));
                and(and(equal(d, "active", &json!(true)), either), Some(at(d, "age").is_some()))
            })),
            include: vec!["name", "address.city"],
            ..new("active_by_score", &[("score", false), ("age", false)])
        },
        new("primary", &[]),
        Index { partitions, include: vec!["age"], ..new("by_city_parted", &[("city", false), ("age", true)]) },
    ]
}

/// An index that is created and dropped while documents flow.
pub fn passing(name: &str) -> Index {
    Index {
        name: name.into(),
        keys: vec![("name", true), ("active", false)],
        condition: Some(("address.city IS MISSING OR city IS NULL OR score < 70", |d| {
            let missing = Some(at(d, "address.city").is_none());
            let null = Some(at(d, "city") == Some(&Value::Null));
            or(or(missing, null), test(d, "score", Ordering::is_lt, &json!(70)))
        })),
        include: vec!["score"],
        partitions: 0,
    }
}

fn not(a: Option<bool>) -> Option<bool> {
    a.map(|a| !a)
}

fn and(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    if a == Some(false) || b == Some(false) { Some(false) } else { Some(a? && b?) }
}

fn or(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    not(and(not(a), not(b)))
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

/// Values of different types are not equal; with null or missing it is unknown.
fn equal(document: &Value, path: &str, literal: &Value) -> Option<bool> {
    let value = at(document, path).filter(|value| !value.is_null())?;
    Some(kind(value) == kind(literal) && compare(Some(value), Some(literal)).is_eq())
}

/// Which of two values of different types is the lesser is unknown.
fn test(document: &Value, path: &str, holds: fn(Ordering) -> bool, literal: &Value) -> Option<bool> {
    let value = at(document, path).filter(|value| kind(value) == kind(literal))?;
    Some(holds(compare(Some(value), Some(literal))))
}
